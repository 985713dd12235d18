"""Anything to a Density: every kind of input, the same answer by every way, and errors that say what would have done."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_readers_vasp import HEADER, chgcar_text, grid_text, values

from matminer_ed3d.density import Density
from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.representations import PointCloud
from matminer_ed3d.sources import as_density, as_list, density_from_chgcar, read_density, read_structure

CIF = """data_test
_cell_length_a 4.0
_cell_length_b 4.0
_cell_length_c 6.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_symmetry_equiv_pos_as_xyz
'x, y, z'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
_atom_site_{u}
Fe1 Fe 0 0 0 1 {value}
O1 O 0.5 0.5 0.5(1) 0.75 {value}
"""


def cif(u: str = "U_iso_or_equiv", value: str = "0.02(1)") -> str:
    return CIF.format(u=u, value=value)


@pytest.fixture
def chgcar(tmp_path):
    path = tmp_path / "CHGCAR"
    path.write_text(chgcar_text(2))
    return path


# --- every kind of input -------------------------------------------------------------------------------------------------------


def test_a_density_passes_through(chgcar):
    density = read_density(chgcar)
    assert as_density(density) is density
    assert as_density(density, grid_spacing=0.1) is density


@pytest.mark.parametrize("way", [str, Path, os.fspath, lambda path: Path(path).relative_to(Path.cwd())])
def test_a_path_is_a_path(chgcar, monkeypatch, way):
    monkeypatch.chdir(chgcar.parent)
    density = as_density(way(chgcar))
    assert density.n_electrons() == pytest.approx(values().mean(), rel=1e-11)


def test_the_doors_of_density_lead_here(chgcar, nacl):
    assert Density.from_file(chgcar).grid_shape == (3, 4, 5)
    np.testing.assert_array_equal(Density.from_structure(nacl).channels["total"], as_density(nacl).channels["total"])


@pytest.mark.parametrize("n_sets", [1, 2, 4])
def test_a_chgcar_of_pymatgen_is_divided_by_the_volume_once(tmp_path, n_sets):
    from pymatgen.io.vasp.outputs import Chgcar

    path = tmp_path / "CHGCAR"
    path.write_text(chgcar_text(n_sets))
    ours, theirs = read_density(path), Chgcar.from_file(path)
    for density in (as_density(theirs), density_from_chgcar(theirs), Density.from_chgcar(theirs)):
        assert list(density.channels) == list(ours.channels)
        for name, rho in ours.channels.items():
            np.testing.assert_allclose(density.channels[name], rho, rtol=1e-14)
        assert len(density.structure) == 3
    before = theirs.data["total"].copy()
    density_from_chgcar(theirs)
    np.testing.assert_array_equal(theirs.data["total"], before)


def test_a_potential_object_is_refused(tmp_path):
    from pymatgen.io.vasp.outputs import Locpot

    path = tmp_path / "LOCPOT"
    path.write_text(chgcar_text())
    potential = Locpot.from_file(path)
    with pytest.raises(TypeError, match="Locpot"):
        density_from_chgcar(potential)
    with pytest.raises(TypeError, match=r"must be a Density.*got an object of pymatgen\.io\.vasp\.outputs\.Locpot"):
        as_density(potential)


@pytest.mark.filterwarnings("ignore:.*no usable displacement")  # pymatgen's CIF has none
@pytest.mark.parametrize(
    "name", ["TiO2.cif", "TiO2.CIF", "TiO2.cif.gz", "POSCAR", "POSCAR.gz", "CONTCAR_1", "TiO2.vasp", "TiO2.json", "TiO2.json.gz", "TiO2"]
)
def test_a_file_of_a_structure_gives_the_density_of_the_structure(tmp_path, crystals, name):
    from pymatgen.io.vasp.inputs import Poscar

    structure = crystals["tetragonal"]
    stem = name.lower().removesuffix(".gz")
    if stem.endswith(".cif"):
        text = structure.to(fmt="cif")
    elif stem.endswith(".json"):
        text = structure.to_json()
    else:
        text = Poscar(structure).get_str(significant_figures=12)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    density, direct = as_density(path, grid_spacing=0.5), as_density(structure, grid_spacing=0.5)
    assert density.grid_shape == direct.grid_shape
    assert density.n_electrons() == pytest.approx(76, rel=1e-3)
    assert density.structure.matches(structure)


def test_structure_options_reach_the_superposition(nacl):
    assert as_density(nacl, grid_shape=(8, 8, 8)).grid_shape == (8, 8, 8)


def test_content_decides_and_not_the_name(tmp_path):
    (tmp_path / "density.vasp").write_text(chgcar_text())
    assert as_density(tmp_path / "density.vasp").grid_shape == (3, 4, 5)
    (tmp_path / "POSCAR").write_text(chgcar_text())
    assert as_density(tmp_path / "POSCAR").grid_shape == (3, 4, 5)
    (tmp_path / "CHGCAR").write_text(cif())
    assert as_density(tmp_path / "CHGCAR", grid_spacing=0.5).structure.composition["Fe"] == 1
    assert len(read_structure(tmp_path / "POSCAR")) == 3


@pytest.mark.parametrize("comment", ["data_NaCl", "[NaCl]", '{"a": 1}', "SLAB of salt", "<html>", "# loop_", "%PDF", "1 0.0 0.0 0.0"])
def test_a_comment_does_not_decide(tmp_path, comment):
    (tmp_path / "x").write_text(chgcar_text().replace("a comment", comment))
    assert as_density(tmp_path / "x").grid_shape == (3, 4, 5)


def test_a_poscar_with_velocities_has_no_grid(tmp_path):
    (tmp_path / "CONTCAR").write_text(HEADER + " 0 0 0\n 0 0 0\n 0 0 0\n")
    assert len(as_density(tmp_path / "CONTCAR", grid_spacing=0.5).structure) == 3


def test_the_shipped_examples_read(chgcar_path, cif_path):
    assert as_density(chgcar_path).n_electrons() == pytest.approx(8, rel=1e-6)
    assert as_density(cif_path).n_electrons() == pytest.approx(76, rel=1e-3)


# --- CIF and JSON ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("u", "value", "u_iso"),
    [
        ("U_iso_or_equiv", "0.02(1)", 0.02),
        ("B_iso_or_equiv", "1.5791367", 0.02),
    ],
)
def test_displacements_of_a_cif_are_carried(tmp_path, u, value, u_iso):
    path = tmp_path / "x.cif"
    path.write_text(cif(u, value))
    structure = read_structure(path)
    assert structure[1].species["O"] == 0.75
    np.testing.assert_allclose(structure.site_properties["u_iso"], u_iso, rtol=1e-6)
    assert as_density(path).n_electrons() == pytest.approx(26 + 0.75 * 8, rel=1e-3)


ANISO = """loop_
_atom_site_aniso_label
_atom_site_aniso_{kind}_11
_atom_site_aniso_{kind}_22
_atom_site_aniso_{kind}_33
_atom_site_aniso_{kind}_23
_atom_site_aniso_{kind}_13
_atom_site_aniso_{kind}_12
"""
U_CIF = ("U11_cif", "U22_cif", "U33_cif", "U23_cif", "U13_cif", "U12_cif")
# Space group: its cell, and one atom of each kind with coordinates and the U_ij (11, 22, 33, 23, 13, 12) that its site symmetry allows.
ELLIPSOIDS = {
    "P 21/c": (
        (5.15, 5.21, 5.32, 90, 99.23, 90),
        {
            "Zr": ((0.2754, 0.0395, 0.2083), (0.01, 0.02, 0.03, 0.004, -0.003, 0.005)),
            "O": ((0.07, 0.3317, 0.3447), (0.03, 0.01, 0.02, 0, 0, 0)),
        },
    ),
    "P 32 2 1": (
        (4.916, 4.916, 5.4054, 90, 90, 120),
        {
            "Si": ((0.4697, 0.0, 0.6667), (0.01, 0.02, 0.03, 0.004, 0.002, 0.01)),  # on a twofold axis: U12 = U22 / 2, U13 = U23 / 2
            "O": ((0.4135, 0.2669, 0.7858), (0.03, 0.02, 0.01, -0.002, 0.003, 0.009)),
        },
    ),
    "R -3 c": (
        (4.99, 4.99, 17.06, 90, 90, 120),
        {"C": ((0, 0, 0.25), (0.01, 0.01, 0.02, 0, 0, 0.005)), "O": ((0.257, 0, 0.25), (0.01, 0.03, 0.02, -0.004, -0.002, 0.015))},
    ),
    "P a -3": (
        (5.417, 5.417, 5.417, 90, 90, 90),
        {
            "Fe": ((0, 0, 0), (0.01, 0.01, 0.01, 0.002, 0.002, 0.002)),
            "S": ((0.385, 0.385, 0.385), (0.02, 0.02, 0.02, -0.003, -0.003, -0.003)),
        },
    ),
}


def ellipsoids_cif(symbol: str, kind: str = "U") -> str:
    """Text of a CIF with anisotropic displacements, which are written as U_ij, B_ij or beta_ij."""
    cell, atoms = ELLIPSOIDS[symbol]
    import gemmi

    a, b, c = (getattr(gemmi.UnitCell(*cell).reciprocal(), axis) for axis in "abc")
    scale = {
        "U": np.ones(6),
        "B": np.full(6, 8 * np.pi**2),
        "beta": 2 * np.pi**2 * np.array([a * a, b * b, c * c, b * c, a * c, a * b]),
    }[kind]
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = ["data_x", *(f"_cell_{name} {value}" for name, value in zip(names, cell, strict=True))]
    lines += ["loop_", "_symmetry_equiv_pos_as_xyz", *(f"'{op.triplet()}'" for op in gemmi.SpaceGroup(symbol).operations())]
    lines += ["loop_", *(f"_atom_site_{tag}" for tag in ("label", "fract_x", "fract_y", "fract_z", "U_iso_or_equiv"))]
    lines += [f"{name} {x} {y} {z} 0.5" for name, ((x, y, z), _) in atoms.items()]
    values = [" ".join(f"{value:.9f}" for value in scale * np.array(u)) for _, u in atoms.values()]
    return "\n".join([*lines, ANISO.format(kind=kind) + "\n".join(f"{name} {row}" for name, row in zip(atoms, values, strict=True)), ""])


@pytest.mark.parametrize("symbol", ELLIPSOIDS)
def test_ellipsoids_turn_with_their_atoms(tmp_path, symbol):
    """Oracle: gemmi's operations. The density at Wx + t is the density at x."""
    import gemmi

    (tmp_path / "x.cif").write_text(ellipsoids_cif(symbol))
    structure = read_structure(tmp_path / "x.cif")
    assert set(U_CIF) <= set(structure.site_properties)
    assert "u_iso" not in structure.site_properties
    operations = list(gemmi.SpaceGroup(symbol).operations())
    n = 24  # a multiple of every translation's denominator
    rho = as_density(structure, grid_shape=(n, n, n), method="band_limited").channels["total"]
    points = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    for op in operations:
        rotation, translation = np.array(op.rot) // op.DEN, np.array(op.tran) * n // op.DEN
        i, j, k = ((points @ rotation.T + translation) % n).T
        assert np.abs(rho[i, j, k] - rho.ravel()).max() < 1e-6 * rho.max()


