"""A ConvNeXt-like network on sparse voxels: stages of ever coarser voxels, mean and maximum over a sample's voxels, a linear head.

After Liu et al., A ConvNet for the 2020s, CVPR 2022, with convolutions that wrap round a periodic cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matminer_ed3d.networks.batching import VoxelBatch
from matminer_ed3d.networks.blocks import POOLINGS, ConvNeXtBlock, check_choice, pool_samples
from matminer_ed3d.networks.features import compress_density
from matminer_ed3d.sparse.convolution import SparseConv3d
from matminer_ed3d.sparse.voxels import Voxels

__all__ = ["SparseConvNeXt"]


class _Stage(nn.Module):
    """Where voxels become coarser or channels more, a normalised step there; then blocks."""

    def __init__(self, c_in: int, c_out: int, stride: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        has_entry = c_in != c_out or stride > 1
        self.norm = nn.LayerNorm(c_in) if has_entry else None
        self.entry = SparseConv3d(c_in, c_out, kernel_size=stride, stride=stride) if has_entry else None
        self.blocks = nn.ModuleList(ConvNeXtBlock(c_out, drop_path=drop_path) for drop_path in drop_paths)

    def forward(self, feats: Tensor, voxels: Voxels) -> tuple[Tensor, Voxels]:
        if self.norm is not None and self.entry is not None:
            feats, voxels = self.entry(self.norm(feats), voxels)
        for block in self.blocks:
            feats = block(feats, voxels)
        return feats, voxels


class SparseConvNeXt(nn.Module):
    """ConvNeXt-like network on the occupied voxels of densities.

    With strides of 1 the answer does not depend on the origin (a shift by whole voxels) nor on how many cells a periodic sample holds; with
    others as :class:`~matminer_ed3d.networks.sparse_resnet.SparseResNet` says: choose ``multiple_of`` the product of all strides.

    Parameters
    ----------
    n_channels : int
        Densities of each voxel.
    n_outputs : int
        Classes, or 1 for a regression.
    widths, n_blocks : sequences of int
        Channels and blocks of each stage.
    strides : sequence of int
        How much coarser each stage is than the one before, the first than the voxels.
    drop_path : float
        Probability of stochastic depth in the last block; it grows linearly from 0 in the first.
    pooling : {"max", "mean_max"}
        Over a sample's voxels.
    """

    def __init__(
        self,
        n_channels: int,
        n_outputs: int,
        widths: Sequence[int],
        n_blocks: Sequence[int],
        strides: Sequence[int],
        drop_path: float = 0.1,
        pooling: str = "mean_max",
    ) -> None:
        super().__init__()
        self.pooling = check_choice("pooling", pooling, POOLINGS)
        self.stem = SparseConv3d(n_channels, widths[0])
        rates = iter(torch.linspace(0, drop_path, sum(n_blocks)).tolist())
        stages = zip([widths[0], *widths[:-1]], widths, strides, n_blocks, strict=True)
        self.stages = nn.ModuleList(_Stage(c_in, c_out, stride, [next(rates) for _ in range(n)]) for c_in, c_out, stride, n in stages)
        n_pooled = widths[-1] * (1 if pooling == "max" else 2)
        self.head = nn.Sequential(nn.LayerNorm(n_pooled), nn.Linear(n_pooled, n_outputs))

    def forward(self, batch: VoxelBatch) -> Float[Tensor, "n_samples n_outputs"]:
        """Return logits or values, one row for each sample."""
        feats, voxels = self.stem(compress_density(batch.feats), batch.voxels())
        for stage in self.stages:
            feats, voxels = stage(feats, voxels)
        outputs: Tensor = self.head(pool_samples(feats, voxels, batch.n_samples, self.pooling))
        return outputs.float()
