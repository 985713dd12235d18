"""``Density``: what it refuses, what it keeps, and the laws of its channels, its electrons and the atoms that it carries."""

from __future__ import annotations

import json
import pickle
from typing import get_args

import numpy as np
import pytest
from monty.json import MontyDecoder, MontyEncoder
from pymatgen.core.structure import Structure

from matminer_ed3d.density import UNITS, Density, Quantity

LATTICE = np.array([[4.0, 0.0, 0.0], [1.1, 5.2, 0.0], [-0.7, 1.3, 6.1]])
SHAPE = (6, 7, 8)
UNIMODULAR = [[[1, 1, 0], [0, 1, 0], [0, 0, 1]], [[0, 1, 0], [0, 0, 1], [1, 0, 0]], [[1, -1, 2], [0, 1, -1], [0, 0, 1]]]


def random_density(*names: str, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Density:
    rng = np.random.default_rng(seed)
    return Density(lattice=LATTICE, channels={name: rng.random(shape) for name in names or ("total", "diff")})


def atomic_density(structure: Structure) -> Density:
    return Density.from_structure(structure, grid_spacing=0.25)


def values_at_sites(density: Density) -> np.ndarray:
    """Density at the atoms, by the Fourier sum."""
    from matminer_ed3d import grids

    h = grids.reflections(density.grid_shape)
    known = (2 * np.abs(h) < density.grid_shape).all(axis=1)
    f = grids.fourier_coefficients(density.channel("total")).ravel()[known]
    return (np.exp(2j * np.pi * (np.array(density.structure.frac_coords) @ h[known].T)) @ f).real


# What is refused


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("lattice", "channels", "message"),
    [
        (np.arange(6.0), {"total": np.ones(SHAPE)}, r"`lattice` must be \(3, 3\) rows in Å, got shape \(6,\); use Lattice"),
        (np.zeros((3, 3)), {"total": np.ones(SHAPE)}, "non-zero volume"),
        (np.full((3, 3), np.nan), {"total": np.ones(SHAPE)}, "`lattice` must be finite"),
        (LATTICE, {"diff": np.ones(SHAPE)}, r"must hold 'total', got \['diff'\]"),
        (LATTICE, {"total": np.ones(SHAPE), "spin": np.ones(SHAPE)}, r"got also \['spin'\]"),
        (LATTICE, {"total": np.ones(SHAPE), "up": np.ones(SHAPE)}, r"got also \['up'\]"),
        (LATTICE, {"total": np.ones((6, 7))}, r"'total' must be \(nx, ny, nz\), got shape \(6, 7\)"),
        (LATTICE, {"total": np.ones((6, 0, 8))}, r"'total' must be \(nx, ny, nz\), got shape \(6, 0, 8\)"),
        (LATTICE, {"total": np.ones(SHAPE), "diff": np.ones((6, 7, 9))}, r"the shape of the first, \(6, 7, 8\); 'diff' has \(6, 7, 9\)"),
    ],
)
def test_a_density_that_is_none_is_refused(lattice: np.ndarray, channels: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Density(lattice=lattice, channels=channels)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["total", "diff"])
def test_a_value_that_is_not_finite_is_named_with_its_grid_point(value: float, name: str) -> None:
    channels = {"total": np.ones(SHAPE), "diff": np.zeros(SHAPE)}
    channels[name][2, 3, 4] = value
    with pytest.raises(ValueError, match=rf"'{name}' must be finite, got {value} at grid point \(2, 3, 4\)"):
        Density(lattice=LATTICE, channels=channels)


def test_an_unknown_channel_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"one of \['diff', 'down', 'total', 'up'\], got 'spin'"):
        random_density("total").channel("spin")


@pytest.mark.parametrize("grid_shape", [(0, 1, 1), (4, 4, -1)])
def test_resampling_to_no_points_is_refused(grid_shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="`grid_shape` must be three counts of at least 1"):
        random_density().resample(grid_shape)


@pytest.mark.usefixtures("as_user")
def test_an_unknown_method_of_resampling_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['fourier', 'mean'\], got 'linear'"):
        random_density().resample(SHAPE, method="linear")  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [0.5, [0.1, 0.2], [[0.1, 0.2, 0.3]]])
