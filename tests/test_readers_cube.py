"""Cubes: against ASE and pymatgen, in both units of length, of orbitals and densities, and damaged."""

from __future__ import annotations

import gzip
import warnings

import numpy as np
import pytest

from matminer_ed3d.density import Density
from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.readers.units import BOHR, HARTREE, quantity_named
from matminer_ed3d.sources import as_density, what_is

LATTICE = np.array([[3.1, 0.0, 0.0], [0.7, 2.9, 0.0], [-0.4, 0.6, 3.3]])
SHAPE = (3, 4, 5)
VOLUME = abs(np.linalg.det(LATTICE))


def density_values(n_electrons: float = 10.0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A positive random density in e/Å³ of so many electrons."""
    rho = np.random.default_rng(0).uniform(0.2, 1.0, shape)
    return rho * n_electrons / (rho.mean() * VOLUME)


def cube_text(
    values: np.ndarray,
    comments: str = "title\nanother\n",
    angstrom: bool = False,
    atoms: tuple[tuple[float, ...], ...] = ((8, 8.0, 0.5, 0.4, 0.3), (1, 1.0, 1.5, 1.4, 1.3), (1, 1.0, 1.0, 0.0, 2.0)),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    natoms: str | None = None,
    after_atoms: str = "",
    number: str = "{:.10E}",
) -> str:
    """Values as they are; a line ends after each row of z."""
    length = 1.0 if angstrom else BOHR
    sign = -1 if angstrom else 1
    text = comments + f"{natoms or len(atoms)} " + " ".join(f"{x / length:.12f}" for x in origin) + "\n"
    for n, vector in zip(values.shape[:3], LATTICE, strict=True):
        text += f"{sign * n} " + " ".join(f"{x / length / n:.14f}" for x in vector) + "\n"
    for z, charge, *coords in atoms:
        text += f"{int(z)} {charge:.6f} " + " ".join(f"{x / length:.12f}" for x in coords) + "\n"
    text += after_atoms
    for row in values.reshape(values.shape[0] * values.shape[1], -1):
        words = [number.format(x) for x in row]
        text += "".join(" ".join(words[i : i + 6]) + "\n" for i in range(0, len(words), 6))
    return text


def read(tmp_path, text, **options) -> Density:
    path = tmp_path / "input"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert what_is(path) == ("cube", True)
    return Density.from_file(path, **options)


@pytest.mark.parametrize("angstrom", [False, True])
@pytest.mark.parametrize("unit", [None, "e/A^3"])
def test_a_density_reads_in_every_unit(tmp_path, angstrom, unit):
    rho = density_values()
    density = read(tmp_path, cube_text(rho * (1 if unit else BOHR**3), angstrom=angstrom), unit=unit)
    np.testing.assert_allclose(density.lattice, LATTICE, rtol=0, atol=1e-11)
    np.testing.assert_allclose(density.channels["total"], rho, rtol=1e-9)
    assert density.n_electrons() == pytest.approx(10, rel=1e-9)
    assert density.structure.formula == "H2 O1"
    np.testing.assert_allclose(density.structure.cart_coords[0], [0.5, 0.4, 0.3], atol=1e-9)


def test_the_origin_of_the_file_is_ours(tmp_path):
    origin = np.array([0.3, -0.2, 0.9])
    rho = density_values()
    here, moved = (read(tmp_path, cube_text(rho * BOHR**3, origin=tuple(o))) for o in (np.zeros(3), origin))
    np.testing.assert_array_equal(here.channels["total"], moved.channels["total"])
    np.testing.assert_allclose(here.structure.cart_coords - moved.structure.cart_coords, np.tile(origin, (3, 1)), atol=1e-10)
    # The same crystal: what is read at the file's point x is the same, wherever the grid begins.
    on_grid = LATTICE[0] / SHAPE[0]
    shifted = read(tmp_path, cube_text(np.roll(rho, -1, axis=0) * BOHR**3, origin=tuple(on_grid)))
    back = shifted.shift_origin(-np.array([1 / SHAPE[0], 0, 0]))
    np.testing.assert_allclose(back.channels["total"], rho, rtol=1e-8)
    assert back.structure.matches(here.structure)


def _ase_atoms():
    from ase import Atoms

    return Atoms("OH2", positions=[[0.5, 0.4, 0.3], [1.5, 1.4, 1.3], [1.0, 0.0, 2.0]], cell=LATTICE, pbc=True)


def test_ase_and_we_read_the_same(tmp_path):
    from ase.io.cube import read_cube, write_cube

    path = tmp_path / "x.cube"
    with path.open("w") as file:
        write_cube(file, _ase_atoms(), density_values() * BOHR**3)
    ours = Density.from_file(path)
    with path.open() as file:
        theirs = read_cube(file)
    np.testing.assert_allclose(ours.channels["total"] * BOHR**3, theirs["data"], rtol=1e-12)
    np.testing.assert_allclose(ours.lattice, theirs["atoms"].cell.array, atol=1e-6)  # ASE has the Bohr of CODATA 2014
    np.testing.assert_allclose(ours.structure.cart_coords, theirs["atoms"].positions, atol=1e-6)


def test_ase_and_we_read_the_same_orbitals(tmp_path):
    from ase.io.cube import read_cube

    orbitals = np.random.default_rng(1).normal(size=(*SHAPE, 3))
    path = tmp_path / "x.cube"
    path.write_text(cube_text(orbitals, natoms="-3", after_atoms="3 7 8\n12\n").replace("0.000000000000\n", "0.000000000000 3\n", 1))
    ours = Density.from_file(path)
    with path.open() as file:
        theirs = read_cube(file)
    assert ours.quantity == "orbital"
    assert list(ours.channels) == ["orbital_7", "orbital_8", "orbital_12"]
    for grid, other in zip(ours.channels.values(), theirs["datas"], strict=True):
        np.testing.assert_allclose(grid * BOHR**1.5, other, rtol=1e-12)
    assert list(Density.from_file(path, channels=["orbital_8"]).channels) == ["orbital_8"]
    with pytest.raises(DensityFileError, match="orbital_12, expected also orbital_9"):
        Density.from_file(path, channels=["orbital_9"])
    with pytest.raises(DensityFileError, match="an orbital, expected an electron density"):
        as_density(path)
    with pytest.raises(ValueError, match="`unit` belongs to an electron density"):
        Density.from_file(path, unit="e/A^3")


def test_the_square_of_an_orbital_has_the_same_norm_in_both_units(tmp_path):
    orbital = np.random.default_rng(1).normal(size=SHAPE)
    orbital /= np.sqrt((orbital**2).mean() * VOLUME / BOHR**3)  # bohr^-3/2
    density = read(tmp_path, cube_text(orbital, "x\nMO coefficients\n", natoms="-3", after_atoms="1 5\n"))
    assert (density.channels["orbital_5"] ** 2).mean() * VOLUME == pytest.approx(1, rel=1e-8)


def test_pymatgen_and_we_read_the_same(tmp_path):
    from pymatgen.core.structure import Structure
    from pymatgen.io.common import VolumetricData

    structure = Structure(LATTICE, ["O", "H", "H"], [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5], [0.7, 0.1, 0.2]])
    path = tmp_path / "x.cube"
    VolumetricData(structure, {"total": density_values() * BOHR**3}).to_cube(path)
    ours, theirs = Density.from_file(path), VolumetricData.from_cube(path)
    np.testing.assert_allclose(ours.channels["total"] * BOHR**3, theirs.data["total"], rtol=1e-12)
    np.testing.assert_allclose(ours.lattice, theirs.structure.lattice.matrix, atol=1e-5)
    np.testing.assert_allclose(ours.structure.frac_coords, theirs.structure.frac_coords, atol=1e-5)


def test_a_chgcar_that_pymatgen_made_a_cube_is_divided_by_the_volume(tmp_path):
    from pymatgen.core.structure import Structure
    from pymatgen.io.common import VolumetricData
    from pymatgen.io.vasp.inputs import Poscar
    from pymatgen.io.vasp.outputs import Chgcar

    structure = Structure(LATTICE, ["O", "H", "H"], [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5], [0.7, 0.1, 0.2]])
    path = tmp_path / "x.cube"
    Chgcar(Poscar(structure), {"total": density_values(8) * VOLUME}).to_cube(path)
    with pytest.warns(UserWarning, match=r"x\.cube: pymatgen wrote this cube of a Chgcar.* 8 electrons; divided by") as caught:
        density = Density.from_file(path)
    assert len(caught) == 1
    np.testing.assert_allclose(density.channels["total"], density_values(8), rtol=1e-4)
    assert density.n_electrons() == pytest.approx(8, rel=1e-6)
    assert Density.from_file(path, unit="e/bohr^3").n_electrons() == pytest.approx(8 * VOLUME / BOHR**3, rel=1e-4)
    path.write_text(path.read_text().replace("Pymatgen", "somebody"))
    with pytest.warns(UserWarning, match="e/bohr\\^3, the unit of the format, is assumed"):
        Density.from_file(path)
    for values in (density_values(), density_values(700) * VOLUME):  # in e/Å³, and of too many electrons in any unit
        VolumetricData(structure, {"total": values}).to_cube(path)
        with pytest.raises(DensityFileError, match=r"a cube by pymatgen, of .* if times the volume.*say unit='e/bohr\^3', unit='e/A\^3'"):
            Density.from_file(path)


@pytest.mark.parametrize(
    ("title", "quantity"),
    [
        ("SCF density of water. Spin multiplicity 1", "electron_density"),
        ("Charge density, conjugate gradient optimised", "electron_density"),
        ("Electron density in a potassium potential well", "electron_density"),
        ("density, GGA (generalized gradient approximation), PBE pseudopotential, E = -76.4 Hartree", "electron_density"),
        ("rho, spin-orbit coupling, a different basis", "electron_density"),
        ("Electrostatic potential from the SCF density", "potential"),
        ("Spin density", "unknown"),
        ("rho, spin up", "unknown"),
        ("density difference", "unknown"),
        ("Reduced density gradient", "unknown"),
        ("Laplacian of the electron density", "unknown"),
        ("ELF from the density", "elf"),
        ("Density of orbital 5", "orbital"),
    ],
)
def test_words_beside_the_quantity_do_not_count(title, quantity):
    assert quantity_named(title) == quantity


def test_a_density_in_another_unit_warns_and_is_not_switched(tmp_path):
    text = cube_text(density_values())
    with pytest.warns(UserWarning, match=r"67\.48.* electrons if in e/bohr\^3, 10 if in e/A\^3; the 3 atoms have 10 protons") as caught:
        density = read(tmp_path, text)
    assert len(caught) == 1
    assert density.n_electrons() == pytest.approx(10 / BOHR**3, rel=1e-9)
    assert read(tmp_path, text, unit="e/A^3").n_electrons() == pytest.approx(10, rel=1e-9)
    named = cube_text(density_values(), comments="density in e/A^3\n\n")
    assert read(tmp_path, named).n_electrons() == pytest.approx(10, rel=1e-9)


def test_dummies_leave_the_atoms_out(tmp_path):
    text = cube_text(density_values() * BOHR**3, atoms=((8, 8.0, 0, 0, 0), (0, 0.0, 1, 1, 1)))
    with pytest.warns(UserWarning, match="1 of 2 atoms are dummies"):
        density = read(tmp_path, text)
    assert density.structure is None
    assert density.n_electrons() == pytest.approx(10, rel=1e-9)
    assert read(tmp_path, cube_text(density_values() * BOHR**3, atoms=())).structure is None


@pytest.mark.parametrize(
    ("comment", "quantity", "factor"),
    [
        ("Electrostatic potential from Total SCF Density", "potential", HARTREE),
        ("Cubefile created from PWScf calculation: potential", "potential", HARTREE / 2),
        ("ELF", "elf", 1.0),
        ("MO 5", "orbital", BOHR**-1.5),
        ("SPIN DENSITY", "unknown", 1.0),
    ],
)
def test_the_comment_names_the_quantity(tmp_path, comment, quantity, factor):
    values = np.random.default_rng(2).normal(size=SHAPE)
    density = read(tmp_path, cube_text(values, comments=f"x\n{comment}\n"))
    assert density.quantity == quantity
    np.testing.assert_allclose(next(iter(density.channels.values())), values * factor, rtol=1e-9)


def test_negative_values_are_no_electron_density(tmp_path):
    values = np.random.default_rng(2).normal(size=SHAPE)
    with pytest.warns(UserWarning, match="negative"):
        assert read(tmp_path, cube_text(values)).quantity == "unknown"
    assert read(tmp_path, cube_text(values), quantity="elf").quantity == "elf"


@pytest.mark.parametrize("order", ["by point", "by row"])
def test_a_density_with_its_gradient_reads_in_either_order(tmp_path, order):
    rho = density_values() * BOHR**3
    gradient = np.random.default_rng(3).normal(size=(*SHAPE, 3))
    if order == "by point":
        values = np.concatenate([rho[..., None], gradient], axis=3)
    else:
        values = np.concatenate([rho, gradient.reshape(*SHAPE[:2], -1)], axis=2).reshape(*SHAPE, 4)
    text = cube_text(values).replace("0.000000000000\n", "0.000000000000 4\n", 1)
    with pytest.warns(UserWarning, match="4 values at each point; the first is read"):
        density = read(tmp_path, text)
    np.testing.assert_allclose(density.channels["total"] * BOHR**3, rho, rtol=1e-9)


def test_values_of_unknown_order_are_refused(tmp_path):
    values = np.abs(np.random.default_rng(3).normal(size=(*SHAPE, 2)))
    with pytest.raises(DensityFileError, match="order is not known"):
        read(tmp_path, cube_text(values).replace("0.000000000000\n", "0.000000000000 2\n", 1))


def test_end_points_of_castep_are_left_out(tmp_path):
    rho = density_values() * BOHR**3
    whole = np.pad(rho, [(0, 1)] * 3, mode="wrap")
    text = cube_text(whole, comments="x\nwritten by castep2cube\n")
    lines = text.split("\n")
    for axis, n in enumerate(SHAPE):
        lines[3 + axis] = f"{n + 1} " + " ".join(f"{x / BOHR / n:.14f}" for x in LATTICE[axis])
    density = read(tmp_path, "\n".join(lines))
    np.testing.assert_allclose(density.lattice, LATTICE, atol=1e-10)
    np.testing.assert_allclose(density.channels["total"] * BOHR**3, rho, rtol=1e-9)
    with pytest.warns(UserWarning, match="repeats the first"):
        read(tmp_path, "\n".join(lines).replace("castep2cube", "somebody"), quantity="unknown")
    with pytest.raises(DensityFileError, match="end points that differ"):
        read(tmp_path, cube_text(rho, comments="x\nwritten by castep2cube\n"))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("E-0", "D-0"),
        lambda text: text.replace("title\nanother", "\n"),
        lambda text: text.replace("title\nanother", "1.0\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n\n",
    ],
    ids=["CRLF", "D exponents", "blank comments", "a number and a blank as comments", "no last newline", "blank lines at the end"],
)
def test_other_layouts_read_the_same(tmp_path, change):
    text = cube_text(density_values() * BOHR**3)
    expected = read(tmp_path, text)
    np.testing.assert_array_equal(read(tmp_path, change(text)).channels["total"], expected.channels["total"])
    np.testing.assert_array_equal(read(tmp_path, gzip.compress(change(text).encode())).channels["total"], expected.channels["total"])


def test_exponents_without_a_letter_read_exactly(tmp_path):
    values = density_values() * BOHR**3
    text = cube_text(values)
    last = text.split()[-1]
    density = read(tmp_path, text.replace(last, "0.12345678901-100"))
    assert density.channels["total"][-1, -1, -1] == 0.12345678901e-100 * BOHR**-3


def _replaced(line: int, by: str):
    return lambda lines: [*lines[: line - 1], by, *lines[line:]]


BAD = {
    "truncated": (lambda lines: lines[:-3], "the end of the file after 50 of 60 values"),
    "one value missing": (lambda lines: [*lines[:-2], lines[-2].rpartition(" ")[0], ""], "the end of the file after 59 of 60"),
    "extra values": (lambda lines: [*lines[:-1], "1.0 2.0", ""], r":22: found '1\.0 2\.0'"),
    "an extra value in the last line": (lambda lines: [*lines[:-2], lines[-2] + " 1.0", ""], r":21: found '1\.0' after the last"),
    "NaN": (_replaced(15, "NaN " * 5), r":15: found 'NaN'"),
    "stars": (_replaced(15, "****** " * 5), r":15: found '\*\*\*\*\*\*'"),
    "word": (_replaced(15, "1.0 2.0 three 4.0 5.0"), r":15: found 'three'"),
    "overflow": (_replaced(15, "1.0 2.0 1E999 4.0 5.0"), r":15: found '1E999'"),
    "zero points": (_replaced(4, "0 1.0 0.0 0.0"), r":4: found 0 points"),
    "signs that differ": (_replaced(5, "-4 0.0 1.0 0.0"), r":5: found -4 points"),
    "gigantic counts": (_replaced(4, "999999999 1.0 0.0 0.0"), "values announced, expected no more"),
    "flat cell": (lambda lines: [*lines[:4], "4" + lines[3][1:], *lines[5:]], r":6: found vectors that span"),
    "atoms that are missing": (_replaced(3, "99 0.0 0.0 0.0"), r":10: .*expected atom 4 of 99"),
    "too many atoms": (_replaced(3, "99999999 0.0 0.0 0.0"), r":3: found 99999999 atoms|:6: found 99999999 atoms"),
    "element 119": (_replaced(7, "119 1.0 0.0 0.0 0.0"), r":7: found atomic number 119"),
    "coordinate that is no number": (_replaced(7, "8 8.0 0.0 x 0.0"), r":7: found 'x'"),
    "four columns of an atom": (_replaced(7, "8 8.0 0.0 1.0"), r":7: found '8 8\.0 0\.0 1\.0'"),
    "no values a point": (_replaced(3, "3 0.0 0.0 0.0 0"), r":3: found 0 values at each point"),
    "another order of axes": (_replaced(2, "OUTER LOOP: Z, MIDDLE LOOP: Y, INNER LOOP: X"), "inner over z"),
    "more orbitals than announced": (
        lambda lines: [*lines[:2], "-3 0.0 0.0 0.0", *lines[3:9], "1 5 6", *lines[9:]],
        r":10: found 2 numbers",
    ),
    "orbitals without end": (
        lambda lines: [*lines[:2], "-3 0.0 0.0 0.0", *lines[3:9], "99999999 5", *lines[9:]],
        r":10: found 99999999 orb",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_cubes_are_refused_with_their_line(tmp_path, case):
    change, reason = BAD[case]
    text = "\n".join(change(cube_text(density_values() * BOHR**3).split("\n")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DensityFileError, match=reason) as caught:
            read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "input"))
