"""Groups of operations: closing, maximal subgroups and names, against brute force, spglib's tables and International Tables."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import spglib

from matminer_ed3d.symmetry import groups

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# Hall numbers of symmorphic groups with a primitive lattice, by the name of the point group
POINT_GROUPS = {
    "2/m": 57,
    "222": 108,
    "mmm": 227,
    "4/m": 357,
    "4mm": 376,
    "-42m": 388,
    "32": 438,
    "-3": 435,
    "-3m": 456,
    "6/m": 469,
    "23": 489,
}


def operations_of(hall_number):
    found = spglib.get_symmetry_from_database(hall_number)
    return found["rotations"].astype(np.int64), found["translations"]


def closed(rotations, members):
    kept = {rotations[i].tobytes() for i in members}
    return all((rotations[i] @ rotations[j]).tobytes() in kept for i in members for j in members)


@pytest.mark.parametrize("name", POINT_GROUPS)
def test_maximal_subgroups_are_those_of_brute_force(name):
    rotations, _ = operations_of(POINT_GROUPS[name])
    n = len(rotations)
    one = next(i for i in range(n) if (rotations[i] == np.eye(3)).all())
    others = [i for i in range(n) if i != one]
    orders = [m for m in range(1, n) if n % m == 0]
    subgroups = [frozenset((one, *chosen)) for m in orders for chosen in combinations(others, m - 1) if closed(rotations, (one, *chosen))]
    expected = {s for s in subgroups if not any(s < other for other in subgroups)}
    assert {frozenset(s) for s in groups.maximal_subgroups(rotations)} == expected


def test_maximal_subgroups_of_the_cube():
    rotations, _ = operations_of(517)  # P m -3 m
    found = Counter(spglib.get_pointgroup(rotations[list(s)])[0].strip() for s in groups.maximal_subgroups(rotations))
    assert found == {"432": 1, "-43m": 1, "m-3": 1, "4/mmm": 3, "-3m": 4}


def test_maximal_subgroups_of_the_hexagonal_prism():
    rotations, _ = operations_of(485)  # P 6/m m m
    found = Counter(spglib.get_pointgroup(rotations[list(s)])[0].strip() for s in groups.maximal_subgroups(rotations))
    assert found == {"622": 1, "6mm": 1, "-6m2": 2, "6/m": 1, "-3m": 2, "mmm": 3}


def test_the_trivial_group_has_no_proper_subgroup():
    assert groups.maximal_subgroups(np.eye(3, dtype=np.int64)[None]) == ()


def test_multiplication_table():
    rotations, _ = operations_of(517)
    table = groups.multiplication_table(rotations)
    assert all((rotations[table[i, j]] == rotations[i] @ rotations[j]).all() for i in range(48) for j in range(0, 48, 5))
    assert all(sorted(row) == list(range(48)) for row in table)


def closing_error(rotations, translations):
    table = groups.multiplication_table(rotations)
    products = np.einsum("gij,hj->ghi", rotations, translations) + translations[:, None]
    return np.abs((products - translations[table] + 0.5) % 1.0 - 0.5).max()


def primitive_hall_numbers():
    first = {}
    for hall_number in range(1, 531):
        found = spglib.get_spacegroup_type(hall_number)
        first.setdefault(found.number, (found.international_short, hall_number))
    return [hall_number for number, (symbol, hall_number) in first.items() if symbol[0] == "P" and number % 4 in (0, 2)]


@pytest.mark.parametrize("hall_number", primitive_hall_numbers()[1::6])
def test_translations_with_errors_close_exactly(hall_number):
    rotations, translations = operations_of(hall_number)
    rng = np.random.default_rng(hall_number)
    origin = rng.random(3)
    shifted = translations + origin - rotations @ origin
    assert np.abs((groups.exact_translations(rotations, shifted) - shifted + 0.5) % 1.0 - 0.5).max() < 1e-12
    errors = rng.normal(size=shifted.shape) * 0.003
    errors[(rotations == np.eye(3)).all(axis=(1, 2))] = 0
    exact = groups.exact_translations(rotations, (shifted + errors) % 1.0)
    assert closing_error(rotations, shifted + errors) > 1e-3
    assert closing_error(rotations, exact) < 1e-12
    assert np.abs((exact - shifted + 0.5) % 1.0 - 0.5).max() < 0.02


def lattice_of(number):
    a, b, c, angles = 5.0, 6.1, 7.3, (90, 90, 90)
    if number <= 2:
        angles = (78, 97, 108)
    elif number <= 15:
        angles = (90, 104, 90)
    elif number > 194:
        b = c = a
    elif number > 74:
        b, angles = a, ((90, 90, 120) if number > 142 else angles)
    from pymatgen.core.lattice import Lattice

    return np.array(Lattice.from_parameters(a, b, c, *angles).matrix)


def test_names_and_settings_are_those_of_the_tables():
    with np.errstate(all="raise"):
        for hall_number in primitive_hall_numbers():
            expected = spglib.get_spacegroup_type(hall_number)
            rotations, translations = operations_of(hall_number)
            rng = np.random.default_rng(hall_number)
            origin = rng.random(3)
            lattice = lattice_of(expected.number)
            found = groups.group_type(lattice, rotations, (translations + origin - rotations @ origin) % 1.0)
            assert (found.number, found.symbol) == (expected.number, expected.international_short)
            assert found.point_group.strip() == expected.pointgroup_international.strip()
            standard = spglib.get_symmetry_from_database(found.hall_number)
            change, shift = found.transformation, found.origin_shift
            wanted = {(*w.ravel().tolist(), *np.rint(t * 24 % 24).astype(int).tolist()) for w, t in zip(*standard.values(), strict=True)}
            made = set()
            for w, t in zip(rotations, translations + origin - rotations @ origin, strict=True):
                rotation = change @ w @ np.linalg.inv(change)
                translation = change @ t + shift - rotation @ shift
                made.add((*np.rint(rotation).astype(int).ravel().tolist(), *(np.rint(translation * 24).astype(int) % 24).tolist()))
            assert made == {(*row[:9], *(v % 24 for v in row[9:])) for row in wanted}


def test_periodic_distance():
    lattice = np.diag([4.0, 5.0, 6.0])
    assert groups.periodic_distance(np.array([0.99, 0.5, 0.0]), np.array([0.01, 0.5, 0.0]), lattice) == pytest.approx(0.08)
    assert groups.periodic_distance(np.array([0.5, 0.0, 0.98]), np.array([0.5, 1.0, 3.0]), lattice) == pytest.approx(0.12)
