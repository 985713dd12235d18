"""The symmetry of a density by the density itself: which operations hold, how well, and which group they make."""

from matminer_ed3d.symmetry.evidence import Operation
from matminer_ed3d.symmetry.finding import Candidate, DensitySymmetry, find_symmetry
from matminer_ed3d.symmetry.groups import GroupType

__all__ = ["Candidate", "DensitySymmetry", "GroupType", "Operation", "find_symmetry"]
