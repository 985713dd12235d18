"""Structures from files: gemmi's expansion as oracle, disorder, ions, rounded coordinates, and pymatgen's other formats."""

from __future__ import annotations

import gzip
import json
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import gemmi
import numpy as np
import pytest
from pymatgen.core.structure import Structure
from pymatgen.io.cif import CifWriter

from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.sources import as_density, read_structure

COLUMNS = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy", "U_iso_or_equiv")
MONOCLINIC = (4, 5, 6, 90, 100, 90)
HEXAGONAL = (3, 3, 5, 90, 90, 120)


def cif_text(
    symbol: str, cell: Sequence[float], rows: Sequence[str], columns: Sequence[str] = COLUMNS, after: str = "", block: str = "x"
) -> str:
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{block}", *(f"_cell_{name} {value}" for name, value in zip(names, cell, strict=True))]
    lines += ["loop_", "_space_group_symop_operation_xyz", *(f"'{op.triplet()}'" for op in gemmi.SpaceGroup(symbol).operations())]
    return "\n".join([*lines, "loop_", *(f"_atom_site_{name}" for name in columns), *rows, after, ""])


def write(tmp_path: Path, text: str, name: str = "x.cif") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def electrons(structure: Structure) -> float:
    return sum(specie.Z * occupancy for site in structure for specie, occupancy in site.species.items())


def electrons_of_gemmi(path: Path) -> float:
    return sum(site.element.atomic_number * site.occ for site in gemmi.read_small_structure(str(path)).get_all_unit_cell_sites())


# --- symmetry ------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*no usable displacement")
@pytest.mark.parametrize("system", ["triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic"])
@pytest.mark.parametrize("symprec", [None, 0.01])
def test_the_cells_of_all_systems_hold_the_electrons_that_gemmi_counts(tmp_path, crystals, system, symprec):
    path = write(tmp_path, str(CifWriter(crystals[system], symprec=symprec, significant_figures=5)))
    structure = read_structure(path)
    assert electrons(structure) == pytest.approx(electrons_of_gemmi(path), rel=1e-12)
    per_volume = electrons(crystals[system]) / crystals[system].volume
    assert electrons(structure) / structure.volume == pytest.approx(per_volume, rel=1e-4)


def named_group(cell: Sequence[float], tags: str, row: str) -> str:
    text = cif_text("P 1", cell, [row])
    operations = "loop_\n_space_group_symop_operation_xyz\n'x,y,z'\n"
    assert operations in text
    return text.replace(operations, tags + "\n")


@pytest.mark.parametrize(
    ("cell", "tags", "n_sites"),
    [
        ((5.4,) * 3 + (90,) * 3, "_symmetry_space_group_name_H-M 'F d -3 m :1'", 16),
        ((5.4,) * 3 + (90,) * 3, "_symmetry_space_group_name_H-M 'F d -3 m :2'", 8),
        ((5.4,) * 3 + (90,) * 3, "_symmetry_space_group_name_H-M 'F d -3 m S'", 16),
        ((5.4,) * 3 + (90,) * 3, "_space_group_name_H-M_alt 'F d -3 m Z'", 8),
        ((5.4,) * 3 + (90,) * 3, "_space_group_name_Hall '-F 4vw 2vw 3'", 8),
        ((4, 4, 5, 90, 90, 120), "_symmetry_space_group_name_H-M 'R -3 c HR'", 36),
        ((4, 4, 4, 80, 80, 80), "_symmetry_space_group_name_H-M 'R -3 c'", 4),
        ((4, 4, 4, 80, 80, 80), "_symmetry_Int_Tables_number 167", 4),
        ((4, 5, 6, 90, 100, 90), "_symmetry_space_group_name_H-M 'P 21/n'", 4),
    ],
)
@pytest.mark.filterwarnings("ignore:.*two choices of origin")
def test_a_space_group_that_is_only_named_is_expanded_in_its_setting(tmp_path, cell, tags, n_sites):
    structure = read_structure(write(tmp_path, named_group(cell, tags, "Si1 Si 0.125 0.125 0.125 1 0.01")))
    assert len(structure) == n_sites


