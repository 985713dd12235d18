"""Protocols of evaluation: in which cell, origin and orientation a crystal is shown, and which rows it may be learned from.

A cell in its standard setting gives symmetry away (the metric and the centring letter alone name the crystal system of 97 %
of the ICSD), so every score is reported under a named protocol:

``conventional``
    The conventional standard cell as spglib idealises it at symprec 0.1, in standard origin and orientation (the choice of the
    paper for the ICSD). Idealising gives a crystal that is symmetric within that tolerance its exact symmetry, which a model
    then sees; the cell is not the one somebody wrote down.
``primitive``
    The cell as given, nothing idealised (the choice of the paper for the Materials Project).
``blind``
    The Niggli-reduced primitive cell, then a random unimodular change of basis, a random origin and a random rotation; nothing
    idealised.

Splits depend on the text of an id, a formula and a number only: no order of rows, machine or seed changes them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from matminer_ed3d._spglib import call_spglib

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

__all__ = [
    "PROTOCOLS",
    "SPLITS",
    "anonymous_formula",
    "apply_protocol",
    "assign_split",
    "blind_cell",
    "change_cell",
    "conventional_cell",
    "niggli_cell",
    "random_basis_change",
    "random_rotation",
    "split_of",
]

PROTOCOLS = ("conventional", "primitive", "blind")
SPLITS = ("train", "validation", "test", "prototype_test")
PROTOTYPE_SHARE = 0.06  # share of the hash range (not of the rows) that whole prototype groups are held out from
MAX_ELONGATION = 2.5  # longest axis of a blind cell over the longest axis of its Niggli cell
N_SHEARS = 3  # random elementary shears of a blind cell
_FORMULA = re.compile(r"([A-Z][a-z]?|\(|\))([0-9]*\.?[0-9]*)")


# Splits ---------------------------------------------------------------------------------------------------------------


def _stable_fraction(text: str) -> float:
    """Map a text to [0, 1): the first 8 bytes of its SHA-1 as a fraction of 2^64; the same everywhere and for ever."""
    return int.from_bytes(hashlib.sha1(text.encode(), usedforsecurity=False).digest()[:8], "big") / 2.0**64


def _amounts(formula: str) -> dict[str, float]:
    """Expand a formula with brackets into element amounts."""
    tokens = _FORMULA.findall(formula)
    levels: list[dict[str, float]] = [{}]
    valid = bool(tokens) and "".join(a + b for a, b in tokens) == formula.replace(" ", "")
    for symbol, amount in tokens:
        if symbol == "(":
            levels.append({})
            continue
        if symbol == ")":
            valid = valid and len(levels) > 1
            inner = levels.pop() if len(levels) > 1 else {}
        else:
            inner = {symbol: 1.0}
        for element, n in inner.items():
            levels[-1][element] = levels[-1].get(element, 0.0) + n * (float(amount) if amount else 1.0)
    if not valid or len(levels) != 1:
        raise ValueError(f"`formula` must be element symbols with amounts, such as 'Ca3(PO4)2', got {formula!r}")
    return levels[0]


def anonymous_formula(formula: str) -> str:
    """Return the formula without its elements: its smallest whole amounts, sorted.

    Parameters
    ----------
    formula : str
        Element symbols with amounts, such as ``"Ca3(PO4)2"``; where an amount is fractional, all become shares
        of the whole, to 3 digits.

    Raises
    ------
    ValueError
        If the text is no formula.

    Examples
    --------
    >>> anonymous_formula("BaTiO3"), anonymous_formula("Na4Cl4"), anonymous_formula("Ca3(PO4)2")
    ('1-1-3', '1-1', '2-3-8')
    """
    values = sorted(_amounts(formula).values())
    if all(v == int(v) for v in values):
        divisor = gcd(*(int(v) for v in values)) or 1
        return "-".join(str(int(v) // divisor) for v in values)
    return "-".join(f"{v / sum(values):.3f}" for v in values)


def _tenths(fraction: float) -> str:
    return "train" if fraction < 0.8 else "validation" if fraction < 0.9 else "test"


def _check_lengths(**columns: Any) -> None:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of a split must be of equal length, got {lengths}")


def _prototypes(formulas: Sequence[str], space_group_numbers: Sequence[int] | np.ndarray) -> list[str]:
    return [f"{anonymous_formula(f)}_{int(n)}" for f, n in zip(formulas, space_group_numbers, strict=True)]


def split_of(ids: Sequence[str], kind: str = "random", formulas: Sequence[str] = (), space_group_numbers: Any = ()) -> np.ndarray:
    """Split rows 80/10/10 into train, validation and test by a stable hash.

    Parameters
    ----------
    ids : sequence of str
        One id a row.
    kind : {"random", "prototype"}
        ``random`` hashes the id. ``prototype`` hashes anonymous formula and space group, so that a whole group of equal
        anonymous formula and space group falls on one side.
    formulas, space_group_numbers : sequences
        One of each a row; needed for ``prototype``.

    Returns
    -------
    (n_rows,) array of str

    Raises
    ------
    ValueError
        If `kind` is unknown or the columns differ in length.
    """
    if kind == "random":
        return np.array([_tenths(_stable_fraction(str(i))) for i in ids], dtype="U14")
    if kind != "prototype":
        raise ValueError(f"`kind` must be 'random' or 'prototype', got {kind!r}")
    _check_lengths(ids=ids, formulas=formulas, space_group_numbers=space_group_numbers)
    groups = _prototypes(formulas, space_group_numbers)
    sides = {group: _tenths(_stable_fraction("prototype:" + group)) for group in set(groups)}
    return np.array([sides[group] for group in groups], dtype="U14")


def assign_split(ids: Sequence[str], formulas: Sequence[str], space_group_numbers: Any) -> np.ndarray:
    """Split rows as the shipped models were trained: some whole prototypes held out, the rest 80/10/10 at random.

    Prototype groups (anonymous formula and space group number at symprec 0.1) whose hash falls into a slice of 6 % of the
    range are ``prototype_test``; every other row is ``train``, ``validation`` or ``test`` by the hash of its id.

    Parameters
    ----------
    ids : sequence of str
        One id a row, such as ``"mp-10"``.
    formulas : sequence of str
        Plain formulas.
    space_group_numbers : sequence of int
        At symprec 0.1.

    Returns
    -------
    (n_rows,) array of str
        Each one of :data:`SPLITS`.

    Raises
    ------
    ValueError
        If the columns differ in length.
    """
    _check_lengths(ids=ids, formulas=formulas, space_group_numbers=space_group_numbers)
    groups = _prototypes(formulas, space_group_numbers)
    held_out = {group: _stable_fraction("held-out prototype:" + group) < PROTOTYPE_SHARE for group in set(groups)}
    by_id = split_of(ids)
    return np.where([held_out[group] for group in groups], "prototype_test", by_id)


# Cells ----------------------------------------------------------------------------------------------------------------

Cell = tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "_ 3"], Int[np.ndarray, " _"]]
"""Lattice rows in Å, fractional coordinates, and an integer a site that is equal for equal species."""


def _check_cell(cell: Cell) -> None:
    lattice, frac_coords, kinds = cell
    if np.shape(lattice) != (3, 3) or not np.isfinite(lattice).all() or abs(np.linalg.det(lattice)) < 1e-6:
        raise ValueError(f"`lattice` must be (3, 3) finite rows in Å with a volume, got {np.asarray(lattice).tolist()}")
    if np.shape(frac_coords) != (len(kinds), 3) or len(kinds) == 0 or not np.isfinite(frac_coords).all():
        raise ValueError(f"`frac_coords` must be ({len(kinds)}, 3), finite and not empty, got shape {np.shape(frac_coords)}")


def conventional_cell(cell: Cell, symprec: float = 0.1) -> tuple[Cell, str]:
    """Return the conventional standard cell as spglib idealises it, and its centring letter (P, A, B, C, I, F or R).

    Origin and orientation are the standard ones; lengths, angles and atoms are moved, within `symprec`, to where they make the
    symmetry exact.

    Raises
    ------
    ValueError
        If spglib finds no symmetry, as for atoms that overlap.
    """
    _check_cell(cell)
    found = call_spglib("get_symmetry_dataset", cell, symprec=symprec)
    if found is None:
        raise ValueError(f"spglib finds no symmetry at symprec {symprec}; do atoms overlap?")
    return (found.std_lattice, found.std_positions, np.asarray(found.std_types)), found.international[0]


def niggli_cell(cell: Cell, symprec: float = 0.1) -> Cell:
    """Return the Niggli-reduced primitive cell; atoms keep their places in space, nothing is idealised or rotated.

    Raises
    ------
    ValueError
        If spglib finds no primitive cell, as for atoms that overlap, or no reduction.
    """
    _check_cell(cell)
    primitive = call_spglib("standardize_cell", cell, to_primitive=True, no_idealize=True, symprec=symprec)
    if primitive is None:
        raise ValueError(f"spglib finds no primitive cell at symprec {symprec}; do atoms overlap?")
    lattice, frac_coords, kinds = primitive
    reduced = call_spglib("niggli_reduce", lattice)
    if reduced is None:
        raise ValueError(f"spglib finds no Niggli reduction of the lattice {lattice.tolist()}")
    return change_cell((lattice, frac_coords, np.asarray(kinds)), np.round(reduced @ np.linalg.inv(lattice)).astype(np.int64))


def change_cell(cell: Cell, basis_change: Int[np.ndarray, "3 3"]) -> Cell:
    """Describe a crystal in the cell ``basis_change @ lattice``, for a `basis_change` of determinant 1 or -1."""
    lattice, frac_coords, kinds = cell
    return basis_change @ lattice, (frac_coords @ np.linalg.inv(basis_change)) % 1.0, kinds


def random_rotation(rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Return a proper rotation, uniform over SO(3): a random unit quaternion as a matrix for rows, ``cart_coords @ rotation``."""
    quaternion = rng.normal(size=4)
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def random_basis_change(lattice: Float[np.ndarray, "3 3"], rng: np.random.Generator) -> Int[np.ndarray, "3 3"]:
    """Return a random integer matrix of determinant 1 that skews a cell moderately.

    Three elementary shears (a row plus or minus another), then the rows in random order with random signs, drawn again until
    the longest new axis is at most 2.5 times the longest old one.
    """
    limit = MAX_ELONGATION * np.linalg.norm(lattice, axis=1).max()
    while True:
        matrix = np.eye(3, dtype=np.int64)
        for _ in range(N_SHEARS):
            row, other = rng.choice(3, size=2, replace=False)
            matrix[row] += rng.choice([-1, 1]) * matrix[other]
        matrix = matrix[rng.permutation(3)] * rng.choice([-1, 1], size=3)[:, None]
        matrix *= round(float(np.linalg.det(matrix)))
        if np.linalg.norm(matrix @ lattice, axis=1).max() <= limit:
            return matrix


