"""Arithmetic on periodic grids: conservation, round trips, and scipy, direct sums and brute force as oracles."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.signal

from matminer_ed3d import grids

Shape = tuple[int, int, int]
TRICLINIC = np.array([[4.0, 0.0, 0.0], [1.1, 5.2, 0.0], [-0.7, 1.3, 6.1]])
SHAPES: list[Shape] = [(6, 5, 8), (7, 9, 4), (1, 2, 3), (8, 8, 8)]


def random_values(shape: Shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def smooth_waves(n_waves: int = 6, reach: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Reflections with Friedel mates and their coefficients: a real function that every grid of more than 2 reach points holds."""
    rng = np.random.default_rng(seed)
    h = rng.integers(-reach, reach + 1, (n_waves, 3))
    h = np.unique(h[(h != 0).any(axis=1)], axis=0)
    h = h[[tuple(-row) not in {tuple(r) for r in h[:i]} for i, row in enumerate(h)]]
    f = rng.normal(size=len(h)) + 1j * rng.normal(size=len(h))
    return np.concatenate([h, -h, np.zeros((1, 3), dtype=int)]), np.concatenate([f, f.conj(), [1.5]])


def at_points(h: np.ndarray, f: np.ndarray, frac: np.ndarray) -> np.ndarray:
    """Sum of waves at fractional coordinates, term by term."""
    return (np.exp(2j * np.pi * (frac @ h.T)) @ f).real


def grid_points(shape: Shape) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) / n for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)


# Coefficients


@pytest.mark.parametrize("shape", SHAPES)
def test_coefficients_obey_parseval_and_friedel(shape: Shape) -> None:
    rho = random_values(shape)
    f = grids.fourier_coefficients(rho)
    assert np.abs(f**2).sum() == pytest.approx((rho**2).mean(), rel=1e-12)
    assert f[0, 0, 0] == pytest.approx(rho.mean(), abs=1e-15)
    mates = f[np.ix_(*[-np.arange(n) % n for n in shape])]
    np.testing.assert_allclose(mates, f.conj(), atol=1e-14)


def test_coefficients_equal_the_direct_sum() -> None:
    rho = random_values((3, 4, 5))
    h = grids.reflections((3, 4, 5))
    direct = np.exp(-2j * np.pi * (h @ grid_points((3, 4, 5)).T)) @ rho.ravel() / rho.size
    np.testing.assert_allclose(grids.fourier_coefficients(rho).ravel(), direct, atol=1e-14)


def test_reflections_are_those_of_the_transform() -> None:
    h = grids.reflections((3, 4, 1))
    assert sorted(set(h[:, 0])) == [-1, 0, 1]
    assert sorted(set(h[:, 1])) == [-2, -1, 0, 1]
    assert set(h[:, 2]) == {0}
    assert len(np.unique(h, axis=0)) == 12


@pytest.mark.parametrize("shape", [(5, 5, 5), (6, 7, 9), (16, 5, 6)])
def test_from_coefficients_sums_the_waves(shape: Shape) -> None:
    h, f = smooth_waves()
    np.testing.assert_allclose(grids.from_coefficients(h, f, shape).ravel(), at_points(h, f, grid_points(shape)), atol=1e-13)


def test_from_coefficients_leaves_out_what_the_grid_cannot_hold() -> None:
    h = np.array([[0, 0, 0], [2, 0, 0], [-2, 0, 0]])
    rho = grids.from_coefficients(h, np.array([1.0, 5.0, 5.0], dtype=complex), (4, 3, 3))
    np.testing.assert_allclose(rho, 1.0)


# Resampling


@pytest.mark.parametrize("old", SHAPES)
@pytest.mark.parametrize("new", [(5, 6, 7), (12, 10, 9), (2, 1, 4), (3, 3, 3)])
def test_fourier_resample_equals_scipy_axis_by_axis(old: Shape, new: Shape) -> None:
    rho = random_values(old)
    expected = rho
    for axis, n in enumerate(new):
        expected = scipy.signal.resample(expected, n, axis=axis)
    np.testing.assert_allclose(grids.fourier_resample(rho, new), expected, atol=1e-12)