def test_a_choice_of_origin_that_nobody_made_is_said(tmp_path):
    text = named_group((5.4,) * 3 + (90,) * 3, "_symmetry_space_group_name_H-M 'F d -3 m'", "Si1 Si 0 0 0 1 0.01")
    with pytest.warns(UserWarning, match="two choices of origin; the first is assumed"):
        assert len(read_structure(write(tmp_path, text))) == 8


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ("_symmetry_space_group_name_H-M 'F d -3 q'", "space group 'F d -3 q', expected a known one"),
        ("_symmetry_Int_Tables_number 300", "space group '300'"),
        ("_symmetry_space_group_name_H-M 'F m -3 m'", "space group F m -3 m and a cell of"),
    ],
)
def test_a_space_group_that_is_none_of_the_cell_is_refused(tmp_path, tags, reason):
    with pytest.raises(DensityFileError, match=reason):
        read_structure(write(tmp_path, named_group(MONOCLINIC, tags, "Si1 Si 0 0 0 1 0.01")))


def test_a_cif_that_ends_early_names_its_line(tmp_path):
    text = cif_text("P 1", MONOCLINIC, ["Fe1 Fe 0.1 0.2 0.3 1 0.01", "Fe2 Fe 0.1"])
    with pytest.raises(DensityFileError, match=r"x\.cif:\d+: found text that is no CIF \(Wrong number of values in loop"):
        read_structure(write(tmp_path, text))
    with pytest.raises(DensityFileError, match=r"x\.cif: found no atoms, expected a loop of `_atom_site_label`"):
        read_structure(write(tmp_path, text.partition("loop_\n_atom_site_label")[0]))


def test_an_atom_that_is_marked_as_a_dummy_is_refused(tmp_path):
    rows = ["Fe1 Fe 0.1 0.2 0.3 1 0.01 d", "C1 C 0.5 0.5 0.5 1 0.01 dum"]
    with pytest.raises(DensityFileError, match="atom C1, which its `_atom_site_calc_flag` calls a dummy"):
        read_structure(write(tmp_path, cif_text("P 1", MONOCLINIC, rows, (*COLUMNS, "calc_flag"))))


@pytest.mark.parametrize(
    ("x", "y"), [("0.33333", "0.66667"), ("0.3333", "0.6667"), ("0.333", "0.667"), ("0.33", "0.67"), ("0.333(1)", ".667(2)")]
)
@pytest.mark.parametrize("occupancy", [1, 0.3])
def test_a_rounded_special_position_holds_one_atom(tmp_path, x, y, occupancy):
    path = write(tmp_path, cif_text("P 63/m m c", HEXAGONAL, [f"Mg1 Mg {x} {y} 0.25 {occupancy} 0.01"]))
    structure = read_structure(path)
    assert electrons(structure) == pytest.approx(24 * occupancy)
    np.testing.assert_allclose(structure.site_properties["u_iso"], 0.01, rtol=1e-6)
    assert np.abs(structure.frac_coords[0] * 3 % 1 - [0, 0, 0.75]).max() < 1e-6 or len(x) > 4


def test_split_atoms_beside_a_symmetry_element_stay_apart(tmp_path):
    rows = ["Mg1 Mg 0.34 0.68 0.25 0.3333 0.01"]
    assert len(read_structure(write(tmp_path, cif_text("P 63/m m c", HEXAGONAL, rows)))) == 6
    rows = ["Mg1 Mg 0.3 0.01 0.2 0.5 0.01"]
    assert len(read_structure(write(tmp_path, cif_text("P m", (14, 15, 6, 90, 100, 90), rows)))) == 2


# --- disorder ------------------------------------------------------------------------------------------------------------------

