"""Labels: the table of extinction groups against gemmi's absences, spglib's symbols, and the laws between the three targets."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import gemmi
import numpy as np
import pytest
import spglib

from matminer_ed3d import labels

DATA = Path(__file__).parent / "data"
NUMBERS = np.arange(1, 231)


def test_the_table_is_what_gemmi_s_absences_say(monkeypatch):
    monkeypatch.syspath_prepend(str(DATA))
    import gen_extinction_groups

    assert gen_extinction_groups.groups() == [list(labels.extinction_group_members(group)) for group in range(1, 102)]
    table = Path(labels.__file__).parent / "data" / "extinction_groups.json"
    assert table.read_text(encoding="utf-8") == gen_extinction_groups.text() + "\n"


def test_the_groups_are_a_partition_of_the_space_groups():
    members = [labels.extinction_group_members(group) for group in range(1, 102)]
    assert sorted(number for group in members for number in group) == NUMBERS.tolist()
    assert [group[0] for group in members] == sorted(group[0] for group in members)
    for group, numbers in enumerate(members, start=1):
        assert [labels.extinction_group(n) for n in numbers] == [group] * len(numbers)
        assert len({labels.crystal_system(n) for n in numbers}) == 1


def test_groups_per_system_are_those_of_the_paper():
    counts = Counter(labels.crystal_system(labels.extinction_group_members(group)[0]) for group in range(1, 102))
    assert [counts[system] for system in labels.CRYSTAL_SYSTEMS] == [1, 6, 33, 31, 6, 7, 17]


def test_crystal_systems_are_gemmi_s_and_trigonal_is_143_to_167():
    for number in NUMBERS.tolist():
        assert labels.crystal_system(number) == gemmi.find_spacegroup_by_number(number).crystal_system_str()
    assert np.flatnonzero(labels.target_of(NUMBERS, "crystal_system") == "trigonal").tolist() == list(range(142, 167))


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING")
def test_symbols_are_spglib_s():
    short = {}
    for hall_number in range(1, 531):
        kind = spglib.get_spacegroup_type(hall_number)
        short.setdefault(kind.number, kind.international_short.replace("_", ""))
    assert [labels.space_group_symbol(n) for n in NUMBERS.tolist()] == [short[n] for n in NUMBERS.tolist()]
    assert labels.space_group_symbol(14) == "P21/c"
    assert labels.extinction_group_symbol(labels.extinction_group(62)) == "Pna21|Pnma"
    assert len({labels.extinction_group_symbol(group) for group in range(1, 102)}) == 101


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING")
def test_enantiomorphs_are_the_pairs_that_inversion_exchanges():
    """The mirrored operations of a chiral group are those of its partner; the type is found from the operations by spglib."""
    partner = {}
    for hall_number in range(1, 531):
        number = spglib.get_spacegroup_type(hall_number).number
        if number in partner:
            continue
        operations = spglib.get_symmetry_from_database(hall_number)
        mirrored = spglib.get_spacegroup_type_from_symmetry(operations["rotations"], -operations["translations"])
        partner[number] = mirrored.number
    assert {n: labels.enantiomorph(n) for n in NUMBERS.tolist()} == partner
    assert sum(n != m for n, m in partner.items()) == 22


def test_enantiomorphs_share_their_extinction_group():
    for number in NUMBERS.tolist():
        mirror = labels.enantiomorph(number)
        assert labels.enantiomorph(mirror) == number
        assert labels.extinction_group(mirror) == labels.extinction_group(number)


# --- from a structure ------------------------------------------------------------------------------------------------------------


def test_labels_of_the_fixtures(crystals):
    numbers = {"triclinic": 2, "monoclinic": 14, "orthorhombic": 58, "tetragonal": 136, "trigonal": 154, "hexagonal": 186, "cubic": 225}
    for system, structure in crystals.items():
        assert labels.space_group_number(structure) == numbers[system]
        assert labels.crystal_system(structure) == system
        assert labels.extinction_group(structure) == labels.extinction_group(numbers[system])


def test_labels_are_those_of_the_materials_project():
    from pymatgen.core.structure import Structure

    records = json.loads((DATA / "mp_labels.json").read_text(encoding="utf-8"))["structures"]
    assert len(records) == 28
    for record in records:
        structure = Structure(np.reshape(record["lattice"], (3, 3)), record["numbers"], np.reshape(record["frac"], (-1, 3)))
        found = [labels.space_group_number(structure, symprec) for symprec in (0.1, 0.01)]
        assert found == [record["symprec_01"], record["symprec_001"]], record["id"]


@pytest.mark.parametrize("system", labels.CRYSTAL_SYSTEMS)
def test_neither_supercell_rotation_origin_nor_order_changes_a_label(crystals, system):
    from pymatgen.core.operations import SymmOp

    structure = crystals[system]
    number = labels.space_group_number(structure)
    supercell = structure.make_supercell([[2, 0, 0], [0, 1, 0], [1, 0, 1]], in_place=False)
    rotated = structure.copy()
    rotated.apply_operation(SymmOp.from_axis_angle_and_translation([1, 2, 3], 40, translation_vec=[0.3, 0.1, 0.7]))
    shuffled = structure.from_sites([structure[i] for i in np.random.default_rng(0).permutation(len(structure))])
    for other in (supercell, rotated, shuffled, structure.get_primitive_structure()):
        assert labels.space_group_number(other) == number


def test_spins_do_not_tell_sites_apart_but_oxidation_states_do():
    from pymatgen.core import Lattice, Species, Structure

    def bcc(first, second):
        return Structure(Lattice.cubic(2.87), [first, second], [[0, 0, 0], [0.5, 0.5, 0.5]])

    assert labels.space_group_number(bcc(Species("Fe", 2, spin=5), Species("Fe", 2.0, spin=-5))) == 229
    assert labels.space_group_number(bcc(Species("Fe", None, spin=2), Species("Fe", None, spin=-2))) == 229
    both = {Species("Fe", 2, spin=5): 0.5, Species("Fe", 2, spin=-5): 0.5}
    assert labels.space_group_number(bcc(both, Species("Fe", 2, spin=5))) == 229
    assert labels.space_group_number(bcc(Species("Fe", 2), Species("Fe", 3))) == 221


def test_sites_of_a_disordered_structure_are_alike_if_their_species_are(nacl):
    nacl.replace_species({"Na": {"Na": 0.5, "K": 0.5}})
    assert labels.space_group_number(nacl) == 225
    nacl[0] = {"Na": 0.4, "K": 0.6}
    assert labels.space_group_number(nacl) == 221
    nacl[0] = {"Na": 0.5}
    assert labels.space_group_number(nacl) == 221


def test_symprec_decides(nacl):
    nacl.translate_sites([0], [0.005, 0, 0])  # 0.028 Å
    assert labels.space_group_number(nacl) == 225
    assert labels.space_group_number(nacl, symprec=0.001) < 225
    assert labels.crystal_system(nacl, symprec=0.001) == "tetragonal"


def test_what_has_no_space_group_is_refused(nacl):
    for wrong, reason in [(None, "NoneType"), ("NaCl", "builtins.str"), ([nacl], "builtins.list"), (np.nan, "builtins.float")]:
        with pytest.raises(TypeError, match=reason):
            labels.crystal_system(wrong)
    with pytest.raises(TypeError, match="pymatgen Structure"):
        labels.space_group_number(225)
    for symprec in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`symprec` must be a positive distance"):
            labels.space_group_number(nacl, symprec)
    nacl.append("Na", [0, 0, 0.001])
    with pytest.raises(ValueError, match="do atoms overlap"):
        labels.space_group_number(nacl)
    nacl.remove_sites(range(len(nacl)))
    with pytest.raises(ValueError, match="at least one site"):
        labels.space_group_number(nacl)


# --- from numbers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [np.int32(14), np.int64(14), np.uint8(14), 14])
def test_any_integer_is_a_number(number):
    assert labels.crystal_system(number) == "monoclinic"
    assert type(labels.extinction_group(number)) is int
    assert type(labels.crystal_system(number)) is str


@pytest.mark.parametrize("number", [0, -1, 231, True])
def test_numbers_out_of_range_are_refused(number):
    for function in (labels.crystal_system, labels.extinction_group, labels.space_group_symbol, labels.enantiomorph):
        with pytest.raises(ValueError, match="from 1 to 230"):
            function(number)
    with pytest.raises(ValueError, match="from 1 to 101"):
        labels.extinction_group_members(102)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize("number", [14.0, "14", None])
def test_what_is_no_integer_is_refused(number):
    for function in (labels.space_group_symbol, labels.enantiomorph, labels.extinction_group_symbol, labels.crystal_system):
        with pytest.raises(TypeError, match=r"integer|number"):
            function(number)


def test_target_of_agrees_with_the_functions_of_one_number():
    assert labels.target_of(NUMBERS, "crystal_system").tolist() == [labels.crystal_system(n) for n in NUMBERS.tolist()]
    assert labels.target_of(NUMBERS, "extinction_group").tolist() == [labels.extinction_group(n) for n in NUMBERS.tolist()]
    assert labels.target_of(NUMBERS, "space_group_number").tolist() == NUMBERS.tolist()


def test_target_of_takes_any_column_of_whole_numbers():
    import pandas as pd

    for column in (
        [1, 225],
        (1, 225),
        np.array([1, 225], np.int16),
        np.array([1.0, 225.0]),
        pd.Series([1, 225]),
        np.array([1, 225], object),
    ):
        assert labels.target_of(column, "crystal_system").tolist() == ["triclinic", "cubic"]
    assert labels.target_of([[1, 225]], "extinction_group").shape == (1, 2)
    assert labels.target_of([], "extinction_group").shape == (0,)


@pytest.mark.parametrize(
    ("numbers", "error"),
    [([0, 1], ValueError), ([231], ValueError), ([1.5], ValueError), ([1, np.nan], ValueError), (["a"], TypeError), ([True], TypeError)],
)
def test_target_of_refuses_what_is_no_space_group(numbers, error):
    with pytest.raises(error, match="`space_group_numbers` must"):
        labels.target_of(numbers, "crystal_system")


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="crystal_system, extinction_group, space_group_number, got 'point_group'"):
        labels.target_of([1], "point_group")


def test_a_hundred_thousand_numbers_take_no_time():
    numbers = np.random.default_rng(0).integers(1, 231, 100_000)
    labels.target_of(numbers, "crystal_system")
    start = time.perf_counter()
    for target in labels.TARGETS:
        labels.target_of(numbers, target)
    assert time.perf_counter() - start < 0.2


# --- probabilities -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", labels.TARGETS)
@pytest.mark.parametrize("classes", [NUMBERS, np.array([225, 2, 14, 62, 227]), np.array([1])])
def test_coarse_probabilities_are_sums_over_members(target, classes):
    proba = np.random.default_rng(0).dirichlet(np.ones(len(classes)), size=7)
    coarse, names = labels.coarsen_proba(proba, classes, target)
    np.testing.assert_allclose(coarse.sum(axis=1), 1)
    assert names.tolist() == sorted(set(labels.target_of(classes, target).tolist()))
    for name, column in zip(names, coarse.T, strict=True):
        np.testing.assert_allclose(column, proba[:, labels.target_of(classes, target) == name].sum(axis=1))


def test_coarsening_keeps_the_precision_and_takes_no_rows():
    coarse, names = labels.coarsen_proba(np.zeros((0, 230), np.float32), NUMBERS, "extinction_group")
    assert coarse.dtype == np.float32
    assert coarse.shape == (0, 101)
    assert names.tolist() == list(range(1, 102))


def test_coarsening_in_steps_is_coarsening_at_once():
    proba = np.random.default_rng(1).dirichlet(np.ones(230), size=5)
    groups, group_names = labels.coarsen_proba(proba, NUMBERS, "extinction_group")
    systems, system_names = labels.coarsen_proba(proba, NUMBERS, "crystal_system")
    of_group = [labels.crystal_system(labels.extinction_group_members(int(group))[0]) for group in group_names]
    for name, column in zip(system_names, systems.T, strict=True):
        np.testing.assert_allclose(column, groups[:, np.array(of_group) == name].sum(axis=1))


def test_probabilities_that_do_not_fit_their_classes_are_refused():
    for proba, classes in [(np.ones((2, 3)), [1, 2]), (np.ones((2, 2)), [1, 1]), (np.ones((2, 2)), [[1, 2]])]:
        with pytest.raises(ValueError, match=r"`proba` must be|`classes` must hold each"):
            labels.coarsen_proba(proba, classes, "crystal_system")
    with pytest.raises(ValueError, match="must be"):
        labels.coarsen_proba(np.ones((1, 1)), [231], "crystal_system")


def test_the_generator_runs_as_a_script(tmp_path):
    script = tmp_path / "tests" / "data" / "gen_extinction_groups.py"
    script.parent.mkdir(parents=True)
    (tmp_path / "matminer_ed3d" / "data").mkdir(parents=True)
    script.write_text((DATA / script.name).read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, str(script)], check=True)
    written = tmp_path / "matminer_ed3d" / "data" / "extinction_groups.json"
    assert written.read_text(encoding="utf-8") == (Path(labels.__file__).parent / "data" / written.name).read_text(encoding="utf-8")


def test_rotation_orders_are_those_of_the_trace():
    fourfold, sixfold = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([[1, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert [labels.rotation_order(np.linalg.matrix_power(fourfold, n)) for n in range(4)] == [1, 4, 2, 4]
    assert [labels.rotation_order(np.linalg.matrix_power(sixfold, n)) for n in range(6)] == [1, 6, 3, 2, 3, 6]
    assert [labels.rotation_order(-np.linalg.matrix_power(sixfold, n)) for n in range(6)] == [-1, -6, -3, -2, -3, -6]
    for wrong in (np.zeros((3, 3), int), np.diag([2, 1, 1]), np.array([[2, 1, 0], [1, 1, 0], [0, 0, 1]])):
        with pytest.raises(ValueError, match="crystallographic rotation"):
            labels.rotation_order(wrong)