def blind_cell(cell: Cell, rng: np.random.Generator, symprec: float = 0.1) -> Cell:
    """Return the crystal in a random basis of its primitive lattice, from a random origin, in a random orientation.

    Raises
    ------
    ValueError
        As :func:`niggli_cell`.
    """
    reduced = niggli_cell(cell, symprec)
    lattice, frac_coords, kinds = change_cell(reduced, random_basis_change(reduced[0], rng))
    return lattice @ random_rotation(rng), (frac_coords + rng.random(3)) % 1.0, kinds


def apply_protocol(structure: Structure, protocol: str, rng: np.random.Generator | int | None = None, symprec: float = 0.1) -> Structure:
    """Show a structure in the cell, origin and orientation of a protocol.

    Parameters
    ----------
    structure : pymatgen Structure
        May hold partial occupancies. Under ``primitive`` it comes back as it is; otherwise sites keep species and occupancy
        and lose other properties, displacements among them.
    protocol : {"conventional", "primitive", "blind"}
        See the head of this module.
    rng : numpy Generator, int or None
        Source of the random cell of ``blind``; unused otherwise.
    symprec : float
        Tolerance in Å by which spglib finds the conventional or primitive cell.

    Raises
    ------
    ValueError
        If `protocol` is unknown, or spglib finds no such cell.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {PROTOCOLS}, got {protocol!r}")
    if protocol == "primitive":
        return structure
    from pymatgen.core.structure import Structure

    species = structure.species_and_occu
    distinct = list(dict.fromkeys(species))
    position = {s: i + 1 for i, s in enumerate(distinct)}
    cell = (structure.lattice.matrix, structure.frac_coords, np.array([position[s] for s in species]))
    if protocol == "conventional":
        (lattice, frac_coords, kinds), _ = conventional_cell(cell, symprec)
    else:
        lattice, frac_coords, kinds = blind_cell(cell, np.random.default_rng(rng), symprec)
    return Structure(lattice, [distinct[k - 1] for k in kinds], frac_coords)
