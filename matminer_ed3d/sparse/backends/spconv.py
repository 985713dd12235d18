"""Sparse 3D convolution by spconv 2.3, on CUDA only: its CPU code has no backward, and its results vary between runs with two threads.

It makes its own pair lists from coordinates in a box. A periodic cell comes with the images round its faces. A submanifold convolution
(stride 1, odd size) gives a row for every image too, and those of the voxels are kept; any other gives a row wherever the kernel
reaches a voxel, and those of our coarse voxels are picked out, zero where the kernel reaches none. Rows go in and come out in the order of
`Voxels`.

Y. Yan, Y. Mao, B. Li, "SECOND: Sparsely Embedded Convolutional Detection", Sensors 18, 3337 (2018).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from matminer_ed3d.sparse.backends import Kernel
from matminer_ed3d.sparse.backends.halo import with_images
from matminer_ed3d.sparse.voxels import Voxels

__all__ = ["convolve", "from_spconv", "to_spconv"]

DTYPES = (torch.float32, torch.float16)


def to_spconv(weight: Float[Tensor, "n_offsets c_in c_out"]) -> Float[Tensor, "c_out size size size c_in"]:
    """Return a weight of ours as the ``weight`` of an spconv layer, whose coordinates are in the order of ours."""
    size = round(len(weight) ** (1 / 3))
    return weight.reshape(size, size, size, *weight.shape[1:]).movedim(4, 0)


def from_spconv(weight: Float[Tensor, "c_out size size size c_in"]) -> Float[Tensor, "n_offsets c_in c_out"]:
    """Return the ``weight`` of an spconv layer (2.x, its default layout) as a weight of ours."""
    return weight.movedim(0, 4).flatten(0, 2)


@dataclass(frozen=True, eq=False)
class _Box:
    """The voxels of one kernel and their images, in a box without negative coordinates."""

    indices: Int[Tensor, "n 4"]
    image_of: Int[Tensor, " n"]
    shape: list[int]
    n_samples: int
    out_cell: Int[Tensor, " n_out"]  # cell of each output voxel in the grid of outputs, of `out_shape`
    out_shape: list[int]
    pairs: dict[str, Any] = field(default_factory=dict)  # filled by spconv


def _box(voxels: Voxels, kernel: Kernel) -> _Box:
    key = ("spconv", kernel.size, kernel.stride, kernel.dilation)
    if key not in voxels.of_backends:
        coords, image_of = with_images(voxels, kernel)
        low, high = coords[:, 1:].amin(0), coords[:, 1:].amax(0)
        low = low.div(kernel.stride, rounding_mode="floor") * kernel.stride  # the coarse grid keeps its phase
        origin = torch.cat([low.new_zeros(1), low])
        reach = kernel.dilation * (kernel.size - 1)
        shape = (high - low + 1 + kernel.stride + reach).tolist()
        # of spconv's formula for a padding of dilation (size // 2)
        padding = _padding(kernel)
        out_shape = [(n + 2 * padding - reach - 1) // kernel.stride + 1 for n in shape]
        out_coords = voxels.strided(kernel.stride).coords - origin.div(kernel.stride, rounding_mode="floor")
        indices, n_samples = (coords - origin).int().contiguous(), int(coords[:, 0].max()) + 1
        voxels.of_backends[key] = _Box(indices, image_of, shape, n_samples, _cell(out_coords, out_shape), out_shape)
    return voxels.of_backends[key]


def _padding(kernel: Kernel) -> int:
    return kernel.dilation * (kernel.size // 2) if kernel.size % 2 else 0


def _cell(coords: Int[Tensor, "n 4"], shape: list[int]) -> Int[Tensor, " n"]:
    sample, i, j, k = coords.long().unbind(1)
    return ((sample * shape[0] + i) * shape[1] + j) * shape[2] + k


def convolve(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "n_offsets c_in c_out"], voxels: Voxels, kernel: Kernel
) -> Float[Tensor, "n_out c_out"]:
    """Convolve as `matminer_ed3d.sparse.backends.convolve` does, by spconv.

    Raises
    ------
    ValueError
        If the features are not on a GPU, not of one dtype with the weight, float32 or float16, or the kernel is transposed.
    """
    if feats.device.type != "cuda":
        raise ValueError(
            f"backend 'spconv' needs a CUDA device, the features lie on {feats.device}: on a CPU spconv has no backward and its results "
            "vary; take backend='torch'"
        )
    if kernel.transposed:
        raise ValueError("backend 'spconv' has no transposed convolution here; take backend='auto' for that layer")
    if feats.dtype not in DTYPES or weight.dtype != feats.dtype:
        raise ValueError(
            f"backend 'spconv' takes features and weights of one dtype, float32 or float16, got {feats.dtype} and {weight.dtype}"
        )
    return _convolve(feats, weight, voxels, kernel)


def _convolve(feats: Tensor, weight: Tensor, voxels: Voxels, kernel: Kernel) -> Tensor:
    if kernel.size == kernel.stride == 1:
        return feats @ weight[0]  # spconv reads such a weight in another layout
    import spconv.pytorch as engine

    box = _box(voxels, kernel)
    keeps_voxels = kernel.stride == 1 and kernel.size % 2 == 1
    tensor = engine.SparseConvTensor(feats.index_select(0, box.image_of), box.indices, box.shape, box.n_samples, indice_dict=box.pairs)
    shape = (weight.shape[1], weight.shape[2], kernel.size)
    with torch.device("meta"):  # the layer brings no weight of its own
        if keeps_voxels:
            layer = engine.SubMConv3d(*shape, dilation=kernel.dilation, bias=False, indice_key="kernel")
        else:
            layer = engine.SparseConv3d(*shape, stride=kernel.stride, padding=_padding(kernel), dilation=kernel.dilation, bias=False)
    out = functional_call(layer, {"weight": to_spconv(weight).contiguous()}, (tensor,))
    if keeps_voxels:
        return out.features[: voxels.n_voxels]
    cell, order = _cell(out.indices, box.out_shape).sort()
    place = torch.searchsorted(cell, box.out_cell).clamp_(max=len(cell) - 1)
    row = torch.where(cell[place] == box.out_cell, order[place], len(cell))
    return torch.cat([out.features, out.features.new_zeros(1, out.features.shape[1])]).index_select(0, row)
