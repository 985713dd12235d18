"""Magnetisation under the operations of a density: spglib on the atoms' moments is the oracle, for vectors and for scalars."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import spglib
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from matminer_ed3d.density import Density
from matminer_ed3d.promolecule import density_from_structure
from matminer_ed3d.symmetry import find_symmetry, spin_parity

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SIGMA = 0.45  # Å


def bumps(lattice, shape, points, heights):
    """Gaussians at fractional points with their periodic images, as a Fourier sum."""
    h = np.stack(np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in shape], indexing="ij"), axis=-1)
    q_squared = ((h @ np.linalg.inv(lattice).T) ** 2).sum(axis=-1)
    waves = sum(height * np.exp(-2j * np.pi * (h @ point)) for point, height in zip(points, heights, strict=True))
    coefficients = waves * np.exp(-2 * np.pi**2 * SIGMA**2 * q_squared) / abs(np.linalg.det(lattice))
    return np.fft.ifftn(coefficients, norm="forward").real


def magnetic(structure, moments, element):
    """The density of a structure with moments (n,) or (n, 3) on the atoms of one element, and spglib's magnetic group of the atoms."""
    density = density_from_structure(structure, method="band_limited", d_min=1.0)
    chosen = [n for n, site in enumerate(structure) if site.specie.symbol == element]
    moments = np.asarray(moments, dtype=float)
    on_atoms = np.zeros((len(structure), *moments.shape[1:]))
    on_atoms[chosen] = moments
    grids = [bumps(density.lattice, density.grid_shape, structure.frac_coords[chosen], column) for column in np.atleast_2d(moments.T)]
    names = ["diff"] if moments.ndim == 1 else ["diff_x", "diff_y", "diff_z"]
    channels = {"total": density.channel("total"), **dict(zip(names, grids, strict=True))}
    numbers = np.array(structure.atomic_numbers)
    cell = (structure.lattice.matrix, structure.frac_coords, numbers, on_atoms)
    found = spglib.get_magnetic_symmetry_dataset(cell, is_axial=moments.ndim == 2)
    return Density(density.lattice, channels), found


def rutile():
    return Structure.from_spacegroup(136, Lattice.tetragonal(4.87, 3.31), ["Mn", "F"], [[0, 0, 0], [0.305, 0.305, 0]])


def halite(repeats):
    return Structure.from_spacegroup(225, Lattice.cubic(4.44), ["Mn", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]) * repeats


def test_iron_is_even_under_every_operation(chgcar_path):
    density = Density.from_file(chgcar_path)
    found = spin_parity(density, find_symmetry(density))
    assert found.is_collinear
    assert {o.parity for o in found.operations} == {"even"}
    assert len(found.operations) == 48
    assert max(o.even_residual for o in found.operations) < 1e-6
    assert min(o.odd_residual for o in found.operations) > 1.9
    assert (found.magnetic_type, found.bns_number) == (1, "229.140")
    assert found.needs_time_reversal == ()


@pytest.mark.parametrize("kind", ["no channel", "zero", "almost zero"])
def test_without_magnetisation_it_is_grey(chgcar_path, kind):
    density = Density.from_file(chgcar_path)
    total = density.channel("total")
    channels = {"no channel": {}, "zero": {"diff": 0 * total}, "almost zero": {"diff": 1e-5 * density.channel("diff")}}[kind]
    density = Density(density.lattice, {"total": total, **channels})
    found = spin_parity(density, find_symmetry(density))
    assert {o.parity for o in found.operations} == {"both"}
    assert (found.magnetic_type, found.bns_number) == (2, "229.141")


@pytest.mark.parametrize(
    "change", [np.eye(3), [[1, 1, 0], [0, 1, 1], [0, 0, 1]], [[1, 0, 0], [0, 1, 0], [0, 0, 2]]], ids=["", "skew", "twice"]
)
def test_antiferromagnet_with_an_odd_translation(change):
    structure = Structure(Lattice.tetragonal(3.0, 6.0), ["Fe", "Fe"], [[0, 0, 0], [0, 0, 0.5]])
    density, expected = magnetic(structure, [2, -2], "Fe")
    density = density.change_basis(np.asarray(change, dtype=int))
    symmetry = find_symmetry(density)
    assert symmetry.space_group_number == 221
    found = spin_parity(density, symmetry)
    n = round(float(np.linalg.det(change)))
    assert Counter(o.parity for o in found.operations) == {"even": 16 * n, "odd": 16 * n, "broken": 64 * n}
    odd_translations = [o for o in found.needs_time_reversal if (o.rotation == np.eye(3)).all()]
    assert len(odd_translations) == n
    assert found.magnetic_type == expected.msg_type == 4
    assert found.uni_number == expected.uni_number
    assert abs(np.linalg.det(found.lattice)) == pytest.approx(54.0, rel=1e-6)


