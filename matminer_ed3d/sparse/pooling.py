"""One row for each sample, or for each voxel of a coarser grid, from the rows of points or voxels."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from matminer_ed3d.sparse.voxels import KernelMap, Voxels, kernel_map

__all__ = ["global_max_pool", "global_mean_pool", "max_of_samples", "samples_together", "sparse_max_pool", "sparse_mean_pool"]


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
    return max_of_samples(*samples_together(feats, batch_index, n_samples))


def samples_together(feats: Float[Tensor, "n c"], batch_index: Int[Tensor, " n"], n_samples: int) -> tuple[Float[Tensor, "n c"], list[int]]:
    """Return rows in which those of a sample stand together, samples ascending as they do in a batch, and how many each has.

    Raises
    ------
    ValueError
        If `batch_index` does not name each of 0 to n_samples - 1.
    """
    sizes = torch.bincount(batch_index, minlength=n_samples).tolist()
    if len(sizes) != n_samples or 0 in sizes:
        raise ValueError(f"`batch_index` must name each of the {n_samples} samples at least once and no other, got counts {sizes[:20]}")
    if not bool((batch_index[1:] >= batch_index[:-1]).all()):
        feats = feats.index_select(0, batch_index.argsort(stable=True))
    return feats, sizes


def max_of_samples(feats: Float[Tensor, "n c"], sizes: list[int]) -> Float[Tensor, "n_samples_ c"]:
    """Return what `global_max_pool` does, of rows that stand together."""
    return _GlobalMax.apply(feats, sizes)  # type: ignore[no-untyped-call]


class _GlobalMax(torch.autograd.Function):
    # sample by sample, whose rows stay in the caches of a CPU: 2 to 4 times as fast there as scatter_reduce and its gradient

    @staticmethod
    def forward(ctx: Any, feats: Tensor, sizes: list[int]) -> Tensor:
        out = torch.stack([sample.amax(0) for sample in torch.split(feats, sizes)])
        ctx.save_for_backward(feats, out)
        ctx.sizes = sizes
        return out.to(torch.promote_types(feats.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        feats, out = ctx.saved_tensors
        total = torch.empty_like(feats)
        for sample, target, largest, share in zip(torch.split(feats, ctx.sizes), torch.split(total, ctx.sizes), out, grad, strict=True):
            is_max = sample == largest
            torch.mul(is_max, (share / is_max.sum(0)).to(feats.dtype), out=target)
        return total, None


def global_mean_pool(feats: Float[Tensor, "n c"], batch_index: Int[Tensor, " n"], n_samples: int) -> Float[Tensor, "n_samples_ c"]:
    """Return the mean of every channel in every sample; arguments as `global_max_pool`.

    Sums are in float32 at least; on a GPU they repeat bit for bit only under ``torch.use_deterministic_algorithms(True)``.
    """
    feats = feats.to(torch.promote_types(feats.dtype, torch.float32))
    counts = torch.bincount(batch_index, minlength=n_samples).to(feats.dtype)
    return feats.new_zeros(n_samples, feats.shape[1]).index_add(0, batch_index, feats) / counts[:, None]


def sparse_max_pool(
    feats: Float[Tensor, "n_in c"], voxels: Voxels, kernel_size: int = 2, stride: int = 2
) -> tuple[Float[Tensor, "n_out c"], Voxels]:
    """Return the largest value of every channel among the occupied voxels that a kernel reaches.

    Parameters
    ----------
    feats : (n_in, c) float
        One row for each voxel.
    voxels : Voxels
        Periodic or open, as in a convolution.
    kernel_size, stride : int
        As in `kernel_map`.

    Returns
    -------
    (n_out, c) float, Voxels
        In float32 at least, with the voxels of the rows; 0 where the kernel reaches no occupied voxel, as only one smaller than
        the stride can. Where values tie, each gets its share of the gradient.
    """
    kmap, out_voxels = kernel_map(voxels, kernel_size, stride)
    feats = feats.to(torch.promote_types(feats.dtype, torch.float32))
    return _LocalMax.apply(feats, kmap), out_voxels  # type: ignore[no-untyped-call]


def sparse_mean_pool(
    feats: Float[Tensor, "n_in c"], voxels: Voxels, kernel_size: int = 2, stride: int = 2
) -> tuple[Float[Tensor, "n_out c"], Voxels]:
    """Return the mean of every channel over the occupied voxels that a kernel reaches; arguments and result as `sparse_max_pool`.

    A voxel that a kernel larger than its box reaches several times counts as often.
    """
    kmap, out_voxels = kernel_map(voxels, kernel_size, stride)
    feats = feats.to(torch.promote_types(feats.dtype, torch.float32))
    counts = (kmap.neighbours < kmap.n_in).sum(1, keepdim=True).clamp(min=1)
    return _LocalSum.apply(feats, kmap) / counts, out_voxels  # type: ignore[no-untyped-call]


def _with_row(feats: Tensor, value: float) -> Tensor:
    """Add the row that absent neighbours are read from."""
    return torch.cat([feats, feats.new_full((1, feats.shape[1]), value)])


def _gathered_sum(feats: Tensor, table: Int[Tensor, "n_out k"]) -> Tensor:
    padded = _with_row(feats, 0.0)
    total = feats.new_zeros(len(table), feats.shape[1])
    for column in table.unbind(1):
        total += padded.index_select(0, column)
    return total


class _LocalSum(torch.autograd.Function):
    # a table and its inverse: nothing is scattered, so that gradients repeat bit for bit

    @staticmethod
    def forward(ctx: Any, feats: Tensor, kmap: KernelMap) -> Tensor:
        ctx.kmap = kmap
        return _gathered_sum(feats, kmap.neighbours)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gathered_sum(grad, ctx.kmap.inverse), None


class _LocalMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: Tensor, kmap: KernelMap) -> Tensor:
        padded = _with_row(feats, -torch.inf)
        largest = padded.index_select(0, kmap.neighbours[:, 0])
        for column in kmap.neighbours[:, 1:].unbind(1):
            torch.maximum(largest, padded.index_select(0, column), out=largest)
        ctx.save_for_backward(feats, largest)
        ctx.kmap = kmap
        return torch.where(kmap.neighbours.amin(1, keepdim=True) < kmap.n_in, largest, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        feats, largest = ctx.saved_tensors
        padded = _with_row(feats, torch.inf)  # never the largest
        n_ties = torch.zeros_like(largest)
        for column in ctx.kmap.neighbours.unbind(1):
            n_ties += padded.index_select(0, column) == largest
        share, largest = _with_row(grad / n_ties.clamp_(min=1), 0.0), _with_row(largest, torch.inf)
        total = torch.zeros_like(feats)
        for column in ctx.kmap.inverse.unbind(1):
            total += share.index_select(0, column) * (feats == largest.index_select(0, column))
        return total, None