DISORDER = {
    "shared site": ["Fe1 Fe 0 0 0 0.6 0.01", "Mg1 Mg 0 0 0 0.4 0.02", "O1 O 0.3 0.2 0.1 1 0.01"],
    "vacancies": ["Fe1 Fe 0.1 0.2 0.3 0.75 0.01", "O1 O 0.6 0.7 0.8 0.5 0.01"],
    "split site": ["C1 C 0.3 0.1 0.2 0.6 0.01", "C1B C 0.31 0.12 0.2 0.4 0.01", "C2 C 0.7 0.2 0.2 1 0.01"],
    "deuterium": ["O1 O 0.3 0.1 0.2 1 0.01", "D1 D 0.3 0.3 0.2 0.5 0.02", "H1 H 0.3 0.3 0.2 0.5 0.02"],
    "empty site": ["Fe1 Fe 0.1 0.2 0.3 1 0.01", "O1 O 0.6 0.7 0.8 0 0.01"],
    "occupancy not given": ["Fe1 Fe 0.1 0.2 0.3 ? 0.01", "O1 O 0.6 0.7 0.8 . 0.01"],
    "ions": ["Fe1 Fe3+ 0.1 0.2 0.3 0.5 0.01", "O1 O2- 0.6 0.7 0.8 1 0.01"],
}


@pytest.mark.filterwarnings("ignore:.*Missing elements O")  # pymatgen of the empty site
@pytest.mark.parametrize("case", DISORDER)
@pytest.mark.parametrize("symbol", ["P 1", "P -1", "P m", "P 21/c"])
def test_disordered_cells_hold_the_electrons_that_gemmi_counts(tmp_path, case, symbol):
    cell = MONOCLINIC if "-1" not in symbol else (4, 5, 6, 80, 100, 95)
    path = write(tmp_path, cif_text(symbol, cell, DISORDER[case]))
    structure = read_structure(path)
    assert electrons(structure) == pytest.approx(electrons_of_gemmi(path), rel=1e-12)


def test_all_groups_of_a_disorder_are_kept(tmp_path):
    rows = [f"{row} {group}" for row, group in zip(DISORDER["split site"], ("A 1", "A 2", ". ."), strict=True)]
    path = write(tmp_path, cif_text("P m", MONOCLINIC, rows, (*COLUMNS, "disorder_assembly", "disorder_group")))
    assert electrons(read_structure(path)) == pytest.approx(24)


def test_groups_without_occupancies_overlap_and_are_named(tmp_path):
    rows = [" ".join(row.split()[:5] + row.split()[6:]) for row in DISORDER["split site"]]
    columns = [name for name in COLUMNS if name != "occupancy"]
    path = write(tmp_path, cif_text("P 1", MONOCLINIC, rows, columns))
    with pytest.warns(UserWarning, match=r"x\.cif: C1, C1B overlap, .* are occupancies missing\?"):
        read_structure(path)


def test_occupancies_that_rounding_makes_larger_than_one_are_scaled_and_named(tmp_path):
    rows = [f"{el}1 {el} 0.3 0.1 0.2 0.334 0.01" for el in ("Fe", "Co", "Ni")]
    with pytest.warns(UserWarning, match=r"x\.cif: Some occupancies .*1\.002"):
        structure = read_structure(write(tmp_path, cif_text("P 1", MONOCLINIC, rows)))
    assert electrons(structure) == pytest.approx(27)


# --- ions ----------------------------------------------------------------------------------------------------------------------

MIXED = ["Fe1 Fe3+ 0.1 0.2 0.3 1 0.01", "Fe2 Fe2+ 0.3 0 0.8 1 0.01", "O1 O2- 0.6 0.7 0.8 1 0.02", "Cl1 Cl- 0.6 0.3 0.2 1 0.02"]
TYPES = "loop_\n_atom_type_symbol\n_atom_type_oxidation_number\nFe3+ 3\nFe2+ 2\nO2- -2\nCl- -1"


