"""``write_density``: what other programs read in our files, and what is refused."""

from __future__ import annotations

import dataclasses
import gzip
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from matminer_ed3d.density import Density
from matminer_ed3d.readers import units
from matminer_ed3d.writers import cube, write_density

CELL = Lattice.from_parameters(4.1, 5.3, 6.2, 77, 84, 101)
SHAPE = (5, 6, 7)
TEXT_NAMES = ("CHGCAR", "a.cube", "a.xsf")
ALL_NAMES = (*TEXT_NAMES, "a.ccp4")


def atoms() -> Structure:
    return Structure(CELL, ["Na", "Cl", "O", "Na"], [[0, 0, 0], [0.5, 0.51, 0.52], [0.1, 0.2, 0.7], [0.9, 0.1, 0.3]])


def density(*names: str, seed: int = 0, **changes: object) -> Density:
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(1.0, 0.5, SHAPE) * 10.0 ** rng.integers(-9, 4, SHAPE) for name in names or ("total",)}
    return dataclasses.replace(Density(CELL.matrix, values, atoms()), **changes)  # type: ignore[arg-type]


# Other readers


@pytest.mark.parametrize("names", [("total",), ("total", "diff"), ("total", "diff_x", "diff_y", "diff_z")])
def test_pymatgen_reads_the_chgcar(tmp_path: Path, names: tuple[str, ...]) -> None:
    from pymatgen.io.vasp.outputs import Chgcar

    ours = density(*names)
    ours.to_file(tmp_path / "CHGCAR")
    read = Chgcar.from_file(str(tmp_path / "CHGCAR"))
    for name in names:
        np.testing.assert_allclose(read.data[name] / ours.volume, ours.channels[name], rtol=1e-11)
    np.testing.assert_allclose(read.structure.lattice.matrix, ours.lattice, atol=1e-14)
    grouped = [0, 3, 1, 2]
    assert [site.specie.symbol for site in read.structure] == ["Na", "Na", "Cl", "O"]
    np.testing.assert_allclose(read.structure.frac_coords, ours.structure.frac_coords[grouped], atol=1e-14)


@pytest.mark.parametrize(("quantity", "name", "kind"), [("potential", "LOCPOT", "Locpot"), ("elf", "ELFCAR", "Elfcar")])
def test_pymatgen_reads_a_potential_and_an_elf_as_they_are(tmp_path: Path, quantity: str, name: str, kind: str) -> None:
    from pymatgen.io.vasp import outputs

    values = np.random.default_rng(0).random(SHAPE)
    Density(CELL.matrix, {"total": values}, atoms(), quantity=quantity).to_file(tmp_path / name)  # type: ignore[arg-type]
    read = getattr(outputs, kind).from_file(str(tmp_path / name))
    np.testing.assert_allclose(read.data["total"], values, rtol=1e-11)


def test_ase_and_pymatgen_read_the_cube(tmp_path: Path) -> None:
    from ase.io.cube import read_cube
    from pymatgen.io.common import VolumetricData

    ours = density()
    ours.to_file(tmp_path / "a.cube")
    with (tmp_path / "a.cube").open() as file:
        read = read_cube(file)
    np.testing.assert_allclose(read["data"] / units.BOHR**3, ours.channels["total"], rtol=1e-11)
    np.testing.assert_allclose(read["atoms"].cell, ours.lattice, rtol=1e-8)  # their Bohr radius is of another year
    np.testing.assert_allclose(read["atoms"].get_scaled_positions(wrap=False), ours.structure.frac_coords, atol=1e-11)
    assert read["atoms"].get_chemical_symbols() == ["Na", "Cl", "O", "Na"]
    other = VolumetricData.from_cube(str(tmp_path / "a.cube"))
    np.testing.assert_allclose(other.data["total"] / units.BOHR**3, ours.channels["total"], rtol=1e-11)
    np.testing.assert_allclose(other.structure.lattice.matrix, ours.lattice, rtol=1e-8)
    np.testing.assert_allclose(other.structure.frac_coords, ours.structure.frac_coords, atol=1e-8)


def test_the_bohr_radius_of_writers_is_that_of_readers() -> None:
    assert cube.BOHR == units.BOHR


