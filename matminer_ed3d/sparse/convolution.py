"""Sparse 3D convolution over a kernel map, as a function and as a layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matminer_ed3d.sparse.backends import torch_gemm
from matminer_ed3d.sparse.voxels import KernelMap, Voxels, kernel_map

__all__ = ["SparseConv3d", "sparse_conv"]


def sparse_conv(
    feats: Float[Tensor, "n_in c_in"], weight: Float[Tensor, "n_offsets c_in c_out"], kmap: KernelMap
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

    Returns
    -------
    (n_out, c_out) float
        In the lower precision where autocast is on. Differentiable once, with respect to `feats` and `weight`.

    Raises
    ------
    ValueError
        If a shape does not fit the map.
    """
    expected = (kmap.n_in, kmap.neighbours.shape[1], feats.shape[1])
    if (len(feats), weight.shape[0], weight.shape[1]) != expected:
        raise ValueError(
            f"`feats` (n_in, c_in) and `weight` (n_offsets, c_in, c_out) must fit a kernel map of {kmap.n_in} input voxels and "
            f"{kmap.neighbours.shape[1]} offsets, got {tuple(feats.shape)} and {tuple(weight.shape)}"
        )
    device = feats.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        feats, weight = feats.to(dtype), weight.to(dtype)
    return torch_gemm.convolve(feats, weight, kmap)


class SparseConv3d(nn.Module):
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
    """

    def __init__(self, c_in: int, c_out: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.weight = nn.Parameter(torch.empty(kernel_size**3, c_in, c_out))
        self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        nn.init.normal_(self.weight, std=(2 / (kernel_size**3 * c_in)) ** 0.5)  # He et al. (2015), for ReLU, fan in

    def forward(self, feats: Float[Tensor, "n_in c_in"], voxels: Voxels) -> tuple[Float[Tensor, "n_out c_out"], Voxels]:
        """Return the features of the output voxels, and those voxels."""
        kmap, out_voxels = kernel_map(voxels, self.kernel_size, self.stride, self.dilation)
        out = sparse_conv(feats, self.weight, kmap)
        return (out if self.bias is None else out + self.bias.to(out.dtype)), out_voxels

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        _, c_in, c_out = self.weight.shape
        size = f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"
        return f"{c_in}, {c_out}, {size}, bias={self.bias is not None}"
