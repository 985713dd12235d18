"""Crystals beside those of conftest, for tests that need many."""

from __future__ import annotations

import numpy as np
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure


def other_crystals() -> dict[str, Structure]:
    """Chiral, polar, centred and lawless crystals beside those of conftest."""
    rng = np.random.default_rng(11)
    return {
        "pyrite": Structure.from_spacegroup("Pa-3", Lattice.cubic(5.4166), ["Fe", "S"], [[0, 0, 0], [0.385, 0.385, 0.385]]),
        "zincblende": Structure.from_spacegroup("F-43m", Lattice.cubic(5.4093), ["Zn", "S"], [[0, 0, 0], [0.25, 0.25, 0.25]]),
        "bcc": Structure.from_spacegroup("Im-3m", Lattice.cubic(2.866), ["Fe"], [[0, 0, 0]]),
        "fcc": Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.615), ["Cu"], [[0, 0, 0]]),
        "hcp": Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(3.2094, 5.2108), ["Mg"], [[1 / 3, 2 / 3, 0.25]]),
        "corundum": Structure.from_spacegroup(
            "R-3c", Lattice.hexagonal(4.7602, 12.9933), ["Al", "O"], [[0, 0, 0.35216], [0.30624, 0, 0.25]]
        ),
        "P1": Structure(Lattice.from_parameters(4.1, 5.3, 6.2, 77, 84, 101), ["Na", "Cl", "O", "Si"], rng.random((4, 3))),
        "P1 in a cube": Structure(Lattice.cubic(4.5), ["Na", "Cl", "O"], rng.random((3, 3))),
    }