def test_ase_reads_the_xsf(tmp_path: Path) -> None:
    from ase.io.xsf import read_xsf

    ours = density("total", "diff")
    dataclasses.replace(ours, channels={"total": ours.channels["total"]}).to_file(tmp_path / "a.xsf")  # ASE reads one grid
    with (tmp_path / "a.xsf").open() as file:
        values, origin, vectors, image = read_xsf(file, read_data=True)
    assert values.shape == tuple(n + 1 for n in SHAPE)
    periodic = np.pad(ours.channels["total"], (0, 1), mode="wrap")
    np.testing.assert_allclose(values, periodic, rtol=1e-11)
    np.testing.assert_array_equal(origin, 0.0)
    np.testing.assert_allclose(vectors, ours.lattice, atol=1e-13)
    np.testing.assert_allclose(image.cell, ours.lattice, atol=1e-13)
    np.testing.assert_allclose(image.get_scaled_positions(wrap=False), ours.structure.frac_coords, atol=1e-13)


def test_an_xsf_holds_every_channel(tmp_path: Path) -> None:
    density("total", "diff").to_file(tmp_path / "a.xsf")
    lines = (tmp_path / "a.xsf").read_text().splitlines()
    assert [line for line in lines if "DATAGRID" in line] == [
        "BEGIN_BLOCK_DATAGRID_3D",
        "BEGIN_DATAGRID_3D_total",
        "END_DATAGRID_3D",
        "BEGIN_DATAGRID_3D_diff",
        "END_DATAGRID_3D",
        "END_BLOCK_DATAGRID_3D",
    ]
    assert lines[lines.index("BEGIN_BLOCK_DATAGRID_3D") + 1] == "electron_density_e/A^3"


def test_gemmi_reads_the_map(tmp_path: Path) -> None:
    import gemmi

    ours = density()
    ours.to_file(tmp_path / "a.ccp4")
    read = gemmi.read_ccp4_map(str(tmp_path / "a.ccp4"))
    read.setup(float("nan"))
    np.testing.assert_array_equal(np.array(read.grid), ours.channels["total"].astype(np.float32))
    assert read.grid.spacegroup.hm == "P 1"
    np.testing.assert_allclose(read.grid.unit_cell.parameters, CELL.parameters, rtol=1e-6)
    # what is a distance stays one, though the orientation is gone
    frac = np.array([0.3, 0.4, 0.9])
    orthogonal = read.grid.unit_cell.orthogonalize(gemmi.Fractional(*frac))
    assert orthogonal.length() == pytest.approx(np.linalg.norm(frac @ ours.lattice), rel=1e-6)


# Names and formats


@pytest.mark.parametrize(
    ("name", "file_format"),
    [
        ("CHGCAR", "chgcar"),
        ("chgcar.Fe", "chgcar"),
        ("CHG", "chgcar"),
        ("PARCHG.0001", "chgcar"),
        ("AECCAR0", "chgcar"),
        ("Fe.vasp", "chgcar"),
        ("a.cube", "cube"),
        ("a.CUBE", "cube"),
        ("a.xsf", "xsf"),
        ("CHGCAR.xsf", "xsf"),
        ("a.ccp4", "ccp4"),
        ("a.map", "ccp4"),
        ("a.mrc", "ccp4"),
    ],
)
def test_the_name_says_the_format(tmp_path: Path, name: str, file_format: str) -> None:
    density().to_file(tmp_path / name)
    density().to_file(tmp_path / "other", file_format)
    assert (tmp_path / name).read_bytes() == (tmp_path / "other").read_bytes()
    if file_format != "ccp4":
        density().to_file(tmp_path / f"{name}.gz")
        assert gzip.decompress((tmp_path / f"{name}.gz").read_bytes()) == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", ["density", "a.txt", "a.cube.bz2", "a.json", ".gz"])
def test_an_unknown_name_is_refused_with_those_that_are_known(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"`file_format` must be given.*'chgcar'.*'cube'.*'xsf'.*'ccp4'"):
        density().to_file(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'chgcar'.*'cube'.*'xsf'.*'ccp4'.*got 'hdf5'"):
        write_density(density(), tmp_path / "a.cube", "hdf5")


def test_a_compressed_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"leave out the \.gz"):
        density().to_file(tmp_path / "a.map.gz")