@pytest.mark.parametrize("after", ["", TYPES, "loop_\n_atom_type_symbol\n_atom_type_description\nFe3+ iron\nO2- oxygen"])
def test_charges_of_a_cif_make_ions(tmp_path, after):
    path = write(tmp_path, cif_text("P 1", MONOCLINIC, MIXED, after=after))
    states = [site.specie.oxi_state for site in sorted(read_structure(path), key=lambda site: site.label)]
    assert states == [-1, 3, 2, -2]  # Cl1, Fe1, Fe2, O1
    assert as_density(path, grid_spacing=0.4).n_electrons() == pytest.approx(17 + 26 + 26 + 8 - 2, abs=0.05)
    assert as_density(path, grid_spacing=0.4, ions=False).n_electrons() == pytest.approx(77, abs=0.05)


# --- what else a CIF may hold --------------------------------------------------------------------------------------------------


def test_the_first_of_several_blocks_is_read_and_named(tmp_path):
    iron, cobalt = (cif_text("P 1", MONOCLINIC, [f"{el}1 {el} 0.1 0.2 0.3 1 0.01"], block=el) for el in ("Fe", "Co"))
    with pytest.warns(UserWarning, match=r"x\.cif: 2 blocks with atoms; the first, 'Fe', is read"):
        assert read_structure(write(tmp_path, iron + cobalt)).formula == "Fe1"
    damaged = iron.replace(" 0.1 ", " ? ") + cobalt
    with pytest.warns(UserWarning, match="2 blocks"), pytest.raises(DensityFileError, match=r"coordinate x = \? of atom Fe1"):
        read_structure(write(tmp_path, damaged))


TAGS = re.compile(r"^_\S+", re.MULTILINE)


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title])
def test_tags_are_alike_in_any_case(tmp_path, change):
    text = cif_text("P 21/c", MONOCLINIC, ["Fe1 Fe 0.1 0.2 0.3 1 0.01"], after="_symmetry_space_group_name_H-M 'P 21/c'")
    structure = read_structure(write(tmp_path, TAGS.sub(lambda tag: change(tag[0]), text)))
    assert structure == read_structure(write(tmp_path, text))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Structure.from_str(text, fmt="cif")
    assert structure.species == theirs.species
    np.testing.assert_allclose(structure.frac_coords, theirs.frac_coords, atol=1e-9)
    named = named_group(HEXAGONAL, "_space_group_name_H-M_alt 'P 3'", "Si1 Si 0.1 0.2 0.3 1 0.01")
    assert len(read_structure(write(tmp_path, TAGS.sub(lambda tag: change(tag[0]), named)))) == 3


ODD = "_chemical_name_common 'a name' of three"  # words without a tag, which the grammar does not have; pymatgen says so too


def test_text_against_the_grammar_is_checked_as_any_other(tmp_path):
    sound = cif_text("P 1", MONOCLINIC, ["Fe1 Fe 0.1 0.2 0.3 1 0.01"])
    unquoted = sound + "loop_\n_publ_author_name\n_cell_length_a 4\n"
    with pytest.raises(DensityFileError, match=r"x\.cif:\d+: found text that is no CIF"):
        read_structure(write(tmp_path, unquoted))
    with pytest.raises(DensityFileError, match=r"x\.cif:\d+: found text that is no CIF"):
        read_structure(write(tmp_path, sound + ODD))
    with pytest.raises(DensityFileError, match=r"x\.cif:\d+: found text that is no CIF \(.*uplicate"):
        read_structure(write(tmp_path, sound + "_cell_length_a 5\n"))
    assert read_structure(write(tmp_path, sound + "_journal_year 1\n_journal_year 2\n")).formula == "Fe1"
    with pytest.raises(DensityFileError, match=r"x\.cif:\d+: found text that is no CIF"):
        read_structure(write(tmp_path, sound + "_space_group_name_H-M_alt\n"))
    odd = sound + "_publ_section_title 'endless\n"
    with pytest.warns(UserWarning, match=r"x\.cif:\d+: against the grammar of CIF"):
        structure = read_structure(write(tmp_path, odd))
    assert structure.site_properties["u_iso"] == pytest.approx([0.01])
    for row, reason in (("0.1 0.2 0.3 1.5 0.01", "occupancy 1.5 of atom Fe1"), ("? 0.2 0.3 1 0.01", r"coordinate x = \?")):
        with pytest.warns(UserWarning, match="grammar"), pytest.raises(DensityFileError, match=reason):
            read_structure(write(tmp_path, odd.replace("0.1 0.2 0.3 1 0.01", row)))


