"""Sparse 3D convolution by MinkowskiEngine 0.5, the engine of published checkpoints: float32, on the device it was built for.

It makes its own kernel maps from coordinates. Output coordinates are always ours, given to it, so that strided layers have the same voxels;
a periodic cell comes with the images round its faces, and a transposed layer's output on images is added to the voxels that they are
images of. Rows go in and come out in the order of `Voxels`.

C. Choy, J. Gwak, S. Savarese, "4D Spatio-Temporal ConvNets: Minkowski Convolutional Neural Networks", CVPR (2019).
"""

from __future__ import annotations

import collections
import collections.abc
import os
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from matminer_ed3d.sparse.backends import Kernel
from matminer_ed3d.sparse.backends.halo import with_images
from matminer_ed3d.sparse.voxels import Voxels

__all__ = ["convolve", "from_minkowski", "to_minkowski"]


def to_minkowski(weight: Float[Tensor, "n_offsets c_in c_out"]) -> Float[Tensor, "n_offsets c_in c_out"]:
    """Return a weight of ours as the ``kernel`` of a ``MinkowskiConvolution``: the same shape, offsets with x fastest."""
    size = round(len(weight) ** (1 / 3))
    return weight.reshape(size, size, size, *weight.shape[1:]).transpose(0, 2).flatten(0, 2)


def from_minkowski(kernel: Float[Tensor, "..."]) -> Float[Tensor, "n_offsets c_in c_out"]:
    """Return the ``kernel`` of a ``MinkowskiConvolution`` as a weight of ours; that of size and stride 1, (c_in, c_out), gains an axis."""
    return to_minkowski(kernel if kernel.ndim == 3 else kernel[None])  # an exchange of two axes is its own inverse


@cache
def _engine() -> Any:
    """Import MinkowskiEngine, which asks ``collections`` for a name that Python 3.10 removed and sets a variable of OpenMP."""
    threads = os.environ.get("OMP_NUM_THREADS")
    collections.Sequence = collections.abc.Sequence  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import MinkowskiEngine
    finally:
        del collections.Sequence  # type: ignore[attr-defined]
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
    return MinkowskiEngine


@dataclass(frozen=True, eq=False)
class _Maps:
    """The coordinates of one kernel on one set of voxels, as MinkowskiEngine keeps them, and their rows there."""

    manager: Any
    fine_key: Any
    coarse_key: Any
    image_of: Int[Tensor, " n_fine_rows"]  # voxel of each row of the fine coordinates
    coarse_row: Int[Tensor, " n_coarse"]  # row of each coarse voxel
    shape: tuple[Any, Any]  # the kernel, and the way of computing it: an automatic choice on GPUs, of speed alone


def _maps(voxels: Voxels, kernel: Kernel) -> _Maps:
    key = ("minkowski", kernel.size, kernel.stride, kernel.dilation)
    if key not in voxels.of_backends:
        engine = _engine()
        on_gpu = voxels.coords.is_cuda
        manager = engine.CoordinateManager(
            D=3, coordinate_map_type=engine.CoordinateMapType.CUDA if on_gpu else engine.CoordinateMapType.CPU
        )
        coords, image_of = with_images(voxels, kernel)
        fine_key, fine_rows = _insert(manager, coords, 1, "fine")
        order = torch.empty_like(fine_rows)
        order[fine_rows] = torch.arange(len(fine_rows), device=order.device)
        coarse = voxels.strided(kernel.stride).coords * torch.tensor([1, *[kernel.stride] * 3], device=coords.device)
        coarse_key, coarse_row = _insert(manager, coarse, kernel.stride, "coarse")
        generator = engine.KernelGenerator(kernel_size=kernel.size, stride=kernel.stride, dilation=kernel.dilation, dimension=3)
        from MinkowskiEngineBackend._C import ConvolutionMode  # the package does not pass this name on

        shape = (generator, ConvolutionMode.DEFAULT)
        voxels.of_backends[key] = _Maps(manager, fine_key, coarse_key, image_of[order], coarse_row, shape)
    return voxels.of_backends[key]


def _insert(manager: Any, coords: Int[Tensor, "n 4"], stride: int, name: str) -> tuple[Any, Int[Tensor, " n"]]:
    """Give coordinates to a manager; return their key, and the row where each came to lie."""
    key, (_, row) = manager.insert_and_map(coords.int().contiguous(), [stride] * 3, string_id=name)
    return key, (row.long() if len(row) else torch.arange(len(coords), device=coords.device))  # no rows: it kept the order


def convolve(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "n_offsets c_in c_out"], voxels: Voxels, kernel: Kernel
) -> Float[Tensor, "n_out c_out"]:
    """Convolve as `matminer_ed3d.sparse.backends.convolve` does, by MinkowskiEngine.

    Raises
    ------
    ValueError
        If the features or the weight are not float32.
    """
    if feats.dtype != torch.float32 or weight.dtype != torch.float32:
        raise ValueError(
            f"backend 'minkowski' computes in float32 only, got {feats.dtype} and {weight.dtype}; leave autocast, or take backend='torch'"
        )
    engine, maps = _engine(), _maps(voxels, kernel)
    kernel_weight = to_minkowski(weight).contiguous()
    if not kernel.transposed:
        out = engine.MinkowskiConvolutionFunction.apply(
            feats.index_select(0, maps.image_of), kernel_weight, *maps.shape, maps.fine_key, maps.coarse_key, maps.manager
        )
        return out.index_select(0, maps.coarse_row)
    rows = torch.empty_like(maps.coarse_row)
    rows[maps.coarse_row] = torch.arange(len(rows), device=rows.device)
    out = engine.MinkowskiConvolutionTransposeFunction.apply(
        feats.index_select(0, rows), kernel_weight, *maps.shape, maps.coarse_key, maps.fine_key, maps.manager
    )
    return out.new_zeros(voxels.n_voxels, out.shape[1]).index_add(0, maps.image_of, out)