@pytest.mark.parametrize("name", ["CHGCAR.gz", "a.cube.gz", "a.xsf.gz", *ALL_NAMES])
def test_the_same_density_makes_the_same_bytes(tmp_path: Path, name: str) -> None:
    written = []
    for folder in ("one", "two"):
        density().to_file(tmp_path / folder / name)
        written.append((tmp_path / folder / name).read_bytes())
    assert written[0] == written[1]


# What a format cannot hold


@pytest.mark.parametrize("structure", [None, Structure(CELL, [], [])])
def test_a_chgcar_without_atoms_is_refused(tmp_path: Path, structure: Structure | None) -> None:
    with pytest.raises(ValueError, match=r"begins with the atoms.*cube, xsf or ccp4"):
        density(structure=structure).to_file(tmp_path / "CHGCAR")
    for name in ALL_NAMES[1:]:
        density(structure=structure).to_file(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ccp4", "a.cube", "a.xsf"]


@pytest.mark.parametrize("species", [{"Na": 0.5, "K": 0.5}, {"Na": 0.9}, "X0+"])
@pytest.mark.parametrize("name", TEXT_NAMES)
def test_a_disordered_structure_is_refused_and_the_old_file_stays(tmp_path: Path, name: str, species: object) -> None:
    (tmp_path / name).write_text("old")
    disordered = Structure(CELL, [species, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match=r"holds whole atoms of elements, got .* at \[0.0, 0.0, 0.0\]; write an ordered structure"):
        density(structure=disordered).to_file(tmp_path / name)
    assert (tmp_path / name).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_atoms_of_another_cell_are_refused(tmp_path: Path, name: str) -> None:
    other = Structure(Lattice.cubic(5.0), ["Na"], [[0, 0, 0]])
    with pytest.raises(ValueError, match="must have the lattice of the density"):
        density(structure=other).to_file(tmp_path / name)


def test_oxidation_states_are_left_out(tmp_path: Path) -> None:
    from ase.io.cube import read_cube

    charged = Structure(CELL, ["Na+", "Cl-"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    for name in TEXT_NAMES:
        density(structure=charged).to_file(tmp_path / name)
    assert Density.from_file(tmp_path / "CHGCAR").structure.formula == "Na1 Cl1"
    with (tmp_path / "a.cube").open() as file:
        assert read_cube(file)["atoms"].get_chemical_symbols() == ["Na", "Cl"]


@pytest.mark.parametrize("names", [("total", "diff", "diff_x"), ("total", "diff_x")])
def test_channels_that_vasp_does_not_know_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"total \+ diff, or total \+ diff_x"):
        density(*names).to_file(tmp_path / "CHGCAR")


@pytest.mark.parametrize("names", [("total", "diff"), ("a", "b")])
def test_two_sets_of_a_potential_are_those_of_each_spin(tmp_path: Path, names: tuple[str, ...]) -> None:
    values = np.random.default_rng(0).normal(size=(2, *SHAPE))
    Density(CELL.matrix, {"down": values[0], "up": values[1]}, atoms(), quantity="potential").to_file(tmp_path / "LOCPOT")
    read = Density.from_file(tmp_path / "LOCPOT")
    assert list(read.channels) == ["up", "down"]
    np.testing.assert_allclose(read.channels["down"], values[0], rtol=1e-11)
    other = Density(CELL.matrix, dict(zip(names, values, strict=True)), atoms(), quantity="potential")
    with pytest.raises(ValueError, match=rf"of this potential the channels total, or up \+ down, .*; got {', '.join(names)}"):
        other.to_file(tmp_path / "LOCPOT")


@pytest.mark.parametrize("name", ["a.cube", "a.ccp4", "b.cube.gz"])
def test_a_format_of_one_channel_says_what_it_leaves_out(tmp_path: Path, name: str) -> None:
    with pytest.warns(UserWarning, match="holds one channel: 'total' is written, 'diff' left out"):
        density("total", "diff").to_file(tmp_path / name)
    alone = tmp_path / f"alone.{name}"
    density("total", "diff", channels={"total": density("total", "diff").channels["total"]}).to_file(alone)
    assert alone.read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", ALL_NAMES[1:])
def test_another_quantity_goes_to_vasps_files_only(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"got the quantity 'potential'; 'chgcar' holds"):
        density(quantity="potential").to_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "quantity", "message"),
    [
        ("LOCPOT", "electron_density", "begins with CHGCAR or CHG or PARCHG or AECCAR, got 'LOCPOT'"),
        ("CHGCAR", "potential", "begins with LOCPOT, got 'CHGCAR'"),
        ("LOCPOT", "elf", "begins with ELFCAR, got 'LOCPOT'"),
        ("a.vasp", "elf", "begins with ELFCAR, got 'a.vasp'"),
        ("a.vasp", "orbital", "got the quantity 'orbital'"),
    ],
)
def test_a_name_that_says_another_quantity_is_refused(tmp_path: Path, name: str, quantity: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        density(quantity=quantity).to_file(tmp_path / name)


def test_a_left_handed_map_is_refused_with_the_way_out(tmp_path: Path) -> None:
    left = density(lattice=-CELL.matrix, structure=None)
    with pytest.raises(ValueError, match=r"left-handed; describe .* density.change_basis\(-numpy.eye\(3\)\)"):
        left.to_file(tmp_path / "a.ccp4")
    left.change_basis(-np.eye(3)).to_file(tmp_path / "a.ccp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ccp4"]


def test_a_value_beyond_float32_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds float32, got a value of 1e\\+39"):
        density(channels={"total": np.full(SHAPE, 1e39)}).to_file(tmp_path / "a.ccp4")
    assert not list(tmp_path.iterdir())


# Means over voxels


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_mean_over_voxels_is_written_as_the_values_at_its_points(tmp_path: Path, nacl: Structure, name: str) -> None:
    mean = Density.from_structure(nacl, grid_shape=(20, 20, 20))
    assert mean.is_voxel_mean
    mean.to_file(tmp_path / name)
    mean.point_values().to_file(tmp_path / f"points.{name}", {"CHGCAR": "chgcar"}.get(name))
    assert (tmp_path / name).read_bytes() == (tmp_path / f"points.{name}").read_bytes()


def test_electrons_stay_in_a_written_mean(tmp_path: Path, nacl: Structure) -> None:
    mean = Density.from_structure(nacl, grid_shape=(20, 20, 20))
    mean.to_file(tmp_path / "CHGCAR.gz")
    read = Density.from_file(tmp_path / "CHGCAR.gz")
    assert not read.is_voxel_mean
    assert read.n_electrons() == pytest.approx(mean.n_electrons(), rel=1e-10)


# Numbers


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_no_exponent_makes_numbers_touch(tmp_path: Path, name: str) -> None:
    values = np.resize([1.0, -1.5e-120, 2e120, -3e-299, 5e-324, -0.0, 0.0, 1e300], SHAPE)
    density(channels={"total": values}, structure=atoms()).to_file(tmp_path / name)
    words = (tmp_path / name).read_text().split()
    n_numbers = sum(word.count("E") for word in words if "E+" in word or "E-" in word)
    assert n_numbers == sum("E+" in word or "E-" in word for word in words)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 5), (5, 1, 1), (100, 100, 1), (3, 41, 83)])
