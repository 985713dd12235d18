"""Groups of operations in a primitive cell: closing, exact translations, subgroups, and the name of the space group."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from matminer_ed3d._spglib import call_spglib

__all__ = [
    "GroupType",
    "exact_translations",
    "group_type",
    "key_of",
    "maximal_subgroups",
    "multiplication_table",
    "periodic_distance",
    "type_numbers",
]

TYPING_SYMPREC = 1e-3  # Å; the operations that are typed are exact
N_TYPING_ORBITS = 3
N_GENERATORS = 3  # enough for every crystallographic point group


def key_of(rotation: Int[np.ndarray, "3 3"]) -> bytes:
    """Make a rotation a key of dictionaries."""
    return rotation.astype(np.int8).tobytes()


def periodic_distance(first: np.ndarray, second: np.ndarray, lattice: Float[np.ndarray, "3 3"]) -> float:
    """Distance in Å of two fractional translations modulo the lattice."""
    apart = ((first - second + 0.5) % 1.0 - 0.5) @ lattice
    return float(np.sqrt(apart @ apart))


def multiplication_table(rotations: Int[np.ndarray, "n 3 3"]) -> Int[np.ndarray, "n n"]:
    """Row i, column j: which rotation ``rotations[i] @ rotations[j]`` is; entries are at most 7."""
    digits = 16 ** np.arange(9)
    codes = rotations.reshape(-1, 9) @ digits
    products = (rotations[:, None] @ rotations).reshape(len(rotations), len(rotations), 9) @ digits
    order = np.argsort(codes)
    table = order[np.searchsorted(codes, products, sorter=order).clip(max=len(codes) - 1)]
    if (codes[table] != products).any():
        raise ValueError(f"`rotations` must be a group, but some products of these {len(codes)} are not among them")
    return table


def exact_translations(rotations: Int[np.ndarray, "n 3 3"], translations: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Translations that close exactly, nearest to those that close nearly.

    t'(g) is the mean over all members b of t(g b) - W(g) t(b), which is exact: t'(g h) = t'(g) + W(g) t'(h), modulo the lattice.
    """
    table = multiplication_table(rotations)
    estimates = translations[table] - np.einsum("gij,bj->gbi", rotations, translations)
    nearest = (estimates - translations[:, None] + 0.5) % 1.0 - 0.5
    return (translations + nearest.mean(axis=1)) % 1.0


def _each_once(sets: Bool[np.ndarray, "n_sets n"]) -> Bool[np.ndarray, "m_sets n"]:
    """Leave out rows that came before; a point group has at most 48 members, so a row is a number of 64 bits."""
    packed = np.zeros((len(sets), 8), np.uint8)
    bits = np.packbits(sets, axis=1)
    packed[:, : bits.shape[1]] = bits
    return sets[np.unique(packed.view(np.uint64).ravel(), return_index=True)[1]]


def _closures(sets: Bool[np.ndarray, "n_sets n"], table: Int[np.ndarray, "n n"]) -> Bool[np.ndarray, "m_sets n"]:
    """Close sets of members (rows) under multiplication, all at once; each group once."""
    while True:
        made = sets.copy()
        for member, products in enumerate(table):
            chosen = np.flatnonzero(sets[:, member])
            if len(chosen):
                made[np.ix_(chosen, products)] |= sets[chosen]
        made = _each_once(made)
        if made.shape == sets.shape and (made == sets).all():
            return made
        sets = made


@lru_cache(maxsize=1024)
def _maximal_subgroups(keys: tuple[bytes, ...]) -> tuple[tuple[int, ...], ...]:
    rotations = np.array([np.frombuffer(key, np.int8).reshape(3, 3) for key in keys]).astype(np.int64)
    table = multiplication_table(rotations)
    cyclic = _closures(np.eye(len(keys), dtype=bool), table)
    subgroups = cyclic
    for _ in range(N_GENERATORS - 1):
        joined = (subgroups[:, None] | cyclic[None]).reshape(-1, len(keys))
        subgroups = _closures(_each_once(joined), table)
    proper = subgroups[subgroups.sum(axis=1) < len(keys)]
    contained = (proper[:, None] <= proper[None]).all(axis=2) & ~np.eye(len(proper), dtype=bool)
    maximal = proper[~contained.any(axis=1)]
    return tuple(tuple(np.flatnonzero(row).tolist()) for row in maximal)


