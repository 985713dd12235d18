import gzip
import warnings
from contextlib import suppress

import numpy as np
import pytest
from pymatgen.core.structure import Structure

from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.sources import as_density, read_density

h5py = pytest.importorskip("h5py")

LATTICE = np.array([[4.0, 0.0, 0.0], [1.0, 5.0, 0.0], [0.5, -1.0, 6.0]])
SCALE = 1.1
SHAPE = (4, 5, 6)
COORDS = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]])


def values_of(n: int) -> np.ndarray:
    """(components, nx, ny, nz); a density times the volume."""
    return np.random.default_rng(n).random((n, *SHAPE)) * 10 - 2 * (np.arange(n) > 0)[:, None, None, None]


def add_structure(file, place: str = "structure/positions", **others) -> None:
    parts = {
        "scale": SCALE,
        "lattice_vectors": LATTICE,
        "ion_types": np.array([b"Si", b"O_s "]),
        "number_ion_types": np.array([1, 2]),
        "position_ions": COORDS,
        "direct_coordinates": 1,
    }
    for name, value in (parts | others).items():
        if value is not None:
            file[f"{place}/{name}"] = value


def add_grid(file, values: np.ndarray, name: str = "charge/charge", grid: str | None = "charge/grid", **options) -> None:
    file.create_dataset(name, data=values.transpose(0, 3, 2, 1), **options)
    if grid is not None:
        file[grid] = np.array(values.shape[1:])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vaspwave.h5"


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "shuffle": True}])
def test_a_charge_density_of_every_spin(path, n, options):
    values = values_of(n)
    with h5py.File(path, "w") as file:
        add_structure(file)
        add_grid(file, values, **options)
    density = read_density(path)
    assert list(density.channels) == {1: ["total"], 2: ["total", "diff"], 4: ["total", "diff_x", "diff_y", "diff_z"]}[n]
    np.testing.assert_allclose(list(density.channels.values()), values / density.volume, rtol=1e-14)
    assert density.n_electrons() == pytest.approx(values[0].mean(), rel=1e-12)
    assert density.structure == Structure(SCALE * LATTICE, ["Si", "O", "O"], COORDS)
    assert list(read_density(path, channels=("total",)).channels) == ["total"]
    assert as_density(path).n_electrons() == density.n_electrons()


@pytest.mark.parametrize("n", [1, 2, 4])
def test_pymatgen_reads_the_same(path, n):
    outputs = pytest.importorskip("pymatgen.io.vasp.outputs")
    if not hasattr(outputs, "Vaspwave"):
        pytest.skip("an older pymatgen")
    with h5py.File(path, "w") as file:
        add_structure(file, ion_types=np.array([b"Si", b"O"]), scale=1.0)
        add_grid(file, values_of(n))
        file["version/major"] = 6
    oracle = outputs.Vaspwave(str(path)).get_chgcar()
    density = read_density(path)
    for name, values in density.channels.items():
        np.testing.assert_allclose(values * oracle.structure.volume, oracle.data[name], rtol=1e-13)
    assert density.structure == oracle.structure


def test_cartesian_positions(path):
    with h5py.File(path, "w") as file:
        add_structure(file, direct_coordinates=0, position_ions=COORDS @ LATTICE)
        add_grid(file, values_of(1))
    np.testing.assert_allclose(read_density(path).structure.frac_coords, COORDS, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "grid", "place"),
    [("locpot/total", "locpot/grid", "locpot/position"), ("results/potential/total", None, "results/positions")],
)
def test_local_potentials(path, name, grid, place):
    values = values_of(2) - 5
    with h5py.File(path, "w") as file:
        add_structure(file, place)
        add_grid(file, values, name, grid)
    potential = read_density(path)
    assert potential.quantity == "potential"
    np.testing.assert_array_equal(list(potential.channels.values()), values)
    with pytest.raises(DensityFileError, match="a potential, expected an electron density"):
        as_density(path)


def test_the_quantity_chooses_where_there_are_both(path):
    with h5py.File(path, "w") as file:
        add_structure(file)
        add_grid(file, values_of(1))
        add_grid(file, values_of(2), "locpot/total", "locpot/grid")
    assert read_density(path).quantity == "electron_density"
    np.testing.assert_array_equal(read_density(path, quantity="potential").channels["diff"], values_of(2)[1])


def test_options_that_make_no_sense(path):
    with h5py.File(path, "w") as file:
        add_structure(file)
        add_grid(file, values_of(1))
    with pytest.raises(ValueError, match="leave it out"):
        read_density(path, unit="e/A^3")
    with pytest.raises(DensityFileError, match="the channels total, expected also diff"):
        read_density(path, channels=("total", "diff"))


def test_without_ion_types_there_is_no_structure(path):
    with h5py.File(path, "w") as file:
        add_structure(file, ion_types=None)
        add_grid(file, values_of(1))
    assert read_density(path).structure is None


def test_compressed_by_content(path, tmp_path):
    with h5py.File(path, "w") as file:
        add_structure(file)
        add_grid(file, values_of(1))
    (tmp_path / "x").write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(read_density(tmp_path / "x").channels["total"], read_density(path).channels["total"])


