"""One description of preprocessing: what it makes, what it passes through and what it refuses."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from pymatgen.core.structure import Structure

from matminer_ed3d import grids
from matminer_ed3d.density import Density
from matminer_ed3d.reduction import reduce_cell
from matminer_ed3d.representations import PointCloud, SparseTensor
from matminer_ed3d.samples import SampleOptions, make_sample
from matminer_ed3d.sampling import sample_points, sample_voxels

MODEL = {
    "kind": "voxels",
    "reduction": "mean",
    "cell": "reduced",
    "d_min": 1.0,
    "voxel_size": 0.5,
    "max_voxels": 2048,
    "threshold": -100.0,
    "standardize": True,
}
DEFAULT_MODEL = SampleOptions(**MODEL)  # type: ignore[arg-type]


def assert_same(left: PointCloud | SparseTensor, right: PointCloud | SparseTensor, tolerance: float = 0.0) -> None:
    assert type(left) is type(right)
    assert left.channels == right.channels
    np.testing.assert_array_equal(left.coords, right.coords)
    np.testing.assert_allclose(left.feats, right.feats, atol=tolerance)


# What is made


def test_the_options_reach_the_functions(nacl: Structure) -> None:
    density = Density.from_structure(nacl)
    options = SampleOptions(kind="points", voxel_size=0.4, reduction="random", threshold=0.01, max_points=500, channels=("up", "diff"))
    expected = sample_points(density, voxel_size=0.4, reduction="random", threshold=0.01, max_points=500, channels=("up", "diff"), rng=7)
    assert_same(make_sample(density, options, rng=7), expected)
    for basis in ("lattice", "cartesian"):
        options = SampleOptions(kind="voxels", voxel_size=0.4, voxel_basis=basis, reduction="mean", multiple_of=2)  # type: ignore[arg-type]
        made = make_sample(density, options)
        assert_same(made, sample_voxels(density, voxel_size=0.4, voxel_basis=basis, multiple_of=2))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [SampleOptions(), SampleOptions(kind="voxels", reduction="mean"), DEFAULT_MODEL])
def test_a_structure_a_density_and_a_path_are_all_sources(options: SampleOptions, cif_path, chgcar_path) -> None:
    structure = Structure.from_file(cif_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader's notes on the CIF are its own matter
        from_path = make_sample(cif_path, options, rng=0)
    assert type(from_path) is type(make_sample(structure, options, rng=0))
    assert_same(make_sample(chgcar_path, options, rng=0), make_sample(Density.from_file(chgcar_path), options, rng=0))


@pytest.mark.parametrize("kind", ["voxels", "points"])
@pytest.mark.parametrize("voxel_size", [0.1, 0.25, 0.4])
def test_the_means_of_a_structure_are_exact_at_every_voxel_size(quartz: Structure, kind: str, voxel_size: float) -> None:
    sample = make_sample(quartz, SampleOptions(kind=kind, reduction="mean", voxel_size=voxel_size))  # type: ignore[arg-type]
    shape = grids.coarse_grid_shape(quartz.lattice.matrix, voxel_size)
    exact = Density.from_structure(quartz, grid_shape=shape)
    assert sample.n_points == np.prod(shape)
    np.testing.assert_allclose(sample.feats[:, 0], exact.channel("total").ravel(), rtol=1e-6)
    assert sample.feats[:, 0].mean(dtype=float) * quartz.volume == pytest.approx(exact.n_electrons(), rel=1e-6)


def test_the_means_of_a_structure_fill_counts_of_a_multiple(quartz: Structure) -> None:
    sample = make_sample(quartz, SampleOptions(kind="voxels", reduction="mean", voxel_size=0.4, multiple_of=4))
    assert isinstance(sample, SparseTensor)
    assert sample.grid_shape == grids.coarse_grid_shape(quartz.lattice.matrix, 0.4, 4)
    np.testing.assert_allclose(
        sample.feats[:, 0], Density.from_structure(quartz, grid_shape=sample.grid_shape).channel("total").ravel(), rtol=1e-6
    )


@pytest.mark.parametrize("options", [SampleOptions(voxel_size=0.2), SampleOptions(kind="voxels", voxel_basis="cartesian", voxel_size=0.2)])
def test_small_voxels_of_a_structure_are_made_of_a_fine_grid(nacl: Structure, options: SampleOptions) -> None:
    sample = make_sample(nacl, options, rng=0)
    assert sample.n_points >= nacl.volume / 0.2**3 * 0.9


def test_the_reduced_cell_comes_before_the_sample(nacl: Structure) -> None:
    density = Density.from_structure(nacl)
    options = SampleOptions(kind="voxels", reduction="mean", cell="reduced", threshold=-1.0)
    sample = make_sample(density, options)
    assert_same(sample, sample_voxels(reduce_cell(density), threshold=-1.0))
    assert isinstance(sample, SparseTensor)
    assert abs(np.linalg.det(sample.lattice)) == pytest.approx(nacl.volume / 4)


# A resolution


@pytest.mark.parametrize("system", ["triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic"])
def test_with_a_resolution_a_structure_and_its_density_give_the_same(crystals: dict[str, Structure], system: str) -> None:
    structure = crystals[system]
    density = Density.from_structure(structure, method="band_limited", grid_spacing=0.4, d_min=1.0)
    assert_same(make_sample(structure, DEFAULT_MODEL), make_sample(density, DEFAULT_MODEL), tolerance=1e-5)


@pytest.mark.parametrize("system", ["triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic"])
def test_the_sample_of_the_default_model_does_not_depend_on_the_description(crystals: dict[str, Structure], system: str) -> None:
    structure = crystals[system]
    expected = make_sample(structure, DEFAULT_MODEL)
    rng = np.random.default_rng(0)
    for axis in range(3):
        doubled = structure.make_supercell([2 if i == axis else 1 for i in range(3)], in_place=False)
        assert_same(make_sample(doubled, DEFAULT_MODEL), expected, tolerance=1e-4)
    moved = structure.copy()
    moved.translate_sites(list(range(len(moved))), rng.random(3))
    assert_same(make_sample(moved, DEFAULT_MODEL), expected, tolerance=1e-4)
    reordered = Structure.from_sites([structure[i] for i in rng.permutation(len(structure))])
    assert_same(make_sample(reordered, DEFAULT_MODEL), expected, tolerance=1e-4)


def test_a_standardized_sample_has_no_units(quartz: Structure) -> None:
    sample = make_sample(quartz, DEFAULT_MODEL)
    assert sample.feats.mean() == pytest.approx(0.0, abs=1e-5)
    assert sample.feats.std() == pytest.approx(1.0, abs=1e-5)
    density = Density.from_structure(quartz, method="band_limited", grid_spacing=0.5, d_min=1.0)
    tenfold = Density(lattice=density.lattice, channels={"total": 10 * density.channel("total")})
    assert_same(make_sample(tenfold, DEFAULT_MODEL), sample, tolerance=1e-5)


def test_a_flat_channel_is_standardized_to_zero(nacl: Structure) -> None:
    density = Density.from_structure(nacl, method="band_limited", grid_spacing=0.5, d_min=1.0)
    sample = make_sample(density, replace(DEFAULT_MODEL, channels=("total", "diff")))
    assert (sample.feats[:, 1] == 0).all()
    assert sample.feats[:, 0].std() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("max_voxels", [2048, 500, 60])
@pytest.mark.parametrize("multiple_of", [1, 2])
def test_the_number_of_voxels_is_capped(crystals: dict[str, Structure], max_voxels: int, multiple_of: int) -> None:
    sample = make_sample(crystals["triclinic"], replace(DEFAULT_MODEL, max_voxels=max_voxels, multiple_of=multiple_of))
    assert isinstance(sample, SparseTensor)
    assert sample.n_points == np.prod(sample.grid_shape) <= max_voxels
    assert all(n % multiple_of == 0 for n in sample.grid_shape)


def test_the_mean_of_voxels_of_a_resolution_is_the_mean_density(quartz: Structure) -> None:
    sample = make_sample(quartz, replace(DEFAULT_MODEL, standardize=False))
    electrons = sample.feats[:, 0].mean(dtype=float) * abs(np.linalg.det(sample.lattice))
    assert electrons == pytest.approx(Density.from_structure(quartz).n_electrons(), rel=1e-5)


def test_a_threshold_counts_in_the_units_of_the_sample(quartz: Structure) -> None:
    everything = make_sample(quartz, DEFAULT_MODEL)
    above_mean = make_sample(quartz, replace(DEFAULT_MODEL, threshold=0.0))
    assert above_mean.n_points == (everything.feats[:, 0] >= 0).sum()
    with pytest.raises(ValueError, match=r"no voxel reaches the `threshold` of 100.0, the largest value is .*; lower it"):
        make_sample(quartz, replace(DEFAULT_MODEL, threshold=100.0))


def test_every_point_and_cube_of_a_structure_has_some_to_draw_from(nacl: Structure) -> None:
    for options in (SampleOptions(voxel_size=0.5), SampleOptions(kind="voxels", voxel_basis="cartesian", voxel_size=0.5)):
        first, second = (make_sample(nacl, options, rng=seed) for seed in (0, 1))
        assert first.n_points == second.n_points
        assert (first.feats != second.feats).any(axis=1).mean() > 0.8
    first, second = (make_sample(nacl, SampleOptions(voxel_size=0.5), rng=seed) for seed in (0, 1))
    assert (first.coords != second.coords).any(axis=1).mean() > 0.8


@pytest.mark.parametrize("voxel_size", [0.4, 0.5])
def test_the_means_of_cubes_hold_the_electrons_of_a_structure(nacl: Structure, voxel_size: float) -> None:
    sample = make_sample(nacl, SampleOptions(kind="voxels", voxel_basis="cartesian", reduction="mean", voxel_size=voxel_size))
    length = nacl.lattice.a
    low = (np.arange(sample.coords.min(), sample.coords.max() + 1) - 0.5) * voxel_size
    start = -0.5 * length / grids.fine_grid_shape(nacl.lattice.matrix, voxel_size / 3)[0]  # the voxel round the first grid point
    inside = np.clip(np.minimum(low + voxel_size, start + length) - np.maximum(low, start), 0, None)
    shares = inside[sample.coords - sample.coords.min()].prod(axis=1)
    assert shares.sum() == pytest.approx(nacl.volume, rel=1e-4)
    assert (sample.feats[:, 0] * shares).sum() == pytest.approx(Density.from_structure(nacl).n_electrons(), rel=0.01)


# Ready samples


def test_a_ready_sample_passes_through(nacl: Structure) -> None:
    for options in (SampleOptions(), SampleOptions(kind="voxels", reduction="mean"), DEFAULT_MODEL):
        sample = make_sample(nacl, options, rng=0)
        assert make_sample(sample, options) is sample


def test_a_ready_sample_of_another_kind_is_refused(nacl: Structure) -> None:
    cloud = make_sample(nacl, SampleOptions(), rng=0)
    with pytest.raises(ValueError, match="expected a SparseTensor, got a PointCloud; make it with the matching featurizer"):
        make_sample(cloud, SampleOptions(kind="voxels"))
    with pytest.raises(ValueError, match=r"expected a sample with the channels \('total', 'diff'\), got \('total',\)"):
        make_sample(cloud, SampleOptions(channels=("total", "diff")))


# What is refused


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cubes"}, "`kind` must be 'points' or 'voxels', got 'cubes'"),
        ({"cell": "niggli"}, "`cell` must be 'as_given' or 'reduced', got 'niggli'"),
        ({"max_voxels": 100}, "`max_voxels` and `standardize` go with a resolution; set `d_min`"),
        ({"standardize": True}, "`max_voxels` and `standardize` go with a resolution; set `d_min`"),
        ({"d_min": 1.0}, "`d_min` goes with kind='voxels', cell='reduced' and voxel_basis='lattice'"),
        ({"kind": "voxels", "d_min": 1.0}, "`d_min` goes with"),
        ({"kind": "voxels", "cell": "reduced", "voxel_basis": "cartesian", "d_min": 1.0}, "`d_min` goes with"),
        ({**MODEL, "d_min": 0.0}, "`d_min` must be a positive resolution in Å, got 0.0"),
        ({**MODEL, "d_min": float("nan")}, "`d_min` must be a positive resolution"),
        ({**MODEL, "voxel_size": 0.0}, "`voxel_size` must be a positive length in Å, got 0.0"),
        ({**MODEL, "multiple_of": 0}, "`multiple_of` must be at least 1, got 0"),
        ({**MODEL, "max_voxels": 0}, "`max_voxels` must be at least 1, got 0"),
        ({**MODEL, "channels": ()}, "`channels` must name at least one channel"),
        ({**MODEL, "threshold": float("nan")}, "`threshold` must be a density"),
        ({"voxel_size": -1.0}, "`voxel_size` must be a positive length"),
        ({"channels": ()}, "`channels` must name at least one channel"),
        ({"channels": ("total", "totl")}, "`channels` must be names among .*, got 'totl'"),
        ({"channels": "total"}, r"`channels` must be a tuple of names, got 'total'; write \('total',\)"),
        ({**MODEL, "reduction": "random"}, "`d_min` sums .* take reduction='mean' and max_points=None, got 'random' and None"),
        ({**MODEL, "max_points": 100}, "`d_min` sums .* got 'mean' and 100, or `max_voxels`"),
        ({**MODEL, "max_points": "paper"}, "`d_min` sums .* got 'mean' and 'paper'"),
    ],
)
def test_options_without_a_meaning_are_refused(nacl: Structure, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sample(nacl, SampleOptions(**options))


@pytest.mark.parametrize("source", [None, 5, [1, 2], np.zeros((3, 3))])
def test_what_holds_no_density_is_refused(source: object) -> None:
    with pytest.raises(TypeError, match="must be a Density, a pymatgen Structure"):
        make_sample(source, SampleOptions())


def test_options_are_checked_when_used_not_when_made() -> None:
    odd = SampleOptions(**{**MODEL, "max_points": 5})  # type: ignore[arg-type]
    assert odd.max_points == 5
    DEFAULT_MODEL.check()
    assert DEFAULT_MODEL.max_points is None


def test_options_are_plain_values() -> None:
    header = json.loads(json.dumps(DEFAULT_MODEL.as_dict()))
    assert SampleOptions(**{**header, "channels": tuple(header["channels"])}) == DEFAULT_MODEL
