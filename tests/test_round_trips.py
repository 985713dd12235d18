"""Any density, written in any format and read again, is the same to the digits of the format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pymatgen.core.structure import Structure

from matminer_ed3d.density import Density

CHANNELS = (("total",), ("total", "diff"), ("total", "diff_x", "diff_y", "diff_z"))
# Name, channels that the format holds, relative error of a value, error of a lattice vector in Å; None: lengths and angles alone.
CHGCAR = ("CHGCAR", CHANNELS, 1e-11, 1e-13)
CUBE = ("a.cube", CHANNELS[:1], 1e-11, 1e-10)
XSF = ("a.xsf", CHANNELS, 1e-11, 1e-12)
CCP4 = ("a.ccp4", CHANNELS[:1], 6e-8, None)
FORMATS = (CHGCAR, ("a.vasp.gz", *CHGCAR[1:]), CUBE, ("a.cube.gz", *CUBE[1:]), XSF, ("a.xsf.gz", *XSF[1:]), CCP4)

SMALLEST = 1e-36  # float32 has no smaller numbers of seven digits
VALUES = st.one_of(st.just(0.0), st.floats(-1e-5, -1e-30), st.floats(1e-30, 1e6), st.floats(0.01, 10.0))  # of a density
SIGNED = st.floats(-50.0, 50.0)  # of a potential
SHARES = st.floats(0.0, 1.0)  # of an ELF


@st.composite
def lattices(draw: st.DrawFn, right_handed: bool) -> np.ndarray:
    """Draw cells of any shape and orientation, not flatter than people use."""
    lengths = np.array([draw(st.floats(1.5, 60.0)) for _ in range(3)])
    skew = np.array([draw(st.floats(-0.6, 0.6)) for _ in range(3)])
    unit = np.array([[1.0, 0.0, 0.0], [skew[0], 1.0, 0.0], [skew[1], skew[2], 1.0]])
    rotation, _ = np.linalg.qr(np.random.default_rng(draw(st.integers(0, 1000))).normal(size=(3, 3)))
    lattice = np.asarray(lengths[:, None] * unit @ rotation)
    return lattice * np.sign(np.linalg.det(lattice)) if right_handed else lattice


@st.composite
def densities(
    draw: st.DrawFn,
    names: tuple[str, ...],
    right_handed: bool = False,
    least_atoms: int = 0,
    values: Any = VALUES,
    quantity: Any = "electron_density",
) -> Density:
    lattice = draw(lattices(right_handed))
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    channels = {name: draw(hnp.arrays(np.float64, shape, elements=values, fill=st.nothing())) for name in names}
    if values is VALUES:
        channels["total"].flat[0] += 1.0  # a positive charge
    n_atoms = draw(st.integers(least_atoms, 5))
    structure = None
    if n_atoms:
        numbers = draw(st.lists(st.integers(1, 94), min_size=n_atoms, max_size=n_atoms))
        frac_coords = np.random.default_rng(draw(st.integers(0, 1000))).uniform(-0.5, 1.5, (n_atoms, 3))
        structure = Structure(lattice, numbers, frac_coords)
    return Density(lattice, channels, structure, quantity=quantity)


@contextmanager
def written(density: Density, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        density.to_file(Path(folder) / name)
        yield Path(folder) / name


def assert_same_lattice(read: np.ndarray, lattice: np.ndarray, atol: float | None) -> None:
    if atol is None:
        np.testing.assert_allclose(
            read @ read.T, lattice @ lattice.T, rtol=1e-5, atol=1e-5 * np.abs(lattice).max() ** 2
        )  # float32 lengths and angles
        assert np.linalg.det(read) > 0
    else:
        np.testing.assert_allclose(read, lattice, rtol=0, atol=atol)


def assert_same_atoms(read: Any, structure: Any, grouped: bool) -> None:
    if structure is None or len(structure) == 0:
        assert read is None or len(read) == 0
        return
    symbols = [site.specie.symbol for site in structure]
    order = sorted(range(len(symbols)), key=lambda at: symbols.index(symbols[at])) if grouped else range(len(symbols))
    assert [site.specie.symbol for site in read] == [symbols[at] for at in order]
    difference = np.asarray(read.frac_coords) - np.asarray(structure.frac_coords)[list(order)]
    np.testing.assert_allclose(difference - np.round(difference), 0.0, atol=1e-9)


@pytest.mark.parametrize(("name", "sets", "rtol", "atol"), FORMATS, ids=[found[0] for found in FORMATS])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(name: str, sets: tuple[tuple[str, ...], ...], rtol: float, atol: float | None, data: Any) -> None:
    is_chgcar, is_map = "a.vasp" in name or name == "CHGCAR", name == "a.ccp4"
    names = data.draw(st.sampled_from(sets))
    density = data.draw(densities(names, right_handed=is_map, least_atoms=1 if is_chgcar else 0))
    with written(density, name) as path:
        # The name says it in a CHGCAR, the title in a cube or XSF; a .vasp is guessed from its numbers, and these may be anything.
        read = Density.from_file(path, quantity="electron_density" if "a.vasp" in name else None)
    assert read.quantity == "electron_density"
    assert not read.is_voxel_mean
    assert tuple(read.channels) == names
    for channel in names:
        np.testing.assert_allclose(read.channels[channel], density.channels[channel], rtol=rtol, atol=SMALLEST if is_map else 1e-300)
    assert_same_lattice(read.lattice, density.lattice, atol)
    assert_same_atoms(read.structure, None if is_map else density.structure, is_chgcar)


@pytest.mark.parametrize(("name", "sets", "rtol", "atol"), FORMATS, ids=[found[0] for found in FORMATS])
def test_a_second_round_changes_nothing(name: str, sets: Any, rtol: float, atol: float | None, nacl: Structure, tmp_path: Path) -> None:
    names = sets[-1]
    first = Density.from_structure(nacl, grid_shape=(9, 10, 11), method="point")
    density = Density(first.lattice, dict.fromkeys(names, first.channels["total"]), first.structure)
    density.to_file(tmp_path / name)
    once = Density.from_file(tmp_path / name)
    once.to_file(tmp_path / f"2.{name}", {"CHGCAR": "chgcar"}.get(name))
    twice = Density.from_file(tmp_path / f"2.{name}")
    for channel in names:
        # a digit that was rounded once is not rounded again, but a factor may move it by one unit in the last place
        np.testing.assert_allclose(twice.channels[channel], once.channels[channel], rtol=1.1e-11 if atol is not None else 0)
        assert twice.n_electrons(channel) == pytest.approx(density.n_electrons(channel), rel=max(rtol, 1e-7))
    np.testing.assert_allclose(twice.lattice, once.lattice, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["CHGCAR", "a.xsf", "a.cube"])
def test_left_handed_cells_keep_their_hand(name: str, tmp_path: Path, quartz: Structure) -> None:
    density = Density.from_structure(quartz, grid_shape=(8, 8, 8), method="point").change_basis([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert np.linalg.det(density.lattice) < 0
    density.to_file(tmp_path / name)
    read = Density.from_file(tmp_path / name)
    np.testing.assert_allclose(read.lattice, density.lattice, atol=1e-10)
    np.testing.assert_allclose(read.channels["total"], density.channels["total"], rtol=1e-11)


@pytest.mark.parametrize(
    ("name", "quantity", "values"), [("LOCPOT", "potential", SIGNED), ("LOCPOT.gz", "potential", SIGNED), ("ELFCAR", "elf", SHARES)]
)
@pytest.mark.parametrize("names", [("total",), ("up", "down")])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_potential_and_an_elf_are_read_as_they_are(name: str, quantity: Any, values: Any, names: tuple[str, ...], data: Any) -> None:
    density = data.draw(densities(names, least_atoms=1, values=values, quantity=quantity))
    with written(density, name) as path:
        read = Density.from_file(path, quantity=quantity)
    assert tuple(read.channels) == names
    for key in names:
        np.testing.assert_allclose(read.channels[key], density.channels[key], rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize(("name", "quantity", "low"), [("LOCPOT", "potential", -20.0), ("ELFCAR.gz", "elf", 0.0)])
def test_a_potential_and_an_elf_are_known_by_their_names(name: str, quantity: Any, low: float, nacl: Structure, tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(low, 1.0, (4, 5, 6))
    Density(nacl.lattice.matrix, {"total": values}, nacl, quantity=quantity).to_file(tmp_path / name)
    assert Density.from_file(tmp_path / name).quantity == quantity


# Through the eyes of other programs, whose readers know nothing of ours


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_pymatgen_finds_what_we_find_in_a_chgcar(data: Any) -> None:
    from pymatgen.io.vasp.outputs import Chgcar

    names = data.draw(st.sampled_from(CHANNELS))
    density = data.draw(densities(names, least_atoms=1))
    with written(density, "CHGCAR") as path:
        theirs, ours = Chgcar.from_file(str(path)), Density.from_file(path)
    for name in names:
        np.testing.assert_allclose(theirs.data[name] / density.volume, ours.channels[name], rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(theirs.structure.frac_coords, ours.structure.frac_coords, atol=1e-12)
    assert theirs.structure.species == ours.structure.species


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_ase_finds_what_we_find_in_a_cube(data: Any) -> None:
    from ase.io.cube import read_cube

    from matminer_ed3d.readers.units import BOHR

    with written(data.draw(densities(("total",), least_atoms=1)), "a.cube") as path:
        with path.open() as file:
            theirs = read_cube(file)
        ours = Density.from_file(path)
    np.testing.assert_allclose(theirs["data"] / BOHR**3, ours.channels["total"], rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(theirs["atoms"].cell, ours.lattice, rtol=1e-8, atol=1e-7)
    assert theirs["atoms"].get_chemical_symbols() == [site.specie.symbol for site in ours.structure]


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_ase_finds_what_we_find_in_an_xsf(data: Any) -> None:
    from ase.io.xsf import read_xsf

    with written(data.draw(densities(("total",), least_atoms=1)), "a.xsf") as path:
        with path.open() as file:
            values, _, vectors, image = read_xsf(file, read_data=True)
        ours = Density.from_file(path)
    np.testing.assert_array_equal(values[:-1, :-1, :-1], ours.channels["total"])
    np.testing.assert_allclose(vectors, ours.lattice, atol=1e-12)
    np.testing.assert_allclose(image.cell, ours.lattice, atol=1e-12)
    assert image.get_chemical_symbols() == [site.specie.symbol for site in ours.structure]


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_gemmi_finds_what_we_find_in_a_map(data: Any) -> None:
    import gemmi

    with written(data.draw(densities(("total",), right_handed=True)), "a.ccp4") as path:
        theirs = gemmi.read_ccp4_map(str(path))
        theirs.setup(float("nan"))
        ours = Density.from_file(path)
    np.testing.assert_array_equal(np.array(theirs.grid), ours.channels["total"])
    np.testing.assert_allclose(np.array(theirs.grid.unit_cell.orth.mat.tolist()).T, ours.lattice, atol=1e-9)
