"""Sparse 3D convolution over a kernel map by Triton kernels, for GPUs: the implicit GEMM of `torch_gemm` without its gathered copies.

A program makes one tile of the output. It walks over the offsets and blocks of input channels, gathers the rows of the neighbours
straight into fast memory and multiplies; absent neighbours are masked loads. The gradient of the inputs is the same kernel over the
inverse map. The gradient of the weights sums fixed ranges of rows into buffers of their own, which are then added in order. There are no
atomics, and whichever tiles the autotuner chooses, the blocks of a sum are the same and come in the same order.

Products are of bfloat16, float16 or float32, sums in float32. float32 is multiplied as three TF32 products, which keep its precision, or as
one where ``torch.set_float32_matmul_precision`` allows it. Without a GPU the kernels run, slowly, in Triton's interpreter:
``TRITON_INTERPRET=1`` before the first import.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from matminer_ed3d.sparse.voxels import KernelMap

__all__ = ["convolve"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MAX_TILE = 128  # channels in a tile
# Programs of the weight gradient: a few for each multiprocessor of the largest GPUs. Its buffers stay below 16 MiB, or one weight.
WEIGHT_PROGRAMS = 1024
MIN_ROWS_PER_SPLIT = 512


# no_type_check: Triton compiles the source of these functions, so no run-time checker may wrap them.
@triton.jit
@no_type_check
def _product(
    feats,
    weight,
    table,
    out,
    n_in,
    n_out,
    table_row,
    table_offset,
    n_offsets: tl.constexpr,
    c_in: tl.constexpr,
    c_out: tl.constexpr,
    PRECISION: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Make out[rows, cols] = sum over offsets k of feats[table[rows, k]] @ weight[k][:, cols]."""
    n_col_tiles: tl.constexpr = (c_out + COLS - 1) // COLS
    n_blocks: tl.constexpr = (c_in + DEPTH - 1) // DEPTH
    tile = tl.program_id(0)  # programs that gather the same rows are neighbours and share the cache
    rows = (tile // n_col_tiles) * ROWS + tl.arange(0, ROWS)
    cols = (tile % n_col_tiles) * COLS + tl.arange(0, COLS)
    row_is_real, col_is_real = rows < n_out, cols < c_out
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for step in range(n_offsets * n_blocks):
        k = step // n_blocks
        channels = (step % n_blocks) * DEPTH + tl.arange(0, DEPTH)
        channel_is_real = channels < c_in
        source = tl.load(table + rows.to(tl.int64) * table_row + k * table_offset, mask=row_is_real, other=n_in)
        gathered = tl.load(
            feats + source.to(tl.int64)[:, None] * c_in + channels[None, :],
            mask=(source < n_in)[:, None] & channel_is_real[None, :],
            other=0.0,
        )
        factor = tl.load(
            weight + (k * c_in + channels)[:, None] * c_out + cols[None, :], mask=channel_is_real[:, None] & col_is_real[None, :], other=0.0
        )
        total = tl.dot(gathered, factor, total, input_precision=PRECISION)
    tl.store(
        out + rows.to(tl.int64)[:, None] * c_out + cols[None, :],
        total.to(out.dtype.element_ty),
        mask=row_is_real[:, None] & col_is_real[None, :],
    )


@triton.jit
@no_type_check
def _weight_product(
    feats,
    grad,
    table,
    partial,
    n_in,
    n_out,
    rows_per_split,
    table_row,
    table_offset,
    n_offsets: tl.constexpr,
    c_in: tl.constexpr,
    c_out: tl.constexpr,
    PRECISION: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Make partial[split, k][channels, cols] = sum over the rows of a split of feats[table[row, k]]^T grad[row]."""
    n_col_tiles: tl.constexpr = (c_out + COLS - 1) // COLS
    k, split, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channels = (tile // n_col_tiles) * CHANNELS + tl.arange(0, CHANNELS)
    cols = (tile % n_col_tiles) * COLS + tl.arange(0, COLS)
    channel_is_real, col_is_real = channels < c_in, cols < c_out
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, n_out)
    total = tl.zeros((CHANNELS, COLS), dtype=tl.float32)
    for start in range(first, last, DEPTH):
        rows = start + tl.arange(0, DEPTH)
        row_is_real = rows < last
        source = tl.load(table + rows.to(tl.int64) * table_row + k * table_offset, mask=row_is_real, other=n_in)
        gathered = tl.load(
            feats + source.to(tl.int64)[:, None] * c_in + channels[None, :],
            mask=(source < n_in)[:, None] & channel_is_real[None, :],
            other=0.0,
        )
        factor = tl.load(
            grad + rows.to(tl.int64)[:, None] * c_out + cols[None, :], mask=row_is_real[:, None] & col_is_real[None, :], other=0.0
        )
        total = tl.dot(tl.trans(gathered), factor, total, input_precision=PRECISION)
    row = (split * n_offsets + k).to(tl.int64) * c_in + channels
    tl.store(partial + row[:, None] * c_out + cols[None, :], total, mask=channel_is_real[:, None] & col_is_real[None, :])


IS_INTERPRETED = not isinstance(_product, triton.runtime.JITFunction)
TILES = [
    triton.Config({"ROWS": rows}, num_warps=warps, num_stages=stages)
    for rows, warps, stages in ((128, 4, 3), (128, 8, 3), (256, 8, 3), (64, 4, 4))
]
WARPS = [triton.Config({}, num_warps=warps, num_stages=stages) for warps, stages in ((4, 3), (8, 3), (4, 4))]
_SHAPE = ["n_offsets", "c_in", "c_out", "PRECISION"]  # a change of these, or of a dtype, is tuned anew
# the interpreter has no clock to tune by
_product_tuned = triton.autotune(TILES[-1:] if IS_INTERPRETED else TILES, key=_SHAPE)(_product)
_weight_product_tuned = triton.autotune(WARPS[:1] if IS_INTERPRETED else WARPS, key=_SHAPE)(_weight_product)


def _tile(n_channels: int) -> int:
    return min(MAX_TILE, max(16, triton.next_power_of_2(n_channels)))


def _depth(n: int, dtype: torch.dtype) -> int:
    """Return how much of a sum's range is in fast memory at once: 128 bytes of each row, the width of a cache line."""
    return min(128 // dtype.itemsize, max(16, triton.next_power_of_2(n)))


def _precision() -> str:
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _convolve(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "k c_in c_out"], neighbours: Int[Tensor, "n_out k"]
) -> Float[Tensor, "n_out c_out"]:
    n_offsets, c_in, c_out = weight.shape
    n_out, cols = len(neighbours), _tile(c_out)
    out = feats.new_empty(n_out, c_out)

    def grid(config: dict[str, Any]) -> tuple[int]:
        return (triton.cdiv(n_out, config["ROWS"]) * triton.cdiv(c_out, cols),)

    with torch.cuda.device(feats.get_device()):
        _product_tuned[grid](
            feats.contiguous(),
            weight.contiguous(),
            neighbours,
            out,
            len(feats),
            n_out,
            *neighbours.stride(),
            n_offsets=n_offsets,
            c_in=c_in,
            c_out=c_out,
            PRECISION=_precision(),
            COLS=cols,
            DEPTH=_depth(c_in, feats.dtype),
        )
    return out


def _weight_gradient(
    feats: Float[Tensor, "n_in c_in"], grad: Float[Tensor, "n_out c_out"], neighbours: Int[Tensor, "n_out k"]
) -> Float[Tensor, "k c_in c_out"]:
    (n_out, n_offsets), c_in, c_out = neighbours.shape, feats.shape[1], grad.shape[1]
    depth = _depth(n_out, feats.dtype)
    n_tiles = triton.cdiv(c_in, _tile(c_in)) * triton.cdiv(c_out, _tile(c_out))
    # by the shapes alone, not by the device, so that sums repeat
    n_splits = max(1, min(WEIGHT_PROGRAMS // (n_offsets * n_tiles), n_out // MIN_ROWS_PER_SPLIT))
    rows_per_split = triton.cdiv(triton.cdiv(n_out, n_splits), depth) * depth
    n_splits = triton.cdiv(n_out, rows_per_split)
    partial = torch.empty(n_splits, n_offsets, c_in, c_out, dtype=torch.float32, device=feats.device)
    with torch.cuda.device(feats.get_device()):
        _weight_product_tuned[(n_offsets, n_splits, n_tiles)](
            feats.contiguous(),
            grad.contiguous(),
            neighbours,
            partial,
            len(feats),
            n_out,
            rows_per_split,
            *neighbours.stride(),
            n_offsets=n_offsets,
            c_in=c_in,
            c_out=c_out,
            PRECISION=_precision(),
            CHANNELS=_tile(c_in),
            COLS=_tile(c_out),
            DEPTH=depth,
        )
    return partial.sum(0).to(feats.dtype)


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
        grad_feats = _convolve(grad, weight.transpose(1, 2), ctx.kmap.inverse) if wants_feats else None
        grad_weight = _weight_gradient(feats, grad, ctx.kmap.neighbours) if wants_weight else None
        return grad_feats, grad_weight, None


def convolve(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "n_offsets c_in c_out"], kmap: KernelMap
) -> Float[Tensor, "n_out c_out"]:
    """Return ``out[v] = sum_o feats[kmap.neighbours[v, o]] @ weight[o]``; differentiable once in `feats` and `weight`.

    Raises
    ------
    ValueError
        If the features do not lie on a GPU (and Triton does not interpret), the two are not of one dtype of at most 32 bits, or they are
        bfloat16 in the interpreter.
    """
    if feats.device.type != "cuda" and not IS_INTERPRETED:
        raise ValueError(f"backend 'triton' needs a CUDA device, the features lie on {feats.device}; take backend='torch'")
    if feats.dtype not in DTYPES or weight.dtype != feats.dtype:
        raise ValueError(
            "backend 'triton' takes features and weights of one dtype, float32, bfloat16 or float16, "
            f"got {feats.dtype} and {weight.dtype}; take backend='torch' for float64"
        )
    if IS_INTERPRETED and feats.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter multiplies bfloat16 as if it were integers; take float16 or float32 there")
    return _SparseConv.apply(feats, weight, kmap)  # type: ignore[no-untyped-call]