def test_json_of_the_materials_project_and_lists(tmp_path, quartz):
    document = {"material_id": "mp-1", "nsites": len(quartz), "structure": quartz.as_dict()}
    assert read_structure(write(tmp_path, json.dumps(document), "x.json")) == quartz
    for one in (document, quartz.as_dict()):
        with pytest.raises(DensityFileError, match=r"x\.json: found a list of 2 structures, expected a single one; take one"):
            read_structure(write(tmp_path, json.dumps([one, one]), "x.json"))


def test_text_of_no_known_format_is_told_what_it_was_taken_for(tmp_path):
    with pytest.raises(DensityFileError, match=r"x\.txt:2: .*scale factor.*taken for a POSCAR.*no other known format \(CIF, JSON"):
        read_structure(write(tmp_path, "Dear all,\nplease find attached\n", "x.txt"))


MAGNETIC = """loop_
_space_group_symop_magn_operation.id
_space_group_symop_magn_operation.xyz
1 x,y,z,+1
2 -x,-y,-z,+1
loop_
_space_group_symop_magn_centering.id
_space_group_symop_magn_centering.xyz
1 x,y,z,+1
2 x+1/2,y+1/2,z,-1
loop_
_atom_site_moment.label
_atom_site_moment.crystalaxis_x
_atom_site_moment.crystalaxis_y
_atom_site_moment.crystalaxis_z
Mn1 1.0 0.0 0.0
"""


def test_a_magnetic_cif_gives_its_nuclei(tmp_path):
    text = cif_text("P 1", (4, 4, 6, 90, 90, 90), ["Mn1 Mn 0 0 0 1 0.01", "O1 O 0.2 0.1 0.3 1 0.02"], after=MAGNETIC)
    start = text.index("loop_\n_space_group_symop_operation_xyz")
    structure = read_structure(write(tmp_path, text[:start] + text[text.index("loop_\n_atom_site_label") :], "x.mcif"))
    assert structure.formula == "Mn2 O4"
    assert sorted(structure.site_properties["u_iso"]) == pytest.approx([0.01] * 2 + [0.02] * 4)


LABELS = ("label", "fract_x", "fract_y", "fract_z", "U_iso_or_equiv")


@pytest.mark.parametrize("label", ["Xx1", "OH1", "Va1", "Q1", "Dum", "1"])
def test_a_label_that_names_no_element_is_refused(tmp_path, label):
    rows = [f"{label} 0.3 0.1 0.2 0.01", "Zn1 0.7 0.3 0.3 0.01"]
    with pytest.raises(DensityFileError, match=rf"x\.cif: found species '{label}' of atom {label}, expected an element"):
        read_structure(write(tmp_path, cif_text("P 1", MONOCLINIC, rows, LABELS)))


