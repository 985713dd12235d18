"""Fixtures: small crystals from Wyckoff positions, each with its source, and the two shipped example files."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

collect_ignore_glob = ["data/*"]  # what made the tables is run by hand, with libraries that no test needs

# Space group, cell (a, b, c in Å; alpha, beta, gamma in degrees), {site label: (element, frac_coords)}: the standard setting of
# International Tables A, the published positions moved to it where the source has another origin.
WYCKOFF: dict[str, tuple[int, tuple[float, ...], dict[str, tuple[str, tuple[float, float, float]]]]] = {
    # Kyanite, Al2SiO5: Winter & Ghose, Am. Mineral. 64, 573 (1979), 25 C.
    "triclinic": (
        2,
        (7.1262, 7.8520, 5.5724, 89.99, 101.11, 106.03),
        {
            "Al1": ("Al", (0.3254, 0.7040, 0.4582)),
            "Al2": ("Al", (0.2974, 0.6989, 0.9505)),
            "Al3": ("Al", (0.0998, 0.3862, 0.6403)),
            "Al4": ("Al", (0.1120, 0.9175, 0.1649)),
            "Si1": ("Si", (0.2962, 0.0649, 0.7066)),
            "Si2": ("Si", (0.2910, 0.3317, 0.1892)),
            "OA": ("O", (0.1095, 0.1468, 0.1288)),
            "OB": ("O", (0.1230, 0.6856, 0.1812)),
            "OC": ("O", (0.2747, 0.4545, 0.9547)),
            "OD": ("O", (0.2831, 0.9354, 0.9353)),
            "OE": ("O", (0.1084, 0.1520, 0.6669)),
            "OF": ("O", (0.1219, 0.6307, 0.6395)),
            "OG": ("O", (0.2822, 0.4453, 0.4288)),
            "OH": ("O", (0.2915, 0.9467, 0.4659)),
            "OK": ("O", (0.5008, 0.2749, 0.2440)),
            "OM": ("O", (0.5015, 0.2312, 0.7553)),
        },
    ),
    # Baddeleyite, ZrO2: Howard, Hill & Reichert, Acta Cryst. B44, 116 (1988).
    "monoclinic": (
        14,
        (5.1505, 5.2116, 5.3173, 90.0, 99.230, 90.0),
        {"Zr": ("Zr", (0.2754, 0.0395, 0.2083)), "O1": ("O", (0.0700, 0.3317, 0.3447)), "O2": ("O", (0.4496, 0.7569, 0.4792))},
    ),
    # Marcasite, FeS2: Buerger, Z. Kristallogr. 97, 504 (1937).
    "orthorhombic": (58, (4.436, 5.414, 3.381, 90.0, 90.0, 90.0), {"Fe": ("Fe", (0.0, 0.0, 0.0)), "S": ("S", (0.200, 0.378, 0.0))}),
    # Rutile, TiO2: Meagher & Lager, Can. Mineral. 17, 77 (1979), 25 C.
    "tetragonal": (136, (4.593, 4.593, 2.959, 90.0, 90.0, 90.0), {"Ti": ("Ti", (0.0, 0.0, 0.0)), "O": ("O", (0.3051, 0.3051, 0.0))}),
    # alpha-Quartz, SiO2: Levien, Prewitt & Weidner, Am. Mineral. 65, 920 (1980), room pressure; origin moved by c/3 to that of
    # International Tables.
    "trigonal": (
        154,
        (4.9160, 4.9160, 5.4054, 90.0, 90.0, 120.0),
        {"Si": ("Si", (0.4697, 0.0, 2 / 3)), "O": ("O", (0.4135, 0.2669, 0.1191 + 2 / 3))},
    ),
    # Zincite, ZnO: Kisi & Elcombe, Acta Cryst. C45, 1867 (1989).
    "hexagonal": (
        186,
        (3.2501, 3.2501, 5.2071, 90.0, 90.0, 120.0),
        {"Zn": ("Zn", (1 / 3, 2 / 3, 0.0)), "O": ("O", (1 / 3, 2 / 3, 0.3817))},
    ),
    # Halite, NaCl: Wyckoff, Crystal Structures 1, 85 (1963).
    "cubic": (225, (5.64056, 5.64056, 5.64056, 90.0, 90.0, 90.0), {"Na": ("Na", (0.0, 0.0, 0.0)), "Cl": ("Cl", (0.5, 0.5, 0.5))}),
}


@pytest.fixture(scope="session")
def _built_crystals() -> dict[str, Any]:
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.structure import Structure

    built = {}
    for system, (number, cell, sites) in WYCKOFF.items():
        from gemmi import find_spacegroup_by_number

        species, coords = zip(*sites.values(), strict=True)
        symbol = find_spacegroup_by_number(number).xhm()
        built[system] = Structure.from_spacegroup(symbol, Lattice.from_parameters(*cell), species, coords)
    return built


@pytest.fixture
def crystals(_built_crystals: dict[str, Structure]) -> dict[str, Structure]:
    """One small crystal per crystal system, by its name; conventional cells, copies that a test may change."""
    return {system: structure.copy() for system, structure in _built_crystals.items()}


@pytest.fixture
def nacl(crystals: dict[str, Structure]) -> Structure:
    """Halite: 8 sites, space group 225."""
    return crystals["cubic"]


@pytest.fixture
def quartz(crystals: dict[str, Structure]) -> Structure:
    """Alpha-quartz: 9 sites, space group 154."""
    return crystals["trigonal"]


@pytest.fixture(scope="session")
def chgcar_path() -> Path:
    """The shipped CHGCAR (gzip): spin-polarised bcc Fe, primitive cell, 28 x 28 x 28 points, 8 valence electrons, space group 229."""
    return Path(str(files("matminer_ed3d") / "data" / "examples" / "Fe_bcc_CHGCAR.gz"))


@pytest.fixture(scope="session")
def cif_path() -> Path:
    """The shipped CIF: rutile, space group 136."""
    return Path(str(files("matminer_ed3d") / "data" / "examples" / "TiO2_rutile.cif"))


@pytest.fixture
def as_user() -> Iterator[None]:
    """Switch the shape checks of the test run off, so that a wrong argument meets our own error, as it does for a user."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