@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_number_of_points_is_written(tmp_path: Path, name: str, shape: tuple[int, int, int]) -> None:
    from pymatgen.io.vasp.outputs import Chgcar

    values = np.random.default_rng(1).random(shape)
    density(channels={"total": values}).to_file(tmp_path / name)
    if name == "CHGCAR":
        read = Chgcar.from_file(str(tmp_path / name))
        np.testing.assert_allclose(read.data["total"] / read.structure.volume, values, rtol=1e-11)
        assert max(map(len, (tmp_path / name).read_text().splitlines())) <= 90


def test_a_million_points_are_written_in_about_a_second(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((100, 100, 100))
    big = Density(CELL.matrix, {"total": values}, atoms())
    for name in (*ALL_NAMES, "CHGCAR.gz"):
        start = time.process_time()
        big.to_file(tmp_path / name)
        assert time.process_time() - start < 5.0  # 0.3 s on a quiet machine


@pytest.mark.parametrize("name", ALL_NAMES)
def test_writing_takes_one_copy_of_a_grid(tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(0).random((64, 64, 64))
    big = Density(CELL.matrix, {"total": values}, atoms())
    big.to_file(tmp_path / name)
    tracemalloc.start()
    big.to_file(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * values.nbytes + 3e6


def test_no_warning_without_a_reason(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ALL_NAMES:
            density().to_file(tmp_path / name)