def test_antiferromagnet_whose_rotations_are_odd():
    density, expected = magnetic(rutile(), [5, -5], "Mn")
    found = spin_parity(density, find_symmetry(density))
    assert Counter(o.parity for o in found.operations) == {"even": 8, "odd": 8}
    assert (found.magnetic_type, found.uni_number) == (3, expected.uni_number)


def test_ferrimagnet_loses_what_swaps_its_moments():
    density, expected = magnetic(rutile(), [5, -4], "Mn")
    found = spin_parity(density, find_symmetry(density))
    assert Counter(o.parity for o in found.operations) == {"even": 8, "broken": 8}
    assert (found.magnetic_type, found.uni_number) == (1, expected.uni_number)
    swaps = found.of_parity("broken")
    assert [o.odd_residual for o in swaps] == pytest.approx([2 / 82] * 8, rel=1e-2)  # (5 - 4)^2 twice over 2 (25 + 16)
    assert all(o.even_residual + o.odd_residual == pytest.approx(2) for o in found.operations)


def test_antiferromagnet_in_a_supercell_of_a_centred_cell():
    structure = halite((1, 1, 1))
    sites = structure.frac_coords[[site.specie.symbol == "Mn" for site in structure]]
    density, expected = magnetic(structure, 4 * np.where(sites[:, 2] < 0.25, 1, -1), "Mn")  # layers along c
    found = spin_parity(density, find_symmetry(density))
    assert (found.magnetic_type, found.uni_number) == (4, expected.uni_number)
    assert Counter(o.parity for o in found.operations)["broken"] == 48 * 4 * 2 // 3


@pytest.mark.parametrize(
    "moments",
    [
        [[0, 0, 5], [0, 0, 5]],
        [[0, 0, 5], [0, 0, -5]],
        [[5, 0, 0], [5, 0, 0]],
        [[5, 0, 0], [0, 5, 0]],
        [[3, 3, 0], [3, -3, 0]],
        [[1, 2, 3], [3, 0, 1]],
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_noncollinear_moments_are_axial_vectors(moments, turned):
    structure = rutile()
    density, expected = magnetic(structure, moments, "Mn")
    if turned:  # the whole crystal with its moments
        turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
        turn *= np.linalg.det(turn)
        stacked = np.stack([density.channels[f"diff_{axis}"] for axis in "xyz"], axis=-1) @ turn
        parts = {f"diff_{axis}": stacked[..., n] for n, axis in enumerate("xyz")}
        density = Density(density.lattice @ turn, {"total": density.channel("total"), **parts})
    found = spin_parity(density, find_symmetry(density))
    assert not found.is_collinear
    assert found.uni_number == expected.uni_number
    assert len(found.of_parity("even")) + len(found.of_parity("odd")) == expected.n_operations


def test_noise_does_not_change_the_parity():
    density, expected = magnetic(rutile(), [5, -5], "Mn")
    rng = np.random.default_rng(0)
    noisy = {name: values + 0.3 * values.std() * rng.normal(size=values.shape) for name, values in density.channels.items()}
    noisy = Density(density.lattice, noisy)
    found = spin_parity(noisy, find_symmetry(density))
    assert 0.003 < found.noise < 0.03
    assert (found.magnetic_type, found.uni_number) == (3, expected.uni_number)


def test_another_cell_is_refused():
    density, _ = magnetic(rutile(), [5, -5], "Mn")
    symmetry = find_symmetry(density)
    other = Density(1.1 * density.lattice, density.channels)
    with pytest.raises(ValueError, match="must be that of this density"):
        spin_parity(other, symmetry)