@pytest.mark.parametrize("symbol", ELLIPSOIDS)
def test_ellipsoids_are_those_of_gemmi(tmp_path, symbol):
    """Oracle: gemmi turns a tensor by an operation in Cartesian axes, we in fractions of the cell."""
    import gemmi

    (tmp_path / "x.cif").write_text(ellipsoids_cif(symbol))
    structure = read_structure(tmp_path / "x.cif")
    small = gemmi.make_small_structure_from_block(gemmi.cif.read_string(ellipsoids_cif(symbol)).sole_block())
    orth, frac = np.array(small.cell.orth.mat.tolist()), np.array(small.cell.frac.mat.tolist())
    to_cart = orth @ np.diag(np.linalg.norm(frac, axis=1))  # U_cart = A N U N A^T with N of a*, b*, c*
    from_cart = np.linalg.inv(to_cart)
    n_compared = 0
    for site in small.sites:
        u_cart = to_cart @ np.array(site.aniso.as_mat33().tolist()) @ to_cart.T
        for op in gemmi.SpaceGroup(symbol).operations():
            turn = orth @ (np.array(op.rot) / op.DEN) @ frac
            image = from_cart @ turn @ u_cart @ turn.T @ from_cart.T
            at = np.array(op.apply_to_xyz(site.fract.tolist()))
            (ours,) = [s for s in structure if np.abs((s.frac_coords - at + 0.5) % 1 - 0.5).max() < 1e-3]
            got = [ours.properties[name] for name in U_CIF]
            np.testing.assert_allclose(got, [image[0, 0], image[1, 1], image[2, 2], image[1, 2], image[0, 2], image[0, 1]], atol=1e-8)
            n_compared += 1
    assert n_compared >= len(structure)


