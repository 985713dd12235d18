"""Sums of Gaussians on a grid: direct float64 sums over all images as oracle, in every kind of cell; electrons; cost."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from scipy.special import erf

from matminer_ed3d import superposition
from matminer_ed3d.superposition import superpose

CELLS = {
    "triclinic": (4.0, 3.6, 5.2, 75, 103, 112),
    "monoclinic": (4.0, 3.1, 5.2, 90, 105, 90),
    "orthorhombic": (4.0, 3.1, 5.2, 90, 90, 90),
    "tetragonal": (3.4, 3.4, 5.2, 90, 90, 90),
    "trigonal": (4.0, 4.0, 4.0, 55, 55, 55),
    "hexagonal": (4.0, 4.0, 5.2, 90, 90, 120),
    "cubic": (4.0, 4.0, 4.0, 90, 90, 90),
    "face-centred": (4.0, 4.0, 4.0, 60, 60, 60),
    "alpha": (4.0, 3.1, 5.2, 105, 90, 90),
    "skewed": (4.0, 5.6, 6.2, 35, 48, 40),
}
# Two atoms' Gaussians with coefficients of the size of the tables', one of them negative.
A = np.array([[11.8, 7.4, 3.6, 2.3, 1.0], [3.0, 2.3, 1.5, 0.9, -0.2]])
B = np.array([[4.8, 0.3, 15.4, 77.0, 0.0], [13.3, 5.7, 0.3, 32.9, 0.0]])
COORDS = np.array([[0.113, 0.227, 0.331], [0.62, 0.518, 0.871]])
U_CART = np.array([[0.012, 0.004, -0.003], [0.004, 0.02, 0.002], [-0.003, 0.002, 0.009]])


def cell(name: str) -> np.ndarray:
    return Lattice.from_parameters(*CELLS[name]).matrix


def isotropic(lattice: np.ndarray, b_iso: float | np.ndarray, n_atoms: int = 2) -> np.ndarray:
    u_iso = np.broadcast_to(np.asarray(b_iso) / (8 * np.pi**2), n_atoms)
    return u_iso[:, None, None] * np.linalg.inv(lattice @ lattice.T)


def anisotropic(lattice: np.ndarray) -> np.ndarray:
    to_frac = np.linalg.inv(lattice)
    return np.stack([to_frac.T @ u @ to_frac for u in (U_CART, 2 * U_CART[::-1, ::-1])])


def direct(lattice: np.ndarray, frac: np.ndarray, occupancies: np.ndarray, u_frac: np.ndarray) -> np.ndarray:
    """Every Gaussian of every atom in the cells around, at some points, by its Cartesian covariance."""
    images = np.array(list(itertools.product(range(-6, 7), repeat=3)))
    rho = np.zeros(len(frac))
    for x, occupancy, a, b, u in zip(COORDS, occupancies, A, B, u_frac, strict=True):
        for a_c, b_c in zip(a, b, strict=True):
            covariance = b_c / (8 * np.pi**2) * np.eye(3) + lattice.T @ u @ lattice
            norm = np.sqrt(np.linalg.det(2 * np.pi * covariance))
            for i, point in enumerate(frac):
                r = (point - x + images) @ lattice
                rho[i] += occupancy * a_c / norm * np.exp(-0.5 * ((r @ np.linalg.inv(covariance)) * r).sum(axis=1)).sum()
    return rho


def some_points(shape: tuple[int, int, int]) -> np.ndarray:
    """Grid points at and around both atoms, and a few anywhere."""
    near = np.vstack([np.round(x * shape) + step for x in COORDS for step in ((0, 0, 0), (1, 0, -1), (2, -3, 1))])
    return np.vstack([near, np.random.default_rng(0).integers(0, shape, (6, 3))]).astype(int) % shape


# Values at points


@pytest.mark.parametrize("displacement", ["B = 0.5", "B = 2", "anisotropic"])
@pytest.mark.parametrize("name", CELLS)
def test_point_values_equal_the_direct_sum(name: str, displacement: str) -> None:
    lattice = cell(name)
    u_frac = {"B = 0.5": isotropic(lattice, 0.5), "B = 2": isotropic(lattice, 2.0), "anisotropic": anisotropic(lattice)}[displacement]
    occupancies = np.array([0.7, 1.0])
    shape = tuple(int(n) for n in np.ceil(np.linalg.norm(lattice, axis=1) / 0.13))
    rho = superpose(lattice, COORDS, occupancies, A, B, u_frac, shape, "point")  # type: ignore[arg-type]
    index = some_points(shape)  # type: ignore[arg-type]
    expected = direct(lattice, index / np.array(shape), occupancies, u_frac)
    np.testing.assert_allclose(rho[tuple(index.T)], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (1, 9, 2), (5, 4, 7)])
@pytest.mark.parametrize("name", ["triclinic", "hexagonal"])
def test_point_values_on_a_tiny_grid_equal_the_direct_sum(name: str, shape: tuple[int, int, int]) -> None:
    lattice = 0.6 * cell(name)  # a cell that is smaller than an atom
    u_frac = isotropic(lattice, 0.5)
    index = np.array(list(itertools.product(*(range(n) for n in shape))))
    rho = superpose(lattice, COORDS, np.ones(2), A, B, u_frac, shape, "point")
    np.testing.assert_allclose(rho.ravel(), direct(lattice, index / np.array(shape), np.ones(2), u_frac), rtol=0, atol=5e-5)


# Means over voxels


def voxel_means(lattice: np.ndarray, index: np.ndarray, shape: tuple[int, int, int], u_frac: np.ndarray) -> np.ndarray:
    """Mean of `direct` over voxels by 16 Gauss-Legendre nodes along each edge, an atom's nearest images only."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    weights = np.einsum("i,j,k->ijk", weights, weights, weights).ravel() / 8
    inside = np.array(list(itertools.product(0.5 * nodes, repeat=3)))
    images = np.array(list(itertools.product(range(-4, 5), repeat=3)))
    means = np.zeros(len(index))
    for x, a, b, u in zip(COORDS, A, B, u_frac, strict=True):
        for a_c, b_c in zip(a, b, strict=True):
            covariance = b_c / (8 * np.pi**2) * np.eye(3) + lattice.T @ u @ lattice
            precision, norm = np.linalg.inv(covariance), np.sqrt(np.linalg.det(2 * np.pi * covariance))
            for i, voxel in enumerate(index):
                centres = voxel / np.array(shape) - x + images
                reach = 8 * np.sqrt(np.linalg.eigvalsh(covariance)[-1]) + np.linalg.norm(lattice / np.array(shape)[:, None], axis=1).sum()
                for centre in centres[np.linalg.norm(centres @ lattice, axis=1) < reach]:
                    r = (centre + inside / np.array(shape)) @ lattice
                    means[i] += a_c / norm * weights @ np.exp(-0.5 * ((r @ precision) * r).sum(axis=1))
    return means


