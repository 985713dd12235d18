"""Samples to batches: the rows of all samples one after another, with the sample of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from matminer_ed3d.representations import PointCloud, Sample, SparseTensor
from matminer_ed3d.sparse.voxels import Voxels

__all__ = ["PointBatch", "VoxelBatch", "collate"]


@dataclass(frozen=True, eq=False)
class PointBatch:
    """Point clouds, one after another.

    Parameters
    ----------
    coords : (n_points, 3) float32
        Cartesian coordinates in Å.
    feats : (n_points, n_channels) float32
        Density at every point, e/Å³.
    batch_index : (n_points,) int64
        Sample of every point, ascending.
    lattices : (n_samples, 3, 3) float32
        Rows a, b, c of every cell in Å.
    n_samples : int
        Number of samples.
    """

    coords: Float32[Tensor, "n_points 3"]
    feats: Float[Tensor, "n_points n_channels"]
    batch_index: Int64[Tensor, " n_points"]
    lattices: Float32[Tensor, "n_samples 3 3"]
    n_samples: int

    def to(self, device: torch.device | str) -> PointBatch:
        """Return the batch on `device`."""
        coords, feats = self.coords.to(device), self.feats.to(device)
        return PointBatch(coords, feats, self.batch_index.to(device), self.lattices.to(device), self.n_samples)


@dataclass(frozen=True, eq=False)
class VoxelBatch:
    """Sparse tensors, one after another.

    Parameters
    ----------
    coords : (n_voxels, 4) int64
        Rows [sample, i, j, k]; samples ascending.
    feats : (n_voxels, n_channels) float32
        Density of every voxel, e/Å³.
    grid_shapes : (n_samples, 3) int64 or None
        Voxels along each lattice vector where neighbours wrap round; None in open space.
    voxel_bases : (n_samples, 3, 3) float32
        Rows: the step in Å from one voxel to the next along each axis.
    n_samples : int
        Number of samples.
    """

    coords: Int64[Tensor, "n_voxels 4"]
    feats: Float[Tensor, "n_voxels n_channels"]
    grid_shapes: Int64[Tensor, "n_samples 3"] | None
    voxel_bases: Float32[Tensor, "n_samples 3 3"]
    n_samples: int

    def to(self, device: torch.device | str) -> VoxelBatch:
        """Return the batch on `device`."""
        grid_shapes = None if self.grid_shapes is None else self.grid_shapes.to(device)
        return VoxelBatch(self.coords.to(device), self.feats.to(device), grid_shapes, self.voxel_bases.to(device), self.n_samples)

    def voxels(self) -> Voxels:
        """Return the occupied voxels, ready for convolutions; the rows of `feats` are theirs."""
        return Voxels(self.coords, self.grid_shapes)


def collate(samples: Sequence[Sample]) -> PointBatch | VoxelBatch:
    """Put samples of one kind into one batch.

    Parameters
    ----------
    samples : sequence of PointCloud or of SparseTensor
        At least one; all of one kind, with the same channels, and all periodic or all in open space.

    Returns
    -------
    PointBatch or VoxelBatch
        On the CPU, sharing no memory with `samples`.

    Raises
    ------
    ValueError
        If `samples` is empty or the samples do not belong together.
    TypeError
        If a sample is neither a PointCloud nor a SparseTensor.
    """
    if len(samples) == 0:
        raise ValueError("`samples` must hold at least one sample, got none")
    for sample in samples:
        if not isinstance(sample, PointCloud | SparseTensor):
            raise TypeError(f"`samples` must be PointCloud or SparseTensor, got {type(sample).__name__}; make them with make_sample")
    _check_alike("kind", [type(sample).__name__ for sample in samples])
    _check_alike("channels", [sample.channels for sample in samples])
    feats = torch.from_numpy(np.concatenate([sample.feats for sample in samples]))
    batch_index = torch.repeat_interleave(torch.tensor([sample.n_points for sample in samples]))
    if isinstance(samples[0], PointCloud):
        coords = torch.from_numpy(np.concatenate([sample.coords for sample in samples]))
        lattices = _stack([sample.lattice for sample in samples])  # type: ignore[misc]
        return PointBatch(coords, feats, batch_index, lattices, len(samples))
    voxels = [sample for sample in samples if isinstance(sample, SparseTensor)]
    _check_alike("boundary", ["open" if sample.grid_shape is None else "periodic" for sample in voxels])
    cells = torch.from_numpy(np.concatenate([sample.coords for sample in voxels])).long()
    shapes = [sample.grid_shape for sample in voxels if sample.grid_shape is not None]
    grid_shapes = torch.tensor(np.array(shapes, dtype=np.int64)) if shapes else None
    bases = _stack([sample.voxel_basis for sample in voxels])
    return VoxelBatch(torch.cat([batch_index[:, None], cells], 1), feats, grid_shapes, bases, len(samples))


def _check_alike(what: str, values: list[object]) -> None:
    for index, value in enumerate(values):
        if value != values[0]:
            raise ValueError(
                f"all samples of a batch must have the same {what}, got {values[0]} in sample 0 and {value} in sample {index}; "
                "make them with the same options"
            )


def _stack(matrices: list[np.ndarray]) -> Float32[Tensor, "n_samples 3 3"]:
    return torch.from_numpy(np.stack(matrices).astype(np.float32))
