"""XSF: against ASE, with cells that are not PRIMVEC, origins, several grids, units by the count of electrons, and damaged."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from matminer_ed3d.density import Density
from matminer_ed3d.readers import xsf
from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.readers.units import BOHR
from matminer_ed3d.sources import what_is

LATTICE = np.array([[3.1, 0.0, 0.0], [0.7, 2.9, 0.0], [-0.4, 0.6, 3.3]])
SHAPE = (3, 4, 5)
VOLUME = abs(np.linalg.det(LATTICE))
ATOMS = (("O", 0.5, 0.4, 0.3), ("1", 1.5, 1.4, 1.3), ("H", 1.0, 0.0, 2.0))


def density_values(n_electrons: float = 10.0, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    rho = np.random.default_rng(seed).uniform(0.2, 1.0, shape)
    return rho * n_electrons / (rho.mean() * VOLUME)


def rows(matrix) -> str:
    return "".join(" " + " ".join(f"{x:.10f}" for x in row) + "\n" for row in matrix)


def structure_text(lattice=LATTICE, atoms=ATOMS) -> str:
    text = "# a comment\nCRYSTAL\nPRIMVEC\n" + rows(lattice) + "CONVVEC\n" + rows(lattice) + f"PRIMCOORD\n {len(atoms)} 1\n"
    return text + "".join(f"{symbol} " + " ".join(f"{x:.10f}" for x in xyz) + "\n" for symbol, *xyz in atoms)


def grid_text(values, name: str = "density", lattice=LATTICE, origin=(0.0, 0.0, 0.0), begin: str = "BEGIN_DATAGRID_3D_") -> str:
    whole = np.pad(values, [(0, 1)] * 3, mode="wrap")
    text = f"{begin}{name}\n" + " ".join(str(n) for n in whole.shape) + "\n" + rows([origin]) + rows(lattice)
    flat = [f"{x:.12E}" for x in whole.ravel(order="F")]
    return text + "".join(" ".join(flat[i : i + 5]) + "\n" for i in range(0, len(flat), 5)) + "END_DATAGRID_3D\n"


def block(*grids: str, title: str = "a_title") -> str:
    return f"BEGIN_BLOCK_DATAGRID_3D\n{title}\n" + "".join(grids) + "END_BLOCK_DATAGRID_3D\n"


def read(tmp_path, text, **options) -> Density:
    path = tmp_path / "input"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert what_is(path)[0] == "xsf"
    return Density.from_file(path, **options)


@pytest.mark.parametrize("unit", ["e/A^3", "e/bohr^3"])
def test_the_electrons_choose_the_unit(tmp_path, unit):
    rho = density_values()
    text = structure_text() + block(grid_text(rho * (1 if unit == "e/A^3" else BOHR**3)))
    density = read(tmp_path, text)
    np.testing.assert_allclose(density.channels["total"], rho, rtol=1e-10)
    np.testing.assert_allclose(density.lattice, LATTICE, atol=1e-9)
    assert density.n_electrons() == pytest.approx(10, rel=1e-9)
    assert density.structure.formula == "H2 O1"
    np.testing.assert_allclose(density.structure.cart_coords[0], [0.5, 0.4, 0.3], atol=1e-9)
    assert read(tmp_path, text, unit="e/A^3").n_electrons() == pytest.approx(10 if unit == "e/A^3" else 10 * BOHR**3, rel=1e-9)
    named = structure_text() + block(grid_text(rho), title="in_e/A^3")
    assert read(tmp_path, named).n_electrons() == pytest.approx(10, rel=1e-9)


def test_an_assumed_unit_is_said(tmp_path):
    text = structure_text(atoms=()) + block(grid_text(density_values()))
    with pytest.warns(UserWarning, match=r"no unit is stated.*e/bohr\^3 is assumed"):
        density = read(tmp_path, text)
    assert density.structure is None
    assert density.n_electrons() == pytest.approx(10 / BOHR**3, rel=1e-9)


def test_ase_writes_and_we_read(tmp_path):
    from ase import Atoms
    from ase.io.xsf import read_xsf, write_xsf

    atoms = Atoms("OH2", positions=[row[1:] for row in ATOMS], cell=LATTICE, pbc=True)
    whole = np.pad(density_values(), [(0, 1)] * 3, mode="wrap")
    path = tmp_path / "x.xsf"
    with path.open("w") as file:
        write_xsf(file, [atoms], whole, origin=np.zeros(3), span_vectors=LATTICE)
    ours = Density.from_file(path, unit="e/A^3")
    with path.open() as file:
        values, _, spans, image = read_xsf(file, read_data=True)
    np.testing.assert_array_equal(ours.channels["total"], values[:-1, :-1, :-1])
    np.testing.assert_allclose(ours.lattice, spans, atol=1e-12)
    np.testing.assert_allclose(ours.structure.cart_coords, image.positions, atol=1e-9)


def _written_by_ase(path, values, pbc=True) -> None:
    from ase import Atoms
    from ase.io import write

    write(path, Atoms("OH2", positions=[row[1:] for row in ATOMS], cell=LATTICE, pbc=pbc), data=values)


def test_the_grid_that_ase_writes_by_default_has_no_end_points(tmp_path):
    from ase.io.cube import read_cube_data

    rho = density_values()
    _written_by_ase(tmp_path / "x.xsf", rho)
    ours = Density.from_file(tmp_path / "x.xsf")
    np.testing.assert_allclose(ours.channels["total"], rho, atol=1e-6)
    np.testing.assert_allclose(ours.lattice, LATTICE, atol=1e-12)
    assert ours.n_electrons() == pytest.approx(10, abs=1e-4)
    _written_by_ase(tmp_path / "x.cube", rho)
    theirs, atoms = read_cube_data(str(tmp_path / "x.cube"))
    np.testing.assert_allclose(ours.channels["total"], theirs, atol=1e-6)
    np.testing.assert_allclose(ours.structure.cart_coords, atoms.positions, atol=1e-5)


@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
def test_a_grid_of_ase_that_may_have_end_points_or_is_not_periodic_is_refused(tmp_path, pbc):
    _written_by_ase(tmp_path / "x.xsf", np.pad(density_values(), [(0, 1)] * 3, mode="wrap"), pbc)
    with pytest.raises(DensityFileError, match=r"x\.xsf:\d+: found a grid that ASE wrote over .*span_vectors=atoms\.cell"):
        Density.from_file(tmp_path / "x.xsf")


def test_a_grid_over_a_larger_cell_has_its_atoms(tmp_path):
    basis_change = np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 2]])
    rho = density_values(shape=(4, 4, 5))
    primitive = read(tmp_path, structure_text() + block(grid_text(rho)))
    large = primitive.change_basis(basis_change)
    text = structure_text() + block(grid_text(large.channels["total"], lattice=large.lattice))
    density = read(tmp_path, text)
    assert density.n_electrons() == pytest.approx(4 * primitive.n_electrons(), rel=1e-9)
    assert len(density.structure) == 12
    assert density.structure.matches(primitive.structure, primitive_cell=True)
    bad = structure_text() + block(grid_text(rho, lattice=LATTICE * 1.2))
    with pytest.raises(DensityFileError, match="times PRIMVEC, expected vectors that span a cell of the lattice"):
        read(tmp_path, bad)


def test_the_origin_of_the_grid_is_ours(tmp_path):
    rho = density_values()
    here = read(tmp_path, structure_text() + block(grid_text(rho)))
    moved = read(tmp_path, structure_text() + block(grid_text(np.roll(rho, -1, axis=2), origin=tuple(LATTICE[2] / 5))))
    back = moved.shift_origin([0, 0, -1 / 5])
    np.testing.assert_allclose(back.channels["total"], rho, rtol=1e-8)
    assert back.structure.matches(here.structure)
    np.testing.assert_allclose(here.structure.cart_coords - moved.structure.cart_coords, np.tile(LATTICE[2] / 5, (3, 1)), atol=1e-9)


def test_spins_become_total_and_difference(tmp_path):
    up, down = density_values(6), density_values(4, seed=1)
    for names in (("rho_UP", "rho_DOWN"), ("spin_up", "spin_dn"), ("alpha", "beta"), ("RHO:spin_1", "RHO:spin_2")):
        density = read(tmp_path, structure_text() + block(grid_text(up, names[0]), grid_text(down, names[1])))
        np.testing.assert_allclose(density.channels["total"], up + down, rtol=1e-9)
        np.testing.assert_allclose(density.channel("up"), up, rtol=1e-9)
        assert density.n_electrons("diff") == pytest.approx(2, rel=1e-9)
    text = structure_text() + block(grid_text(up + down, "total")) + block(grid_text(up - down, "diff"))
    assert read(tmp_path, text).n_electrons("down") == pytest.approx(4, rel=1e-9)
    assert list(read(tmp_path, text, channels=["total"]).channels) == ["total"]


def test_grids_without_a_telling_name_are_refused_until_one_is_chosen(tmp_path):
    text = structure_text() + block(grid_text(density_values(), "UNKNOWN"), grid_text(density_values(seed=1), "UNKNOWN"))
    with pytest.raises(DensityFileError, match=r"the grids UNKNOWN, UNKNOWN#2.*channels=\('UNKNOWN',\)"):
        read(tmp_path, text)
    second = read(tmp_path, text, channels=["UNKNOWN#2"])
    np.testing.assert_allclose(second.channels["total"], density_values(seed=1), rtol=1e-9)
    assert list(read(tmp_path, text, quantity="unknown").channels) == ["UNKNOWN", "UNKNOWN#2"]


def test_titles_name_the_quantity(tmp_path):
    values = np.random.default_rng(5).normal(size=SHAPE)
    with pytest.warns(UserWarning, match="in eV"):
        density = read(tmp_path, structure_text() + block(grid_text(values), title="local_potential"))
    assert density.quantity == "potential"
    np.testing.assert_allclose(density.channels["total"], values, rtol=1e-9)
    assert read(tmp_path, structure_text() + block(grid_text(values, "ELF"))).quantity == "elf"
    with pytest.warns(UserWarning, match="negative"):
        assert read(tmp_path, structure_text() + block(grid_text(values, "x"))).quantity == "unknown"


def test_other_spellings_and_sections(tmp_path):
    rho = density_values()
    expected = read(tmp_path, structure_text() + block(grid_text(rho)))
    text = structure_text().replace("0.3000000000\n", "0.3 0.01 0.02 0.03\n").replace("CRYSTAL", "DIM-GROUP\n 3 1")
    text += block(grid_text(rho, begin="DATAGRID_3D_")) + "# the end\n\n"
    for layout in (text, text.replace("\n", "\r\n"), gzip.compress(text.encode()), text.replace("E-0", "D-0"), text.replace("\n", "\n\n")):
        density = read(tmp_path, layout)
        np.testing.assert_array_equal(density.channels["total"], expected.channels["total"])
        assert density.structure.matches(expected.structure)
    molecule = "ATOMS\n" + "".join(" ".join(str(x) for x in atom) + "\n" for atom in ATOMS) + block(grid_text(rho))
    assert len(read(tmp_path, molecule).structure) == 3


def test_lines_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(xsf, "MOST_LINES", 100)
    for text, reason in (("# x\n" * 200, "100 lines outside of grids"), ("BEGIN_INFO\n" + "x\n" * 200, "100 lines, expected END_INFO")):
        (tmp_path / "x").write_text(structure_text() + text + block(grid_text(density_values())))
        with pytest.raises(DensityFileError, match=reason):
            Density.from_file(tmp_path / "x")


def test_a_structure_without_a_grid_is_known_as_one(tmp_path):
    (tmp_path / "x").write_text(structure_text())
    assert what_is(tmp_path / "x") == ("xsf", False)
    with pytest.raises(DensityFileError, match="no grid"):
        Density.from_file(tmp_path / "x")


def _body(text: str, by: str) -> str:
    lines = text.split("\n")
    at = lines.index("BEGIN_DATAGRID_3D_density") + 8
    return "\n".join([*lines[:at], by, *lines[at + 1 :]])


GOOD = structure_text() + block(grid_text(density_values()))
BAD = {
    "no end points": (
        structure_text() + block(grid_text(density_values()).replace(grid_text(density_values()).split("\n")[6], " ".join(["1.0"] * 5))),
        "not periodic: a last plane differs from the first by up to",
    ),
    "truncated": (GOOD[:-200], "the end of the file|END_DATAGRID"),
    "extra values": (GOOD.replace("END_DATAGRID_3D\n", "1.0 2.0\nEND_DATAGRID_3D\n"), r":\d+: found '1\.0 2\.0', expected END_DATAGRID_3D"),
    "NaN": (_body(GOOD, "1.0 NaN 1.0 1.0 1.0"), r":26: found 'NaN'"),
    "stars": (_body(GOOD, "1.0 ***** 1.0 1.0 1.0"), r":26: found '\*"),
    "word": (_body(GOOD, "1.0 one 1.0 1.0 1.0"), r":26: found 'one'"),
    "zero counts": (GOOD.replace("\n4 5 6\n", "\n0 5 6\n"), r":19: found a grid of 0 x 5 x 6"),
    "gigantic counts": (GOOD.replace("\n4 5 6\n", "\n999999999 999999999 6\n"), r":23: .*values announced"),
    "flat grid": (
        GOOD.replace(rows(LATTICE), rows(LATTICE[[0, 0, 2]]), 3).replace(
            "PRIMVEC\n" + rows(LATTICE[[0, 0, 2]]), "PRIMVEC\n" + rows(LATTICE), 1
        ),
        "span",
    ),
    "unknown element": (GOOD.replace("\nO ", "\nQq "), r":13: found species 'Qq'"),
    "element 119": (GOOD.replace("\nO ", "\n119 "), r":13: found atomic number 119"),
    "atoms without end": (GOOD.replace("\n 3 1\n", "\n 99999999 1\n"), r":12: found 99999999 atoms"),
    "animation": ("ANIMSTEPS 2\n" + GOOD, ":1: found an animation"),
    "bands": (structure_text() + "BEGIN_BLOCK_BANDGRID_3D\n", "BXSF"),
    "prose": (GOOD + "and so on\n", "found 'and so on', expected a section of XSF"),
    "another cell": (
        structure_text() + block(grid_text(density_values(), "total"), grid_text(density_values(), "diff", lattice=2 * LATTICE)),
        "grid 'diff' over another cell",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_xsfs_are_refused_with_their_line(tmp_path, case):
    text, reason = BAD[case]
    with pytest.raises(DensityFileError, match=reason) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "input"))


def test_dummies_leave_the_atoms_out(tmp_path):
    text = structure_text(atoms=(*ATOMS, ("X", 0.0, 0.0, 0.0))) + block(grid_text(density_values()), title="in_e/A^3")
    with pytest.warns(UserWarning, match="1 of 4 atoms are dummies"):
        assert read(tmp_path, text).structure is None
