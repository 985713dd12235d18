"""What is predicted: crystal system, extinction group and space group, and how each follows from the next.

Everything goes through tables of 231 entries, indexed by the space group's number (entry 0 is empty). Trigonal is 143 to 167: the
crystal system, not the rhombohedral lattice. An extinction group holds the space groups of one crystal system with the same
systematic absences, orthorhombic axes permuted; there are 101, numbered in the order of their first space group.
"""

from __future__ import annotations

import json
import operator
import sys
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Float, Int

from matminer_ed3d._spglib import call_spglib

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

__all__ = [
    "CRYSTAL_SYSTEMS",
    "TARGETS",
    "coarsen_proba",
    "crystal_system",
    "enantiomorph",
    "extinction_group",
    "extinction_group_members",
    "extinction_group_symbol",
    "rotation_order",
    "space_group_number",
    "space_group_symbol",
    "target_of",
]

CRYSTAL_SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
TARGETS = ("crystal_system", "extinction_group", "space_group_number")

# International Tables A: the 11 pairs that mirror images turn into each other.
ENANTIOMORPHS = (
    (76, 78),
    (91, 95),
    (92, 96),
    (144, 145),
    (151, 153),
    (152, 154),
    (169, 170),
    (171, 172),
    (178, 179),
    (180, 181),
    (212, 213),
)


class _Tables(NamedTuple):
    """By space group number, entry 0 empty; `members` by extinction group, entry 0 empty."""

    systems: np.ndarray
    groups: np.ndarray
    symbols: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    mirror: np.ndarray


@cache
def _tables() -> _Tables:
    """Read the table; tests/data/gen_extinction_groups.py makes it from gemmi's absences."""
    content = json.loads((files("matminer_ed3d") / "data" / "extinction_groups.json").read_text(encoding="utf-8"))
    systems, groups = np.zeros(231, dtype="<U12"), np.zeros(231, dtype=np.int64)
    for group, row in enumerate(content["groups"], start=1):
        systems[row["members"]] = row["crystal_system"]
        groups[row["members"]] = group
    mirror = np.arange(231)
    for left, right in ENANTIOMORPHS:
        mirror[[left, right]] = right, left
    members = ((), *(tuple(row["members"]) for row in content["groups"]))
    return _Tables(systems, groups, ("", *content["symbols"]), members, mirror)


def _check_number(number: Any, name: str, last: int) -> int:
    try:
        value = operator.index(number)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer from 1 to {last}, got {number!r}") from None
    if isinstance(number, bool | np.bool_) or not 1 <= value <= last:
        raise ValueError(f"`{name}` must be an integer from 1 to {last}, got {number!r}")
    return value


def _check_numbers(numbers: Any) -> Int[np.ndarray, "..."]:
    array = np.asarray(numbers)
    if array.dtype.kind not in "iu":
        if array.dtype.kind not in "fO":
            raise TypeError(f"`space_group_numbers` must be integers from 1 to 230, got dtype {array.dtype}")
        try:  # a column of a table may hold whole numbers as float or object
            as_float = array.astype(float)
        except (TypeError, ValueError):
            raise TypeError("`space_group_numbers` must be integers from 1 to 230, got objects that are no numbers") from None
        if not np.array_equal(as_float, np.round(as_float)):
            wrong = as_float[as_float != np.round(as_float)].ravel()[0]
            raise ValueError(f"`space_group_numbers` must be integers from 1 to 230, got {wrong}; drop the rows without a label")
        array = as_float.astype(np.int64)
    if array.size and (array.min() < 1 or array.max() > 230):
        raise ValueError(f"`space_group_numbers` must be from 1 to 230, got {array.min()} to {array.max()}")
    return array


def _is_structure(x: Any) -> TypeGuard[Structure]:
    home = sys.modules.get("pymatgen.core.structure")  # without it nobody can have a Structure
    return home is not None and isinstance(x, home.IStructure)


def _number_of(x: Any, symprec: float) -> int:
    if _is_structure(x):
        return space_group_number(x, symprec=symprec)
    try:
        return _check_number(x, "x", 230)
    except TypeError:
        kind = f"an object of {type(x).__module__}.{type(x).__qualname__}"
        raise TypeError(
            f"`x` must be a space group number from 1 to 230 or a pymatgen Structure, got {kind}; `target_of` takes arrays"
        ) from None


def space_group_number(structure: Structure, symprec: float = 0.1, angle_tolerance: float = -1) -> int:
    """Find the space group of a structure with spglib.

    Parameters
    ----------
    structure : pymatgen Structure
        May be disordered: sites are alike if they hold the same species in the same shares. Moments are not looked at.
    symprec : float
        Largest distance in Å between a site and its image; 0.1 is the Materials Project's, 0.01 asks for the geometry's.
    angle_tolerance : float
        Degrees; negative: derived from `symprec` (pymatgen has 5).

    Returns
    -------
    int
        1 to 230.

    Raises
    ------
    TypeError
        If `structure` is no pymatgen Structure.
    ValueError
        If `symprec` is not positive, there are no sites, or spglib finds no group, as where atoms lie closer than `symprec`.
    """
    if not _is_structure(structure):
        raise TypeError(
            f"`structure` must be a pymatgen Structure, got an object of {type(structure).__module__}.{type(structure).__qualname__}"
        )
    if not (np.isfinite(symprec) and symprec > 0):
        raise ValueError(f"`symprec` must be a positive distance in Å, got {symprec}")
    if len(structure) == 0:
        raise ValueError("`structure` must hold at least one site, got none")
    types: dict[Any, int] = {}
    kinds = [types.setdefault(_species_key(site), len(types) + 1) for site in structure]
    cell: Any = (structure.lattice.matrix, structure.frac_coords, kinds)
    dataset = call_spglib("get_symmetry_dataset", cell, symprec=symprec, angle_tolerance=angle_tolerance)
    if dataset is None:
        raise ValueError(
            f"spglib finds no space group of {structure.composition.reduced_formula} at symprec {symprec}; "
            "do atoms overlap? Merge them or lower `symprec`"
        )
    return int(dataset.number)


