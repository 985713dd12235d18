from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from matminer_ed3d import augmentation
from matminer_ed3d.density import Density
from matminer_ed3d.representations import PointCloud, Sample, SparseTensor

LATTICE = np.array([[4.0, 0.3, 0.0], [-0.5, 5.0, 0.2], [0.1, 0.7, 6.0]])


def cloud(rng: np.random.Generator, n_points: int = 40) -> PointCloud:
    coords = (rng.random((n_points, 3)) @ LATTICE).astype(np.float32)
    return PointCloud(coords, rng.random((n_points, 2)).astype(np.float32), ("total", "diff"), LATTICE)


def tensor(rng: np.random.Generator, grid_shape: tuple[int, int, int] = (4, 4, 6), periodic: bool = True) -> SparseTensor:
    every = np.stack(np.unravel_index(np.arange(np.prod(grid_shape)), grid_shape), axis=1)
    coords = every[np.sort(rng.permutation(len(every))[: len(every) // 2])].astype(np.int32)
    feats = rng.random((len(coords), 1)).astype(np.float32)
    basis = LATTICE / np.array(grid_shape)[:, None]
    return SparseTensor(coords, feats, ("total",), basis, grid_shape if periodic else None)


def cart_coords(sample: Sample) -> np.ndarray:
    return sample.coords.astype(float) if isinstance(sample, PointCloud) else sample.coords @ sample.voxel_basis


def pair_distances(sample: Sample, lattice: np.ndarray | None) -> np.ndarray:
    """Sorted distances of all pairs, each to the nearest image within two cells."""
    cart = cart_coords(sample)
    delta = cart[:, None] - cart[None]
    if lattice is None:
        return np.sort(np.linalg.norm(delta, axis=-1).ravel())
    frac = delta @ np.linalg.inv(lattice)
    images = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    shortest = np.linalg.norm((frac - np.round(frac))[..., None, :] @ lattice + images @ lattice, axis=-1).min(axis=-1)
    return np.sort(shortest.ravel())


def neighbours(sample: SparseTensor) -> set[tuple[int, int]]:
    """Pairs of rows that are periodic neighbours along the voxel axes and their diagonals (the 26 of a 3^3 kernel)."""
    delta = sample.coords[:, None] - sample.coords[None]
    if sample.grid_shape is not None:
        half = np.array(sample.grid_shape) // 2
        delta = (delta + half) % sample.grid_shape - half
    return {(int(i), int(j)) for i, j in np.argwhere(np.abs(delta).max(axis=-1) == 1)}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(params=["cloud", "periodic", "open"])
def sample(request: pytest.FixtureRequest, rng: np.random.Generator) -> Sample:
    return cloud(rng) if request.param == "cloud" else tensor(rng, periodic=request.param == "periodic")


@pytest.mark.parametrize("name", ["origin_shift", "rotation", "permutation", "basis_change"])
def test_motions_keep_the_crystal(sample: Sample, name: str, rng: np.random.Generator) -> None:
    for _ in range(3):
        moved = augmentation.augment(sample, (name,), rng)
        assert type(moved) is type(sample)
        np.testing.assert_array_equal(moved.feats, sample.feats)  # rows keep their order, so the sum of feats is kept exactly
        np.testing.assert_allclose(pair_distances(moved, moved.lattice), pair_distances(sample, sample.lattice), atol=2e-5)
        if isinstance(sample, SparseTensor) and isinstance(moved, SparseTensor):
            assert abs(np.linalg.det(moved.voxel_basis)) == pytest.approx(abs(np.linalg.det(sample.voxel_basis)))
            if name != "basis_change":  # a shear keeps the voxels, but not which of them touch
                assert neighbours(moved) == neighbours(sample)


@pytest.mark.parametrize("grid_shape", [(4, 4, 4), (4, 8, 8), (4, 4, 6), (3, 5, 7)])
def test_every_exact_basis_change_maps_voxels_onto_voxels(grid_shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    sample = tensor(rng, grid_shape)
    changes = augmentation.exact_basis_changes(grid_shape)
    assert len(changes) >= 24
    for change in changes[:: max(1, len(changes) // 60)]:
        moved = augmentation.change_basis(sample, change)
        assert moved.lattice is not None
        assert sample.lattice is not None
        np.testing.assert_allclose(moved.lattice, change @ sample.lattice, atol=1e-12)
        frac = (cart_coords(moved) - cart_coords(sample)) @ np.linalg.inv(sample.lattice)
        np.testing.assert_allclose(frac, np.round(frac), atol=1e-9)  # every voxel lies where it was, up to whole cells
        assert len(np.unique(moved.coords, axis=0)) == moved.n_points
        back = augmentation.change_basis(moved, np.round(np.linalg.inv(change)).astype(int))
        np.testing.assert_array_equal(back.coords, sample.coords)
        assert back.grid_shape == grid_shape


def test_basis_changes_are_right_handed_and_counted() -> None:
    assert len(augmentation.basis_changes()) == 3480  # a known number: integer matrices with entries -1, 0, 1 and determinant 1
    assert len(augmentation.exact_basis_changes((4, 4, 4))) == 3480  # equal counts allow any of them
    assert len(augmentation.exact_basis_changes((3, 5, 7))) == 24  # coprime counts allow the proper signed permutations
    assert len(augmentation.exact_basis_changes(None)) == 24


def test_a_voxel_shift_is_the_shift_of_the_density(rng: np.random.Generator) -> None:
    density = Density(LATTICE, {"total": rng.random((4, 5, 6))})
    coords = np.stack(np.unravel_index(np.arange(120), (4, 5, 6)), axis=1).astype(np.int32)
    feats = density.channels["total"].reshape(-1, 1).astype(np.float32)
    sample = SparseTensor(coords, feats, ("total",), LATTICE / np.array([[4], [5], [6]]), (4, 5, 6))
    moved = augmentation.shift_origin(sample, np.array([1, 3, 2]))
    expected = density.shift_origin([1 / 4, 3 / 5, 2 / 6]).channels["total"]
    np.testing.assert_allclose(moved.feats[:, 0], expected[tuple(moved.coords.T)], rtol=1e-6)


def test_a_basis_change_of_voxels_is_that_of_the_density(rng: np.random.Generator) -> None:
    density = Density(LATTICE, {"total": rng.random((4, 4, 6))})
    coords = np.stack(np.unravel_index(np.arange(96), (4, 4, 6)), axis=1).astype(np.int32)
    feats = density.channels["total"].reshape(-1, 1).astype(np.float32)
    sample = SparseTensor(coords, feats, ("total",), LATTICE / np.array([[4], [4], [6]]), (4, 4, 6))
    change = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    moved = augmentation.change_basis(sample, change)
    expected = density.change_basis(change, grid_shape=moved.grid_shape).channels["total"]
    np.testing.assert_allclose(moved.feats[:, 0], expected[tuple(moved.coords.T)], rtol=1e-6)


def test_points_stay_in_their_cell(rng: np.random.Generator) -> None:
    for names in (("origin_shift",), ("basis_change",), ("origin_shift", "rotation", "basis_change")):
        moved = augmentation.augment(cloud(rng), names, rng)
        frac = moved.coords @ np.linalg.inv(moved.lattice)
        assert frac.min() > -1e-5
        assert frac.max() < 1 + 1e-5


def test_no_motion_changes_nothing(sample: Sample) -> None:
    for moved in (
        augmentation.shift_origin(sample, np.zeros(3)),
        augmentation.rotate(sample, np.eye(3)),
        augmentation.change_basis(sample, np.eye(3, dtype=int)),
        augmentation.augment(sample, (), np.random.default_rng(0)),
    ):
        np.testing.assert_allclose(cart_coords(moved), cart_coords(sample), atol=1e-6)


def test_rotation_turns_every_point(rng: np.random.Generator) -> None:
    sample = cloud(rng)
    rotation = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    x, y, z = sample.coords.T
    np.testing.assert_allclose(augmentation.rotate(sample, rotation).coords, np.stack([-y, x, z], axis=1), atol=1e-5)


def test_noise_has_the_rms_that_was_asked_for(rng: np.random.Generator) -> None:
    sample = replace(cloud(rng, 20_000), feats=(3 + 0.5 * rng.standard_normal((20_000, 2)) * [1.0, 4.0]).astype(np.float32))
    noisy = augmentation.add_noise(sample, 0.2, rng)
    difference = noisy.feats.astype(float) - sample.feats
    np.testing.assert_allclose(difference.std(axis=0), [0.1, 0.4], rtol=0.03)
    np.testing.assert_allclose(difference.mean(axis=0), 0, atol=0.01)
    np.testing.assert_array_equal(noisy.coords, sample.coords)
    np.testing.assert_array_equal(augmentation.add_noise(sample, 0.0, rng).feats, sample.feats)


def test_the_generator_decides_and_the_sample_stays(sample: Sample) -> None:
    before = sample.coords.copy(), sample.feats.copy()
    first, again = (augmentation.augment(sample, augmentation.AUGMENTATIONS, np.random.default_rng(3)) for _ in range(2))
    other = augmentation.augment(sample, augmentation.AUGMENTATIONS, np.random.default_rng(4))
    np.testing.assert_array_equal(first.coords, again.coords)
    np.testing.assert_array_equal(first.feats, again.feats)
    assert not np.array_equal(first.feats, other.feats)
    np.testing.assert_array_equal(sample.coords, before[0])
    np.testing.assert_array_equal(sample.feats, before[1])


def test_errors_say_what_to_do(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"augmentations.*origin_shift"):
        augmentation.augment(cloud(rng), ("flip",), rng)
    with pytest.raises(ValueError, match="sequence of names"):
        augmentation.augment(cloud(rng), "rotation", rng)
    with pytest.raises(ValueError, match="whole voxels"):
        augmentation.shift_origin(tensor(rng), np.array([0.5, 0.0, 0.0]))
    with pytest.raises(ValueError, match="orthogonal"):
        augmentation.rotate(cloud(rng), 2 * np.eye(3))
    with pytest.raises(ValueError, match="determinant"):
        augmentation.change_basis(cloud(rng), np.diag([2, 1, 1]))
    with pytest.raises(ValueError, match="exact_basis_changes"):
        augmentation.change_basis(tensor(rng, (3, 5, 7)), np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]]))
    with pytest.raises(ValueError, match="exact_basis_changes"):
        augmentation.change_basis(tensor(rng, periodic=False), np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]]))