@pytest.mark.parametrize("kind", ["B", "beta"])
def test_u_b_and_beta_are_one_ellipsoid(tmp_path, kind):
    for name, text in (("u", ellipsoids_cif("P 21/c")), ("other", ellipsoids_cif("P 21/c", kind))):
        (tmp_path / f"{name}.cif").write_text(text)
    u, other = (read_structure(tmp_path / f"{name}.cif") for name in ("u", "other"))
    for name in U_CIF:
        np.testing.assert_allclose(u.site_properties[name], other.site_properties[name], atol=1e-7)


def test_a_cell_written_out_by_hand_gives_the_same_density(tmp_path):
    """P 2 c-axis twofold: the copy of (U23, U13) under -x, -y, z is (-U23, -U13); written out in P 1 by hand."""
    head, _ = cif("U_iso_or_equiv", "0.5").split("Fe1 Fe")
    two = head.replace("'x, y, z'", "'x, y, z'\n'-x, -y, z'").replace("'P 1'", "'P 1 1 2'")
    row = "0.01 0.02 0.03 {s}0.005 {s}0.004 0.006\n"
    written = {
        "two": two + "Fe1 Fe 0.1 0.2 0.3 1 0.5\n" + ANISO.format(kind="U") + "Fe1 " + row.format(s=""),
        "one": head
        + "Fe1 Fe 0.1 0.2 0.3 1 0.5\nFe2 Fe 0.9 0.8 0.3 1 0.5\n"
        + ANISO.format(kind="U")
        + "Fe1 "
        + row.format(s="")
        + "Fe2 "
        + row.format(s="-"),
    }
    for name, text in written.items():
        (tmp_path / f"{name}.cif").write_text(text)
    two_fold, all_written = (as_density(tmp_path / f"{name}.cif").channels["total"] for name in written)
    np.testing.assert_allclose(two_fold, all_written, rtol=1e-9, atol=1e-12)
    (tmp_path / "wrong.cif").write_text(written["one"].replace("-0.005", "0.005"))
    assert np.abs(as_density(tmp_path / "wrong.cif").channels["total"] - two_fold).max() > 0.01 * two_fold.max()


