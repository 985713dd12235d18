"""Densities to points and voxels: brute force as oracle, electrons, caps that keep equals together, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core.structure import Structure

from matminer_ed3d import grids
from matminer_ed3d.density import Density
from matminer_ed3d.sampling import PAPER_CAPS, point_cap, sample_points, sample_voxels

TRICLINIC = np.array([[4.0, 0.0, 0.0], [1.1, 5.2, 0.0], [-0.7, 1.3, 6.1]])
FOUR = ("total", "diff", "up", "down")
Shape = tuple[int, int, int]


def random_density(shape: Shape = (9, 10, 11), lattice: np.ndarray = TRICLINIC, seed: int = 0) -> Density:
    rng = np.random.default_rng(seed)
    return Density(lattice=lattice, channels={"total": 0.5 + rng.random(shape), "diff": rng.random(shape) - 0.5})


def grid_points(shape: Shape) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)


def voxel_of(points: np.ndarray, shape: Shape, coarse: Shape) -> np.ndarray:
    """Index of the lattice-aligned voxel, centred on its own point, that holds each grid point."""
    return np.floor(points * np.array(coarse) / np.array(shape) + 0.5 + 1e-12).astype(int) % np.array(coarse)


def as_grid_points(coords: np.ndarray, density: Density) -> np.ndarray:
    """Indices of Cartesian points on the grid of a density; fails where a point lies off it."""
    steps = coords.astype(float) @ np.linalg.inv(density.lattice) * np.array(density.grid_shape)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    return np.round(steps).astype(int)


# Points


@pytest.mark.parametrize("shape", [(20, 24, 30), (17, 21, 25)])
@pytest.mark.parametrize("voxel_size", [0.5, 0.7, 1.3])
def test_random_points_lie_on_the_grid_one_in_each_voxel(shape: Shape, voxel_size: float) -> None:
    density = random_density(shape)
    cloud = sample_points(density, voxel_size=voxel_size, max_points=None, rng=1)
    points = as_grid_points(cloud.coords, density)
    coarse = grids.coarse_grid_shape(TRICLINIC, voxel_size)
    assert cloud.n_points == np.prod(coarse)
    voxels = voxel_of(points, shape, coarse)
    assert len(np.unique(voxels, axis=0)) == cloud.n_points
    np.testing.assert_allclose(cloud.feats[:, 0], density.channel("total")[tuple(points.T)], rtol=1e-6)


def test_every_grid_point_of_a_voxel_is_drawn_equally_often() -> None:
    density = random_density((12, 1, 1), lattice=np.diag([3.0, 1.0, 1.0]))
    rng = np.random.default_rng(0)
    n_draws = 600
    counts = np.zeros(12)
    for _ in range(n_draws):
        cloud = sample_points(density, voxel_size=1.0, max_points=None, rng=rng)
        np.add.at(counts, as_grid_points(cloud.coords, density)[:, 0], 1)
    assert counts.sum() == 3 * n_draws
    # four points to a voxel; 150 expected of each, 10.6 the standard deviation
    assert (np.abs(counts - n_draws / 4) < 60).all()


def test_a_voxel_round_the_origin_takes_points_from_both_faces() -> None:
    density = random_density((12, 1, 1), lattice=np.diag([3.0, 1.0, 1.0]))
    drawn = {int(as_grid_points(sample_points(density, voxel_size=1.0, rng=seed).coords, density)[0, 0]) for seed in range(60)}
    assert drawn == {0, 1, 10, 11}


@pytest.mark.parametrize("shape", [(4, 4, 4), (8, 9, 10)])
def test_where_the_grid_is_the_coarser_one_random_gives_every_grid_point(shape: Shape) -> None:
    density = random_density(shape)
    cloud = sample_points(density, voxel_size=0.25, max_points=None, rng=0)
    assert cloud.n_points == np.prod(shape)
    assert len(np.unique(as_grid_points(cloud.coords, density), axis=0)) == cloud.n_points


@pytest.mark.parametrize("ratio", [(3, 3, 3), (5, 1, 3)])
def test_mean_points_are_centres_with_the_mean_of_their_block(ratio: Shape) -> None:
    coarse = grids.coarse_grid_shape(TRICLINIC, 1.0)
    shape = tuple(n * r for n, r in zip(coarse, ratio, strict=True))
    density = random_density(shape)  # type: ignore[arg-type]
    cloud = sample_points(density, voxel_size=1.0, reduction="mean", max_points=None)
    np.testing.assert_allclose(cloud.coords, grid_points(coarse) / np.array(coarse) @ TRICLINIC, atol=1e-5)
    voxels = voxel_of(grid_points(shape), shape, coarse)  # type: ignore[arg-type]
    flat = np.ravel_multi_index(tuple(voxels.T), coarse)
    expected = np.bincount(flat, weights=density.channel("total").ravel()) / np.bincount(flat)
    np.testing.assert_allclose(cloud.feats[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("voxel_size", [0.2, 0.31, 0.5, 1.7])
def test_the_mean_of_mean_points_is_the_mean_density(voxel_size: float) -> None:
    density = random_density()
    cloud = sample_points(density, voxel_size=voxel_size, reduction="mean", max_points=None, threshold=-100.0, channels=FOUR)
    for column, name in enumerate(FOUR):
        assert cloud.feats[:, column].mean(dtype=float) * density.volume == pytest.approx(density.n_electrons(name), rel=1e-5, abs=1e-4)


def test_points_stay_inside_the_cell_that_is_named() -> None:
    cloud = sample_points(random_density(), rng=0)
    np.testing.assert_array_equal(cloud.lattice, TRICLINIC)
    frac = cloud.coords.astype(float) @ np.linalg.inv(TRICLINIC)
    assert frac.min() > -1e-6
    assert frac.max() < 1


# Lattice-aligned voxels


@pytest.mark.parametrize("reduction", ["mean", "random"])
@pytest.mark.parametrize("multiple_of", [1, 2, 4])
def test_lattice_voxels_divide_the_cell(reduction: str, multiple_of: int) -> None:
    tensor = sample_voxels(random_density((20, 24, 30)), voxel_size=0.5, reduction=reduction, multiple_of=multiple_of, rng=0)  # type: ignore[arg-type]
    shape = tensor.grid_shape
    assert shape == grids.coarse_grid_shape(TRICLINIC, 0.5, multiple_of)
    assert all(n % multiple_of == 0 for n in shape)
    np.testing.assert_allclose(tensor.voxel_basis * np.array(shape)[:, None], TRICLINIC)
    np.testing.assert_allclose(tensor.lattice, TRICLINIC)
    assert tensor.n_points == len(np.unique(tensor.coords, axis=0)) == np.prod(shape)
    assert (np.abs(np.linalg.norm(tensor.voxel_basis, axis=1) - 0.5) < 0.25 * multiple_of).all()


@pytest.mark.parametrize("voxel_size", [0.25, 0.4, 0.9])
@pytest.mark.parametrize("shape", [(9, 10, 11), (20, 24, 30), (17, 21, 25)])
def test_lattice_voxels_conserve_electrons(shape: Shape, voxel_size: float) -> None:
    density = random_density(shape)
    tensor = sample_voxels(density, voxel_size=voxel_size, threshold=-100.0, channels=FOUR)
    for column, name in enumerate(FOUR):
        electrons = tensor.feats[:, column].mean(dtype=float) * density.volume
        assert electrons == pytest.approx(density.n_electrons(name), rel=1e-5, abs=1e-4)


def test_the_default_threshold_keeps_the_electrons_of_atoms(crystals: dict[str, Structure]) -> None:
    for structure in crystals.values():
        density = Density.from_structure(structure)
        tensor = sample_voxels(density)
        assert tensor.n_points == np.prod(tensor.grid_shape)
        assert tensor.feats[:, 0].mean(dtype=float) * density.volume == pytest.approx(density.n_electrons(), rel=1e-5)


def test_random_voxels_take_the_value_of_one_of_their_points() -> None:
    shape = (20, 24, 30)
    density = random_density(shape)
    tensor = sample_voxels(density, voxel_size=0.7, reduction="random", rng=3)
    coarse = tensor.grid_shape
    members: dict[tuple[int, ...], list[float]] = {}
    points = grid_points(shape)
    for voxel, value in zip(voxel_of(points, shape, coarse), density.channel("total").ravel(), strict=True):
        members.setdefault(tuple(voxel), []).append(value)
    for voxel, value in zip(tensor.coords, tensor.feats[:, 0], strict=True):
        assert np.min(np.abs(np.array(members[tuple(voxel)]) - value)) < 1e-6


def test_voxels_and_mean_points_hold_the_same() -> None:
    density = random_density((20, 24, 30))
    tensor = sample_voxels(density, voxel_size=0.5, channels=FOUR)
    cloud = sample_points(density, voxel_size=0.5, reduction="mean", max_points=None, channels=FOUR)
    np.testing.assert_array_equal(tensor.feats, cloud.feats)
    np.testing.assert_allclose(tensor.coords @ tensor.voxel_basis, cloud.coords, atol=1e-5)


def test_a_shift_by_whole_voxels_moves_lattice_voxels() -> None:
    coarse = grids.coarse_grid_shape(TRICLINIC, 0.5)
    density = random_density(tuple(2 * n for n in coarse))  # type: ignore[arg-type]
    moved = density.shift_origin(np.array([3, -2, 5]) / coarse)
    first, second = (sample_voxels(d, voxel_size=0.5).feats[:, 0].reshape(coarse) for d in (density, moved))
    np.testing.assert_allclose(np.roll(first, (-3, 2, -5), axis=(0, 1, 2)), second, rtol=1e-5)


# Cartesian voxels


def shares_of_cell(coords: np.ndarray, voxel_size: float, lattice: np.ndarray, start: np.ndarray, n_points: int = 160) -> np.ndarray:
    """Volume that each cube, centred on its indices, has of the cell that begins at `start`, by counting points."""
    frac = (grid_points((n_points,) * 3) + 0.5) / n_points + start
    voxels = np.floor(frac @ lattice / voxel_size + 0.5).astype(int)
    low, high = np.minimum(voxels.min(0), coords.min(0)), np.maximum(voxels.max(0), coords.max(0))
    size = tuple(high - low + 1)
    counts = np.bincount(np.ravel_multi_index(tuple((voxels - low).T), size), minlength=np.prod(size))
    return counts[np.ravel_multi_index(tuple((coords - low).T), size)] / len(frac) * abs(np.linalg.det(lattice))


@pytest.mark.parametrize("voxel_size", [0.37, 0.6, 1.1])
def test_random_cartesian_voxels_are_those_of_unique(voxel_size: float) -> None:
    density = random_density((14, 16, 18))
    cart = grid_points(density.grid_shape) / np.array(density.grid_shape) @ TRICLINIC
    voxels, inverse = np.unique(np.floor(cart / voxel_size + 0.5 + 1e-9).astype(int), axis=0, return_inverse=True)
    inverse = inverse.ravel()
    drawn = sample_voxels(density, voxel_size=voxel_size, voxel_basis="cartesian", reduction="random", rng=0)
    assert drawn.grid_shape is None
    assert drawn.lattice is None
    np.testing.assert_array_equal(drawn.voxel_basis, voxel_size * np.eye(3))
    np.testing.assert_array_equal(drawn.coords, voxels)
    assert (np.abs(cart - (drawn.coords @ drawn.voxel_basis)[inverse]) <= 0.5 * voxel_size + 1e-6).all(), (
        "a voxel is centred on its indices"
    )
    values = density.channel("total").ravel().astype(np.float32)
    for row, value in enumerate(drawn.feats[:, 0]):
        assert value in values[inverse == row]


def test_cartesian_means_of_a_box_weigh_by_the_shared_volume() -> None:
    lengths, voxel_size, shape = np.array([3.0, 2.0, 2.5]), 0.7, (9, 10, 11)
    density = random_density(shape, lattice=np.diag(lengths))
    tensor = sample_voxels(density, voxel_size=voxel_size, voxel_basis="cartesian", channels=FOUR, threshold=-100.0)
    weights = []
    for axis, (length, n) in enumerate(zip(lengths, shape, strict=True)):
        low = tensor.coords[:, axis, None] * voxel_size - voxel_size / 2
        start = (np.arange(n) - 0.5) * length / n
        weights.append(np.clip(np.minimum(low + voxel_size, start + length / n) - np.maximum(low, start), 0, None))
    for column, name in enumerate(FOUR):
        electrons = np.einsum("vi,vj,vk,ijk->v", *weights, density.channel(name))
        volume = np.einsum("vi,vj,vk->v", *weights)
        np.testing.assert_allclose(tensor.feats[:, column], electrons / volume, atol=1e-5)
        assert electrons.sum() == pytest.approx(density.n_electrons(name), rel=1e-9)


@pytest.mark.parametrize("voxel_size", [0.37, 0.6, 1.1])
def test_cartesian_means_stay_in_range_and_cover_the_cell(voxel_size: float) -> None:
    density = random_density((24, 32, 36))
    tensor = sample_voxels(density, voxel_size=voxel_size, voxel_basis="cartesian")
    total = density.channel("total")
    assert total.min() - 1e-6 <= tensor.feats.min() < tensor.feats.max() <= total.max() + 1e-6
    shares = shares_of_cell(tensor.coords, voxel_size, TRICLINIC, -0.5 / np.array(density.grid_shape))
    assert shares.sum() == pytest.approx(density.volume, rel=1e-3)
    assert (tensor.feats[:, 0] * shares).sum() == pytest.approx(density.n_electrons(), rel=2e-3)
    flat = Density(lattice=TRICLINIC, channels={"total": np.full((24, 32, 36), 0.7)})
    np.testing.assert_allclose(sample_voxels(flat, voxel_size=voxel_size, voxel_basis="cartesian").feats, 0.7, rtol=1e-6)


def test_random_cartesian_voxels_draw_all_their_points_equally_often() -> None:
    density = random_density((6, 1, 1), lattice=np.diag([3.0, 1.0, 1.0]))
    rng = np.random.default_rng(0)
    values = density.channel("total").ravel().astype(np.float32)
    counts = dict.fromkeys(values.tolist(), 0)
    for _ in range(600):
        for value in sample_voxels(density, voxel_size=1.5, voxel_basis="cartesian", reduction="random", rng=rng).feats[:, 0].tolist():
            counts[value] += 1
    # voxels centred on 0, 1.5 and 3 Å hold two, three and one of the points
    assert (np.abs(np.array(list(counts.values())) - [300, 300, 200, 200, 200, 600]) < 70).all()


# Threshold and cap


@pytest.mark.parametrize("voxel_basis", ["lattice", "cartesian"])
def test_the_threshold_keeps_what_reaches_it(voxel_basis: str) -> None:
    density = random_density()
    everything = sample_voxels(density, voxel_size=0.6, voxel_basis=voxel_basis)  # type: ignore[arg-type]
    limit = float(np.median(everything.feats))
    kept = sample_voxels(density, voxel_size=0.6, voxel_basis=voxel_basis, threshold=limit)  # type: ignore[arg-type]
    np.testing.assert_array_equal(kept.feats, everything.feats[everything.feats[:, 0] >= limit])
    assert 0 < kept.n_points < everything.n_points


def test_the_total_decides_which_points_stay_whatever_the_channels() -> None:
    density = random_density()
    limit = 1.0
    total = sample_points(density, voxel_size=0.6, reduction="mean", threshold=limit)
    diff = sample_points(density, voxel_size=0.6, reduction="mean", threshold=limit, channels=("diff",))
    np.testing.assert_array_equal(total.coords, diff.coords)


def test_a_cap_keeps_the_densest() -> None:
    density = random_density()
    everything = sample_points(density, voxel_size=0.6, reduction="mean", max_points=None)
    kept = sample_points(density, voxel_size=0.6, reduction="mean", max_points=50)
    assert kept.n_points == 50
    np.testing.assert_array_equal(np.sort(kept.feats[:, 0]), np.sort(everything.feats[:, 0])[-50:])
    assert sample_points(density, voxel_size=0.6, reduction="mean", max_points=10**6).n_points == everything.n_points


@pytest.mark.parametrize("max_points", [1, 2, 3, 5])
def test_a_cap_below_the_first_equals_keeps_these_alone(nacl: Structure, max_points: int) -> None:
    density = Density.from_structure(nacl, grid_shape=(16, 16, 16))
    kept = sample_voxels(density, voxel_size=5.64056 / 16, max_points=max_points)
    assert kept.n_points == 4, "the four Cl of the cell"
    np.testing.assert_allclose(kept.feats, density.channel("total").max(), rtol=1e-6)


@pytest.mark.parametrize("voxel_size", [0.1, 0.18, 0.25])
def test_means_of_voxels_finer_than_the_grid_lose_nothing_to_the_threshold(nacl: Structure, voxel_size: float) -> None:
    density = Density.from_structure(nacl, grid_spacing=0.4)
    for sample in (
        sample_voxels(density, voxel_size=voxel_size),
        sample_points(density, voxel_size=voxel_size, reduction="mean", max_points=None),
    ):
        assert sample.feats.min() >= 0
        assert sample.n_points == np.prod(grids.coarse_grid_shape(density.lattice, voxel_size))
        assert sample.feats.mean(dtype=float) * density.volume == pytest.approx(density.n_electrons(), rel=1e-5)


@pytest.mark.parametrize("max_points", [5, 40, 100, 333])
def test_a_cap_never_parts_equal_values(nacl: Structure, max_points: int) -> None:
    density = Density.from_structure(nacl, grid_shape=(16, 16, 16))
    everything = sample_voxels(density, voxel_size=5.64056 / 16)
    assert everything.grid_shape == (16, 16, 16)
    kept = sample_voxels(density, voxel_size=5.64056 / 16, max_points=max_points)
    assert 0 < kept.n_points <= max_points
    smallest = kept.feats.min()
    assert kept.n_points == (everything.feats >= smallest * (1 - 1e-5)).sum(), "a symmetry-equivalent voxel was left out"


def test_a_constant_density_has_nothing_to_choose_from() -> None:
    flat = Density(lattice=TRICLINIC, channels={"total": np.ones((6, 6, 6))})
    everything = sample_voxels(flat, voxel_size=1.0)
    assert sample_voxels(flat, voxel_size=1.0, max_points=7).n_points == everything.n_points


def test_the_cap_of_the_paper_goes_from_5000_to_30000() -> None:
    (low, fewest), (high, most) = PAPER_CAPS
    assert (fewest, most) == (5_000, 30_000)
    assert point_cap(0.1 * low) == point_cap(low) == 5_000
    assert point_cap(10 * high) == point_cap(high) == 30_000
    assert 5_000 < point_cap(0.5 * (low + high)) < 30_000
    density = Density(lattice=8.0 * np.eye(3), channels={"total": 1 + np.random.default_rng(0).random((40, 40, 40))})
    assert sample_points(density, rng=0).n_points == point_cap(512.0) < 32**3  # the paper's cap is the default of points
    assert sample_voxels(density).n_points == 32**3


# Channels, randomness, types


def test_four_channels_are_those_of_the_density() -> None:
    tensor = sample_voxels(random_density(), voxel_size=0.6, channels=FOUR)
    total, diff, up, down = tensor.feats.T
    assert tensor.channels == FOUR
    np.testing.assert_allclose(up + down, total, atol=1e-6)
    np.testing.assert_allclose(up - down, diff, atol=1e-6)


def test_the_channels_of_a_random_point_belong_together() -> None:
    cloud = sample_points(random_density((20, 24, 30)), voxel_size=0.7, channels=FOUR, rng=0)
    np.testing.assert_allclose(cloud.feats[:, 2] + cloud.feats[:, 3], cloud.feats[:, 0], atol=1e-6)


@pytest.mark.parametrize("sample", [sample_points, sample_voxels])
def test_one_seed_gives_one_sample(sample) -> None:
    density = random_density((20, 24, 30))
    options = {"voxel_size": 0.7, "reduction": "random"}
    first, second, third = (sample(density, rng=seed, **options) for seed in (1, np.random.default_rng(1), 2))
    np.testing.assert_array_equal(first.feats, second.feats)
    np.testing.assert_array_equal(first.coords, second.coords)
    assert not np.array_equal(first.feats, third.feats)
    rng = np.random.default_rng(1)
    assert not np.array_equal(sample(density, rng=rng, **options).feats, sample(density, rng=rng, **options).feats)


def test_means_need_no_seed_and_leave_the_global_one_alone() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (sample_voxels(random_density(), voxel_size=0.6) for _ in range(2))
    sample_points(random_density(), rng=None)
    np.testing.assert_array_equal(first.feats, second.feats)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_samples_are_small_types() -> None:
    cloud, tensor = sample_points(random_density(), rng=0), sample_voxels(random_density())
    assert (cloud.coords.dtype, cloud.feats.dtype, cloud.lattice.dtype) == (np.float32, np.float32, np.float64)
    assert (tensor.coords.dtype, tensor.feats.dtype, tensor.voxel_basis.dtype) == (np.int32, np.float32, np.float64)


# What is refused


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize("sample", [sample_points, sample_voxels])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_size": 0.0}, "`voxel_size` must be a positive length in Å, got 0.0"),
        ({"voxel_size": np.nan}, "`voxel_size` must be a positive length"),
        ({"reduction": "median"}, "`reduction` must be 'random' or 'mean', got 'median'"),
        ({"threshold": np.nan}, "`threshold` must be a density in e/Å³, got nan"),
        ({"threshold": 100.0}, r"no point reaches the `threshold` of 100.0 e/Å³, the largest density is 1\.\d+; lower it"),
        ({"max_points": 0}, "`max_points` must be a count of at least 1, 'paper' or None, got 0"),
        ({"max_points": "all"}, "`max_points` must be a count .* got 'all'"),
        ({"max_points": 2.5}, "`max_points` must be a count .* got 2.5"),
        ({"channels": ()}, r"`channels` must name at least one channel, got none; take \('total',\)"),
        ({"channels": ("total", "spin")}, r"`channels` must be names among .*'diff_z'\), got 'spin'"),
        ({"channels": "total"}, "`channels` must be a tuple of names, got 'total'"),
    ],
)
def test_a_bad_option_is_refused(sample, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(random_density(), **options)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_basis": "hexagonal"}, "`voxel_basis` must be 'lattice' or 'cartesian', got 'hexagonal'"),
        ({"multiple_of": 0}, "`multiple_of` must be at least 1, got 0"),
    ],
)
def test_a_bad_option_of_voxels_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_voxels(random_density(), **options)
