"""Symmetry features and the network on them: numpy's transform and spglib's point groups as oracles, and what must change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from other_crystals import other_crystals
from pymatgen.core.structure import Structure

from matminer_ed3d._spglib import call_spglib
from matminer_ed3d.density import Density
from matminer_ed3d.networks.batching import VoxelBatch, collate
from matminer_ed3d.networks.crystal_net import CrystalNet
from matminer_ed3d.networks.reflections import low_order_coefficients
from matminer_ed3d.networks.symmetry_features import LOW_REACH, N_SYMMETRY_FEATURES, TOLERANCES, symmetry_features
from matminer_ed3d.reduction import lattice_rotations
from matminer_ed3d.representations import SparseTensor
from matminer_ed3d.samples import SampleOptions, make_sample

OPTIONS = SampleOptions(
    kind="voxels", reduction="mean", cell="reduced", d_min=1.0, voxel_size=0.5, max_voxels=2048, threshold=-100.0, standardize=True
)
SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
N_LOW = ((2 * LOW_REACH + 1) ** 3 - 1) // 2  # amplitudes by index: the one part that knows the axes


OTHERS = other_crystals()


@pytest.fixture
def crystal(request: pytest.FixtureRequest, crystals: dict[str, Structure]) -> Structure:
    return (crystals | OTHERS)[request.param]


every_crystal = pytest.mark.parametrize("crystal", [*SYSTEMS, *OTHERS], indirect=True)


def sample_of(structure: Structure) -> SparseTensor:
    sample = make_sample(structure, OPTIONS)
    assert isinstance(sample, SparseTensor)
    return sample


def features_of(*samples: SparseTensor) -> np.ndarray:
    batch = collate(samples)
    assert isinstance(batch, VoxelBatch)
    return symmetry_features(batch).numpy()


def random_sample(shape: tuple[int, int, int], fill: float = 1.0, seed: int = 0) -> SparseTensor:
    rng = np.random.default_rng(seed)
    coords = np.argwhere(rng.random(shape) <= fill).astype(np.int32)
    feats = rng.normal(size=(len(coords), 1)).astype(np.float32)
    basis = 0.5 * np.array([[1.0, 0, 0], [0.2, 1.1, 0], [-0.1, 0.3, 0.9]])
    return SparseTensor(coords, feats, ("total",), basis, shape)


def rolled(sample: SparseTensor, shift: tuple[int, int, int]) -> SparseTensor:
    """The same crystal seen from another voxel; rows stay in order of neither."""
    assert sample.grid_shape is not None
    coords = (sample.coords + np.array(shift)) % np.array(sample.grid_shape)
    return replace(sample, coords=coords.astype(np.int32))


def shuffled(sample: SparseTensor) -> SparseTensor:
    order = np.random.default_rng(0).permutation(sample.n_points)
    return replace(sample, coords=sample.coords[order], feats=sample.feats[order])


def holds(features: np.ndarray, improper: bool, tolerance: float = 0.03) -> np.ndarray:
    """How many two-, three-, four- and sixfold operations hold."""
    start = 148 if improper else 76
    return features[start : start + 24].reshape(4, 6)[:, TOLERANCES.index(tolerance)]


# Coefficients


@pytest.mark.parametrize("fill", [1.0, 0.4])
def test_low_order_coefficients_are_those_of_numpy(fill: float) -> None:
    shapes = [(9, 12, 7), (20, 5, 6), (1, 3, 17)]
    samples = [random_sample(shape, fill, seed) for seed, shape in enumerate(shapes)]
    batch = collate(samples)
    assert isinstance(batch, VoxelBatch)
    assert batch.grid_shapes is not None
    reach = 3
    result = low_order_coefficients(batch.feats[:, 0], batch.coords, batch.grid_shapes, reach).numpy()
    for index, (sample, shape) in enumerate(zip(samples, shapes, strict=True)):
        dense = np.zeros(shape)
        dense[tuple(sample.coords.T)] = sample.feats[:, 0]
        expected = np.fft.fftn(dense, norm="forward")
        for h in np.ndindex(*(3 * (2 * reach + 1,))):
            hkl = np.array(h) - reach
            known = (2 * np.abs(hkl) < shape).all() and hkl.any()
            assert result[index][h] == pytest.approx(expected[tuple(hkl % shape)] if known else 0.0, abs=1e-6)


# Features


@every_crystal
def test_operations_are_counted_as_the_point_group_has_them(crystal: Structure) -> None:
    features = features_of(sample_of(crystal))[0]
    dataset = call_spglib("get_symmetry_dataset", (crystal.lattice.matrix, crystal.frac_coords, crystal.atomic_numbers), symprec=1e-3)
    operations = {tuple(np.ravel(w)) for w in dataset.rotations}
    determinants = {w: round(np.linalg.det(np.reshape(w, (3, 3)))) for w in operations}
    for improper, sign in ((False, 1), (True, -1)):
        traces = [sign * np.trace(np.reshape(w, (3, 3))) for w in operations if determinants[w] == sign]
        expected = [traces.count(trace) for trace in (-1, 0, 1, 2)]
        # Soft counts; hcp's voxels, 0.54 Å of its cell, cut a few reflections and not their images. A missing operation costs 1.
        np.testing.assert_allclose(holds(features, improper), expected, atol=0.55)
    has_centre = (-1, 0, 0, 0, -1, 0, 0, 0, -1) in operations
    centre = features[46:52][TOLERANCES.index(0.03)]
    assert (centre > 0.8) == has_centre


@every_crystal
def test_rotations_of_the_lattice_are_counted(crystal: Structure) -> None:
    sample = sample_of(crystal)
    features = features_of(sample)[0]
    rotations = lattice_rotations(sample.lattice)
    expected = [(np.trace(rotations, axis1=1, axis2=2) == trace).sum() for trace in (-1, 0, 1, 2)]
    np.testing.assert_allclose(features[52:76].reshape(4, 6)[:, TOLERANCES.index(0.003)], expected, atol=0.2)


def test_known_counts(nacl: Structure, quartz: Structure) -> None:
    salt, chiral, blende = features_of(sample_of(nacl), sample_of(quartz), sample_of(OTHERS["zincblende"]))
    np.testing.assert_allclose(holds(salt, improper=False), [9, 8, 6, 0], atol=0.2)
    np.testing.assert_allclose(holds(salt, improper=True), [9, 8, 6, 0], atol=0.2)
    np.testing.assert_allclose(holds(chiral, improper=False), [3, 2, 0, 0], atol=0.2)
    np.testing.assert_allclose(holds(chiral, improper=True), [0, 0, 0, 0], atol=0.2)
    np.testing.assert_allclose(holds(blende, improper=False), [3, 8, 0, 0], atol=0.2)
    np.testing.assert_allclose(holds(blende, improper=True), [6, 0, 6, 0], atol=0.2)


@every_crystal
def test_features_have_their_size_and_are_finite(crystal: Structure) -> None:
    features = features_of(sample_of(crystal))
    assert features.shape == (1, N_SYMMETRY_FEATURES)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


@every_crystal
@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 0, 0), (2, -3, 5)])
def test_features_do_not_know_the_origin_nor_the_order_of_rows(crystal: Structure, shift: tuple[int, int, int]) -> None:
    sample = sample_of(crystal)
    np.testing.assert_allclose(features_of(shuffled(rolled(sample, shift))), features_of(sample), atol=1e-3)


@every_crystal
def test_features_do_not_know_the_scale_of_the_density(crystal: Structure) -> None:
    sample = sample_of(crystal)
    for factor in (0.5, 2.0):
        scaled = replace(sample, feats=np.float32(factor) * sample.feats)
        np.testing.assert_allclose(features_of(scaled), features_of(sample), atol=0.05)


@pytest.mark.parametrize("crystal", ["trigonal", "hexagonal", "cubic", "pyrite", "corundum"], indirect=True)
def test_features_do_not_know_which_of_equivalent_settings_they_see(crystal: Structure) -> None:
    sample = sample_of(crystal)
    assert sample.grid_shape is not None
    density = Density(lattice=sample.lattice, channels={"total": sample.feats[:, 0].reshape(sample.grid_shape).astype(float)})
    expected = features_of(sample)[0, :-N_LOW]
    tried = 0
    for rotation in lattice_rotations(density.lattice):
        if (np.abs(rotation).sum(axis=1) != 1).any() or (np.abs(rotation) @ sample.grid_shape != sample.grid_shape).any():
            continue  # only a permutation of equal axes keeps the voxels
        turned = density.change_basis(rotation, sample.grid_shape)
        values = turned.channel("total").reshape(-1, 1).astype(np.float32)
        other = replace(sample, feats=values, voxel_basis=turned.lattice / np.array(sample.grid_shape)[:, None])
        np.testing.assert_allclose(features_of(other)[0, :-N_LOW], expected, atol=0.02)
        tried += 1
    assert tried > 1


def test_features_do_not_know_their_batch() -> None:
    samples = [sample_of(structure) for structure in OTHERS.values()]
    together = features_of(*samples)
    for index, sample in enumerate(samples):
        np.testing.assert_allclose(together[index], features_of(sample)[0], atol=2e-3)


def test_voxels_in_open_space_are_refused() -> None:
    sample = replace(random_sample((5, 5, 5)), grid_shape=None)
    with pytest.raises(ValueError, match="needs periodic voxels, got voxels in open space; sample with voxel_basis='lattice'"):
        features_of(sample)


# Network


def network(n_channels: int = 1, n_outputs: int = 7) -> CrystalNet:
    torch.manual_seed(0)
    return CrystalNet(n_channels, n_outputs).eval()


def logits_of(net: CrystalNet, *samples: SparseTensor) -> np.ndarray:
    batch = collate(samples)
    assert isinstance(batch, VoxelBatch)
    with torch.no_grad():
        return net(batch).numpy()


@every_crystal
def test_logits_do_not_change_when_the_origin_moves_by_whole_voxels_or_rows_change_places(crystal: Structure) -> None:
    net, sample = network(), sample_of(crystal)
    expected = logits_of(net, sample)
    assert expected.shape == (1, 7)
    for shift in ((0, 0, 0), (1, 0, 0), (0, 2, -1), (3, 1, 4)):
        np.testing.assert_allclose(logits_of(net, shuffled(rolled(sample, shift))), expected, atol=1e-5)


@every_crystal
def test_the_convolutional_branch_does_not_know_the_origin_nor_the_order_of_rows(crystal: Structure) -> None:
    net, sample = network(), sample_of(crystal)
    batch, moved = (collate([s]) for s in (sample, shuffled(rolled(sample, (3, 1, -4)))))
    assert isinstance(batch, VoxelBatch)
    assert isinstance(moved, VoxelBatch)
    constants = net.constants(batch)
    with torch.no_grad():
        torch.testing.assert_close(net(moved, constants), net(batch, constants), rtol=0, atol=1e-5)


def test_logits_do_not_know_their_batch(crystals: dict[str, Structure]) -> None:
    net = network()
    samples = [sample_of(structure) for structure in (crystals | OTHERS).values()]
    together = logits_of(net, *samples)
    np.testing.assert_allclose(logits_of(net, *samples[::-1])[::-1], together, atol=1e-5)
    for index, sample in enumerate(samples):
        np.testing.assert_allclose(logits_of(net, sample)[0], together[index], atol=1e-5)


def test_constants_made_before_give_the_same_logits(nacl: Structure, quartz: Structure) -> None:
    net = network()
    batch = collate([sample_of(nacl), sample_of(quartz)])
    assert isinstance(batch, VoxelBatch)
    with torch.no_grad():
        torch.testing.assert_close(net(batch, net.constants(batch)), net(batch), rtol=0, atol=0)


def test_crystals_differ(crystals: dict[str, Structure]) -> None:
    logits = logits_of(network(), *(sample_of(structure) for structure in crystals.values()))
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(logits) for b in logits[:i])


def test_gradients_reach_every_weight(nacl: Structure, quartz: Structure) -> None:
    net = network(n_outputs=2).train()
    batch = collate([sample_of(nacl), sample_of(quartz), sample_of(OTHERS["bcc"])])
    assert isinstance(batch, VoxelBatch)
    torch.nn.functional.cross_entropy(net(batch), torch.tensor([0, 1, 0])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_it_tells_eight_crystals_apart(crystals: dict[str, Structure]) -> None:
    torch.manual_seed(0)
    samples = [sample_of(structure) for structure in (*crystals.values(), OTHERS["pyrite"])]
    batch, labels = collate(samples), torch.arange(8)
    net = CrystalNet(1, 8, dropout=0.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(batch), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert (net.eval()(batch).argmax(1) == labels).all()


def test_channels_beyond_the_first_are_seen(nacl: Structure) -> None:
    net = network(n_channels=2)
    sample = sample_of(nacl)
    spin = np.random.default_rng(0).normal(size=sample.feats.shape).astype(np.float32)
    with_spin = replace(sample, feats=np.hstack([sample.feats, spin]), channels=("total", "diff"))
    without = replace(sample, feats=np.hstack([sample.feats, 0 * spin]), channels=("total", "diff"))
    assert np.abs(logits_of(net, with_spin) - logits_of(net, without)).max() > 1e-4


def test_half_precision_leaves_the_symmetry_features_alone(nacl: Structure, quartz: Structure) -> None:
    batch = collate([sample_of(nacl), sample_of(quartz)])
    assert isinstance(batch, VoxelBatch)
    expected = symmetry_features(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(symmetry_features(batch), expected, rtol=0, atol=0)
        assert network()(batch).dtype == torch.float32