def test_atoms_without_an_ellipsoid_keep_their_sphere(tmp_path):
    (tmp_path / "x.cif").write_text(cif() + ANISO.format(kind="U") + "Fe1 0.01 0.02 0.03 0 0 0\n")
    fe, o = read_structure(tmp_path / "x.cif")
    assert fe.properties["u_iso"] is None
    assert [fe.properties[name] for name in U_CIF] == pytest.approx([0.01, 0.02, 0.03, 0, 0, 0], abs=1e-15)
    assert o.properties["u_iso"] == pytest.approx(0.02)
    assert o.properties["U11_cif"] is None


@pytest.mark.parametrize("bad", ["0.01 0.02 ? 0 0 0", "0 0 0 0 0 0", "0.01 0.02 0.03 0.05 0 0", ". . . . . ."])
def test_what_is_no_ellipsoid_gives_way_to_the_sphere(tmp_path, bad):
    (tmp_path / "x.cif").write_text(cif() + ANISO.format(kind="U") + f"Fe1 {bad}\n")
    structure = read_structure(tmp_path / "x.cif")
    np.testing.assert_allclose(structure.site_properties["u_iso"], 0.02, rtol=1e-9)


def test_atoms_that_share_a_site_share_their_mean_displacement(tmp_path):
    text = cif().replace("O1 O 0.5 0.5 0.5(1) 0.75 0.02(1)", "O1 O 0.5 0.5 0.5 0.75 0.02\nF1 F 0.5 0.5 0.5 0.25 0.04")
    (tmp_path / "x.cif").write_text(text)
    structure = read_structure(tmp_path / "x.cif")
    assert sorted(structure.site_properties["u_iso"]) == pytest.approx([0.02, 0.025])


