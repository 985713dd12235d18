"""Protocols keep the crystal and hide (or show) its setting; splits depend on text alone."""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
import pytest

from matminer_ed3d import protocols

SYSTEMS = ["triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic"]


def spglib_number(structure, symprec=0.01):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return structure.get_space_group_info(symprec=symprec)[1]


def neighbour_distances(structure, radius=4.0):
    """Sorted (species, species, distance) per atom: equal for equal crystals in any cell (an oracle of pymatgen's)."""
    centres, points, _, distances = structure.get_neighbor_list(radius)
    names = np.array([site.species_string for site in structure])
    rows = sorted(zip(names[centres], names[points], np.round(distances, 4).tolist(), strict=True))
    return rows, len(structure)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_protocol_keeps_the_crystal(crystals, system, protocol):
    structure = crystals[system]
    shown = protocols.apply_protocol(structure, protocol, rng=3, symprec=0.01)
    assert spglib_number(shown) == spglib_number(structure)
    assert shown.composition.reduced_formula == structure.composition.reduced_formula
    assert shown.volume / len(shown) == pytest.approx(structure.volume / len(structure), rel=1e-9)
    rows, n = neighbour_distances(shown)
    expected, m = neighbour_distances(structure)
    assert len(rows) * m == len(expected) * n
    assert sorted({r[2] for r in rows})[0] == pytest.approx(sorted({r[2] for r in expected})[0], abs=2e-4)


@pytest.mark.parametrize("system", SYSTEMS)
def test_blind_hides_cell_origin_and_orientation(crystals, system):
    structure = crystals[system]
    first, second = (protocols.apply_protocol(structure, "blind", rng=seed, symprec=0.01) for seed in (0, 1))
    again = protocols.apply_protocol(structure, "blind", rng=0, symprec=0.01)
    assert np.array_equal(first.lattice.matrix, again.lattice.matrix)
    assert np.array_equal(first.frac_coords, again.frac_coords)
    assert not np.allclose(first.lattice.matrix, second.lattice.matrix)
    assert not np.allclose(first.frac_coords, second.frac_coords)
    niggli = structure.get_primitive_structure().get_reduced_structure("niggli").lattice
    assert max(first.lattice.abc) <= protocols.MAX_ELONGATION * max(niggli.abc) + 1e-6
    assert first.get_reduced_structure("niggli").lattice.abc == pytest.approx(niggli.abc, abs=1e-4)


def test_blind_starts_from_the_primitive_cell(nacl):
    assert len(protocols.apply_protocol(nacl * (2, 1, 1), "blind", rng=0)) == 2


def test_conventional_is_the_standard_cell(nacl):
    primitive = nacl.get_primitive_structure()
    shown = protocols.apply_protocol(primitive, "conventional")
    assert len(shown) == 8
    assert shown.lattice.matrix == pytest.approx(nacl.lattice.a * np.eye(3), abs=1e-8)
    cell = (primitive.lattice.matrix, primitive.frac_coords, np.array(primitive.atomic_numbers))
    assert protocols.conventional_cell(cell)[1] == "F"


def test_primitive_is_the_cell_as_given(quartz):
    assert protocols.apply_protocol(quartz, "primitive") is quartz


def test_partial_occupancies_survive(nacl):
    nacl.replace_species({"Na": {"Na": 0.5, "K": 0.5}})
    shown = protocols.apply_protocol(nacl, "blind", rng=0)
    assert shown.composition.fractional_composition == nacl.composition.fractional_composition
    assert not shown.is_ordered


def test_niggli_cell_agrees_with_pymatgen(crystals):
    for structure in crystals.values():
        cell = (structure.lattice.matrix, structure.frac_coords, np.array(structure.atomic_numbers))
        lattice, _, kinds = protocols.niggli_cell(cell, 0.01)
        expected = structure.get_primitive_structure().get_reduced_structure("niggli").lattice
        assert np.sort(np.linalg.norm(lattice, axis=1)) == pytest.approx(np.sort(expected.abc), abs=1e-4)
        assert len(kinds) == round(len(structure) * abs(np.linalg.det(lattice)) / structure.volume)


def test_random_rotation_is_proper_and_uniform():
    rng = np.random.default_rng(0)
    rotations = np.array([protocols.random_rotation(rng) for _ in range(4000)])
    assert rotations @ rotations.transpose(0, 2, 1) == pytest.approx(np.broadcast_to(np.eye(3), rotations.shape), abs=1e-12)
    assert np.linalg.det(rotations) == pytest.approx(1.0)
    # Haar measure: every entry has mean 0 and mean square 1/3.
    assert np.abs(rotations.mean(0)).max() < 0.04
    assert np.abs((rotations**2).mean(0) - 1 / 3).max() < 0.03