@pytest.mark.parametrize("old", SHAPES)
@pytest.mark.parametrize("new", [(5, 6, 7), (12, 10, 9), (2, 1, 4)])
@pytest.mark.parametrize("resample", [grids.fourier_resample, grids.mean_resample])
def test_resampling_conserves_the_mean(old: Shape, new: Shape, resample) -> None:
    rho = random_values(old)
    result = resample(rho, new)
    assert result.shape == new
    assert result.mean() == pytest.approx(rho.mean(), abs=1e-14)


@pytest.mark.parametrize("old", SHAPES)
def test_fourier_resample_to_a_finer_grid_and_back_changes_nothing(old: Shape) -> None:
    rho = random_values(old)
    finer = grids.fourier_resample(rho, (13, 12, 17))
    np.testing.assert_allclose(grids.fourier_resample(finer, old), rho, atol=1e-13)


@pytest.mark.parametrize("old", SHAPES)
def test_fourier_resample_passes_through_the_old_values(old: Shape) -> None:
    rho = random_values(old)
    finer = grids.fourier_resample(rho, tuple(3 * n for n in old))
    np.testing.assert_allclose(finer[::3, ::3, ::3], rho, atol=1e-13)


def test_fourier_resample_is_exact_for_what_both_grids_hold() -> None:
    h, f = smooth_waves()
    np.testing.assert_allclose(
        grids.fourier_resample(grids.from_coefficients(h, f, (5, 6, 7)), (9, 5, 8)), grids.from_coefficients(h, f, (9, 5, 8)), atol=1e-13
    )


@pytest.mark.parametrize("ratio", [(3, 1, 5), (3, 3, 3), (7, 5, 1)])
def test_mean_resample_by_a_whole_odd_ratio_is_the_mean_of_the_block_round_each_point(ratio: Shape) -> None:
    coarse = (3, 4, 2)
    rho = random_values(tuple(m * r for m, r in zip(coarse, ratio, strict=True)))
    expected = np.zeros(coarse)
    for index in np.ndindex(*coarse):
        rows = [(i * r + np.arange(-(r // 2), r // 2 + 1)) % (m * r) for i, r, m in zip(index, ratio, coarse, strict=True)]
        expected[index] = rho[np.ix_(*rows)].mean()
    np.testing.assert_allclose(grids.mean_resample(rho, coarse), expected, atol=1e-13)


def test_mean_resample_by_an_even_ratio_halves_the_points_on_the_border() -> None:
    rho = random_values((8, 1, 1))
    expected = [(rho[2 * i] + 0.5 * rho[2 * i - 1] + 0.5 * rho[(2 * i + 1) % 8]) / 2 for i in range(4)]
    np.testing.assert_allclose(grids.mean_resample(rho, (4, 1, 1)).ravel(), np.ravel(expected), atol=1e-14)


def overlap(i: int, n: int, j: int, m: int) -> Fraction:
    """Length that the periodic intervals [(i - 1/2)/n, (i + 1/2)/n) and [(j - 1/2)/m, (j + 1/2)/m) share, exactly."""
    half = Fraction(1, 2)
    total = Fraction(0)
    for image in (-1, 0, 1):
        low = max((i - half) / n, (j - half) / m + image)
        high = min((i + half) / n, (j + half) / m + image)
        total += max(Fraction(0), high - low)
    return total


@pytest.mark.parametrize(("old", "new"), [(7, 5), (10, 4), (9, 8), (5, 5), (4, 6), (3, 1), (27, 25)])
def test_mean_resample_weighs_by_the_shared_length(old: int, new: int) -> None:
    rho = random_values((old, 1, 1))
    weights = np.array([[float(overlap(j, new, i, old) * new) for i in range(old)] for j in range(new)])
    np.testing.assert_allclose(grids.mean_resample(rho, (new, 1, 1)).ravel(), weights @ rho.ravel(), atol=1e-13)


def test_mean_resample_never_leaves_the_range() -> None:
    rho = np.random.default_rng(1).random((9, 10, 11))
    coarse = grids.mean_resample(rho, (4, 7, 3))
    assert rho.min() <= coarse.min()
    assert coarse.max() <= rho.max()


@pytest.mark.parametrize("shape", [(6, 7, 9), (5, 8, 6)])
def test_points_are_recovered_from_means_over_voxels(shape: Shape) -> None:
    h, f = smooth_waves()
    over_a_voxel = f * np.sinc(h / np.array(shape)).prod(axis=1)
    means, points = (grids.from_coefficients(h, c, shape) for c in (over_a_voxel, f))
    np.testing.assert_allclose(grids.points_of_voxel_means(means), points, atol=1e-13)
    rho = random_values(shape)
    assert grids.points_of_voxel_means(rho).mean() == pytest.approx(rho.mean(), abs=1e-14)


# Origin


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shift_by_grid_steps_only_moves_values(shape: Shape) -> None:
    rho = random_values(shape)
    shifted = grids.shift_origin(rho, np.array([2 / shape[0], -1 / shape[1], 3 / shape[2]]))
    for i, j, k in np.ndindex(*shape):
        assert shifted[i, j, k] == rho[(i + 2) % shape[0], (j - 1) % shape[1], (k + 3) % shape[2]]


def test_a_shift_moves_waves_exactly() -> None:
    h, f = smooth_waves()
    shift = np.array([0.137, -0.419, 0.77])
    shifted = grids.shift_origin(grids.from_coefficients(h, f, (6, 7, 8)), shift)
    np.testing.assert_allclose(shifted.ravel(), at_points(h, f, grid_points((6, 7, 8)) + shift), atol=1e-13)


@pytest.mark.parametrize("shape", [(7, 9, 5), (3, 1, 11)])
def test_shifts_add_up_and_undo_each_other_on_odd_grids(shape: Shape) -> None:
    rho = random_values(shape)
    first, second = np.array([0.123, 0.5, -0.31]), np.array([-0.4, 0.21, 0.05])
    np.testing.assert_allclose(
        grids.shift_origin(grids.shift_origin(rho, first), second), grids.shift_origin(rho, first + second), atol=1e-13
    )
    np.testing.assert_allclose(grids.shift_origin(grids.shift_origin(rho, first), -first), rho, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_shift_conserves_the_mean_and_a_lattice_vector_changes_nothing(shape: Shape) -> None:
    rho = random_values(shape)
    assert grids.shift_origin(rho, np.array([0.123, 0.456, -0.789])).mean() == pytest.approx(rho.mean(), abs=1e-14)
    np.testing.assert_array_equal(grids.shift_origin(rho, np.array([1.0, -2.0, 0.0])), rho)


# Basis


UNIMODULAR = [
    np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]]),
    np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]),
    np.array([[1, -1, 2], [0, 1, -1], [0, 0, 1]]),
    np.array([[-1, 0, 0], [0, -1, 0], [0, 0, -1]]),
]