def test_what_a_label_is_taken_for_is_said(tmp_path):
    rows = ["OA1 0.3 0.1 0.2 0.01", "Zn1 0.7 0.3 0.3 0.01"]
    with pytest.warns(UserWarning, match=r"x\.cif: atom OA1 is taken for O"):
        assert read_structure(write(tmp_path, cif_text("P 1", MONOCLINIC, rows, LABELS))).composition["O"] == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("Fe1 Fe ? 0.2 0.3 1 0.01", r"coordinate x = \? of atom Fe1"),
        ("Fe1 Fe . . . 1 0.01", r"coordinate x = \. of atom Fe1"),
        ("Fe1 Fe 0.1 1/3 0.3 1 0.01", "coordinate y = 1/3 of atom Fe1"),
        ("Fe1 Fe 0.1 0.2 0.3 full 0.01", "occupancy full of atom Fe1"),
        ("Fe1 Fe 0.1 0.2 0.3 -0.5 0.01", "occupancy -0.5 of atom Fe1"),
        ("Fe1 Fe 0.1 0.2 0.3 1.5 0.01", "occupancy 1.5 of atom Fe1"),
        ("Fe1 Fez 0.1 0.2 0.3 1 0.01", "species 'Fez' of atom Fe1"),
        ("N1 NH4 0.1 0.2 0.3 1 0.01", "species 'NH4' of atom N1"),
    ],
)
def test_what_no_atom_can_have_is_named(tmp_path, row, reason):
    with pytest.raises(DensityFileError, match=rf"x\.cif: found {reason}"):
        read_structure(write(tmp_path, cif_text("P 1", MONOCLINIC, [row])))


def test_two_whole_atoms_on_one_place_are_refused(tmp_path):
    rows = ["Fe1 Fe 0.3 0.1 0.2 0.75 0.01", "Co1 Co 0.3 0.1 0.2 0.75 0.01"]
    with pytest.raises(DensityFileError, match=r"Occupancy 1\.5 exceeded tolerance"):
        read_structure(write(tmp_path, cif_text("P 1", MONOCLINIC, rows)))


# --- the other formats of pymatgen ---------------------------------------------------------------------------------------------

VASPRUN = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <atominfo><array name="atoms"><set><rc><c>Na</c><c>1</c></rc><rc><c>Cl</c><c>2</c></rc></set></array></atominfo>
 <structure name="initialpos"><crystal><varray name="basis"><v>9 0 0</v><v>0 9 0</v><v>0 0 9</v></varray></crystal>
  <varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
 <structure name="finalpos"><crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 4</v></varray></crystal>
  <varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
</modeling>
"""
EXCITING = """<input xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
 <title>salt</title><structure speciespath="./">
 <crystal scale="1.0"><basevect>7.6 0 0</basevect><basevect>0 7.6 0</basevect><basevect>0 0 7.6</basevect></crystal>
 <species speciesfile="Na.xml"><atom coord="0 0 0"/></species>
 <species speciesfile="Cl.xml"><atom coord="0.5 0.5 0.5"/></species></structure>
