"""One row for each sample from the rows of its points or voxels."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["global_max_pool", "global_mean_pool"]


def global_max_pool(feats: Float[Tensor, "n c"], batch_index: Int[Tensor, " n"], n_samples: int) -> Float[Tensor, "n_samples_ c"]:
    """Return the largest value of every channel in every sample.

    Parameters
    ----------
    feats : (n, c) float
        One row for each point or voxel, in any order.
    batch_index : (n,) int64
        Sample of every row; each of 0 to n_samples - 1 at least once.
    n_samples : int
        Number of samples.

    Returns
    -------
    (n_samples, c) float
        In float32 at least. Where values tie, each gets its share of the gradient, so a doubled cell gives the same gradients.
    """
    feats = feats.to(torch.promote_types(feats.dtype, torch.float32))
    return _GlobalMax.apply(feats, batch_index, n_samples)  # type: ignore[no-untyped-call]


class _GlobalMax(torch.autograd.Function):
    # the gradient of scatter_reduce gathers element by element, 2 to 4 times slower on a CPU than these whole rows

    @staticmethod
    def forward(ctx: Any, feats: Tensor, batch_index: Tensor, n_samples: int) -> Tensor:
        out = feats.new_empty(n_samples, feats.shape[1])
        out.scatter_reduce_(0, batch_index[:, None].expand_as(feats), feats, "amax", include_self=False)
        ctx.save_for_backward(feats, batch_index, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        feats, batch_index, out = ctx.saved_tensors
        is_max = (feats == out.index_select(0, batch_index)).to(feats.dtype)
        n_ties = torch.zeros_like(out).index_add(0, batch_index, is_max)
        return is_max.mul_((grad / n_ties).index_select(0, batch_index)), None, None


def global_mean_pool(feats: Float[Tensor, "n c"], batch_index: Int[Tensor, " n"], n_samples: int) -> Float[Tensor, "n_samples_ c"]:
    """Return the mean of every channel in every sample; arguments as `global_max_pool`.

    Sums are in float32 at least; on a GPU they repeat bit for bit only under ``torch.use_deterministic_algorithms(True)``.
    """
    feats = feats.to(torch.promote_types(feats.dtype, torch.float32))
    counts = torch.bincount(batch_index, minlength=n_samples).to(feats.dtype)
    return feats.new_zeros(n_samples, feats.shape[1]).index_add(0, batch_index, feats) / counts[:, None]