@pytest.mark.parametrize("name", CELLS)
def test_voxel_means_equal_fine_integrals_in_every_cell(name: str) -> None:
    lattice = cell(name)
    u_frac = anisotropic(lattice) if name in ("triclinic", "hexagonal") else isotropic(lattice, 0.5)
    shape = tuple(int(n) for n in np.ceil(np.linalg.norm(lattice, axis=1) / 0.25))
    rho = superpose(lattice, COORDS, np.ones(2), A, B, u_frac, shape)  # type: ignore[arg-type]
    index = some_points(shape)[[0, 1, 3, 4, 6]]  # type: ignore[arg-type]
    np.testing.assert_allclose(rho[tuple(index.T)], voxel_means(lattice, index, shape, u_frac), rtol=0, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("b_iso", [0.0, 0.01, 0.5, 5.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (7, 12, 9), (20, 15, 25)])
@pytest.mark.parametrize("name", CELLS)
def test_voxel_means_conserve_electrons(name: str, shape: tuple[int, int, int], b_iso: float) -> None:
    lattice = cell(name)
    rho = superpose(lattice, COORDS, np.array([0.3, 1.0]), A, B, isotropic(lattice, b_iso), shape)
    assert rho.mean() * abs(np.linalg.det(lattice)) == pytest.approx(0.3 * A[0].sum() + A[1].sum(), rel=1e-10)


def test_an_atom_that_stands_still_is_one_voxel_of_its_constant() -> None:
    # A constant without displacement is a delta function; it is widened to 0.02 voxels, which one voxel holds.
    lattice = cell("triclinic")
    rho = superpose(lattice, np.array([[0.25, 0.5, 0.25]]), np.ones(1), np.ones((1, 1)), np.zeros((1, 1)), np.zeros((1, 3, 3)), (8, 8, 8))
    assert rho[2, 4, 2] == pytest.approx(8**3 / abs(np.linalg.det(lattice)), rel=1e-10)
    assert np.delete(rho.ravel(), np.ravel_multi_index((2, 4, 2), (8, 8, 8))).max() < 1e-9


def test_voxel_means_in_one_dimension_are_error_functions() -> None:
    lattice = np.diag([5.0, 6.0, 7.0])
    for sigma in (0.03, 0.1, 0.2, 0.4, 1.0):
        b = np.full((1, 1), 8 * np.pi**2 * sigma**2)
        rho = superpose(lattice, np.array([[0.31, 0.5, 0.77]]), np.ones(1), np.full((1, 1), 10.0), b, np.zeros((1, 3, 3)), (20, 24, 28))
        edges = ((np.arange(21) - 0.5) / 20 - 0.31)[:, None] + np.arange(-3, 4)
        expected = 10 * np.diff(0.5 * erf(5.0 * edges / sigma / np.sqrt(2)).sum(axis=1))
        np.testing.assert_allclose(rho.sum(axis=(1, 2)) * 0.25**3, expected, atol=1e-5)


# Any displacement, any order


def many_atoms(n: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    lattice = Lattice.from_parameters(11, 12, 13, 80, 95, 107).matrix
    which = rng.integers(0, 2, n)
    return lattice, rng.random((n, 3)), rng.uniform(0.2, 1.0, n), A[which], B[which]


@pytest.mark.parametrize("method", ["mean", "point", "band_limited"])
def test_a_sum_of_atoms_is_the_sum_of_each_alone(method: str) -> None:
    # All at once or one by one, alike or not: other boxes, other classes, the reciprocal sum or not.
    lattice, coords, occupancies, a, b = many_atoms(7)
    u_frac = isotropic(lattice, np.linspace(0.2, 3.0, 7), 7)
    shape = (22, 25, 27)
    together = superpose(lattice, coords, occupancies, a, b, u_frac, shape, method)  # type: ignore[arg-type]
    alone = sum(
        superpose(lattice, *(part[i : i + 1] for part in (coords, occupancies, a, b, u_frac)), shape, method)  # type: ignore[arg-type]
        for i in range(7)
    )
    np.testing.assert_allclose(together, alone, atol=1e-4 if method == "mean" else 1e-5)


@pytest.mark.parametrize("method", ["mean", "point"])
def test_both_ways_to_a_spectrum_agree(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lattice, coords, occupancies, a, b = many_atoms(12)
    u_frac = isotropic(lattice, 0.5, 12)
    ways = []
    for box_cost in (0.0, 1e9):
        monkeypatch.setattr(superposition, "BOX_COST", box_cost)
        monkeypatch.setattr(superposition, "TRANSFORM_COST", box_cost)
        ways.append(superpose(lattice, coords, occupancies, a, b, u_frac, (24, 26, 28), method))  # type: ignore[arg-type]
    np.testing.assert_allclose(*ways, atol=5e-5)


def test_displacements_that_all_differ_cost_little_more() -> None:
    lattice, coords, occupancies, a, b = many_atoms(200)
    seconds = []
    for b_iso in (np.full(200, 0.5), np.linspace(0.3, 2.0, 200)):
        u_frac = isotropic(lattice, b_iso, 200)
        runs = []
        for _ in range(2):
            started = time.process_time()
            superpose(lattice, coords, occupancies, a, b, u_frac, (48, 52, 56))
            runs.append(time.process_time() - started)
        seconds.append(min(runs))
    assert seconds[1] < 4 * seconds[0]


def test_one_reflection_of_the_band_limited_sum_is_the_structure_factor() -> None:
    lattice = cell("triclinic")
    u_frac = anisotropic(lattice)
    shape = (12, 11, 15)
    rho = superpose(lattice, COORDS, np.ones(2), A, B, u_frac, shape, "band_limited")
    h = np.array([2, -1, 3])
    s_squared = 0.25 * h @ np.linalg.inv(lattice @ lattice.T) @ h
    waves = np.exp(2j * np.pi * COORDS @ h) * np.exp(-2 * np.pi**2 * np.einsum("i,nij,j->n", h, u_frac, h))
    expected = ((A * np.exp(-B * s_squared)).sum(axis=1) * waves).sum()
    f = np.fft.ifftn(rho)[tuple(h)] * abs(np.linalg.det(lattice))
    assert f == pytest.approx(expected, rel=1e-9)
