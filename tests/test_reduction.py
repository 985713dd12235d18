"""The reduced cell: primitive, and the same density from whatever cell, basis, origin, orientation and order of sites."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from other_crystals import other_crystals
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from matminer_ed3d import grids
from matminer_ed3d._spglib import call_spglib
from matminer_ed3d.density import Density
from matminer_ed3d.reduction import band_limited_coefficients, find_reduction, lattice_rotations, reduce_cell

D_MIN = 1.0
UNIMODULAR = np.array([[1, 1, 0], [0, 1, -1], [1, 1, 1]])
ROTATION = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
ROTATION = ROTATION * np.sign(np.linalg.det(ROTATION))


OTHERS = other_crystals()
SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")


@pytest.fixture
def crystal(request: pytest.FixtureRequest, crystals: dict[str, Structure]) -> Structure:
    return (crystals | OTHERS)[request.param]


every_crystal = pytest.mark.parametrize("crystal", [*SYSTEMS, *OTHERS], indirect=True)


def density_of(structure: Structure) -> Density:
    return Density.from_structure(structure, method="band_limited", grid_spacing=0.5 * D_MIN, d_min=D_MIN)


def supercell(structure: Structure) -> Structure:
    return structure.make_supercell([2, 1, 1], in_place=False)


def skewed(structure: Structure) -> Structure:
    return structure.make_supercell(UNIMODULAR, in_place=False)


def conventional(structure: Structure) -> Structure:
    return SpacegroupAnalyzer(structure).get_conventional_standard_structure()


def shifted(structure: Structure) -> Structure:
    moved = structure.copy()
    moved.translate_sites(list(range(len(moved))), [0.1234, 0.4567, 0.7891])
    return moved


def rotated(structure: Structure) -> Structure:
    return Structure(structure.lattice.matrix @ ROTATION, structure.species, structure.frac_coords)


def reordered(structure: Structure) -> Structure:
    return Structure.from_sites([structure[i] for i in np.random.default_rng(2).permutation(len(structure))])


def all_together(structure: Structure) -> Structure:
    return reordered(rotated(shifted(supercell(skewed(structure)))))


WAYS = (supercell, skewed, shifted, rotated, reordered, all_together)


def assert_same_density(left: Density, right: Density, tolerance: float = 1e-6) -> None:
    assert left.grid_shape == right.grid_shape
    metrics = [density.lattice @ density.lattice.T for density in (left, right)]
    np.testing.assert_allclose(*metrics, atol=1e-5)
    scale = np.abs(left.channel("total")).max()
    np.testing.assert_allclose(right.channel("total"), left.channel("total"), atol=tolerance * scale)


# One density from every description


@every_crystal
def test_the_reduced_cell_is_primitive_and_right_handed(crystal: Structure) -> None:
    reduced = reduce_cell(density_of(supercell(crystal)), d_min=D_MIN)
    assert reduced.volume == pytest.approx(crystal.get_primitive_structure(tolerance=1e-3).volume, rel=1e-6)
    assert np.linalg.det(reduced.lattice) > 0
    assert reduced.structure is None


@every_crystal
def test_electrons_per_volume_are_conserved(crystal: Structure) -> None:
    density = density_of(crystal)
    reduced = reduce_cell(density, d_min=D_MIN)
    assert reduced.n_electrons() / reduced.volume == pytest.approx(density.n_electrons() / density.volume, rel=1e-10)


@every_crystal
@pytest.mark.parametrize("way", WAYS)
def test_every_description_of_a_crystal_gives_the_same_density(crystal: Structure, way) -> None:
    expected = reduce_cell(density_of(crystal), d_min=D_MIN)
    assert_same_density(expected, reduce_cell(density_of(way(crystal)), d_min=D_MIN))


@pytest.mark.parametrize("crystal", ["cubic", "zincblende", "bcc", "fcc", "corundum", "orthorhombic", "tetragonal"], indirect=True)
def test_the_conventional_cell_gives_the_same_density(crystal: Structure) -> None:
    primitive = crystal.get_primitive_structure(tolerance=1e-3)
    assert_same_density(*(reduce_cell(density_of(s), d_min=D_MIN) for s in (conventional(primitive), primitive)))


@every_crystal
def test_reducing_twice_changes_nothing(crystal: Structure) -> None:
    # The grid of the first goes beyond the sphere, so ask for the sphere again.
    once = reduce_cell(density_of(crystal), d_min=D_MIN)
    assert_same_density(once, reduce_cell(once, d_min=D_MIN))


@pytest.mark.parametrize("way", ["shift_origin", "change_basis"])
def test_a_density_without_atoms_is_reduced_as_well(crystals: dict[str, Structure], way: str) -> None:
    density = density_of(crystals["monoclinic"])
    bare = Density(lattice=density.lattice, channels=density.channels)
    if way == "shift_origin":
        other = bare.shift_origin([0.31, -0.17, 0.05])
    else:
        # twelve voxels along the longest new vector hold the whole sphere
        other = bare.change_basis(UNIMODULAR, grids.fine_grid_shape(UNIMODULAR @ bare.lattice, 0.4))
    assert_same_density(reduce_cell(bare, d_min=D_MIN), reduce_cell(other, d_min=D_MIN))


@pytest.mark.parametrize("system", ["monoclinic", "trigonal", "cubic"])
def test_means_over_voxels_are_reduced_as_points_are(crystals: dict[str, Structure], system: str) -> None:
    structure = crystals[system]
    exact = Density.from_structure(structure, method="band_limited", grid_spacing=0.5, d_min=D_MIN, b_iso=8.0)
    mean = Density.from_structure(structure, grid_spacing=0.2, b_iso=8.0)
    assert mean.is_voxel_mean
    assert_same_density(reduce_cell(exact, d_min=D_MIN), reduce_cell(mean, d_min=D_MIN), tolerance=2e-3)


def test_all_channels_go_the_same_way(nacl: Structure) -> None:
    density = density_of(shifted(nacl))
    spin = Density(lattice=density.lattice, channels={"total": density.channel("total"), "diff": 0.1 * density.channel("total")})
    reduced = reduce_cell(spin, d_min=D_MIN)
    np.testing.assert_allclose(reduced.channel("diff"), 0.1 * reduced.channel("total"), atol=1e-12)


def test_a_real_chgcar_and_its_supercell_give_the_same_density(chgcar_path) -> None:
    density = Density.from_file(chgcar_path)
    doubled = density.change_basis(np.diag([1, 2, 1])).shift_origin([3 / 28, 0, 0.123])
    assert_same_density(reduce_cell(density, d_min=D_MIN), reduce_cell(doubled, d_min=D_MIN))


def test_a_nearly_centrosymmetric_crystal_gives_one_density() -> None:
    # BaSmEuWO6, Materials Project mp-1517172: the elements that break the symmetry are alike.
    sites = {
        "Ba": [0, 0.5, 0.25],
        "Sm": [0, 0, 0],
        "Eu": [0.5, 0, 0.25],
        "W": [0, 0, 0.5],
        "O1": [0, 0, 0.2624],
        "O2": [0.3344, 0.2025, 0.0135],
    }
    crystal = Structure.from_spacegroup(
        "P-4n2", Lattice.tetragonal(5.9106, 8.7208), [name.rstrip("12") for name in sites], list(sites.values())
    )
    expected = reduce_cell(density_of(crystal), d_min=D_MIN)
    for axes in ([[1, 0, 0], [0, -1, 0], [0, 0, -1]], [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]):
        turned = crystal.make_supercell(axes, in_place=False)
        assert_same_density(expected, reduce_cell(density_of(turned), d_min=D_MIN), tolerance=1e-4)


# What must not be mapped on each other


def mirrored(structure: Structure) -> Structure:
    return Structure(structure.lattice.matrix @ np.diag([1, 1, -1]), structure.species, structure.frac_coords)


def distance(left: Density, right: Density) -> float:
    """Largest difference of two densities on grids of one shape, over all whole shifts, relative to the largest value."""
    assert left.grid_shape == right.grid_shape
    a, b = (np.fft.fftn(density.channel("total")) for density in (left, right))
    correlation = np.fft.ifftn(a * np.conj(b)).real.max()
    return 1 - correlation / np.sqrt((np.abs(a) ** 2).mean() * (np.abs(b) ** 2).mean())


def test_enantiomorphs_stay_apart(quartz: Structure) -> None:
    other = mirrored(quartz)
    assert {SpacegroupAnalyzer(s).get_space_group_number() for s in (quartz, other)} == {152, 154}
    left, right = (reduce_cell(density_of(s), d_min=D_MIN) for s in (quartz, other))
    assert left.volume == pytest.approx(right.volume)
    assert distance(left, right) > 1e-3
    assert distance(left, reduce_cell(density_of(all_together(quartz)), d_min=D_MIN)) < 1e-10


def test_a_crystal_with_a_mirror_is_its_own_mirror_image(crystals: dict[str, Structure]) -> None:
    for system in ("hexagonal", "tetragonal", "monoclinic"):
        assert_same_density(*(reduce_cell(density_of(s), d_min=D_MIN) for s in (crystals[system], mirrored(crystals[system]))))


def test_nearly_equal_halves_are_not_merged(nacl: Structure) -> None:
    doubled = supercell(nacl)
    doubled.replace(0, "K")
    reduced = reduce_cell(density_of(doubled), d_min=D_MIN)
    assert reduced.volume == pytest.approx(doubled.get_primitive_structure().volume, rel=1e-6)


def test_the_tolerance_decides_what_is_a_translation() -> None:
    # CsCl-like cell with two almost equal atoms: a body-centred cell, if the difference is let pass.
    nearly_bcc = Structure(Lattice.cubic(2.9), ["Fe", "Co"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    density = density_of(nearly_bcc)
    assert reduce_cell(density, tolerance=1e-5).volume == pytest.approx(2.9**3)
    assert reduce_cell(density, tolerance=1e-2).volume == pytest.approx(2.9**3 / 2)


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_long_supercells_are_found(n: int) -> None:
    structure = Structure(Lattice.cubic(2.866), ["Fe", "O"], [[0, 0, 0], [0.4, 0.3, 0.1]])
    stretched = structure.make_supercell([[1, 0, 0], [0, 1, 0], [1, 1, n]], in_place=False)
    assert reduce_cell(density_of(stretched), d_min=D_MIN).volume == pytest.approx(structure.volume, rel=1e-6)


# Edges


def test_a_constant_density_keeps_its_cell() -> None:
    lattice = Lattice.from_parameters(4, 5, 6, 80, 90, 100).matrix
    reduced = reduce_cell(Density(lattice=lattice, channels={"total": np.ones((10, 12, 14))}))
    assert reduced.volume == pytest.approx(abs(np.linalg.det(lattice)))
    np.testing.assert_allclose(reduced.channel("total"), 1.0)


def test_a_left_handed_cell_comes_back_right_handed(quartz: Structure) -> None:
    # The same crystal with its axes exchanged, not its mirror image.
    exchanged = quartz.make_supercell([[0, 1, 0], [1, 0, 0], [0, 0, 1]], in_place=False)
    assert np.linalg.det(exchanged.lattice.matrix) < 0
    assert_same_density(*(reduce_cell(density_of(s), d_min=D_MIN) for s in (quartz, exchanged)))


def test_a_grid_coarser_than_the_resolution_warns(nacl: Structure) -> None:
    density = density_of(nacl)
    with pytest.warns(UserWarning, match=r"resolves .* coarser than the 0.50 Å asked for; a finer grid may change the answer"):
        band_limited_coefficients(density, "total", 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        band_limited_coefficients(density, "total", None)


def test_the_way_to_the_reduced_cell_is_told(nacl: Structure) -> None:
    density = density_of(nacl)
    h, f = band_limited_coefficients(density, "total", D_MIN)
    found = find_reduction(density.lattice, h, f)
    assert abs(np.linalg.det(found.basis)) == pytest.approx(0.25)
    new_h, new_f = found.apply(h, f)
    assert len(new_h) < len(h)
    assert (np.abs(new_f) ** 2).sum() == pytest.approx((np.abs(f) ** 2).sum(), rel=1e-6)
    np.testing.assert_allclose(new_h @ np.linalg.inv(found.basis).T, np.round(new_h @ np.linalg.inv(found.basis).T), atol=1e-9)


# Rotations of lattices

BRAVAIS = {
    "triclinic": (Lattice.from_parameters(4.1, 5.3, 6.2, 77, 84, 101), 1),
    "monoclinic P": (Lattice.monoclinic(4.0, 5.0, 6.0, 105), 2),
    "monoclinic C": (Lattice(np.array([[4, 3, 0], [-4, 3, 0], [0.7, 0, 5]], dtype=float)), 2),
    "orthorhombic P": (Lattice.orthorhombic(4.0, 5.0, 6.0), 4),
    "orthorhombic C": (Lattice(np.array([[4, 3, 0], [-4, 3, 0], [0, 0, 5]], dtype=float)), 4),
    "orthorhombic I": (Lattice(0.5 * np.array([[-4, 5, 6], [4, -5, 6], [4, 5, -6]], dtype=float)), 4),
    "orthorhombic F": (Lattice(0.5 * np.array([[0, 5, 6], [4, 0, 6], [4, 5, 0]], dtype=float)), 4),
    "tetragonal P": (Lattice.tetragonal(4.0, 6.0), 8),
    "tetragonal I": (Lattice(0.5 * np.array([[-4, 4, 6], [4, -4, 6], [4, 4, -6]], dtype=float)), 8),
    "rhombohedral": (Lattice.rhombohedral(5.0, 70), 6),
    "hexagonal": (Lattice.hexagonal(4.0, 6.0), 12),
    "cubic P": (Lattice.cubic(4.0), 24),
    "cubic I": (Lattice(2.0 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]], dtype=float)), 24),
    "cubic F": (Lattice(2.0 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=float)), 24),
}


@pytest.mark.parametrize("name", BRAVAIS)
def test_a_bravais_lattice_has_the_rotations_of_its_holohedry(name: str) -> None:
    lattice, expected = BRAVAIS[name]
    reduced = np.asarray(call_spglib("niggli_reduce", lattice.matrix))
    rotations = lattice_rotations(reduced)
    assert len(rotations) == expected
    known = call_spglib("get_symmetry_dataset", (reduced, [[0, 0, 0]], [1]), symprec=1e-4).rotations
    assert len(rotations) == len({tuple(np.ravel(w)) for w in known if np.linalg.det(w) > 0})
    # P acts on rows of the lattice, spglib's W on columns of coordinates: P = W^T
    assert {tuple(np.ravel(p)) for p in rotations} == {tuple(np.ravel(w.T)) for w in known if np.linalg.det(w) > 0}


@pytest.mark.parametrize("name", BRAVAIS)
def test_the_rotations_of_a_lattice_form_a_group(name: str) -> None:
    rotations = lattice_rotations(np.asarray(call_spglib("niggli_reduce", BRAVAIS[name][0].matrix)))
    members = {tuple(np.ravel(p)) for p in rotations}
    assert {tuple(np.ravel(p @ q)) for p in rotations for q in rotations} == members
    assert (1, 0, 0, 0, 1, 0, 0, 0, 1) in members


def test_the_tolerance_of_a_metric_is_relative() -> None:
    nearly = np.diag([4.0, 4.001, 6.0])
    for scale in (1.0, 10.0):
        assert len(lattice_rotations(scale * nearly, tolerance=1e-2)) == 8
        assert len(lattice_rotations(scale * nearly, tolerance=1e-4)) == 4


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_a_centred_cell_is_recognised_through_white_noise(nacl: Structure, noise: float) -> None:
    density = Density.from_structure(nacl, grid_spacing=0.2, method="band_limited")
    rho = density.channel("total")
    noisy = replace(density, channels={"total": rho + noise * rho.std() * np.random.default_rng(0).normal(size=rho.shape)})
    assert reduce_cell(noisy, d_min=D_MIN).volume == pytest.approx(density.volume / 4, rel=1e-6)


def test_sharp_atoms_are_not_taken_for_noise(nacl: Structure) -> None:
    # K in place of one of four Na: a superstructure that noise could hide, and nothing else
    substituted = nacl.copy()
    substituted.replace(0, "K")
    for method in ("mean", "point", "band_limited"):
        density = Density.from_structure(substituted, grid_spacing=0.2, method=method)
        assert reduce_cell(density, d_min=D_MIN).volume == pytest.approx(density.volume, rel=1e-6)
