"""Sparse 3D convolution over a kernel map in plain torch: gather the neighbours of a block of outputs, multiply once, write the block.

Every output row is one product of its gathered neighbours, (rows, k c_in) @ (k c_in, c_out), absent neighbours being zero
("implicit GEMM"). The gradient of the inputs is the same over the inverse map, and its gathered blocks serve the gradient of the
weights too. On a CPU the threads share the rows of a large layer. From a coarse grid to a finer one, where most offsets of a voxel reach
nothing, products come first: each coarse row times all offsets, and every fine row sums those that are its own. Nothing is scattered, and
blocks are summed in order. Results therefore repeat bit for bit with the same number of threads, and do not depend on the other samples of
a batch beyond the rounding of one product.

Memory, beside inputs and outputs: a block for each thread of a CPU (4 MiB, or as much as the weight), and in the backward pass a gradient
of the weight for each; or, between grids, products of at most 256 MiB; and the map: 4 bytes times k for each output voxel, as much again
for its inverse. Kept for the gradient: the inputs, c_in numbers for each voxel.

The other way, one gather, product and scatter for each offset over the pairs that exist, does less arithmetic where few neighbours
exist; fuller cells, as crystals are, favour this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from matminer_ed3d.sparse.matrix_product import matrix_product
from matminer_ed3d.sparse.voxels import KernelMap

__all__ = ["convolve"]

# Bytes of gathered neighbours in one block: within the caches of a CPU; on a GPU enough rows to fill it.
CPU_BLOCK_BYTES = 1 << 22  # for each thread
GPU_BLOCK_BYTES = 1 << 29
PRODUCT_BYTES = 1 << 28
LEAST_ROWS = 64  # of a block, and of a thread's part
SHARED_PRODUCTS = 1 << 30  # multiplications of a layer from which on its rows are shared among threads

Part = TypeVar("Part")


def _by_parts(work: Callable[[slice], Part], weight: Float[Tensor, "k c_in c_out"], n_rows: int) -> list[Part]:
    """Return what `work` gives for the rows, in as many parts as there are threads on a CPU, each in a thread of its own.

    A core then multiplies what itself has gathered. Where torch shares single products among its threads, the gradient of the weights
    is shared by columns and a gather by rows, and half of each block changes cores twice.
    """
    n_threads = torch.get_num_threads() if weight.device.type == "cpu" else 1
    least_rows = max(LEAST_ROWS, *weight.shape[1:])  # what a thread gathers is then no smaller than its gradient of the weight
    if n_threads == 1 or n_rows < least_rows * n_threads or n_rows * weight.numel() < SHARED_PRODUCTS:
        return [work(slice(0, n_rows))]
    ends = [n_rows * i // n_threads for i in range(n_threads + 1)]
    inference = torch.is_inference_mode_enabled()

    def work_as_here(part: slice) -> Part:
        with torch.inference_mode(inference), torch.no_grad():  # a new thread knows neither
            return work(part)

    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work_as_here, map(slice, ends, ends[1:])))
    finally:
        torch.set_num_threads(n_threads)  # of MKL there is one number for all threads


def _padded(feats: Float[Tensor, "n_in c"]) -> Float[Tensor, "n_in_1 c"]:
    """Return the features and a row of zeros, the absent neighbour."""
    return torch.cat([feats, feats.new_zeros(1, feats.shape[1])])


def _gathered(
    padded: Float[Tensor, "n_in_1 c"], neighbours: Int[Tensor, "n_out k"], part: slice, n_columns: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of a part's rows and the features of their neighbours, (rows, k c); each block takes the place of the one before.

    Each is to be multiplied by a weight of (k c, n_columns), which is read once more for every block: none is much smaller than that.
    """
    n_offsets, n_channels = neighbours.shape[1], padded.shape[1]
    block_bytes = CPU_BLOCK_BYTES * torch.get_num_threads() if padded.device.type == "cpu" else GPU_BLOCK_BYTES
    n_rows = min(part.stop - part.start, max(LEAST_ROWS, n_columns, block_bytes // (n_offsets * n_channels * padded.element_size())))
    block = padded.new_empty(n_rows * n_offsets, n_channels)
    for start in range(part.start, part.stop, n_rows):
        rows = slice(start, min(start + n_rows, part.stop))
        index = neighbours[rows].reshape(-1)
        gathered = block[: len(index)]
        torch.index_select(padded, 0, index, out=gathered)
        yield rows, gathered.view(rows.stop - start, -1)


def _sum_of(products: Iterable[Tensor]) -> Tensor:
    """Sum blocks' products, if there are several in float32 at least: thousands of bfloat16 partial sums would lose the small ones."""
    total = None
    for product in products:
        total = product if total is None else total.to(torch.promote_types(product.dtype, torch.float32)).add_(product)
    assert total is not None, "a kernel map has at least one row"
    return total


def _sum_over_blocks(
    product_of: Callable[[slice, Tensor], Tensor], feats: Tensor, neighbours: Tensor, weight: Tensor, n_columns: int
) -> Tensor:
    """Sum over all blocks what `product_of` gives for one block's rows and gathered features."""
    padded = _padded(feats)

    def sum_of(part: slice) -> Tensor:
        return _sum_of(product_of(*block) for block in _gathered(padded, neighbours, part, n_columns))

    return _sum_of(_by_parts(sum_of, weight, len(neighbours)))


def _gather_then_multiply(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "k c_in c_out"], neighbours: Int[Tensor, "n_out k"]
) -> Float[Tensor, "n_out c_out"]:
    flat = weight.reshape(-1, weight.shape[2])
    padded = _padded(feats)
    out = feats.new_empty(len(neighbours), weight.shape[2])

    def multiply(part: slice) -> None:
        for rows, gathered in _gathered(padded, neighbours, part, weight.shape[2]):
            matrix_product(gathered, flat, out=out[rows])

    _by_parts(multiply, weight, len(neighbours))
    return out


def _multiply_then_gather(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "k c_in c_out"], kmap: KernelMap
) -> Float[Tensor, "n_out c_out"]:
    entries, starts = kmap.entries
    n_offsets = len(weight)
    n_columns = max(8, PRODUCT_BYTES // (len(feats) * n_offsets * feats.element_size()))
    parts = []
    for part in torch.split(weight.permute(1, 0, 2), n_columns, dim=2):
        products = matrix_product(feats, part.flatten(1)).view(len(feats) * n_offsets, -1)
        parts.append(functional.embedding_bag(entries, products, starts, mode="sum", include_last_offset=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _product(feats: Tensor, weight: Tensor, kmap: KernelMap) -> Tensor:
    # to a finer grid a table's rows are mostly empty
    if kmap.n_out > kmap.n_in:
        return _multiply_then_gather(feats, weight, kmap)
    return _gather_then_multiply(feats, weight, kmap.neighbours)


def _weight_gradient(feats: Tensor, weight: Tensor, grad: Tensor, kmap: KernelMap) -> Tensor:
    n_offsets, c_in, c_out = weight.shape

    def product_of(rows: slice, gathered: Tensor) -> Tensor:
        return matrix_product(grad[rows].t(), gathered)

    total = _sum_over_blocks(product_of, feats, kmap.neighbours, weight, c_out)
    return total.to(feats.dtype).view(c_out, n_offsets, c_in).permute(1, 2, 0)


def _both_gradients(feats: Tensor, weight: Tensor, grad: Tensor, kmap: KernelMap) -> tuple[Tensor, Tensor]:
    """Return the gradients of inputs and weights from one gather of the outputs' gradient over the inverse map."""
    n_offsets, c_in, c_out = weight.shape
    flat = weight.transpose(0, 1).reshape(c_in, -1).t()  # whole rows of c_out numbers are copied, no single ones
    grad_feats = torch.empty_like(feats)

    def product_of(rows: slice, gathered: Tensor) -> Tensor:
        matrix_product(gathered, flat, out=grad_feats[rows])
        return matrix_product(feats[rows].t(), gathered)

    total = _sum_over_blocks(product_of, grad, kmap.inverse, weight, c_in)
    return grad_feats, total.to(feats.dtype).view(c_in, n_offsets, c_out).transpose(0, 1)


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, kmap: KernelMap) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.kmap = kmap
        return _product(feats, weight, kmap)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feats, weight = ctx.saved_tensors
        kmap: KernelMap = ctx.kmap
        wants_feats, wants_weight, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        if wants_feats and wants_weight and kmap.n_in <= kmap.n_out:
            return *_both_gradients(feats, weight, grad, kmap), None
        grad_feats = _product(grad, weight.transpose(1, 2), kmap.transposed) if wants_feats else None
        grad_weight = _weight_gradient(feats, weight, grad, kmap) if wants_weight else None
        return grad_feats, grad_weight, None


def convolve(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "n_offsets c_in c_out"], kmap: KernelMap
) -> Float[Tensor, "n_out c_out"]:
    """Return ``out[v] = sum_o feats[kmap.neighbours[v, o]] @ weight[o]``; differentiable once in `feats` and `weight`, all of one dtype."""
    return _SparseConv.apply(feats, weight, kmap)  # type: ignore[no-untyped-call]
