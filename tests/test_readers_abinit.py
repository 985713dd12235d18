import bz2
import warnings
from contextlib import suppress

import numpy as np
import pytest
from pymatgen.core.structure import Structure
from scipy.io import netcdf_file

from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.readers.units import BOHR
from matminer_ed3d.sources import as_density, read_density

HARTREE = 27.211386245988
LATTICE = np.array([[7.0, 0.0, 0.0], [1.0, 8.0, 0.0], [0.5, -1.0, 9.0]])  # bohr
VOLUME = float(np.linalg.det(LATTICE))
SHAPE = (4, 5, 6)


def fields(n: int, seed: int = 0) -> np.ndarray:
    """(components, nx, ny, nz) as ABINIT means them: total; total, up; or total and the magnetisation."""
    rng = np.random.default_rng(seed)
    values = rng.random((n, *SHAPE))
    if n > 1:
        values[1:] -= 0.3
    return values


def dataset(values: np.ndarray, name: str = "density", **others: np.ndarray) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Names, dimensions and values of a file of ETSF-IO."""
    n = len(values)
    stored = values.transpose(0, 3, 2, 1)[..., None] if values.ndim == 4 else values
    parts = {
        name: (("number_of_components", "n3", "n2", "n1", "real_or_complex")[: stored.ndim], stored),
        "primitive_vectors": (("vectors", "cartesian"), LATTICE),
        "reduced_atom_positions": (("atoms", "cartesian"), np.array([[0, 0, 0], [0.25, 0.5, 0.75], [0.1, 0.2, 0.3]])),
        "atom_species": (("atoms",), np.array([2, 1, 1], "i4")),
        "atomic_numbers": (("species",), np.array([8.0, 14.0])),
        "other": (("other",), np.arange(7.0)),
    }
    assert n
    parts |= {key: ((), np.asarray(value)) for key, value in others.items()}
    return {key: value for key, value in parts.items() if value is not None}


def write(path, parts: dict, version: int = 1, drop: tuple[str, ...] = ()):
    """Write classic netCDF by SciPy, or netCDF-4, which is HDF5, by h5py (version 4)."""
    parts = {key: value for key, value in parts.items() if key not in drop}
    if version == 4:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for key, (_, values) in parts.items():
                file[key] = values
        return path
    with netcdf_file(path, "w", version=version) as file:
        file.title = b"a title with an odd length"
        sizes = {}
        for dims, values in parts.values():
            sizes |= dict(zip(dims, values.shape, strict=True))
        for dim, size in sizes.items():
            file.createDimension(dim, size)
        for key, (dims, values) in parts.items():
            variable = file.createVariable(key, values.dtype, dims)
            variable.units = b"atomic units"
            variable[...] = values
    return path


VERSIONS = [1, 2, 4]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_density_without_spin(tmp_path, version):
    rho = fields(1)
    density = read_density(write(tmp_path / "o_DEN.nc", dataset(rho), version))
    np.testing.assert_allclose(density.channels["total"], rho[0] / BOHR**3, rtol=1e-14)
    np.testing.assert_allclose(density.lattice, LATTICE * BOHR, rtol=1e-14)
    assert density.n_electrons() == pytest.approx(rho.mean() * VOLUME, rel=1e-12)
    assert density.quantity == "electron_density"
    expected = Structure(LATTICE * BOHR, ["Si", "O", "O"], [[0, 0, 0], [0.25, 0.5, 0.75], [0.1, 0.2, 0.3]])
    assert density.structure == expected
    assert as_density(tmp_path / "o_DEN.nc").n_electrons() == density.n_electrons()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("known", [True, False])
def test_two_components_are_total_and_up(tmp_path, version, known):
    rho = fields(2)
    others = {"number_of_electrons": np.float64(rho[0].mean() * VOLUME)} if known else {}
    density = read_density(write(tmp_path / "x", dataset(rho, **others), version))
    np.testing.assert_allclose(density.channels["total"], rho[0] / BOHR**3, rtol=1e-14)
    np.testing.assert_allclose(density.channel("up"), rho[1] / BOHR**3, rtol=1e-12, atol=1e-14)


def test_two_components_are_up_and_down_where_the_electrons_say_so(tmp_path):
    up_down = fields(2) + 0.5
    electrons = np.int32(round(up_down.sum(axis=0).mean() * VOLUME))
    density = read_density(write(tmp_path / "x", dataset(up_down, nelect=electrons)))
    np.testing.assert_allclose(density.channel("up"), up_down[0] / BOHR**3, rtol=1e-12)
    np.testing.assert_allclose(density.channel("down"), up_down[1] / BOHR**3, rtol=1e-12)


def test_four_components_are_total_and_magnetisation(tmp_path):
    rho = fields(4)
    path = write(tmp_path / "x", dataset(rho))
    density = read_density(path)
    assert list(density.channels) == ["total", "diff_x", "diff_y", "diff_z"]
    np.testing.assert_allclose(list(density.channels.values()), rho / BOHR**3, rtol=1e-14)
    assert list(read_density(path, channels=("diff_z", "total")).channels) == ["total", "diff_z"]
    with pytest.raises(DensityFileError, match="also diff, which"):
        read_density(path, channels=("total", "diff"))


@pytest.mark.parametrize("name", ["vtrial", "vhartree", "vpsp", "vhxc", "exchange_correlation_potential", "vhartree_vloc"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_potentials_are_named(tmp_path, name, n):
    values = fields(n) - 2
    path = write(tmp_path / "x", dataset(values, name))
    potential = read_density(path)
    assert potential.quantity == "potential"
    assert list(potential.channels) == {1: ["total"], 2: ["up", "down"], 4: ["up", "down", "re_updown", "im_updown"]}[n]
    np.testing.assert_allclose(list(potential.channels.values()), values * HARTREE, rtol=1e-14)
    with pytest.raises(DensityFileError, match="a potential, expected an electron density"):
        as_density(path)
    with pytest.raises(ValueError, match="leave it out"):
        read_density(path, unit="e/A^3")


def test_an_elf_and_overridden_quantities_and_units(tmp_path):
    rho = fields(1)
    elf = read_density(write(tmp_path / "x", dataset(rho, "elfr")))
    assert elf.quantity == "elf"
    np.testing.assert_array_equal(elf.channels["total"], rho[0])
    path = write(tmp_path / "y", dataset(rho))
    np.testing.assert_array_equal(read_density(path, unit="e/A^3").channels["total"], rho[0])
    np.testing.assert_array_equal(read_density(path, quantity="unknown").channels["total"], rho[0])
    both = dataset(rho) | dataset(rho + 1, "vtrial")
    assert read_density(write(tmp_path / "z", both)).quantity == "electron_density"
    np.testing.assert_allclose(read_density(tmp_path / "z", quantity="potential").channels["total"], (rho[0] + 1) * HARTREE, rtol=1e-14)


def test_without_atoms_or_with_mixed_ones_there_is_no_structure(tmp_path):
    assert read_density(write(tmp_path / "x", dataset(fields(1)), drop=("atom_species",))).structure is None
    parts = dataset(fields(1)) | {"atomic_numbers": (("species",), np.array([8.0, 13.5]))}
    assert read_density(write(tmp_path / "x", parts)).structure is None


def test_compressed_by_content(tmp_path):
    write(tmp_path / "x.nc", dataset(fields(1)))
    (tmp_path / "x").write_bytes(bz2.compress((tmp_path / "x.nc").read_bytes()))
    np.testing.assert_array_equal(read_density(tmp_path / "x").channels["total"], read_density(tmp_path / "x.nc").channels["total"])


# --- what is no density ------------------------------------------------------------------------------------------------------------


def complex_values() -> np.ndarray:
    return np.repeat(fields(1).transpose(0, 3, 2, 1)[..., None], 2, axis=-1)


def with_nan() -> np.ndarray:
    values = fields(1)
    values[0, 1, 2, 3] = np.nan
    return values


BAD = {
    "no density": (dataset(fields(1), "eigenvalues"), "no variable with a density, potential or ELF"),
    "another field": (dataset(fields(1), "kinedr"), "no variable with a density, potential or ELF"),
    "three components": (dataset(fields(3)), r"density of shape \(3, 6, 5, 4, 1\)"),
    "three dimensions": (dataset(fields(1)[0]), r"density of shape \(4, 5, 6\)"),
    "complex": (dataset(complex_values()), "complex values"),
    "NaN": (dataset(with_nan()), "not finite"),
    "text": (dataset(fields(1).astype("S1")), "density of shape .* type"),
    "flat cell": (dataset(fields(1)) | {"primitive_vectors": (("vectors", "cartesian"), np.ones((3, 3)))}, "span a cell"),
    "NaN cell": (dataset(fields(1)) | {"primitive_vectors": (("vectors", "cartesian"), np.nan * LATTICE)}, "span a cell"),
    "cell of another shape": (dataset(fields(1)) | {"primitive_vectors": (("vectors", "two"), LATTICE[:, :2])}, r"shape \(3, 2\)"),
    "species 0": (dataset(fields(1)) | {"atom_species": (("atoms",), np.array([0, 1, 1], "i4"))}, "numbers from 1 to 2"),
    "species 9": (dataset(fields(1)) | {"atom_species": (("atoms",), np.array([9, 1, 1], "i4"))}, "numbers from 1 to 2"),
    "positions missing": (
        dataset(fields(1)) | {"reduced_atom_positions": (("less", "cartesian"), np.zeros((2, 3)))},
        "three finite numbers for each of 3 atoms",
    ),
    "NaN position": (
        dataset(fields(1)) | {"reduced_atom_positions": (("atoms", "cartesian"), np.full((3, 3), np.nan))},
        "three finite numbers for each of 3 atoms",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("version", [1, 4])
def test_bad_files_name_the_file_and_what_is_wrong(tmp_path, case, version):
    parts, reason = BAD[case]
    with pytest.raises(DensityFileError, match=rf"bad\.nc: found .*{reason}"):
        read_density(write(tmp_path / "bad.nc", parts, version))


def test_a_classic_file_without_a_cell(tmp_path):
    with pytest.raises(DensityFileError, match=r"x: found no primitive_vectors"):
        read_density(write(tmp_path / "x", dataset(fields(1)), drop=("primitive_vectors",)))


def test_truncated_files_name_the_file(tmp_path):
    raw = write(tmp_path / "sound", dataset(fields(1))).read_bytes()
    for end in (4, 5, 20, 100, 300, len(raw) // 2):
        (tmp_path / "bad.nc").write_bytes(raw[:end])
        with pytest.raises(DensityFileError, match=r"bad\.nc: found"):
            read_density(tmp_path / "bad.nc")


def test_gigantic_dimensions_are_refused_from_the_size_of_the_file(tmp_path):
    raw = write(tmp_path / "sound", dataset(fields(1))).read_bytes()
    for size in (2**31 - 1, 2**20):
        bad = raw
        for name, n in (("n3", 6), ("n2", 5), ("n1", 4)):
            key = len(name).to_bytes(4, "big") + name.encode().ljust(4, b"\0")
            assert bad.count(key + n.to_bytes(4, "big")) == 1
            bad = bad.replace(key + n.to_bytes(4, "big"), key + size.to_bytes(4, "big"))
        (tmp_path / "bad.nc").write_bytes(bad)
        with pytest.raises(DensityFileError, match=r"density of shape .* in a file of"):
            read_density(tmp_path / "bad.nc")


def test_no_damage_makes_another_error(tmp_path):
    raw = write(tmp_path / "sound", dataset(fields(1))).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(400):
        bad = bytearray(raw)
        for at in rng.integers(4, 1200, rng.integers(1, 4)):
            bad[at] = rng.choice([0, 1, 10, 11, 12, 127, 128, 255, rng.integers(256)])
        (tmp_path / "bad.nc").write_bytes(bytes(bad))
        with warnings.catch_warnings(), suppress(DensityFileError):
            warnings.simplefilter("ignore")
            read_density(tmp_path / "bad.nc")


def test_cdf_5_is_read(tmp_path):
    """The 64-bit data format, which SciPy does not write: made by hand, with nothing but the two variables that are needed."""

    def count(n: int) -> bytes:
        return n.to_bytes(8, "big")

    def name(text: str) -> bytes:
        return count(len(text)) + text.encode().ljust(-(-len(text) // 4) * 4, b"\0")

    rho = fields(1)
    stored = rho.transpose(0, 3, 2, 1)[..., None]
    sizes = [*stored.shape, 3]
    dims = b"".join(name(f"d{i}") + count(size) for i, size in enumerate(sizes))
    absent = (0).to_bytes(4, "big") + count(0)
    start = b"CDF\x05" + count(0) + (10).to_bytes(4, "big") + count(len(sizes)) + dims + absent + (11).to_bytes(4, "big") + count(2)

    def variable(text: str, ids: list[int], n_bytes: int, begin: int) -> bytes:
        return (
            name(text)
            + count(len(ids))
            + b"".join(map(count, ids))
            + absent
            + (6).to_bytes(4, "big")
            + count(n_bytes)
            + begin.to_bytes(8, "big")
        )

    def header(begin: int) -> bytes:
        first = variable("primitive_vectors", [5, 5], 72, begin)
        return start + first + variable("density", [0, 1, 2, 3, 4], stored.nbytes, begin + 72)

    begin = len(header(0))
    (tmp_path / "x").write_bytes(header(begin) + LATTICE.astype(">f8").tobytes() + stored.astype(">f8").tobytes())
    density = read_density(tmp_path / "x")
    np.testing.assert_allclose(density.channels["total"], rho[0] / BOHR**3, rtol=1e-14)
    assert density.structure is None