@pytest.mark.parametrize("matrix", UNIMODULAR)
def test_a_unimodular_change_and_back_changes_nothing(matrix: np.ndarray) -> None:
    rho = random_values((6, 6, 6))
    back = np.round(np.linalg.inv(matrix)).astype(int)
    there = grids.change_basis(rho, matrix, (6, 6, 6))
    np.testing.assert_array_equal(grids.change_basis(there, back, (6, 6, 6)), rho)
    assert sorted(there.ravel()) == sorted(rho.ravel())


@pytest.mark.parametrize("matrix", UNIMODULAR)
def test_a_change_of_basis_with_interpolation_keeps_the_function(matrix: np.ndarray) -> None:
    h, f = smooth_waves(reach=1)
    shape = (13, 12, 11)
    changed = grids.change_basis(grids.from_coefficients(h, f, (5, 6, 7)), matrix, shape)
    np.testing.assert_allclose(changed.ravel(), at_points(h, f, grid_points(shape) @ matrix), atol=1e-13)


def test_a_supercell_is_a_tiling() -> None:
    rho = random_values((3, 4, 5))
    np.testing.assert_array_equal(grids.change_basis(rho, np.diag([2, 1, 3]), (6, 4, 15)), np.tile(rho, (2, 1, 3)))


def test_a_supercell_is_a_tiling_where_it_is_interpolated() -> None:
    rho = random_values((3, 5, 5))
    tiled = np.tile(rho, (2, 1, 1))
    np.testing.assert_allclose(
        grids.change_basis(rho, np.diag([2, 1, 1]), (14, 10, 5)), grids.fourier_resample(tiled, (14, 10, 5)), atol=1e-12
    )


