"""Sparse 3D convolution over a kernel map in plain torch: gather the neighbours of a block of outputs, multiply once, write the block.

Every output row is one product of its gathered neighbours, (rows, K c_in) @ (K c_in, c_out), absent neighbours being zero
("implicit GEMM"). Nothing is scattered: the gradient of the inputs gathers over the inverse map, that of the weights gathers
again and sums blocks in order. Results therefore repeat bit for bit and do not depend on the other samples of a batch beyond the
rounding of one product.

The other way, one gather, product and scatter for each offset over the pairs that exist, does less arithmetic where few neighbours
exist; fuller cells, as crystals are, favour this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from matminer_ed3d.sparse.voxels import KernelMap

__all__ = ["convolve"]

# Bytes of gathered neighbours in one block: within a core's second-level cache on a CPU; on a GPU enough rows to fill it.
CPU_BLOCK_BYTES = 1 << 20
GPU_BLOCK_BYTES = 1 << 29


def _gathered(feats: Float[Tensor, "n_in c"], neighbours: Int[Tensor, "n_out k"]) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of output rows and the features of their neighbours, (rows, k c)."""
    n_out, n_offsets = neighbours.shape
    padded = torch.cat([feats, feats.new_zeros(1, feats.shape[1])])  # row n_in: the absent neighbour
    block_bytes = CPU_BLOCK_BYTES if feats.device.type == "cpu" else GPU_BLOCK_BYTES
    n_rows = max(64, block_bytes // (n_offsets * feats.shape[1] * feats.element_size()))
    for start in range(0, n_out, n_rows):
        rows = slice(start, min(start + n_rows, n_out))
        yield rows, padded.index_select(0, neighbours[rows].reshape(-1)).view(rows.stop - start, -1)


def _convolve(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "k c_in c_out"], neighbours: Int[Tensor, "n_out k"]
) -> Float[Tensor, "n_out c_out"]:
    flat = weight.reshape(-1, weight.shape[2])
    out = feats.new_empty(len(neighbours), weight.shape[2])
    for rows, gathered in _gathered(feats, neighbours):
        torch.mm(gathered, flat, out=out[rows])
    return out


def _weight_gradient(
    feats: Float[Tensor, "n_in c_in"], grad: Float[Tensor, "n_out c_out"], neighbours: Int[Tensor, "n_out k"]
) -> Float[Tensor, "k c_in c_out"]:
    # blocks are summed in float32 at least: thousands of bfloat16 partial sums would lose the small ones
    dtype = torch.promote_types(feats.dtype, torch.float32)
    total = torch.zeros(neighbours.shape[1] * feats.shape[1], grad.shape[1], dtype=dtype, device=feats.device)
    for rows, gathered in _gathered(feats, neighbours):
        if feats.dtype == dtype:
            total.addmm_(gathered.t(), grad[rows])
        else:
            total += gathered.t() @ grad[rows]
    return total.view(neighbours.shape[1], feats.shape[1], grad.shape[1]).to(feats.dtype)


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, kmap: KernelMap) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.kmap = kmap
        return _convolve(feats, weight, kmap.neighbours)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feats, weight = ctx.saved_tensors
        wants_feats, wants_weight, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_feats = _convolve(grad, weight.transpose(1, 2), ctx.kmap.inverse) if wants_feats else None
        grad_weight = _weight_gradient(feats, grad, ctx.kmap.neighbours) if wants_weight else None
        return grad_feats, grad_weight, None


def convolve(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "n_offsets c_in c_out"], kmap: KernelMap
) -> Float[Tensor, "n_out c_out"]:
    """Return ``out[v] = sum_o feats[kmap.neighbours[v, o]] @ weight[o]``; differentiable once in `feats` and `weight`, all of one dtype."""
    return _SparseConv.apply(feats, weight, kmap)  # type: ignore[no-untyped-call]
