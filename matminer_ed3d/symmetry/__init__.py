"""The symmetry of a density by the density itself: which operations hold, how well, and which group they make."""

from matminer_ed3d.symmetry.evidence import Operation
from matminer_ed3d.symmetry.finding import Candidate, DensitySymmetry, find_symmetry
from matminer_ed3d.symmetry.groups import GroupType
from matminer_ed3d.symmetry.magnetism import SpinOperation, SpinSymmetry, spin_parity

__all__ = ["Candidate", "DensitySymmetry", "GroupType", "Operation", "SpinOperation", "SpinSymmetry", "find_symmetry", "spin_parity"]