# --- what is no density ------------------------------------------------------------------------------------------------------------


def bad_value(value: float) -> np.ndarray:
    values = values_of(1)
    values[0, 1, 2, 3] = value
    return values


def outside(file) -> None:
    file["charge"] = h5py.ExternalLink("other.h5", "charge")


def huge(file) -> None:
    file.create_dataset("charge/charge", (1, 100_000, 100_000, 1000), "f8", chunks=(1, 100, 100, 10), compression="gzip")


def lone_group(file) -> None:
    file.create_group("charge/charge")


BAD = {
    "nothing": (lambda file: None, "without charge/charge.*vaspout.h5 has none"),
    "partial charges": (lambda file: file.create_group("results/partial_charges"), "partial charges of single bands"),
    "a link": (outside, "links are not followed"),
    "values not stored": (huge, r"charge/charge of shape \(1, 100000, 100000, 1000\)"),
    "a group": (lone_group, "charge/charge of shape None"),
    "three components": (lambda file: add_grid(file, values_of(3)), r"charge/charge of shape \(3, 6, 5, 4\)"),
    "no points": (lambda file: add_grid(file, np.zeros((1, 0, 5, 6))), r"charge/charge of shape \(1, 6, 5, 0\)"),
    "three dimensions": (lambda file: file.create_dataset("charge/charge", data=np.ones((4, 5, 6))), r"shape \(4, 5, 6\)"),
    "NaN": (lambda file: add_grid(file, bad_value(np.nan)), "not finite"),
    "infinity": (lambda file: add_grid(file, bad_value(np.inf)), "not finite"),
    "text": (lambda file: add_grid(file, np.full((1, *SHAPE), b"x")), "no numbers"),
    "complex": (lambda file: add_grid(file, values_of(1) + 1j), "type complex128"),
}
BAD_STRUCTURE = {
    "no cell": ({"lattice_vectors": None}, "no finite numbers in structure/positions/lattice_vectors"),
    "flat cell": ({"lattice_vectors": np.ones((3, 3))}, "span a cell"),
    "NaN cell": ({"lattice_vectors": np.nan * LATTICE}, "no finite numbers"),
    "cell of another shape": ({"lattice_vectors": LATTICE[:2]}, r"lattice_vectors of shape \(2, 3\)"),
    "no scale": ({"scale": None}, "no finite numbers in structure/positions/scale"),
    "scale 0": ({"scale": 0.0}, "scale 0.0"),
    "negative scale": ({"scale": -100.0}, "scale -100.0"),
    "unknown element": ({"ion_types": np.array([b"Si", b"Zz"])}, "species 'Zz'"),
    "no element": ({"ion_types": np.array([b"Si", b""])}, "an element and a count for each kind"),
    "more types than counts": ({"ion_types": np.array([b"Si", b"O", b"H"])}, "an element and a count for each kind"),
    "more atoms than positions": ({"number_ion_types": np.array([1, 2_000_000_000])}, "as many positions"),
    "negative count": ({"number_ion_types": np.array([4, -1])}, "as many positions"),
    "NaN position": ({"position_ions": COORDS * np.nan}, "no finite numbers"),
    "numbers for types": ({"ion_types": np.array([14, 8])}, "an element and a count for each kind"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_name_the_file_and_what_is_wrong(path, case):
    make, reason = BAD[case]
    with h5py.File(path, "w") as file:
        add_structure(file)
        make(file)
    with pytest.raises(DensityFileError, match=rf"vaspwave\.h5: found .*{reason}"):
        read_density(path)


@pytest.mark.parametrize("case", BAD_STRUCTURE)
def test_bad_structures(path, case):
    others, reason = BAD_STRUCTURE[case]
    with h5py.File(path, "w") as file:
        add_structure(file, **others)
        add_grid(file, values_of(1))
    with pytest.raises(DensityFileError, match=rf"vaspwave\.h5: found .*{reason}"):
        read_density(path)


def test_a_grid_of_other_counts_and_a_file_without_a_cell(path):
    with h5py.File(path, "w") as file:
        add_grid(file, values_of(1), grid=None)
        file["charge/grid"] = np.array([6, 5, 4])
    with pytest.raises(DensityFileError, match=r"on a grid of \[6, 5, 4\]"):
        read_density(path)
    with h5py.File(path, "w") as file:
        add_grid(file, values_of(1))
    with pytest.raises(DensityFileError, match="no cell"):
        read_density(path)


def test_no_damage_makes_another_error(path):
    with h5py.File(path, "w") as file:
        add_structure(file)
        add_grid(file, values_of(2))
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        raw = bytearray(sound)
        for at in rng.integers(8, len(raw), 10):
            raw[at] = rng.integers(256)
        path.write_bytes(raw[: rng.integers(100, len(raw))] if rng.random() < 0.2 else raw)
        with warnings.catch_warnings(), suppress(DensityFileError):
            warnings.simplefilter("ignore")
            read_density(path)