@pytest.mark.parametrize("value", ["?", ".", "0.0", "-0.01"])
def test_a_cif_with_gaps_in_its_displacements_says_so_once(tmp_path, value):
    from matminer_ed3d.promolecule import DEFAULT_B_ISO

    path = tmp_path / "x.cif"
    path.write_text(cif().replace("0.75 0.02(1)", f"0.75 {value}"))
    with pytest.warns(UserWarning, match=rf"x\.cif: no usable displacement for O1; .* default B of {DEFAULT_B_ISO} Å²") as caught:
        density = as_density(path, grid_spacing=0.5)
    assert len(caught) == 1
    assert density.structure.site_properties["u_iso"] == [pytest.approx(0.02), None]


def test_a_cif_without_a_column_of_displacements_says_so_once(tmp_path):
    path = tmp_path / "x.cif"
    path.write_text(cif("calc_flag", "d"))
    with pytest.warns(UserWarning, match=r"x\.cif: no usable displacement for any atom; the default B of 0\.5 Å² .*b_iso=") as caught:
        density = as_density(path, grid_spacing=0.5)
    assert len(caught) == 1
    assert not {"u_iso", *U_CIF} & set(density.structure.site_properties)


def test_formats_that_hold_no_displacement_take_the_default_in_silence(tmp_path, nacl):
    (tmp_path / "POSCAR").write_text(HEADER)
    as_density(tmp_path / "POSCAR", grid_spacing=0.5)
    as_density(nacl, grid_spacing=0.5)


def test_a_block_without_atoms_changes_no_displacement(tmp_path):
    (tmp_path / "one.cif").write_text(ellipsoids_cif("P a -3"))
    (tmp_path / "more.cif").write_text("data_global\n_journal_year 1979\n" + ellipsoids_cif("P a -3") + "data_end\n_journal_year 1979\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pymatgen says of blocks without atoms is not the point
        assert read_structure(tmp_path / "more.cif").site_properties == read_structure(tmp_path / "one.cif").site_properties


BAD_CIFS = {
    "unknown element": lambda text: text.replace("Fe1 Fe", "Xq1 Xq"),
    "dummy site": lambda text: text.replace("Fe1 Fe", "Va Vac"),
    "no atoms": lambda text: text[: text.index("Fe1")],
    "no atom table": lambda text: text[: text.rindex("loop_")],
    "no cell": lambda text: text.replace("_cell_length_a 4.0\n", ""),
    "zero cell": lambda text: text.replace("_cell_length_a 4.0", "_cell_length_a 0"),
    "missing coordinate": lambda text: text.replace("0.5 0.5 0.5(1)", "? 0.5 0.5"),
    "negative occupancy": lambda text: text.replace("0.75", "-0.75"),
    "occupancy above one": lambda text: text.replace("0.75", "1.75"),
    "empty block": lambda text: "data_x\n",
}


@pytest.mark.parametrize("case", BAD_CIFS)
def test_bad_cifs_name_the_file(tmp_path, case):
    path = tmp_path / "bad.cif"
    path.write_text(BAD_CIFS[case](cif()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DensityFileError, match=r"bad\.cif: "):
            as_density(path)


def test_what_pymatgen_says_of_a_cif_is_passed_on_with_the_file(tmp_path):
    path = tmp_path / "x.cif"
    path.write_text(
        cif()
        .replace("_atom_site_occupancy", "_atom_site_attached_hydrogens\n_atom_site_occupancy")
        .replace(" 1 0.02", " 1 1 0.02")
        .replace("0.75 0.02", "1 0.75 0.02")
    )
    with pytest.warns(UserWarning, match=r"x\.cif: Structure has implicit hydrogens"):
        read_structure(path)


def test_a_cif_without_symmetry_says_that_it_is_taken_as_p1(tmp_path):
    path = tmp_path / "x.cif"
    path.write_text(
        cif().replace("loop_\n_symmetry_equiv_pos_as_xyz\n'x, y, z'\n", "").replace("_symmetry_space_group_name_H-M 'P 1'\n", "")
    )
    with pytest.warns(UserWarning, match=r"x\.cif: .*Defaulting to P1"):
        read_structure(path)


def test_json_of_a_disordered_structure_with_displacements_reads(tmp_path):
    from pymatgen.core.structure import Structure

    structure = Structure(
        4 * np.eye(3), [{"Fe3+": 0.5, "Mg": 0.5}, "O2-"], [[0, 0, 0], [0.5, 0.5, 0.5]], site_properties={"u_iso": [0.01, 0.02]}
    )
    path = tmp_path / "x.json"
    path.write_text(structure.to_json())
    assert read_structure(path) == structure


def test_json_never_imports_what_it_names(tmp_path, nacl):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    record = nacl.as_dict()
    for site in record["sites"]:
        site["properties"] = {"x": {"@module": "evil_module", "@class": "Evil"}, "charge": 1.0}
    record["properties"] = {"y": {"@module": "evil_module", "@class": "Evil"}}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(record))
    sys.path.insert(0, str(tmp_path))
    try:
        structure = read_structure(path)
    finally:
        sys.path.remove(str(tmp_path))
    assert "evil_module" not in sys.modules
    assert structure[0].properties["charge"] == 1.0
    assert structure.matches(nacl)


def _json(matrix: str = "[[4,0,0],[0,4,0],[0,0,4]]", element: str = "Fe", abc: str = "[0, 0, 0]") -> str:
    site = f'{{"species": [{{"element": "{element}", "occu": 1}}], "abc": {abc}}}'
    return f'{{"lattice": {{"matrix": {matrix}}}, "sites": [{site}]}}'


def test_the_least_json_reads(tmp_path):
    (tmp_path / "x.json").write_text(_json())
    assert read_structure(tmp_path / "x.json").formula == "Fe1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1, 2]", "JSON of something else"),
        ('{"@class": "Molecule", "sites": []}', "JSON of Molecule"),
        ('{"lattice": {}, "sites": []}', "cannot be built"),
        ('{"lattice": {"matrix": [[4,0,0],[0,4,0],[0,0,4]]}, "sites": []}', "found"),
        ('{"lattice": null, "sites": null}', "cannot be built"),
        (_json(element="Zz"), "cannot be built"),
        (_json(abc="[0, NaN, 0]"), "finite"),
        (_json(abc="[0, null, 0]"), "cannot be built"),
        (_json(matrix="[[4,0,0],[4,0,0],[0,0,4]]"), "found"),
        (_json(matrix="[[4,0],[4,0]]"), "cannot be built"),
        ("{truncated", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_json_names_the_file(tmp_path, text, reason):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DensityFileError, match=rf"bad\.json: .*{reason}"):
        as_density(path)