def test_a_shift_that_is_no_vector_is_refused(shift: object) -> None:
    with pytest.raises(ValueError, match="`frac_shift` must be three fractional coordinates"):
        random_density().shift_origin(shift)


@pytest.mark.parametrize("matrix", [np.eye(2), np.diag([1.0, 0.5, 2.0]), np.zeros((3, 3)), [[1, 0, 0], [2, 0, 0], [0, 0, 1]]])
def test_a_change_of_basis_that_is_none_is_refused(matrix: object) -> None:
    with pytest.raises(ValueError, match="`basis_change` must be an integer"):
        random_density().change_basis(matrix)


@pytest.mark.parametrize("grid_shape", [(0, 1, 1), (4, -4, 4), (4, 4)])
@pytest.mark.usefixtures("as_user")
def test_a_change_of_basis_to_no_points_is_refused(grid_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`grid_shape` must be three counts of at least 1"):
        random_density().change_basis(np.eye(3), grid_shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["total", "diff"])
def test_complex_values_are_refused(name: str) -> None:
    channels = {"total": np.ones(SHAPE), "diff": np.zeros(SHAPE)}
    with pytest.raises(ValueError, match=f"channel '{name}' must be real, got complex numbers"):
        Density(lattice=LATTICE, channels={**channels, name: channels[name] + 0j})


# Channels


def test_up_and_down_are_the_shares_of_total_and_diff() -> None:
    density = random_density()
    up, down = density.channel("up"), density.channel("down")
    np.testing.assert_allclose(up + down, density.channel("total"), atol=1e-15)
    np.testing.assert_allclose(up - down, density.channel("diff"), atol=1e-15)
    assert density.n_electrons("up") + density.n_electrons("down") == pytest.approx(density.n_electrons())


def test_a_density_without_spin_has_half_its_electrons_up() -> None:
    density = random_density("total")
    np.testing.assert_array_equal(density.channel("diff"), 0.0)
    np.testing.assert_array_equal(density.channel("up"), 0.5 * density.channel("total"))
    np.testing.assert_array_equal(density.channel("down"), density.channel("up"))


def test_a_non_collinear_density_has_no_up_and_down() -> None:
    density = random_density("total", "diff_x", "diff_y", "diff_z")
    assert density.channel("diff_y").shape == SHAPE
    for name in ("up", "down", "diff"):
        with pytest.raises(ValueError, match=f"non-collinear density has no channel '{name}'"):
            density.channel(name)


@pytest.mark.usefixtures("as_user")
def test_plain_lists_and_integers_become_arrays_of_floats() -> None:
    density = Density(lattice=4 * np.eye(3, dtype=int), channels={"total": np.ones((2, 2, 2), dtype=np.int64)})
    assert density.lattice.dtype == density.channels["total"].dtype == np.float64
    assert density.n_electrons() == 64.0


def test_a_left_handed_cell_has_a_positive_volume() -> None:
    mirrored = Density(lattice=-LATTICE, channels=random_density().channels)
    assert mirrored.volume == pytest.approx(random_density().volume)
    assert mirrored.n_electrons() == pytest.approx(random_density().n_electrons())


def test_the_spacing_is_that_of_neighbouring_points() -> None:
    np.testing.assert_allclose(random_density().grid_spacing, np.linalg.norm(LATTICE / np.array(SHAPE)[:, None], axis=1))


# Electrons


@pytest.mark.parametrize("name", ["total", "diff", "up", "down"])
@pytest.mark.parametrize("method", ["fourier", "mean"])
@pytest.mark.parametrize("grid_shape", [(5, 5, 5), (12, 14, 16), (1, 3, 20)])
def test_resampling_conserves_electrons(name: str, method: str, grid_shape: tuple[int, int, int]) -> None:
    density = random_density()
    resampled = density.resample(grid_shape, method=method)  # type: ignore[arg-type]
    assert resampled.grid_shape == grid_shape
    assert resampled.n_electrons(name) == pytest.approx(density.n_electrons(name), rel=1e-12)


@pytest.mark.parametrize("shift", [[0.5, 0.0, 0.25], [0.123, -0.456, 7.89]])
def test_shifting_conserves_electrons(shift: list[float]) -> None:
    density = random_density()
    for name in ("total", "diff"):
        assert density.shift_origin(shift).n_electrons(name) == pytest.approx(density.n_electrons(name), rel=1e-12)


@pytest.mark.parametrize("grid_shape", [None, (9, 10, 11)])
@pytest.mark.parametrize("matrix", [*UNIMODULAR, [[2, 0, 0], [0, 1, 0], [0, 0, 3]], [[1, 1, 0], [-1, 1, 0], [0, 0, 1]]])
def test_a_change_of_basis_conserves_electrons_per_volume(matrix: list[list[int]], grid_shape: tuple[int, int, int] | None) -> None:
    density = random_density()
    changed = density.change_basis(matrix, grid_shape)
    n_cells = abs(round(np.linalg.det(matrix)))
    np.testing.assert_allclose(changed.lattice, np.array(matrix) @ LATTICE)
    for name in ("total", "diff"):
        assert changed.n_electrons(name) == pytest.approx(n_cells * density.n_electrons(name), rel=1e-12)


@pytest.mark.parametrize("grid_shape", [None, (10, 20, 16), (20, 20, 16)])
@pytest.mark.parametrize("matrix", [np.eye(3, dtype=int), UNIMODULAR[0], UNIMODULAR[2]])
def test_a_change_of_basis_of_an_anisotropic_grid_takes_no_sample_of_its_points(matrix: object, grid_shape) -> None:
    total = np.random.default_rng(0).random((30, 20, 16))
    density = Density(lattice=np.diag([3.0, 2.0, 4.0]), channels={"total": total})
    assert density.change_basis(matrix, grid_shape).n_electrons() == pytest.approx(density.n_electrons(), rel=1e-12)


# Means over voxels and values at points


def test_a_density_knows_whether_it_is_a_mean(nacl: Structure) -> None:
    made = {method: Density.from_structure(nacl, method=method).is_voxel_mean for method in ("mean", "point", "band_limited")}
    assert made == {"mean": True, "point": False, "band_limited": False}
    assert not random_density().is_voxel_mean
    assert random_density().resample((3, 3, 3), method="mean").is_voxel_mean
    assert not random_density().resample((3, 3, 3)).is_voxel_mean


def test_the_points_of_a_mean_are_those_of_the_atoms(quartz: Structure) -> None:
    # Atoms that move so much that the grid holds all of them.
    mean, point = (Density.from_structure(quartz, method=method, b_iso=12.0) for method in ("mean", "point"))
    recovered = mean.point_values()
    assert not recovered.is_voxel_mean
    assert recovered.n_electrons() == pytest.approx(mean.n_electrons(), rel=1e-12)
    scale = point.channel("total").max()
    np.testing.assert_allclose(recovered.channel("total"), point.channel("total"), atol=2e-4 * scale)
    assert np.abs(mean.channel("total") - point.channel("total")).max() > 2e-2 * scale
    assert recovered.point_values() is recovered


def test_means_stay_means_where_voxels_stay_voxels(quartz: Structure) -> None:
    mean = Density.from_structure(quartz)
    assert mean.shift_origin([0.5, 0, 0]).is_voxel_mean
    turned = mean.change_basis([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    assert turned.is_voxel_mean
    assert sorted(turned.channel("total").ravel()) == sorted(mean.channel("total").ravel())
    doubled = mean.change_basis(np.diag([1, 2, 1]))
    assert doubled.is_voxel_mean
    np.testing.assert_array_equal(doubled.channel("total"), np.tile(mean.channel("total"), (1, 2, 1)))
    skewed = mean.change_basis([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    for changed in (skewed, mean.resample((30, 30, 30)), mean.change_basis(np.eye(3), (30, 30, 30))):
        assert not changed.is_voxel_mean
        assert changed.n_electrons() == pytest.approx(mean.n_electrons(), rel=1e-9)


def test_the_same_grid_is_no_work() -> None:
    density = random_density()
    assert density.resample(SHAPE) is density


# The structure goes with the density


@pytest.mark.parametrize("system", ["triclinic", "monoclinic", "trigonal", "cubic"])
@pytest.mark.parametrize("shift", [[0.25, 0.5, 0.0], [0.117, -0.281, 0.433]])
def test_atoms_stay_on_their_density_when_the_origin_moves(crystals: dict[str, Structure], system: str, shift: list[float]) -> None:
    density = atomic_density(crystals[system])
    shifted = density.shift_origin(shift)
    np.testing.assert_allclose(values_at_sites(shifted), values_at_sites(density), rtol=1e-2)
    assert density.structure.matches(shifted.structure)
    np.testing.assert_allclose(density.structure.frac_coords, crystals[system].frac_coords)  # the old one is left alone


@pytest.mark.parametrize("matrix", [*UNIMODULAR, [[2, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 1, 0], [-1, 1, 0], [0, 0, 1]]])
@pytest.mark.parametrize("system", ["monoclinic", "trigonal"])
def test_atoms_stay_on_their_density_when_the_basis_changes(crystals: dict[str, Structure], system: str, matrix: list[list[int]]) -> None:
    density = Density.from_structure(crystals[system], method="band_limited", grid_spacing=0.2, d_min=0.8)
    changed = density.change_basis(matrix)
    n_cells = abs(round(np.linalg.det(matrix)))
    np.testing.assert_allclose(changed.structure.lattice.matrix, changed.lattice, atol=1e-12)
    assert len(changed.structure) == n_cells * len(density.structure)
    np.testing.assert_allclose(sorted(values_at_sites(changed)), sorted(np.repeat(values_at_sites(density), n_cells)), rtol=1e-6)


def test_there_and_back_is_the_same_density(nacl: Structure) -> None:
    density = Density.from_structure(nacl, grid_shape=(16, 16, 16), method="point")
    matrix = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]])
    back = density.change_basis(matrix).change_basis(np.round(np.linalg.inv(matrix)).astype(int), (16, 16, 16))
    np.testing.assert_allclose(back.lattice, density.lattice, atol=1e-12)
    np.testing.assert_allclose(back.channel("total"), density.point_values().channel("total"), atol=1e-10)
    assert density.structure.matches(back.structure)


def test_voxel_means_and_point_values_hold_the_same_electrons_and_symmetry(nacl: Structure) -> None:
    primitive = nacl.get_primitive_structure()
    means = Density.from_structure(primitive)
    points = means.point_values()
    assert means.is_voxel_mean
    assert not points.is_voxel_mean
    assert points.n_electrons() == pytest.approx(means.n_electrons(), rel=1e-12)
    # (1, 0, 0) and (1, 1, 1) of the primitive cell are equal by symmetry; the mean over its oblique voxels hides that
    ratio = [abs(f[1, 0, 0]) / abs(f[1, 1, 1]) for f in (np.fft.fftn(d.channel("total")) for d in (means, points))]
    assert abs(ratio[0] - 1) > 0.01
    assert abs(ratio[1] - 1) < 0.001


def test_resampling_keeps_the_structure(nacl: Structure) -> None:
    density = atomic_density(nacl)
    assert density.resample((10, 10, 10)).structure is density.structure


# Quantities that are no electron density


@pytest.mark.parametrize("quantity", ["potential", "elf", "orbital", "unknown"])
def test_another_quantity_names_its_channels_as_it_likes(quantity: Quantity) -> None:
    values = np.random.default_rng(0).normal(size=SHAPE)
    density = Density(LATTICE, {"up": values, "anything": -values}, quantity=quantity)
    assert density.grid_shape == SHAPE
    np.testing.assert_array_equal(density.channel("up"), values)  # its own, not derived
    with pytest.raises(ValueError, match=rf"one of \['anything', 'up'\], those of this {quantity}, got 'down'"):
        density.channel("down")
    with pytest.raises(ValueError, match=f"only an electron density has electrons, got the quantity '{quantity}'"):
        density.n_electrons()


def test_every_quantity_has_a_unit() -> None:
    assert set(UNITS) == set(get_args(Quantity))
    assert UNITS["electron_density"] == "e/Å³"


@pytest.mark.usefixtures("as_user")
def test_an_unknown_quantity_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"`quantity` must be one of \['electron_density', 'elf', .*\], got 'charge'"):
        Density(LATTICE, {"total": np.ones(SHAPE)}, quantity="charge")  # type: ignore[arg-type]


@pytest.mark.parametrize("quantity", get_args(Quantity))
def test_a_density_without_channels_is_refused(quantity: Quantity) -> None:
    with pytest.raises(ValueError, match="`channels` must hold at least one grid"):
        Density(LATTICE, {}, quantity=quantity)


@pytest.mark.parametrize("quantity", get_args(Quantity))
def test_the_quantity_goes_with_the_values(quantity: Quantity) -> None:
    density = Density(LATTICE, {"total": np.random.default_rng(0).random(SHAPE)}, quantity=quantity)
    made = (
        density.resample((5, 5, 5)),
        density.resample((3, 3, 3), method="mean"),
        density.resample((3, 3, 3), method="mean").point_values(),
        density.shift_origin([0.1, 0.2, 0.3]),
        density.change_basis(UNIMODULAR[0]),
        pickle.loads(pickle.dumps(density)),
        Density.from_dict(density.as_dict()),
        json.loads(json.dumps(density, cls=MontyEncoder), cls=MontyDecoder),
    )
    assert {one.quantity for one in made} == {quantity}


# Storing


def assert_same(left: Density, right: Density) -> None:
    np.testing.assert_array_equal(left.lattice, right.lattice)
    assert list(left.channels) == list(right.channels)
    for name, values in left.channels.items():
        np.testing.assert_array_equal(values, right.channels[name])
        assert right.channels[name].dtype == np.float64
    assert left.structure == right.structure
    assert left.is_voxel_mean is right.is_voxel_mean
    assert left.quantity == right.quantity


@pytest.fixture
def spin_density(nacl: Structure) -> Density:
    total = Density.from_structure(nacl, grid_shape=(4, 5, 6)).channel("total")
    return Density(lattice=nacl.lattice.matrix, channels={"total": total, "diff": 0.1 * total}, structure=nacl, is_voxel_mean=True)


@pytest.mark.parametrize("method", ["mean", "point"])
def test_the_density_of_a_structure_is_stored_with_what_its_values_are(quartz: Structure, method: str) -> None:
    density = Density.from_structure(quartz, grid_shape=(4, 5, 6), method=method)
    assert density.is_voxel_mean is (method == "mean")
    assert_same(density, pickle.loads(pickle.dumps(density)))
    assert_same(density, Density.from_dict(density.as_dict()))
    assert_same(density, json.loads(json.dumps(density, cls=MontyEncoder), cls=MontyDecoder))


def test_pickle(spin_density: Density) -> None:
    assert_same(spin_density, pickle.loads(pickle.dumps(spin_density)))


def test_as_dict_and_back(spin_density: Density) -> None:
    assert_same(spin_density, Density.from_dict(spin_density.as_dict()))
    assert_same(random_density("total"), Density.from_dict(random_density("total").as_dict()))


def test_json_and_back(spin_density: Density) -> None:
    text = json.dumps(spin_density, cls=MontyEncoder)
    assert_same(spin_density, json.loads(text, cls=MontyDecoder))
    assert_same(spin_density, Density.from_dict(json.loads(spin_density.to_json())))


def test_it_is_one_object_and_no_sequence() -> None:
    # numpy, pandas and matminer take apart what has a length; a table of densities must stay one of densities.
    density = random_density()
    for method in ("__len__", "__iter__", "__array__", "__getitem__"):
        assert not hasattr(density, method)
    column = np.empty(2, dtype=object)
    column[:] = [density, density]
    assert column[0] is density


def test_it_is_frozen() -> None:
    with pytest.raises(AttributeError):
        random_density().lattice = np.eye(3)  # type: ignore[misc]


# The doors


def test_from_structure_from_file_and_from_chgcar_lead_to_the_same_kind(nacl: Structure, chgcar_path) -> None:
    from pymatgen.io.vasp.outputs import Chgcar

    assert Density.from_structure(nacl).structure is nacl
    from_file = Density.from_file(chgcar_path)
    from_chgcar = Density.from_chgcar(Chgcar.from_file(str(chgcar_path)))
    for name in ("total", "diff"):
        np.testing.assert_allclose(from_file.channel(name), from_chgcar.channel(name), rtol=1e-12)
    assert from_file.n_electrons() == pytest.approx(8.0, rel=0.01)