def maximal_subgroups(rotations: Int[np.ndarray, "n 3 3"]) -> tuple[tuple[int, ...], ...]:
    """Maximal proper subgroups of a point group, as the numbers of their members."""
    keys = [key_of(w) for w in rotations]
    order = sorted(range(len(keys)), key=keys.__getitem__)  # one entry of the cache for every order of the members
    found = [tuple(sorted(order[i] for i in members)) for members in _maximal_subgroups(tuple(keys[i] for i in order))]
    return tuple(sorted(found, key=lambda members: (-len(members), members)))


@dataclass(frozen=True, eq=False)
class GroupType:
    """What a group of operations is called, and how to its standard setting.

    Parameters
    ----------
    number, hall_number : int
        Space group, 1 to 230, and Hall number, 1 to 530.
    symbol, hall_symbol, point_group : str
        Short Hermann-Mauguin symbol, Hall symbol, point group.
    transformation, origin_shift : (3, 3) and (3,) float
        ``x_standard = transformation @ x + origin_shift`` for fractional coordinates x (columns).
    """

    number: int
    hall_number: int
    symbol: str
    hall_symbol: str
    point_group: str
    transformation: Float[np.ndarray, "3 3"]
    origin_shift: Float[np.ndarray, "3"]


def _mean_metric_lattice(lattice: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Lattice, in a standard orientation, whose metric the rotations keep exactly."""
    metric = np.einsum("nji,jk,nkl->il", rotations, lattice @ lattice.T, rotations) / len(rotations)
    return np.linalg.cholesky(metric)


def group_type(lattice: Float[np.ndarray, "3 3"], rotations: Int[np.ndarray, "n 3 3"], translations: Float[np.ndarray, "n 3"]) -> GroupType:
    """Name a group by spglib: orbits of general points under it have its symmetry and no other.

    Raises
    ------
    ValueError
        If spglib does not find the same number of operations.
    """
    exact = _mean_metric_lattice(lattice, rotations)
    rng = np.random.default_rng(0)
    for _ in range(20):
        orbits = [(rotations @ point + translations) % 1.0 for point in rng.random((N_TYPING_ORBITS, 3))]
        positions = np.concatenate(orbits)
        kinds = np.repeat(np.arange(1, N_TYPING_ORBITS + 1), len(rotations))
        gaps = (positions[:, None] - positions + 0.5) % 1.0 - 0.5
        distances = np.linalg.norm(gaps @ exact, axis=2) + 1e3 * np.eye(len(positions))
        if distances.min() < 20 * TYPING_SYMPREC:
            continue
        found: Any = call_spglib("get_symmetry_dataset", (exact, positions, kinds), symprec=TYPING_SYMPREC)
        if found is not None and len(found.rotations) == len(rotations):
            return GroupType(
                int(found.number),
                int(found.hall_number),
                str(found.international),
                str(found.hall),
                str(found.pointgroup),
                np.asarray(found.transformation_matrix, dtype=float),
                np.asarray(found.origin_shift, dtype=float),
            )
    raise ValueError(f"spglib gives no name to a group of {len(rotations)} operations; this is a defect of this package, please report it")


def type_numbers(
    lattice: Float[np.ndarray, "3 3"], rotations: Int[np.ndarray, "n 3 3"], translations: Float[np.ndarray, "n 3"]
) -> tuple[int, str]:
    """Number and symbol of a group, by spglib; quicker than :func:`group_type`, without the way to the standard setting."""
    found: Any = call_spglib(
        "get_spacegroup_type_from_symmetry",
        rotations.astype("intc"),
        translations,
        lattice=_mean_metric_lattice(lattice, rotations),
        symprec=TYPING_SYMPREC,
    )
    if found is None:
        named = group_type(lattice, rotations, translations)
        return named.number, named.symbol
    return int(found.number), str(found.international_short)
