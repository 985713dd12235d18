"""Candidates for operations: spglib's lattice symmetry, and images and peaks by sums in real space."""

from __future__ import annotations

import numpy as np
import pytest
import spglib
from pymatgen.core.lattice import Lattice
from random_crystals import random_crystal

from matminer_ed3d.promolecule import density_from_structure
from matminer_ed3d.protocols import niggli_cell
from matminer_ed3d.symmetry import operations
from matminer_ed3d.symmetry.spectrum import spectrum_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LATTICES = {
    "triclinic": (Lattice.from_parameters(4, 5, 6.2, 78, 97, 108), 2),
    "monoclinic": (Lattice.from_parameters(4, 5, 6.2, 90, 97, 90), 4),
    "orthorhombic": (Lattice.orthorhombic(4, 5, 6.2), 8),
    "tetragonal": (Lattice.tetragonal(4, 6.2), 16),
    "trigonal": (Lattice.rhombohedral(5, 71), 12),
    "hexagonal": (Lattice.hexagonal(4, 6.2), 24),
    "cubic": (Lattice.cubic(4), 48),
    "bcc": (Lattice([[-2, 2, 2], [2, -2, 2], [2, 2, -2]]), 48),
    "fcc": (Lattice([[0, 2, 2], [2, 0, 2], [2, 2, 0]]), 48),
    "pseudo-cubic": (Lattice.from_parameters(4, 4.004, 4.007, 90.02, 90, 89.97), 48),
    "nearly tetragonal": (Lattice.orthorhombic(4, 4.03, 6.2), 8),
    "pseudo-hexagonal": (Lattice.from_parameters(4, 4.003, 6.2, 90, 90, 119.98), 24),
}


@pytest.mark.parametrize("name", LATTICES)
def test_rotations_of_a_lattice_are_those_of_spglib(name):
    lattice, order = LATTICES[name]
    reduced = niggli_cell((lattice.matrix, np.zeros((1, 3)), np.array([1])), symprec=1e-4)[0]
    found = operations.lattice_operations(reduced, 0.01)
    expected = spglib.get_symmetry((reduced, np.zeros((1, 3)), [1]), symprec=0.01)["rotations"]
    assert len(found) == order
    assert {w.tobytes() for w in found.astype(np.int64)} == {w.tobytes() for w in expected.astype(np.int64)}
    assert (found[0] == np.eye(3)).all()
    assert (found[1] == -np.eye(3)).all()


def test_metric_distance_is_zero_for_what_keeps_the_lattice():
    lattice, _ = LATTICES["hexagonal"]
    sixfold = np.array([[1, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert operations.metric_distance(sixfold, lattice.matrix) == pytest.approx(0, abs=1e-6)
    fourfold = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert operations.metric_distance(fourfold, Lattice.orthorhombic(4, 4.02, 6).matrix) == pytest.approx(0.02, abs=1e-9)


def value_at(spectrum, points):
    return (np.exp(2j * np.pi * (points @ spectrum.h.T)) @ spectrum.coefficients).real


@pytest.fixture(scope="module")
def spectrum():
    structure = random_crystal(81, np.random.default_rng(1))  # P-4: a rotation that is not its own inverse
    return spectrum_of(density_from_structure(structure, method="band_limited", d_min=1.0), d_min=1.0)


@pytest.mark.parametrize(
    "rotation", [np.diag([-1, -1, 1]), np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([[0, 1, 0], [-1, 0, 0], [0, 0, -1]])]
)
def test_an_image_is_the_density_elsewhere(spectrum, rotation):
    translation = np.array([0.13, 0.37, 0.71])
    image = operations.image_of(spectrum, spectrum.images(rotation), translation)
    points = np.random.default_rng(0).random((50, 3))
    moved = (np.exp(2j * np.pi * (points @ spectrum.h.T)) @ image).real
    there = value_at(spectrum, points @ rotation.T + translation)
    back = value_at(spectrum, (points - translation) @ np.linalg.inv(rotation).T)
    # Of the operation or of its inverse: both say the same of a group, and the residual is one.
    assert min(np.abs(moved - there).max(), np.abs(moved - back).max()) < 1e-9 * np.abs(there).max()


def test_the_translation_of_a_shifted_crystal_is_found():
    structure = random_crystal(14, np.random.default_rng(2))
    origin = np.array([0.21, 0.34, 0.08])
    structure.translate_sites(list(range(len(structure))), origin, to_unit_cell=True)
    spectrum = spectrum_of(density_from_structure(structure, method="band_limited", d_min=1.0))
    made = spglib.get_symmetry((structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers), symprec=1e-3)
    for rotation, translation in zip(made["rotations"], made["translations"], strict=True):
        w = rotation.astype(np.int64)
        rows = spectrum.images(w)
        peaks = operations.correlation_peaks(spectrum, rows)
        refined = operations.refined_translations(spectrum, rows, peaks)
        gaps = [np.abs((t - translation + 0.5) % 1.0 - 0.5).max() for t in refined]
        assert min(gaps) < 1e-5
