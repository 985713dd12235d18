"""X-ray scattering factors of atoms and ions as sums of Gaussians, f(s) = sum_i a_i exp(-b_i s²): the only home of atomic form data.

Two tables, both with the atoms H to Cf (Z = 1 to 98):

==================== ============================================================== ========= ============ ====
name                 source                                                         Gaussians s up to, 1/Å ions
==================== ============================================================== ========= ============ ====
``it92`` (default)   International Tables for Crystallography C (1992), t. 6.1.1.4  4 and c   2            104
``waasmaier_kirfel`` D. Waasmaier & A. Kirfel, Acta Cryst. A 51, 416 (1995)         5 and c   6            110
==================== ============================================================== ========= ============ ====

The coefficients are those published, taken from gemmi and from xraydb; f(0) is the number of electrons to 0.06, and nothing here
depends on, or changes, the table that gemmi keeps in memory. Nine ions make no density, since they have a Gaussian that grows with s
or a core that is not their atom's: O1-, Sc3+, Ti3+, Ti4+, Zr4+, Ru4+, Sn4+ and Bi5+ of ``it92``, Zr4+ of ``waasmaier_kirfel``. They count
as not known. Some b are slightly negative (at least -0.016 Å²); any displacement of an atom, B > 0.016 Å², makes up for that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

__all__ = ["DEFAULT_B_ISO", "Table", "coefficients", "gaussians_of", "species_name"]

DEFAULT_B_ISO = 0.5
"""B in Å² of an atom whose displacement nobody gave; typical of inorganic crystals at room temperature."""

Table = Literal["it92", "waasmaier_kirfel"]
Gaussians = tuple[Float[np.ndarray, " n_gaussians"], Float[np.ndarray, " n_gaussians"]]


@cache
def coefficients(table: Table = "it92") -> Mapping[tuple[int, int], Gaussians]:
    """Return the Gaussians of every atom and ion of a table.

    Parameters
    ----------
    table : {"it92", "waasmaier_kirfel"}
        Which.

    Returns
    -------
    mapping of (Z, charge) to (a, b)
        Coefficients a in electrons and b in Å², read-only; the constant c is the last a, with b = 0. The charge of Fe3+ is 3, that
        of an atom 0.

    Raises
    ------
    ValueError
        If there is no such table.

    Examples
    --------
    >>> a, b = coefficients("waasmaier_kirfel")[26, 3]
    >>> len(a), float(b[-1]), round(float(a.sum()), 2)
    (6, 0.0, 23.0)
    """
    if table not in get_args(Table):
        raise ValueError(f"`table` must be 'it92' or 'waasmaier_kirfel', got {table!r}")
    record = json.loads((files("matminer_ed3d") / "data" / "scattering_factors.json").read_text(encoding="utf-8"))
    species = {}
    for number, charge, *values in record[table]["rows"]:
        n = len(values) // 2
        a, b = np.array([*values[:n], values[-1]]), np.array([*values[n:-1], 0.0])
        a.flags.writeable = b.flags.writeable = False
        species[number, charge] = (a, b)
    return MappingProxyType(species)


def gaussians_of(
    numbers: Int[np.ndarray, " n_atoms"], charges: Int[np.ndarray, " n_atoms"] | None = None, table: Table = "it92"
) -> tuple[Float[np.ndarray, "n_atoms n_gaussians"], Float[np.ndarray, "n_atoms n_gaussians"]]:
    """Return the coefficients a (electrons) and b (Å²) of many atoms, a row for each; atoms without `charges` are neutral.

    Raises
    ------
    ValueError
        If the table lacks one of them.
    """
    known = coefficients(table)
    species = np.column_stack([numbers, np.zeros_like(numbers) if charges is None else charges])
    kinds, kind_of = np.unique(species, axis=0, return_inverse=True)
    missing = [(int(z), int(q)) for z, q in kinds if (int(z), int(q)) not in known]
    if missing:
        raise ValueError(f"`{table}` has no scattering factor for (Z, charge) {missing}; it has H to Cf (Z = 1 to 98) and some ions")
    rows = [known[int(z), int(q)] for z, q in kinds]
    a, b = (np.array([row[i] for row in rows]).reshape(len(rows), -1)[kind_of.ravel()] for i in (0, 1))
    return a, b


def species_name(symbol: str, charge: int | float) -> str:
    """Name an atom or ion as the tables do, such as Fe3+, O2- or Fe2.5+.

    >>> species_name("Fe", 3), species_name("Cl", -1), species_name("Ar", 0)
    ('Fe3+', 'Cl1-', 'Ar')
    """
    return f"{symbol}{abs(charge):g}{'+' if charge > 0 else '-'}" if charge else symbol