# --- what is no density, and no structure ------------------------------------------------------------------------------------------


def _tar(path: Path) -> None:
    member = path.with_name("member")
    member.write_text(chgcar_text())
    with tarfile.open(path, "w:gz") as archive:
        archive.add(member, "CHGCAR")


REFUSED = {
    "no such file": (lambda path: None, "no such file"),
    "directory": (lambda path: path.mkdir(), "a directory"),
    "empty": (lambda path: path.write_bytes(b""), "an empty or blank file"),
    "blank": (lambda path: path.write_bytes(b"\n \n" * 1000), "an empty or blank file"),
    "empty gzip": (lambda path: path.write_bytes(gzip.compress(b"")), "an empty or blank file"),
    "HTML": (lambda path: path.write_text("<!DOCTYPE html>\n<html><body>404</body></html>"), "an HTML"),
    "LFS pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), "git lfs pull"),
    "binary": (lambda path: path.write_bytes(bytes(range(256)) * 20), "binary data"),
    "gzip twice": (lambda path: path.write_bytes(gzip.compress(gzip.compress(b"x" * 500))), "compressed file in a compressed file"),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500)), "damaged HDF5"),
    "zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500)), "zip archive"),
    "tar in gzip": (_tar, "tar archive"),
    "truncated gzip": (lambda path: path.write_bytes(gzip.compress(chgcar_text().encode())[:400]), "damaged data"),
    "prose": (lambda path: path.write_text("Dear all,\nplease find attached\nthe density.\n"), r":2: found .*scale factor"),
    "cube": (
        lambda path: path.write_text("a\nb\n 1 0.0 0.0 0.0\n" + " 2 0.5 0.0 0.0\n" * 3 + " 1 1.0 0.0 0.0 0.0\n" + " 1.0" * 7),
        "vectors that span a cell of 0",
    ),
    "ccp4": (lambda path: path.write_bytes(bytes(208) + b"MAP " + bytes(900)), r"axes \(MAPC, MAPR, MAPS\)"),
    "xsf": (lambda path: path.write_text("# x\nCRYSTAL\nPRIMVEC\n"), "XSF|vector a of PRIMVEC"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("read", [as_density, read_density])
def test_what_cannot_be_read_is_named(tmp_path, case, read):
    make, reason = REFUSED[case]
    path = tmp_path / "input"
    make(path)
    with pytest.raises(DensityFileError, match=reason) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["CHGCAR", "CHGCAR.gz", "POSCAR", "CIF", "JSON"])