def _species_key(site: Any) -> tuple[tuple[str, float], ...]:
    """Equal for sites that hold the same elements of the same oxidation states in the same shares, to rounding; spins are not looked at."""
    shares: dict[str, float] = {}
    for specie, share in site.species.items():
        oxi_state = getattr(specie, "oxi_state", None)
        name = specie.symbol if oxi_state is None else f"{specie.symbol} {float(oxi_state):g}"
        shares[name] = shares.get(name, 0.0) + float(share)
    return tuple(sorted((name, round(share, 6)) for name, share in shares.items()))


def crystal_system(x: Any, symprec: float = 0.1) -> str:
    """Crystal system of a space group number or a pymatgen Structure; one of :data:`CRYSTAL_SYSTEMS`."""
    return str(_tables().systems[_number_of(x, symprec)])


def extinction_group(x: Any, symprec: float = 0.1) -> int:
    """Extinction group, 1 to 101, of a space group number or a pymatgen Structure."""
    return int(_tables().groups[_number_of(x, symprec)])


def space_group_symbol(number: int) -> str:
    """Short Hermann-Mauguin symbol of the standard setting, such as ``P21/c``, ``R-3m``, ``Fm-3m``."""
    return _tables().symbols[_check_number(number, "number", 230)]


def extinction_group_members(group: int) -> tuple[int, ...]:
    """Space group numbers of an extinction group, ascending."""
    return _tables().members[_check_number(group, "group", 101)]


def extinction_group_symbol(group: int) -> str:
    """Name an extinction group by the symbols of its space groups, such as ``Pna21|Pnma``.

    An orthorhombic group holds its members up to a permutation of the axes: Pna21 and Pnma have the same absences in other axes.
    """
    return "|".join(space_group_symbol(number) for number in extinction_group_members(group))


def enantiomorph(number: int) -> int:
    """Return the other number of the 11 pairs that differ by handedness only, else the number itself."""
    return int(_tables().mirror[_check_number(number, "number", 230)])


def rotation_order(rotation: Int[np.ndarray, "3 3"]) -> int:
    """Order of a crystallographic rotation by its trace: 1, 2, 3, 4, 6; with rotoinversion -1, -2 (a mirror), -3, -4, -6.

    Raises
    ------
    ValueError
        If the matrix is none of a crystal.
    """
    matrix = np.asarray(rotation)
    sign = round(float(np.linalg.det(matrix)))
    order = {3: 1, -1: 2, 0: 3, 1: 4, 2: 6}.get(sign * int(np.trace(matrix)))
    if abs(sign) != 1 or order is None:
        raise ValueError(f"`rotation` must be a crystallographic rotation or rotoinversion, got {matrix.tolist()}")
    return sign * order


def target_of(space_group_numbers: Any, target: str) -> np.ndarray:
    """Labels of a target for an array of space group numbers.

    Parameters
    ----------
    space_group_numbers : array of int
        1 to 230, any shape.
    target : str
        One of :data:`TARGETS`.

    Returns
    -------
    array of str (``crystal_system``) or int64, of the same shape

    Raises
    ------
    TypeError
        If the numbers are no integers.
    ValueError
        If one is out of range or missing, or `target` is unknown.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {', '.join(TARGETS)}, got {target!r}")
    numbers = _check_numbers(space_group_numbers)
    if target == "space_group_number":
        return numbers.astype(np.int64)
    tables = _tables()
    return (tables.systems if target == "crystal_system" else tables.groups)[numbers]


def coarsen_proba(
    proba: Float[np.ndarray, "n_samples k"], classes: Any, target: str
) -> tuple[Float[np.ndarray, "n_samples m"], np.ndarray]:
    """Sum probabilities of space groups to those of a coarser target.

    Parameters
    ----------
    proba : (n_samples, k) float
        Rows that sum to 1.
    classes : (k,) int
        Space group number of each column.
    target : str
        One of :data:`TARGETS`.

    Returns
    -------
    proba : (n_samples, m) float
        Rows sum to what they did.
    classes : (m,) str or int
        Labels of the columns, sorted as scikit-learn's ``classes_`` are; only those with a member among the columns given.

    Raises
    ------
    ValueError
        If `proba` and `classes` do not fit together, a class comes twice, or see :func:`target_of`.

    Examples
    --------
    >>> proba, systems = coarsen_proba(np.array([[0.2, 0.5, 0.3]]), [1, 225, 229], "crystal_system")
    >>> dict(zip(systems.tolist(), proba[0].round(6).tolist()))
    {'cubic': 0.8, 'triclinic': 0.2}
    """
    proba = np.asarray(proba)
    numbers = _check_numbers(classes)
    if numbers.ndim != 1 or proba.ndim != 2 or proba.shape[1] != len(numbers):
        raise ValueError(f"`proba` must be (n_samples, k) for `classes` of (k,), got {proba.shape} and {numbers.shape}")
    if len(np.unique(numbers)) != len(numbers):
        raise ValueError("`classes` must hold each space group once")
    labels, column = np.unique(target_of(numbers, target), return_inverse=True)
    belongs = column[:, None] == np.arange(len(labels))
    return proba @ belongs.astype(proba.dtype), labels