@pytest.mark.parametrize("matrix", UNIMODULAR)
def test_equal_counts_stay_on_old_points(matrix: np.ndarray) -> None:
    assert grids.matching_grid_shape(3.0 * np.eye(3), (6, 6, 6), np.diag([1, 2, 1])) == (6, 12, 6)
    shape = grids.matching_grid_shape(TRICLINIC, (10, 12, 15), matrix)
    spacing = np.linalg.norm(matrix @ TRICLINIC, axis=1) / shape
    assert spacing.max() <= 1.5 * (np.linalg.norm(TRICLINIC, axis=1) / (10, 12, 15)).max()


@pytest.mark.parametrize(("matrix", "grid_shape"), [(UNIMODULAR[0], (10, 20, 16)), (np.eye(3, dtype=int), (15, 10, 8))])
def test_a_grid_of_some_of_the_old_points_is_interpolated(matrix: np.ndarray, grid_shape: Shape) -> None:
    rho = random_values((30, 20, 16))
    assert grids.change_basis(rho, matrix, grid_shape).mean() == pytest.approx(rho.mean(), abs=1e-14)


def test_the_matching_grid_leaves_no_point_out() -> None:
    lattice = np.diag([3.0, 2.0, 4.0])
    shape = grids.matching_grid_shape(lattice, (30, 20, 16), UNIMODULAR[0])
    assert np.prod(shape) >= 30 * 20 * 16
    assert grids.matching_grid_shape(lattice, (30, 20, 16), np.eye(3, dtype=int)) == (30, 20, 16)


# Resolution


@pytest.mark.parametrize("shape", [(12, 16, 18), (13, 15, 17)])
def test_band_limit_keeps_the_sphere_and_nothing_else(shape: Shape) -> None:
    rho = random_values(shape)
    h, f = grids.band_limit(rho, TRICLINIC, d_min=1.2)
    everything = grids.reflections(shape)
    d = 1 / np.maximum(np.linalg.norm(everything @ np.linalg.inv(TRICLINIC).T, axis=1), 1e-12)
    inside = (d >= 1.2) & (2 * np.abs(everything) < shape).all(axis=1)
    np.testing.assert_array_equal(h, everything[inside])
    np.testing.assert_allclose(f, grids.fourier_coefficients(rho).ravel()[inside], atol=1e-15)
    assert {tuple(row) for row in h} == {tuple(-row) for row in h}, "every reflection with its Friedel mate"


def test_band_limit_damps_by_b_and_s_squared() -> None:
    rho = random_values((8, 9, 10))
    h, sharp = grids.band_limit(rho, TRICLINIC, d_min=1.5)
    _, blurred = grids.band_limit(rho, TRICLINIC, d_min=1.5, blur=2.0)
    s = 0.5 * np.linalg.norm(h @ np.linalg.inv(TRICLINIC).T, axis=1)
    np.testing.assert_allclose(blurred, sharp * np.exp(-2.0 * s**2), atol=1e-15)


def test_band_limit_of_a_single_point_is_the_mean() -> None:
    h, f = grids.band_limit(np.full((1, 1, 1), 3.0), TRICLINIC, d_min=0.5)
    assert h.tolist() == [[0, 0, 0]]
    assert f == pytest.approx([3.0])


# Sizes


@pytest.mark.parametrize("spacing", [0.06, 0.25, 0.5, 9.0])
def test_fine_grids_are_fine_enough(spacing: float) -> None:
    shape = grids.fine_grid_shape(TRICLINIC, spacing)
    assert (np.linalg.norm(TRICLINIC, axis=1) / shape <= spacing * (1 + 1e-8)).all()
    assert all(isinstance(n, int) and n >= 1 for n in shape)


def test_coarse_grids_are_the_nearest_that_divide_the_cell() -> None:
    assert grids.coarse_grid_shape(np.diag([4.0, 4.1, 4.2]), 0.25) == (16, 16, 17)
    assert grids.coarse_grid_shape(np.diag([4.0, 4.1, 4.2]), 0.25, multiple_of=4) == (16, 16, 16)
    assert grids.coarse_grid_shape(np.diag([0.1, 4.0, 4.0]), 2.0, multiple_of=2) == (2, 2, 2)