def test_no_damage_makes_another_error(tmp_path, nacl, kind):
    """Whatever happens to a file, it is read or refused by its name: bytes changed, cut out and put in."""
    sound = {
        "CHGCAR": chgcar_text(2).encode(),
        "CHGCAR.gz": gzip.compress(chgcar_text().encode()),
        "POSCAR": HEADER.encode(),
        "CIF": cif().encode(),
        "JSON": nacl.to_json().encode(),
    }[kind]
    rng = np.random.default_rng(0)
    path = tmp_path / "input"
    for _ in range(60):
        raw = bytearray(sound)
        for _ in range(rng.integers(1, 4)):
            at, width = rng.integers(len(raw)), rng.integers(0, 12)
            raw[at : at + width] = bytes(rng.choice(list(b"0159.-+eEDn \n\r\t*/'_#\0\xff"), rng.integers(0, 6)).tolist())
        path.write_bytes(raw)
        with warnings.catch_warnings(), suppress(DensityFileError):
            warnings.simplefilter("ignore")
            read_density(path) if kind.startswith("CHGCAR") else read_structure(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DensityFileError, match="regular file"):
        as_density(tmp_path / "pipe")


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(DensityFileError, match="unreadable file"):
        as_density("CHG\0CAR")


@pytest.mark.parametrize(
    ("name", "found"), [("LOCPOT", "a potential"), ("LOCPOT.gz", "a potential"), ("run1_ELFCAR.txt", "unknown quantity")]
)
def test_a_name_warns_of_what_the_numbers_leave_open(tmp_path, name, found):
    path = tmp_path / name
    path.write_text(chgcar_text())
    with pytest.raises(DensityFileError, match=f"found .*{found}.*expected an electron density.*quantity='electron_density'"):
        as_density(path)
    assert len(read_structure(path)) == 3
    assert read_density(path, quantity="electron_density").n_electrons() > 0


def test_a_structure_is_no_density_file(cif_path, tmp_path):
    with pytest.raises(DensityFileError, match=r"a CIF, expected a CHGCAR.*as_density"):
        read_density(cif_path)
    (tmp_path / "POSCAR").write_text(HEADER)
    with pytest.raises(DensityFileError, match="holds no density"):
        read_density(tmp_path / "POSCAR")


def test_a_poscar_without_elements_is_no_structure(tmp_path):
    path = tmp_path / "POSCAR"
    path.write_text(HEADER.replace(" Na Cl\n", ""))
    with pytest.warns(UserWarning, match="VASP 4"), pytest.raises(DensityFileError, match="no element symbols"):
        as_density(path)


def test_a_chgcar_of_vasp_4_warns_once(tmp_path):
    path = tmp_path / "CHGCAR"
    path.write_text(chgcar_text().replace(" Na Cl\n", ""))
    with pytest.warns(UserWarning, match="VASP 4") as caught:
        assert as_density(path).structure is None
    assert len(caught) == 1


def test_a_structure_file_that_has_no_density_is_named(tmp_path):
    (tmp_path / "POSCAR").write_text(HEADER.replace("Na Cl", "Fm Cl"))
    with pytest.raises(DensityFileError, match=r"POSCAR: .*scattering factor"):
        as_density(tmp_path / "POSCAR")


@pytest.mark.parametrize(
    ("source", "error", "reason"),
    [
        (float("nan"), ValueError, "NaN, which marks a missing or failed row"),
        (np.float64("nan"), ValueError, "NaN"),
        (None, TypeError, "got None"),
        (3, TypeError, "got an object of builtins.int"),
        (1.5, TypeError, "builtins.float"),
        (["CHGCAR"], TypeError, "builtins.list"),
        (b"CHGCAR", TypeError, "builtins.bytes"),
        ({"lattice": 1}, TypeError, "builtins.dict"),
        (np.zeros((3, 4, 5)), TypeError, r"an array of dtype float64 and shape \(3, 4, 5\)"),
    ],
)
def test_other_types_are_refused_with_what_would_do(source, error, reason):
    with pytest.raises(error, match=f"`source` must be a Density, a pymatgen Structure.*{reason}"):
        as_density(source)
    with pytest.raises(error, match="row 5 must be"):
        as_density(source, name="row 5")


