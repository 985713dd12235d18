"""The default network: what the lattice and the Fourier coefficients show of the symmetry, and a convolutional look at the density.

Two branches meet in one head. The first has nothing to learn (:mod:`matminer_ed3d.networks.symmetry_features`); the second is a residual
convolution on the voxels that hold more than the mean density, with dilations in place of strides, so that it treats every
voxel as an origin alike. Both see a crystal, not a box: shifting a periodic sample by whole voxels changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matminer_ed3d.networks.batching import VoxelBatch
from matminer_ed3d.networks.blocks import Block, ConvNeXtBlock, RowBatchNorm, check_choice, pool_samples
from matminer_ed3d.networks.symmetry_features import N_SYMMETRY_FEATURES, symmetry_features
from matminer_ed3d.sparse.convolution import SparseConv3d
from matminer_ed3d.sparse.voxels import Voxels

__all__ = ["CrystalNet", "DilatedBlock"]

FEATURE_RANGE = 8.0  # standard deviations; rarer values are held there


class DilatedBlock(Block):
    """One convolution beside the identity, normalised before it [1]_.

    Parameters
    ----------
    width, dilation : int
        Channels; voxels between neighbouring offsets.

    References
    ----------
    .. [1] He et al., Identity mappings in deep residual networks, ECCV 2016.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = RowBatchNorm(width)
        self.conv = SparseConv3d(width, width, dilation=dilation)

    def forward(self, feats: Float[Tensor, "n c"], voxels: Voxels) -> Float[Tensor, "n c"]:
        """Return the new features."""
        return feats + self.conv(self.norm(feats).relu(), voxels)[0]


class CrystalNet(nn.Module):
    """Symmetry features and a periodic convolution, for samples of a reduced cell.

    Parameters
    ----------
    n_channels : int
        Standardized densities of each voxel; the first is the total.
    n_outputs : int
        Classes, or 1 for a regression.
    width : int
        Channels of the convolutions.
    dilations : sequence of int
        One residual block each; with kernels of 3, (1, 2) sees 9 voxels across.
    head_widths : sequence of int
        Hidden layers of the head.
    dropout : float
        In the head.
    block : {"residual", "convnext"}
        `DilatedBlock` or `ConvNeXtBlock`.
    drop_path : float
        Of `ConvNeXtBlock`.
    """

    def __init__(
        self,
        n_channels: int,
        n_outputs: int,
        width: int = 16,
        dilations: Sequence[int] = (1, 2),
        head_widths: Sequence[int] = (768, 384),
        dropout: float = 0.3,
        block: str = "residual",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = RowBatchNorm(N_SYMMETRY_FEATURES, affine=False)
        self.stem = SparseConv3d(n_channels, width)
        builders: dict[str, Callable[[int, int], Block]]
        builders = {"residual": DilatedBlock, "convnext": partial(ConvNeXtBlock, drop_path=drop_path)}
        if drop_path and block != "convnext":
            raise ValueError(f"`drop_path` is of the block 'convnext', got {drop_path} with {block!r}; leave it 0")
        build = builders[check_choice("block", block, builders)]
        self.blocks = nn.ModuleList(build(width, dilation) for dilation in dilations)
        self.pool_norm = RowBatchNorm(2 * width)
        sizes = [N_SYMMETRY_FEATURES + 2 * width, *head_widths]
        hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.GELU(), nn.Dropout(dropout))]
        self.head = nn.Sequential(*hidden, nn.Linear(sizes[-1], n_outputs))

    def constants(self, batch: VoxelBatch) -> Float[Tensor, "n_samples n_features"]:
        """What the network computes of a batch without any weight: training makes it once for each sample, not in every epoch."""
        return symmetry_features(batch)

    def forward(
        self, batch: VoxelBatch, constants: Float[Tensor, "n_samples n_features"] | None = None
    ) -> Float[Tensor, "n_samples n_outputs"]:
        """Return logits or values, one row for each sample."""
        symmetry = self.scale(self.constants(batch) if constants is None else constants).clamp(-FEATURE_RANGE, FEATURE_RANGE)
        kept = batch.feats[:, 0] >= 0  # at least the mean density; a standardized sample always has such voxels
        voxels = Voxels(batch.coords[kept], batch.grid_shapes)
        density = batch.feats[kept]
        feats, _ = self.stem(density.sign() * density.abs().log1p(), voxels)
        for block in self.blocks:
            feats = block(feats, voxels)
        pooled = pool_samples(feats, voxels, batch.n_samples, "mean_max")
        outputs: Tensor = self.head(torch.cat([symmetry, self.pool_norm(pooled)], 1))
        return outputs.float()
