"""Sparse 3D convolution over a kernel map, as a function and as layers."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from matminer_ed3d.sparse.backends import Kernel, check_backend, convolve, convolve_map
from matminer_ed3d.sparse.voxels import KernelMap, Voxels

__all__ = ["SparseConv3d", "SparseConvTranspose3d", "checkpointed", "set_backend", "sparse_conv"]


def sparse_conv(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "n_offsets c_in c_out"], kmap: KernelMap, backend: str = "auto"
) -> Float[Tensor, "n_out c_out"]:
    """Convolve the features of sparse voxels: ``out[v] = sum_o feats[stride v + dilation o] @ weight[o]``.

    Parameters
    ----------
    feats : (n_in, c_in) float
        One row for each input voxel of `kmap`.
    weight : (n_offsets, c_in, c_out) float
        Offsets in the order of `kernel_offsets`, x slowest. A weight of ``torch.nn.Conv3d`` is ``weight.permute(2, 3, 4, 1, 0)``
        flattened over its first three axes.
    kmap : KernelMap
        From `kernel_map`.
    backend : str
        "torch", "triton", or "auto": triton on CUDA where it is installed.

    Returns
    -------
    (n_out, c_out) float
        In the lower precision where autocast is on. Differentiable once, with respect to `feats` and `weight`.

    Raises
    ------
    ValueError
        If a shape does not fit the map.
    """
    return convolve_map(feats, weight, kmap, backend)


class _Convolution(nn.Module):
    """What convolution layers share: the weight, the bias and what computes."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, fan_in: float, bias: bool, backend: str) -> None:
        super().__init__()
        self.backend = check_backend(backend)
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(kernel_size**3, c_in, c_out))
        self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        nn.init.normal_(self.weight, std=(2 / fan_in) ** 0.5)  # He et al. (2015), for ReLU, fan in

    def _biased(self, out: Tensor) -> Tensor:
        return out if self.bias is None else out + self.bias.to(out.dtype)


class SparseConv3d(_Convolution):
    """A convolution layer on sparse voxels, periodic where the voxels are.

    Parameters
    ----------
    c_in, c_out : int
        Channels in and out.
    kernel_size : int
        Offsets along each axis; odd kernels are centred.
    stride : int
        Step of the output grid.
    dilation : int
        Voxels between neighbouring offsets.
    bias : bool
        Whether to add a learned constant to every output channel.
    backend : str
        What computes: "auto", or one of `matminer_ed3d.sparse.backends.BACKENDS`. The weight is the same for all.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(c_in, c_out, kernel_size, float(kernel_size**3 * c_in), bias, backend)
        self.stride, self.dilation = stride, dilation

    def forward(self, feats: Float[Tensor, "n_in c_in"], voxels: Voxels) -> tuple[Float[Tensor, "n_out c_out"], Voxels]:
        """Return the features of the output voxels, and those voxels."""
        out, out_voxels = convolve(feats, self.weight, voxels, Kernel(self.kernel_size, self.stride, self.dilation), self.backend)
        return self._biased(out), out_voxels

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        _, c_in, c_out = self.weight.shape
        size = f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"
        return f"{c_in}, {c_out}, {size}, bias={self.bias is not None}"


class SparseConvTranspose3d(_Convolution):
    """A layer back from coarse voxels to the finer ones that they were strided from: the adjoint of a strided convolution.

    Every fine voxel u sums ``feats[v] @ weight[o]`` over the coarse voxels v and offsets o with ``stride v + o = u``.

    Parameters
    ----------
    c_in, c_out : int
        Channels in and out.
    kernel_size : int
        Offsets along each axis, those of `SparseConv3d`; at least the stride, or some fine voxels get nothing.
    stride : int
        Voxels of the fine grid in one of the coarse grid.
    bias, backend
        As in `SparseConv3d`.
    """

    def __init__(self, c_in: int, c_out: int, kernel_size: int = 2, stride: int = 2, bias: bool = False, backend: str = "auto") -> None:
        super().__init__(c_in, c_out, kernel_size, max(1.0, kernel_size / stride) ** 3 * c_in, bias, backend)
        self.stride = stride

    def forward(self, feats: Float[Tensor, "n_in c_in"], voxels: Voxels, target: Voxels) -> tuple[Float[Tensor, "n_out c_out"], Voxels]:
        """Return the features of the voxels of `target`, and `target`; raise ValueError where `voxels` are not those of it strided."""
        coarse = target.strided(self.stride)
        if coarse is not voxels and not torch.equal(coarse.coords, voxels.coords):
            raise ValueError(
                f"`voxels` must be `target.strided({self.stride})`, got other voxels; give the target that they were made from"
            )
        out, _ = convolve(feats, self.weight, target, Kernel(self.kernel_size, self.stride, transposed=True), self.backend)
        return self._biased(out), target

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        _, c_in, c_out = self.weight.shape
        return f"{c_in}, {c_out}, kernel_size={self.kernel_size}, stride={self.stride}, bias={self.bias is not None}"


def set_backend(module: nn.Module, name: str) -> None:
    """Let every sparse convolution of a network be computed by `name`: "auto" or one of `matminer_ed3d.sparse.backends.BACKENDS`."""
    check_backend(name)
    for layer in module.modules():
        if isinstance(layer, _Convolution):
            layer.backend = name


def checkpointed(module: nn.Module, *inputs: Any) -> Any:
    """Call ``module(*inputs)`` and keep nothing of it for the gradient but its inputs; the rest is computed again: less memory, more time.

    Running statistics, as of batch normalisation, are gathered in the first pass only.
    """
    call = partial(nn.Module.__call__, module)  # a module may call this function when it is called
    return checkpoint(call, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _WithoutStatistics(module)))


class _WithoutStatistics:
    """While entered, as once for every backward pass, the batch normalisations of a module leave their running statistics alone."""

    def __init__(self, module: nn.Module) -> None:
        norms = (norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm))
        self.norms = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms if norm.num_batches_tracked is not None]
        self.counted: list[Tensor] = []

    def __enter__(self) -> None:
        self.counted = [counter.clone() for _, _, counter in self.norms]
        for norm, *_ in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for (norm, momentum, counter), before in zip(self.norms, self.counted, strict=True):
            norm.momentum = momentum
            counter.copy_(before)