def test_a_structure_without_a_density_is_called_by_its_name(nacl):
    nacl.remove_sites(range(len(nacl)))
    with pytest.raises(ValueError, match=r"row 7: .*at least one atom"):
        as_density(nacl, name="row 7")


def test_importing_takes_neither_torch_nor_pymatgen():
    code = (
        "import sys, matminer_ed3d.sources, matminer_ed3d.labels\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'pymatgen', 'spglib', 'gemmi', 'pandas', 'matminer', 'sklearn'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert out.stdout.strip() == "[]"


def test_reading_a_chgcar_takes_little_of_pymatgen(chgcar_path):
    code = "import sys; from matminer_ed3d.sources import as_density; as_density(sys.argv[1]); print('pymatgen.io.vasp' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code, str(chgcar_path)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert out.stdout.strip() == "False"


# --- as_list -----------------------------------------------------------------------------------------------------------------------


def _object_array(items: list) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        tuple,
        pd.Series,
        _object_array,
        lambda items: _object_array(items).reshape(-1, 1),
        lambda items: pd.DataFrame({"density": items}),
        lambda items: pd.Series(items, index=[7, 3]),
        lambda items: [[item] for item in items],
        lambda items: [_object_array([item]) for item in items],
    ],
)
def test_every_column_of_inputs_becomes_a_list(wrap, chgcar):
    items = [read_density(chgcar), read_density(chgcar)]
    got = as_list(wrap(items))
    assert type(got) is list
    assert [a is b for a, b in zip(got, items, strict=True)] == [True, True]


def test_structures_and_paths_stay_whole(nacl, quartz):
    assert as_list(pd.Series([nacl, quartz])) == [nacl, quartz]
    assert as_list(np.array(["a", "b"])) == ["a", "b"]
    assert as_list(("a",)) == ["a"]
    assert as_list([nacl])[0] is nacl


def test_one_input_is_not_many(nacl, chgcar):
    cloud = PointCloud(np.zeros((1, 3), np.float32), np.ones((1, 1), np.float32), ("total",), np.eye(3))
    for one in (nacl, read_density(chgcar), str(chgcar), chgcar, cloud, b"x"):
        with pytest.raises(TypeError, match=r"got a single one.*write \[X\]"):
            as_list(one)


@pytest.mark.parametrize("empty", [[], (), np.array([], dtype=object), pd.Series([], dtype=object), pd.DataFrame({"x": []})])
def test_an_empty_list_is_refused(empty):
    with pytest.raises(ValueError, match="at least one input"):
        as_list(empty)


@pytest.mark.parametrize(
    ("wrong", "error", "reason"),
    [
        (pd.DataFrame({"a": [1], "b": [2]}), ValueError, r"one column, got 2: \['a', 'b'\]"),
        (np.zeros((3, 4)), ValueError, r"got dtype float64 and shape \(3, 4\)"),
        (np.empty((2, 2), dtype=object), ValueError, r"shape \(2, 2\)"),
        (np.zeros(3), ValueError, "dtype float64"),
        (None, TypeError, "got None"),
        (7, TypeError, "builtins.int"),
        (iter([1]), TypeError, "list_iterator"),
        ({"a": 1}, TypeError, "builtins.dict"),
        ([["a", "b"]], ValueError, "a row of `X` must hold one input, got 2"),
    ],
)
def test_what_is_no_column_of_inputs_is_refused(wrong, error, reason):
    with pytest.raises(error, match=reason):
        as_list(wrong)


def test_a_copy_under_another_name_reads_the_same(chgcar_path, tmp_path):
    shutil.copy(chgcar_path, tmp_path / "no suffix")
    np.testing.assert_array_equal(as_density(tmp_path / "no suffix").channels["diff"], as_density(chgcar_path).channels["diff"])


def test_electrons_of_a_chg_in_its_short_format(tmp_path):
    rho = values()
    short = grid_text(rho, per_line=10)
    (tmp_path / "CHG").write_text(HEADER + short)
    assert read_density(tmp_path / "CHG").n_electrons() == pytest.approx(rho.mean(), rel=1e-10)
