"""What is said of an operation: residuals by sums in real space, displacements as they were made, uncertainties by repeated noise."""

from __future__ import annotations

import numpy as np
import pytest
from random_crystals import random_crystal

from matminer_ed3d.density import Density
from matminer_ed3d.promolecule import density_from_structure
from matminer_ed3d.symmetry import find_symmetry

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def density_of(structure):
    return density_from_structure(structure, method="band_limited", d_min=1.0)


def with_noise(density, relative, seed):
    rho = density.channel("total")
    noise = np.random.default_rng(seed).normal(size=rho.shape)
    return Density(density.lattice, {"total": rho + relative * rho.std() * noise})


def values_at(density, points):
    """Trigonometric interpolation of the grid at fractional points, term by term."""
    rho = density.channel("total")
    h = np.stack(np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in rho.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    coefficients = np.fft.fftn(rho, norm="forward").ravel()
    strong = np.abs(coefficients) > 1e-12 * np.abs(coefficients).max()
    return (np.exp(2j * np.pi * (points @ h[strong].T)) @ coefficients[strong]).real


@pytest.mark.parametrize("number", [1, 4, 81, 147])
def test_residuals_are_those_of_real_space(number):
    crystal = random_crystal(number, np.random.default_rng(number), n_special=0)
    density = density_of(crystal)
    found = find_symmetry(density, d_min=1.0)
    axes = [np.arange(n) / n for n in (17, 19, 23)]  # enough for the products of reflections that matter
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)  # of the primitive cell
    here = values_at(density, points @ found.basis)
    checked = 0
    for operation in [*found.operations[:3], *found.rejected[:3]]:
        there = values_at(density, (points @ operation.rotation.T + operation.translation) @ found.basis)
        expected = ((there - here) ** 2).sum() / (2 * ((here - here.mean()) ** 2).sum())
        assert operation.residual == pytest.approx(expected, rel=0.05, abs=1e-6)
        checked += 1
    assert checked >= min(2, len(found.operations) + len(found.rejected))


def moved(u):
    """A centrosymmetric crystal, one of whose atoms on a general position is moved by u (Å)."""
    crystal = random_crystal(2, np.random.default_rng(7))
    crystal.translate_sites([0], u * np.array([0.6, 0.0, 0.8]), frac_coords=False)
    return crystal


@pytest.mark.parametrize(("u", "number"), [(0.0, 2), (0.005, 2), (0.02, 1), (0.05, 1)])
def test_a_displaced_atom_is_read_as_its_displacement(u, number):
    found = find_symmetry(density_of(moved(u)))
    assert found.space_group_number == number
    inversion = [o for o in (*found.operations, *found.rejected) if (o.rotation == -np.eye(3)).all()]
    assert inversion[0].displacement == pytest.approx(u, rel=0.35, abs=1e-4)


def test_symprec_says_what_counts():
    density = density_of(moved(0.02))
    assert find_symmetry(density, symprec=0.05).space_group_number == 2
    assert find_symmetry(density_of(moved(0.005)), symprec=0.002).space_group_number == 1


@pytest.mark.parametrize("relative", [0.05, 0.2, 0.6])
def test_the_noise_is_estimated(relative):
    density = density_of(random_crystal(62, np.random.default_rng(4)))
    found = find_symmetry(with_noise(density, relative, 0), d_min=1.0)
    n_grid = np.prod(density.grid_shape)
    n_reflections = 4 / 3 * np.pi * density.volume
    expected = relative**2 * n_reflections / n_grid  # of the power that lies within the sphere
    assert found.noise == pytest.approx(expected / (1 + expected), rel=0.15)
    assert found.space_group_number == 62


def test_the_uncertainty_of_a_translation_is_that_of_repeated_noise():
    density = density_of(random_crystal(2, np.random.default_rng(9), n_special=0))
    exact = find_symmetry(density)
    deviations, stated = [], []
    for seed in range(24):
        found = find_symmetry(with_noise(density, 0.1, seed))
        assert len(found.operations) == 2
        same_cell = np.allclose(found.basis, exact.basis)
        assert same_cell
        gap = (found.operations[1].translation - exact.operations[1].translation + 0.5) % 1.0 - 0.5
        deviations.append(gap @ found.lattice)
        stated.append(found.operations[1].translation_uncertainty)
    measured = np.sqrt(np.mean(np.square(deviations)))
    assert np.mean(stated) == pytest.approx(measured, rel=0.4)
    assert np.ptp(stated) < 0.2 * np.mean(stated)


def test_without_noise_the_translation_is_certain():
    found = find_symmetry(density_of(random_crystal(14, np.random.default_rng(3))))
    assert all(o.translation_uncertainty < 1e-5 for o in found.operations)
    assert all(o.residual < 1e-9 for o in found.operations)
