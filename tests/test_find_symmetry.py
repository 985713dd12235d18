"""The space group of a density: the same in every cell, from every origin; spglib on the atoms is the oracle."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import spglib
from other_crystals import other_crystals
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from random_crystals import random_crystal

from matminer_ed3d import labels
from matminer_ed3d.density import Density
from matminer_ed3d.promolecule import density_from_structure
from matminer_ed3d.protocols import apply_protocol, niggli_cell, random_rotation
from matminer_ed3d.symmetry import find_symmetry

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ENANTIOMORPHS = [76, 78, 91, 92, 95, 96, 144, 145, 151, 152, 153, 154, 169, 170, 171, 172, 178, 179, 180, 181, 212, 213]
SUBSET = sorted({*ENANTIOMORPHS, *range(1, 231, 3)})


def density_of(structure):
    return density_from_structure(structure, method="band_limited", d_min=1.0)


@cache
def crystal(number):
    return random_crystal(number, np.random.default_rng([5, number]), n_special=1)


def niggli(structure):
    lattice, frac_coords, numbers = niggli_cell((structure.lattice.matrix, structure.frac_coords, np.array(structure.atomic_numbers)), 0.01)
    return Structure(lattice, numbers, frac_coords)


CELLS = {
    "conventional": np.eye(3, dtype=int),
    "doubled": np.diag([1, 2, 1]),
    "skewed": np.array([[1, 1, 0], [0, 1, -1], [0, 0, 1]]),
    "doubled and skewed": np.array([[1, 0, 1], [0, 1, 1], [0, 0, 2]]),
    "left-handed": np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]]),
}


def largest_gap(structure, rotation, translation):
    """How far, in Å, an operation (in fractional coordinates of the structure) takes an atom from the nearest of its kind."""
    images = structure.frac_coords @ rotation.T + translation
    gaps = (images[:, None] - structure.frac_coords + 0.5) % 1.0 - 0.5
    numbers = np.array(structure.atomic_numbers)
    distances = np.linalg.norm(gaps @ structure.lattice.matrix, axis=2) + 1e3 * (numbers[:, None] != numbers)
    return distances.min(axis=1).max()


def check(structure, number):
    """Group, names, operations and setting of the found symmetry against the atoms and spglib's tables."""
    found = find_symmetry(density_of(structure))
    assert found.space_group_number == number
    kind = spglib.get_spacegroup_type(found.group.hall_number)
    assert (kind.number, kind.international_short) == (number, found.group.symbol)
    assert found.centring == kind.international_short[0]
    assert found.extinction_group == labels.extinction_group(number)
    assert found.crystal_system == labels.crystal_system(number)
    assert np.allclose(found.basis @ structure.lattice.matrix, found.lattice, atol=1e-6)
    change = found.basis.T  # from the primitive cell's coordinates to the given cell's
    inverse = np.linalg.inv(change)
    for operation in found.operations:  # true of the atoms, as infinite crystal
        assert largest_gap(structure, change @ operation.rotation @ inverse, change @ operation.translation) < 2e-3
    standard = spglib.get_symmetry_from_database(found.group.hall_number)
    matrix, shift = found.transformation
    to_given = np.linalg.inv(matrix)
    for rotation, translation in zip(standard["rotations"], standard["translations"], strict=True):
        in_given = to_given @ rotation @ matrix, to_given @ (rotation @ shift + translation - shift)
        assert largest_gap(structure, *in_given) < 2e-3
    centrings = (standard["rotations"] == np.eye(3)).all(axis=(1, 2)).sum()
    assert len(found.operations) * centrings == len(standard["rotations"])
    return found


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("number", [9, 43, 62, 122, 146, 178])
def test_the_group_does_not_depend_on_the_cell(number, cell):
    structure = crystal(number)
    if len(structure) > 30:
        structure = niggli(structure)
    shown = structure.make_supercell(CELLS[cell], in_place=False)  # a left-handed basis is one of the same crystal, not of its image
    found = check(shown, number)
    assert abs(np.linalg.det(found.lattice)) == pytest.approx(niggli(structure).volume, rel=1e-6)


@pytest.mark.parametrize("number", [4, 19, 33, 82, 152, 166])
def test_neither_on_origin_orientation_nor_order_of_sites(number):
    structure = niggli(crystal(number))
    rng = np.random.default_rng(number)
    first = find_symmetry(density_of(structure))
    shuffled = Structure.from_sites([structure[i] for i in rng.permutation(len(structure))])
    turned = Structure(structure.lattice.matrix @ random_rotation(rng), structure.species, structure.frac_coords + rng.random(3))
    for other in (shuffled, turned, apply_protocol(structure, "blind", rng, symprec=0.01)):
        found = check(other, number)
        assert found.group.hall_symbol == first.group.hall_symbol
        assert len(found.operations) == len(first.operations)
        assert found.probability == pytest.approx(first.probability, abs=0.05)


