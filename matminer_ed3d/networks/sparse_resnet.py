"""A residual convolutional network on sparse voxels: stages of ever coarser voxels, the maximum over a sample's voxels, a linear head.

As Kim et al., npj Comput. Mater. 10 (2024), use it on densities; there in open space, here also in periodic cells.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from matminer_ed3d.networks.batching import VoxelBatch
from matminer_ed3d.networks.blocks import ConvNorm, ResidualBlock
from matminer_ed3d.networks.features import compress_density
from matminer_ed3d.sparse.pooling import global_max_pool
from matminer_ed3d.sparse.voxels import Voxels

__all__ = ["SparseResNet"]


class _Stage(nn.Module):
    """A convolution, strided or not, then residual blocks; the blocks widen a strided stage, as in the paper's library."""

    def __init__(self, c_in: int, c_out: int, stride: int, n_blocks: int) -> None:
        super().__init__()
        c_mid = c_in if stride > 1 and n_blocks > 0 else c_out
        self.entry = ConvNorm(c_in, c_mid, stride=stride)
        self.blocks = nn.ModuleList(ResidualBlock(c_mid if i == 0 else c_out, c_out) for i in range(n_blocks))

    def forward(self, feats: Tensor, voxels: Voxels) -> tuple[Tensor, Voxels]:
        feats, voxels = self.entry(feats, voxels)
        feats = feats.relu()
        for block in self.blocks:
            feats = block(feats, voxels)
        return feats, voxels


class SparseResNet(nn.Module):
    """Residual network on the occupied voxels of densities.

    With strides of 1 the answer does not depend on the origin (a shift by whole voxels) nor on how many cells a periodic sample
    holds. A stride keeps that only for shifts by, and cells of, whole coarse voxels: choose ``multiple_of`` the product of all strides.

    Parameters
    ----------
    n_channels : int
        Densities of each voxel.
    n_outputs : int
        Classes, or 1 for a regression.
    widths : sequence of int
        Channels of each stage.
    n_blocks : sequence of int
        Residual blocks of each stage.
    strides : sequence of int
        Stride of each stage's first convolution.
    compress : bool
        Whether densities go through `compress_density`; False takes them raw, in e/Å³.
    """

    def __init__(
        self,
        n_channels: int,
        n_outputs: int,
        widths: Sequence[int],
        n_blocks: Sequence[int],
        strides: Sequence[int],
        compress: bool = True,
    ) -> None:
        super().__init__()
        self.compress = compress
        stages = zip([n_channels, *widths[:-1]], widths, strides, n_blocks, strict=True)
        self.stages = nn.ModuleList(_Stage(*stage) for stage in stages)
        self.head = nn.Linear(widths[-1], n_outputs)

    def forward(self, batch: VoxelBatch) -> Float[Tensor, "n_samples n_outputs"]:
        """Return logits or values, one row for each sample."""
        voxels = batch.voxels()
        feats = compress_density(batch.feats) if self.compress else batch.feats
        for stage in self.stages:
            feats, voxels = stage(feats, voxels)
        outputs: Tensor = self.head(global_max_pool(feats, voxels.batch_index, batch.n_samples))
        return outputs.float()
