"""Convolution of batches that are dense: every sample fills its periodic box, and all boxes have one shape.

These take torch's ``conv3d`` on grids padded by their own far faces. On a CPU it does the same arithmetic as the sparse path up to 1.3
times as fast, as it multiplies neighbours where they lie instead of gathering them; `fitting_shape` says where that is so.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from matminer_ed3d.sparse.voxels import Voxels

__all__ = ["convolve", "fitting_shape"]


def fitting_shape(feats: Float[Tensor, "n c"], voxels: Voxels, kernel_size: int, dilation: int) -> tuple[int, int, int, int] | None:
    """Return (n_samples, nx, ny, nz) where ``conv3d`` computes a convolution of stride 1 over these voxels, and is the faster way.

    It is on a CPU in the precisions that oneDNN has kernels for (float64, which it lacks, is slower that way). On a GPU its gradients
    would not repeat bit for bit.
    """
    if feats.device.type != "cpu" or feats.dtype not in {torch.float32, torch.bfloat16}:
        return None
    shape = voxels.full_shape
    if shape is None or kernel_size == 1 or kernel_size % 2 == 0 or dilation * (kernel_size // 2) > min(shape[1:]):
        return None
    return shape


def convolve(
    feats: Float[Tensor, "n c_in"],
    weight: Float[Tensor, "n_offsets c_in c_out"],
    shape: tuple[int, int, int, int],
    kernel_size: int,
    dilation: int = 1,
) -> Float[Tensor, "n c_out"]:
    """Convolve full periodic grids with a centred kernel of stride 1.

    Parameters
    ----------
    feats : (n, c_in) float
        Rows in the order of samples, x, y, z.
    weight : (n_offsets, c_in, c_out) float
        Offsets in the order of `kernel_offsets`, x slowest.
    shape : (n_samples, nx, ny, nz)
        `Voxels.full_shape`. No axis is shorter than the kernel reaches to one side.
    kernel_size, dilation : int
        An odd size; voxels between neighbouring offsets.

    Returns
    -------
    (n, c_out) float
    """
    reach = dilation * (kernel_size // 2)
    grid = feats.view(*shape, -1)
    for axis in (1, 2, 3):  # twice as fast as functional.pad(mode="circular"), and keeps channels last
        grid = torch.cat([grid.narrow(axis, grid.shape[axis] - reach, reach), grid, grid.narrow(axis, 0, reach)], axis)
    kernel = weight.view(kernel_size, kernel_size, kernel_size, *weight.shape[1:]).permute(4, 3, 0, 1, 2)
    out = functional.conv3d(grid.permute(0, 4, 1, 2, 3), kernel, dilation=dilation)
    return out.permute(0, 2, 3, 4, 1).reshape(len(feats), -1)
