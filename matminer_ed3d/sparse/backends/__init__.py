"""Engines of the sparse convolution: the same voxels, weights and results, whatever computes them.

Two kinds stand behind one door, `convolve`. ``torch`` and ``triton`` read the tables of a `KernelMap` of ours; ``minkowski`` and
``spconv`` make their own maps from the coordinates, and a periodic cell reaches them with the images of the voxels round its faces. The
weight is the same in all, (n_offsets, c_in, c_out) with x slowest, so that a checkpoint moves between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from matminer_ed3d.sparse import dense
from matminer_ed3d.sparse.backends import torch_gemm
from matminer_ed3d.sparse.voxels import KernelMap, Voxels, kernel_map

__all__ = ["BACKENDS", "Kernel", "check_backend", "convolve", "convolve_map", "resolve_backend"]

BACKENDS = ("torch", "triton", "minkowski", "spconv")

# What a backend imports, and how to have it.
PACKAGES = {
    "triton": ("triton", 'pip install "matminer_ed3d[triton]"'),
    "minkowski": ("MinkowskiEngine", "build it from its source distribution as docs/guide/backends.md says"),
    "spconv": ("spconv", "pip install spconv-cu126 (or the build of your CUDA version)"),
}


@dataclass(frozen=True)
class Kernel:
    """The shape of a convolution's kernel.

    Parameters
    ----------
    size : int
        Offsets along each axis; odd kernels are centred, see `kernel_offsets`.
    stride : int
        Step of the coarse grid in voxels of the fine one.
    dilation : int
        Voxels between neighbouring offsets.
    transposed : bool
        False: from the fine voxels to the coarse ones. True: back, by the same map read the other way.
    """

    size: int
    stride: int = 1
    dilation: int = 1
    transposed: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "stride", "dilation"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` of a kernel must be an integer of at least 1, got {getattr(self, name)}")

    @property
    def n_offsets(self) -> int:
        """Offsets of the cube."""
        return self.size**3


def check_backend(name: str) -> str:
    """Return `name`, or raise ValueError where it is neither "auto" nor one of `BACKENDS`."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"`backend` must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return name


def resolve_backend(name: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> str:
    """Return the backend that computes for `name`.

    Parameters
    ----------
    name : str
        "auto" or one of `BACKENDS`. "auto" is ``triton`` on CUDA where it is installed and `dtype` has at most 32 bits, else ``torch``.
    device : torch.device or str
        Where the features lie.
    dtype : torch.dtype
        Of the features.

    Returns
    -------
    str
        One of `BACKENDS`, importable.

    Raises
    ------
    ValueError
        If there is no backend `name`.
    ImportError
        If its package is not installed; the message says what to install.
    """
    if check_backend(name) == "auto":
        is_for_triton = torch.device(device).type == "cuda" and dtype != torch.float64 and find_spec("triton") is not None
        return "triton" if is_for_triton else "torch"
    if name in PACKAGES:
        package, how = PACKAGES[name]
        if find_spec(package) is None:
            raise ImportError(f"backend {name!r} needs the package {package}, which is not installed: {how}", name=package)
    return name


def convolve(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "n_offsets c_in c_out"], voxels: Voxels, kernel: Kernel, backend: str = "auto"
) -> tuple[Float[Tensor, "n_out c_out"], Voxels]:
    """Convolve the features of sparse voxels: ``out[v] = sum_o feats[stride v + dilation o] @ weight[o]``.

    Parameters
    ----------
    feats : (n_in, c_in) float
        One row for each voxel of `voxels`; of ``voxels.strided(kernel.stride)`` if the kernel is transposed.
    weight : (n_offsets, c_in, c_out) float
        Offsets in the order of `kernel_offsets`, x slowest.
    voxels : Voxels
        The fine voxels: of the input, or of the output if the kernel is transposed.
    kernel : Kernel
        Size, stride, dilation, direction.
    backend : str
        See `resolve_backend`.

    Returns
    -------
    (n_out, c_out) float, Voxels
        In the lower precision where autocast is on, with the voxels of the rows.

    Raises
    ------
    ValueError
        If a shape does not fit, or the backend cannot compute on this device or in this precision.
    ImportError
        If the backend is not installed.
    """
    coarse = voxels.strided(kernel.stride)
    source, out_voxels = (coarse, voxels) if kernel.transposed else (voxels, coarse)
    name = resolve_backend(backend, feats.device, _autocast(feats).dtype)
    if name == "torch" and kernel.stride == 1 and not kernel.transposed:
        shape = dense.fitting_shape(_autocast(feats), voxels, kernel.size, kernel.dilation)
        if shape is not None:
            _check_shapes(feats, weight, source.n_voxels, kernel.n_offsets)
            return dense.convolve(_autocast(feats), _autocast(weight), shape, kernel.size, kernel.dilation), out_voxels
    if name in {"torch", "triton"}:
        kmap, _ = kernel_map(voxels, kernel.size, kernel.stride, kernel.dilation)
        return convolve_map(feats, weight, kmap.transposed if kernel.transposed else kmap, name), out_voxels
    _check_shapes(feats, weight, source.n_voxels, kernel.n_offsets)
    return _module(name).convolve(_autocast(feats), _autocast(weight), voxels, kernel), out_voxels


def convolve_map(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "n_offsets c_in c_out"], kmap: KernelMap, backend: str = "auto"
) -> Float[Tensor, "n_out c_out"]:
    """Convolve over a kernel map: `convolve` for the backends that read one, ``torch`` and ``triton``."""
    _check_shapes(feats, weight, kmap.n_in, kmap.neighbours.shape[1])
    feats, weight = _autocast(feats), _autocast(weight)
    name = resolve_backend(backend, feats.device, feats.dtype)
    if name == "torch":
        return torch_gemm.convolve(feats, weight, kmap)
    if name != "triton":
        raise ValueError(f"backend {name!r} makes its own kernel maps; call `convolve` with the voxels, or take 'torch' or 'triton'")
    return _module(name).convolve(feats, weight, kmap)


def _module(name: str) -> Any:
    """Import an optional backend: only now is its package loaded."""
    return import_module(f"matminer_ed3d.sparse.backends.{'triton_gemm' if name == 'triton' else name}")


def _autocast(tensor: Tensor) -> Tensor:
    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor


def _check_shapes(feats: Tensor, weight: Tensor, n_in: int, n_offsets: int) -> None:
    if feats.dtype != weight.dtype and not torch.is_autocast_enabled(feats.device.type):
        raise ValueError(f"`feats` and `weight` must have one dtype, got {feats.dtype} and {weight.dtype}; convert one, or use autocast")
    if (len(feats), weight.shape[0], weight.shape[1]) != (n_in, n_offsets, feats.shape[1]):
        raise ValueError(
            f"`feats` (n_in, c_in) and `weight` (n_offsets, c_in, c_out) must fit {n_in} input voxels and {n_offsets} offsets, "
            f"got {tuple(feats.shape)} and {tuple(weight.shape)}"
        )