def test_random_basis_change_is_unimodular_even_for_long_cells():
    rng = np.random.default_rng(0)
    for lattice in (np.eye(3), np.diag([3.0, 4.0, 40.0])):
        matrices = [protocols.random_basis_change(lattice, rng) for _ in range(200)]
        assert {round(float(np.linalg.det(m))) for m in matrices} == {1}
        assert max(np.linalg.norm(m @ lattice, axis=1).max() for m in matrices) <= 2.5 * np.linalg.norm(lattice, axis=1).max()
        assert len({m.tobytes() for m in matrices}) > 50


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: protocols.apply_protocol(s, "standard"), "must be one of"),
        (lambda s: protocols.niggli_cell((np.ones((3, 3)), np.zeros((1, 3)), np.array([1]))), "with a volume"),
        (lambda s: protocols.niggli_cell((np.eye(3), np.full((1, 3), np.nan), np.array([1]))), "finite"),
        (lambda s: protocols.niggli_cell((4 * np.eye(3), np.zeros((2, 3)), np.array([1, 1]))), "overlap"),
        (lambda s: protocols.conventional_cell((4 * np.eye(3), np.zeros((2, 3)), np.array([1, 1]))), "overlap"),
        (lambda s: protocols.split_of(["a"], kind="time"), "'random' or 'prototype'"),
        (lambda s: protocols.assign_split(["a", "b"], ["Fe"], [1]), "equal length"),
        (lambda s: protocols.anonymous_formula("fe2"), "element symbols"),
        (lambda s: protocols.anonymous_formula("Ca(OH"), "element symbols"),
        (lambda s: protocols.anonymous_formula(""), "element symbols"),
    ],
)
def test_errors_say_what_to_do(nacl, call, message):
    with pytest.raises(ValueError, match=message):
        call(nacl)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [("BaTiO3", "1-1-3"), ("Ti O2", "1-2"), ("Al(CoSi)2", "1-2-2"), ("Ca3(PO4)2", "2-3-8"), ("O2", "1"), ("Na0.5Cl1.5", "0.250-0.750")],
)
def test_anonymous_formula(formula, expected):
    assert protocols.anonymous_formula(formula) == expected


def fake_rows(n=4000):
    rng = np.random.default_rng(0)
    metals = rng.choice(["Na", "Ca(OH)2", "Fe3", "Ti5O2"], n)
    return (
        [f"mp-{i}" for i in range(n)],
        [f"{m}X{k}".replace("X", "Cl") for m, k in zip(metals, rng.integers(1, 9, n), strict=True)],
        rng.integers(1, 231, n),
    )


def test_random_split_is_the_sha1_of_the_id():
    ids = fake_rows()[0]
    split = protocols.split_of(ids)
    for i in range(0, 4000, 371):  # the rule, spelled out: it must never change
        fraction = int(hashlib.sha1(ids[i].encode()).hexdigest()[:16], 16) / 16**16
        assert split[i] == ("train" if fraction < 0.8 else "validation" if fraction < 0.9 else "test")
    assert np.mean(split == "train") == pytest.approx(0.8, abs=0.02)
    order = np.random.default_rng(1).permutation(len(ids))
    assert np.array_equal(protocols.split_of([ids[i] for i in order]), split[order])


def test_prototypes_never_cross():
    ids, formulas, numbers = fake_rows()
    groups = np.array([f"{protocols.anonymous_formula(f)} {n}" for f, n in zip(formulas, numbers, strict=True)])
    split = protocols.split_of(ids, "prototype", formulas, numbers)
    assert all(len(set(split[groups == g])) == 1 for g in set(groups))
    assert set(split) == {"train", "validation", "test"}

    assigned = protocols.assign_split(ids, formulas, numbers)
    held_out = assigned == "prototype_test"
    assert 0.02 < held_out.mean() < 0.12
    assert not set(groups[held_out]) & set(groups[~held_out])
    assert np.array_equal(assigned[~held_out], protocols.split_of(ids)[~held_out])


FROZEN = [
    ("mp-10", "As", 221, "train"),
    ("mp-149", "Si", 227, "train"),
    ("mp-13", "Fe", 229, "train"),
    ("mp-22862", "NaCl", 225, "test"),
    ("mp-100", "Hf", 229, "validation"),
    ("mp-10010", "Al(CoSi)2", 164, "validation"),
    ("mp-1001608", "C4O3", 1, "test"),
    ("mp-10000", "Hf2S", 194, "prototype_test"),
    ("mp-10006", "TlAgTe2", 119, "prototype_test"),
]


def test_assigned_splits_are_frozen():
    """The shipped models were trained on these sides; a change here would let training rows into the test."""
    ids, formulas, numbers, sides = zip(*FROZEN, strict=True)
    assert protocols.assign_split(ids, formulas, numbers).tolist() == list(sides)
