"""What networks on sparse voxels are built of: normalised convolutions, residual and ConvNeXt-like blocks, and what regularises them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from matminer_ed3d.sparse.convolution import SparseConv3d, checkpointed
from matminer_ed3d.sparse.pooling import global_max_pool, global_mean_pool
from matminer_ed3d.sparse.voxels import Voxels

__all__ = [
    "Block",
    "ConvNeXtBlock",
    "ConvNorm",
    "ResidualBlock",
    "POOLINGS",
    "StochasticDepth",
    "RowBatchNorm",
    "check_choice",
    "pool_samples",
    "set_checkpointing",
]

LAYER_SCALE = 0.1  # a block's first weight; ConvNeXt's 1e-6 is for 300 epochs, these networks are taught for a few
EXPANSION = 4
POOLINGS = ("max", "mean_max")


class RowBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all rows of a batch; a batch of one row, which has no variance, takes the running statistics."""

    def forward(self, input: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Return the normalised features."""
        if self.training and len(input) == 1:
            return functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class StochasticDepth(nn.Module):
    """Leave the branch of a residual block out for a random part of the samples while training [1]_.

    Parameters
    ----------
    probability : float
        That a sample goes without the branch, below 1. The others are scaled up, so that the mean stays.

    References
    ----------
    .. [1] Huang et al., Deep networks with stochastic depth, ECCV 2016.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"`probability` of leaving a branch out must be at least 0 and below 1, got {probability}")
        self.probability = probability

    def forward(self, branch: Float[Tensor, "n c"], batch_index: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
        """Return the branch, with the rows of some samples set to zero."""
        if not self.training or self.probability == 0:
            return branch
        n_samples = int(batch_index.max()) + 1
        stays = torch.rand(n_samples, device=branch.device) >= self.probability
        return branch * (stays / (1 - self.probability)).to(branch.dtype).index_select(0, batch_index)[:, None]

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        return f"{self.probability}"


class ConvNorm(nn.Module):
    """A convolution and a batch normalisation."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = SparseConv3d(c_in, c_out, kernel_size, stride)
        self.norm = RowBatchNorm(c_out)

    def forward(self, feats: Float[Tensor, "n_in c_in"], voxels: Voxels) -> tuple[Float[Tensor, "n_out c_out"], Voxels]:
        """Return features and voxels, coarser if strided."""
        feats, voxels = self.conv(feats, voxels)
        return self.norm(feats), voxels


class Block(nn.Module):
    """What takes the features of voxels to new ones of the same voxels: ``forward(feats, voxels)``.

    Where `set_checkpointing` asks for it, only the inputs are kept for the gradient.
    """

    checkpointing = False

    def __call__(self, feats: Float[Tensor, "n c_in"], voxels: Voxels) -> Float[Tensor, "n c_out"]:
        """Return the new features."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpointed(self, feats, voxels)
        return super().__call__(feats, voxels)


class ResidualBlock(Block):
    """Two convolutions beside a shortcut, as in the paper's library.

    Parameters
    ----------
    c_in, c_out : int
        Channels in and out; where they differ, the shortcut is a product.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.first = ConvNorm(c_in, c_out)
        self.second = ConvNorm(c_out, c_out)
        self.shortcut = None if c_in == c_out else ConvNorm(c_in, c_out, kernel_size=1)

    def forward(self, feats: Float[Tensor, "n c_in"], voxels: Voxels) -> Float[Tensor, "n c_out"]:
        """Return the new features."""
        short = feats if self.shortcut is None else self.shortcut(feats, voxels)[0]
        feats, _ = self.first(feats, voxels)
        feats, _ = self.second(feats.relu(), voxels)
        return feats.relu() + short


class ConvNeXtBlock(Block):
    """A convolution over space, then a small network at every voxel, beside the identity [1]_.

    The convolution joins all channels where ConvNeXt's is of each channel by itself: that would do little more than read 27 neighbours,
    which takes as long.

    Parameters
    ----------
    width : int
        Channels.
    dilation : int
        Of the convolution.
    drop_path : float
        Probability of `StochasticDepth`.

    References
    ----------
    .. [1] Liu et al., A ConvNet for the 2020s, CVPR 2022.
    """

    def __init__(self, width: int, dilation: int = 1, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv = SparseConv3d(width, width, dilation=dilation)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, EXPANSION * width)
        self.project = nn.Linear(EXPANSION * width, width)
        self.scale = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, feats: Float[Tensor, "n c"], voxels: Voxels) -> Float[Tensor, "n c"]:
        """Return the new features."""
        branch, _ = self.conv(feats, voxels)
        branch = self.scale * self.project(functional.gelu(self.expand(self.norm(branch))))
        return feats + self.drop_path(branch, voxels.batch_index)


def set_checkpointing(network: nn.Module, on: bool) -> None:
    """Let every block of a network keep only its inputs for the gradient, and compute the rest again: less memory, more time."""
    for module in network.modules():
        if isinstance(module, Block):
            module.checkpointing = on


def check_choice(name: str, value: str, choices: Collection[str]) -> str:
    """Return `value`, or raise ValueError where it is none of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def pool_samples(feats: Float[Tensor, "n c"], voxels: Voxels, n_samples: int, pooling: str) -> Float[Tensor, "n_samples_ c_out"]:
    """Return one row for each sample.

    Parameters
    ----------
    feats : (n, c) float
        Of the voxels.
    voxels : Voxels
        Of `n_samples` samples.
    n_samples : int
        Their number.
    pooling : {"max", "mean_max"}
        The largest value of every channel, (n_samples, c), or its mean and largest value, (n_samples, 2 c).
    """
    largest = global_max_pool(feats, voxels.batch_index, n_samples)
    if pooling == "max":
        return largest
    return torch.cat([global_mean_pool(feats, voxels.batch_index, n_samples), largest], 1)