</input>
"""


@pytest.mark.parametrize("fmt", ["yaml", "json", "cssr", "xsf", "res", "pwmat", "mcsqs"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_pymatgen_writes_is_read_by_its_content(tmp_path, quartz, fmt, packed):
    text = quartz.to(fmt=fmt)
    path = tmp_path / ("bestsqs.out" if fmt == "mcsqs" else "structure")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    structure = read_structure(path)
    assert structure.composition == quartz.composition
    assert structure.volume == pytest.approx(quartz.volume, rel=1e-3)
    for ours, theirs in zip(structure.get_sorted_structure(), Structure.from_str(text, fmt=fmt).get_sorted_structure(), strict=True):
        np.testing.assert_allclose(ours.coords, theirs.coords, atol=1e-6)


@pytest.mark.parametrize("text", [VASPRUN, EXCITING])
def test_xml_is_read(tmp_path, text):
    structure = read_structure(write(tmp_path, text, "structure"))
    assert structure.formula == "Na1 Cl1"
    assert structure.lattice.a == pytest.approx(4, rel=0.01)
    np.testing.assert_allclose(structure.frac_coords[1], 0.5)
    assert as_density(tmp_path / "structure", grid_spacing=0.5).n_electrons() == pytest.approx(28, abs=0.05)


YAML = """'@class': Structure
lattice:
  matrix: [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
sites:
- species:
  - {element: Fe, occu: 1}
  abc: [0, 0, 0]
"""
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
BAD = {
    "YAML that names a class": (YAML + "x: !!python/object/apply:os.system ['true']\n", "a tag or an alias"),
    "YAML with aliases": (YAML + "x: &a [1]\ny: [*a, *a]\n", "a tag or an alias"),
    "YAML cut": (YAML + "x: [1, 2\n", "not YAML"),
    "YAML of something else": (YAML.replace("Structure", "Molecule"), "JSON of Molecule"),
    "XML bomb": (VASPRUN.replace("<modeling>", "<modeling>" + BOMB), "document type or entity"),
    "XML bomb of exciting": (EXCITING.replace("<structure", BOMB + "<structure"), "document type or entity"),
    "XML cut": (VASPRUN[:400], "damaged XML"),
    "XML without a structure": ("<modeling></modeling>", "no vasprun.xml of VASP structure"),
    "XML with an atom too few": (VASPRUN.replace("<v>0.5 0.5 0.5</v>", ""), "1 positions of 2 atoms"),
    "XML with NaN": (VASPRUN.replace("0.5 0.5 0.5", "0.5 nan 0.5"), "positions"),
    "CSSR with symmetry": (
        "4 4 4\n90 90 90 SPGR = 225 F m -3 m\n2 0\n0 Na1 Cl1\n1 Na 0 0 0\n2 Cl 0.5 0.5 0.5\n",
        "space group other than 1",
    ),
    "CSSR that loses atoms": ("4 4 4\n90 90 90 SPGR = 1 P 1\n2 0\n0 Na1 Cl1\n1 Na 0 0 0\n2 Cl- 0.5 0.5 0.5\n", "the 2 announced"),
    ".res cut": ("TITL x\nCELL 0.7 4 4 4 90\nLATT -1\nSFAC Na\nNa1 1 0.1 0.2 0.3 1.0\nEND\n", "Failed to parse CELL"),
    ".res with other cards": ("TITL x\nCELL 0.7 4 4 4 90 90 90\nLATT -1\nHKLF 4\nSFAC Na\nNa1 1 0.1 0.2 0.3 1.0\nEND\n", "HKLF"),
    ".res with symmetry": (
        "TITL x\nCELL 0.7 4 4 4 90 90 90\nLATT 1\nSYMM -X, -Y, Z\nSFAC Na\nNa1 1 0.1 0.2 0.3 1.0\nEND\n",
        r"symmetry, 'LATT 1'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_to_be_trusted_is_refused(tmp_path, case):
    text, reason = BAD[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DensityFileError, match=rf"structure(?::\d+)?: found .*{reason}"):
            read_structure(write(tmp_path, text, "structure"))


@pytest.mark.parametrize("fmt", ["yaml", "cssr", "res", "pwmat", "mcsqs", "xsf", "vasprun", "exciting", "cif", "mcif"])
def test_no_damage_makes_another_error(tmp_path, quartz, fmt):
    """Whatever happens to a file, it is read or refused by its name: bytes changed, cut out and put in."""
    texts = {
        "vasprun": VASPRUN,
        "exciting": EXCITING,
        "cif": cif_text("P 21/c", MONOCLINIC, MIXED, after=TYPES),
        "mcif": cif_text("P 1", (4, 4, 6, 90, 90, 90), ["Mn1 Mn 0 0 0 1 0.01", "O1 O 0.2 0.1 0.3 1 0.02"], after=MAGNETIC),
    }
    sound = (texts[fmt] if fmt in texts else quartz.to(fmt=fmt)).encode()
    rng = np.random.default_rng(0)
    path = tmp_path / ("bestsqs.out" if fmt == "mcsqs" else "structure")
    for _ in range(40):
        raw = bytearray(sound)
        for _ in range(rng.integers(1, 4)):
            at, width = rng.integers(len(raw)), rng.integers(0, 12)
            raw[at : at + width] = bytes(rng.choice(list(b"0159.-+eEDn \n\r\t*/'_#\0\xff<>&?;"), rng.integers(0, 6)).tolist())
        path.write_bytes(raw)
        with warnings.catch_warnings(), suppress(DensityFileError):
            warnings.simplefilter("ignore")
            read_structure(path)
