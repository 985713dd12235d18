"""Batches: every row keeps its sample, its place and its value; what does not belong together is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from matminer_ed3d.networks.batching import PointBatch, VoxelBatch, collate
from matminer_ed3d.representations import PointCloud, SparseTensor
from matminer_ed3d.sparse.voxels import Voxels


def make_points(n_points: int, seed: int = 0, channels: tuple[str, ...] = ("total",)) -> PointCloud:
    rng = np.random.default_rng(seed)
    coords = rng.random((n_points, 3), dtype=np.float32)
    return PointCloud(coords, rng.random((n_points, len(channels)), dtype=np.float32), channels, (seed + 1) * np.eye(3))


def make_voxels(shape: tuple[int, int, int], periodic: bool = True, seed: int = 0) -> SparseTensor:
    rng = np.random.default_rng(seed)
    coords = np.argwhere(rng.random(shape) < 0.7).astype(np.int32)
    feats = rng.random((len(coords), 1), dtype=np.float32)
    return SparseTensor(coords, feats, ("total",), 0.25 * np.eye(3), shape if periodic else None)


def test_points_come_back_sample_by_sample() -> None:
    clouds = [make_points(5, 0), make_points(1, 1), make_points(9, 2)]
    batch = collate(clouds)
    assert isinstance(batch, PointBatch)
    assert batch.n_samples == 3
    for index, cloud in enumerate(clouds):
        rows = batch.batch_index == index
        np.testing.assert_array_equal(batch.coords[rows].numpy(), cloud.coords)
        np.testing.assert_array_equal(batch.feats[rows].numpy(), cloud.feats)
        np.testing.assert_allclose(batch.lattices[index].numpy(), cloud.lattice)


@pytest.mark.parametrize("periodic", [True, False])
def test_voxels_come_back_sample_by_sample(periodic: bool) -> None:
    tensors = [make_voxels((4, 5, 6), periodic, 0), make_voxels((2, 3, 2), periodic, 1)]
    batch = collate(tensors)
    assert isinstance(batch, VoxelBatch)
    assert batch.coords.dtype == torch.int64
    for index, tensor in enumerate(tensors):
        rows = batch.coords[:, 0] == index
        np.testing.assert_array_equal(batch.coords[rows, 1:].numpy(), tensor.coords)
        np.testing.assert_array_equal(batch.feats[rows].numpy(), tensor.feats)
        np.testing.assert_allclose(batch.voxel_bases[index].numpy(), tensor.voxel_basis)
    if periodic:
        assert batch.grid_shapes is not None
        assert batch.grid_shapes.tolist() == [[4, 5, 6], [2, 3, 2]]
    else:
        assert batch.grid_shapes is None
    voxels = batch.voxels()
    assert isinstance(voxels, Voxels)
    assert torch.equal(voxels.coords, batch.coords)


def test_a_batch_shares_no_memory_with_one_sample() -> None:
    cloud = make_points(4)
    batch = collate([cloud])
    batch.feats.zero_()
    assert cloud.feats.any()


def test_moving_a_batch_keeps_its_kind_and_values() -> None:
    batch = collate([make_voxels((3, 3, 3), periodic=False)])
    moved = batch.to("meta")
    assert type(moved) is VoxelBatch
    assert moved.coords.device.type == "meta"
    assert moved.grid_shapes is None
    assert moved.n_samples == 1
    assert torch.equal(batch.to("cpu").coords, batch.coords)


def test_batches_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        collate([make_points(3)]).n_samples = 2


def test_samples_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        collate([])
    with pytest.raises(ValueError, match=r"same kind.*PointCloud in sample 0 and SparseTensor in sample 1"):
        collate([make_points(3), make_voxels((2, 2, 2))])
    with pytest.raises(ValueError, match="same channels"):
        collate([make_points(3), make_points(3, channels=("total", "diff"))])
    with pytest.raises(ValueError, match="same boundary"):
        collate([make_voxels((2, 2, 2)), make_voxels((2, 2, 2), periodic=False)])