def test_a_mirror_image_has_the_other_enantiomorph():
    structure = crystal(152)
    mirrored = Structure(structure.lattice.matrix @ np.diag([1, 1, -1]), structure.species, structure.frac_coords)
    assert find_symmetry(density_of(structure)).space_group_number == 152
    assert find_symmetry(density_of(mirrored)).space_group_number == 154


@pytest.mark.parametrize("number", [14, 43, 96, 161, 205])
def test_operations_are_an_exact_group(number):
    found = find_symmetry(density_of(apply_protocol(crystal(number), "blind", 1, symprec=0.01)))
    members = {o.rotation.tobytes(): o.translation for o in found.operations}
    assert (found.operations[0].rotation == np.eye(3)).all()
    assert np.abs((found.operations[0].translation + 0.5) % 1.0 - 0.5).max() < 1e-12
    for first in found.operations:
        for second in found.operations:
            product = (first.rotation @ second.rotation).tobytes()
            gap = first.rotation @ second.translation + first.translation - members[product]
            assert np.abs((gap + 0.5) % 1.0 - 0.5).max() < 1e-9


@pytest.mark.parametrize("name", sorted(other_crystals()))
def test_crystals_that_are_known(name):
    structure = other_crystals()[name]
    expected = spglib.get_symmetry_dataset((structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers), symprec=0.01)
    assert find_symmetry(density_of(structure)).space_group_number == expected.number


@pytest.mark.parametrize("system", ["triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic"])
def test_one_crystal_of_each_system(crystals, system):
    structure = crystals[system]
    expected = spglib.get_symmetry_dataset((structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers), symprec=0.01)
    found = find_symmetry(density_of(structure))
    assert (found.crystal_system, found.space_group_number) == (system, expected.number)


def test_gallium_arsenide_is_nearly_diamond():
    structure = Structure.from_spacegroup(216, Lattice.cubic(5.6533), ["Ga", "As"], [[0, 0, 0], [0.25, 0.25, 0.25]])
    found = find_symmetry(density_of(structure))
    assert found.space_group_number == 216
    assert found.probability > 0.9
    diamond = [c for c in found.candidates if c.space_group_number == 227]
    assert [c.relation for c in diamond] == ["supergroup"]
    assert diamond[0].n_operations == 48
    nearly = [o for o in found.rejected if (o.rotation == -np.eye(3)).all()]
    assert 2e-3 < nearly[0].residual < 8e-3
    silicon = Structure.from_spacegroup(227, Lattice.cubic(5.431), ["Si"], [[0, 0, 0]])
    assert find_symmetry(density_of(silicon)).space_group_number == 227


def test_a_special_metric_alone_is_no_symmetry():
    rng = np.random.default_rng(2)
    cubic = Lattice.cubic(5.2)
    for number, lattice in (
        (19, cubic),
        (14, Lattice.from_parameters(5.2, 5.2, 5.2, 90, 90, 90)),
        (143, Lattice.hexagonal(5, 5 * np.sqrt(1.5))),
    ):
        while True:
            structure = Structure.from_spacegroup(number, lattice, ["Ti", "Cl"], rng.random((2, 3)))
            if (structure.distance_matrix + 10 * np.eye(len(structure))).min() > 1.5:
                break
        expected = spglib.get_symmetry_dataset((structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers), symprec=0.01)
        assert expected.number == number
        assert find_symmetry(density_of(structure)).space_group_number == number


def test_candidates_and_probabilities():
    found = find_symmetry(density_of(crystal(62)))
    assert sum(c.relation == "found" for c in found.candidates) == 1
    assert sum(c.probability for c in found.candidates) == pytest.approx(1)
    assert [c.probability for c in found.candidates] == sorted((c.probability for c in found.candidates), reverse=True)
    subgroups = [c for c in found.candidates if c.relation == "subgroup"]
    assert len(subgroups) == 7  # of mmm: 222, three mm2, three 2/m
    assert all(c.n_operations == 4 for c in subgroups)
    proba = found.space_group_proba()
    assert proba.shape == (230,)
    assert proba.sum() == pytest.approx(1)
    assert proba.argmax() + 1 == 62


def test_a_constant_density_is_refused():
    with pytest.raises(ValueError, match="constant"):
        find_symmetry(Density(4 * np.eye(3), {"total": np.full((16, 16, 16), 0.3)}))


def test_a_channel_may_have_less_symmetry(chgcar_path):
    density = Density.from_file(chgcar_path)
    assert find_symmetry(density).space_group_number == 229
    assert find_symmetry(density, channel="diff").space_group_number == 229


@pytest.mark.parametrize("number", SUBSET)
def test_space_groups_in_blind_cells(number):
    blind = apply_protocol(crystal(number), "blind", number, symprec=0.01)
    assert find_symmetry(density_of(blind)).space_group_number == number
