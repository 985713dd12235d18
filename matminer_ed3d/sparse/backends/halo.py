"""Periodic cells for engines that know none: the voxels near a face once more beyond the opposite one."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from matminer_ed3d.sparse.backends import Kernel
from matminer_ed3d.sparse.voxels import Voxels, kernel_offsets

__all__ = ["with_images"]


def with_images(voxels: Voxels, kernel: Kernel) -> tuple[Int[Tensor, "n 4"], Int[Tensor, " n"]]:
    """Return the voxels and those of their periodic images that a kernel reaches from inside the cell.

    Parameters
    ----------
    voxels : Voxels
        The fine voxels of the kernel.
    kernel : Kernel
        Its size and dilation say how far it reaches.

    Returns
    -------
    coords : (n, 4) int64
        The rows of ``voxels.coords`` first, then the images; in open space there are none. An image is outside its box, in
        ``[-low, n + high)`` along each axis, and no two are at one place; a box smaller than the reach is repeated as often as needed.
    rows : (n,) int64
        The voxel that each is an image of.
    """
    rows = torch.arange(voxels.n_voxels, device=voxels.coords.device)
    if voxels.grid_shapes is None:
        return voxels.coords, rows
    sample, cells = voxels.coords[:, :1], voxels.coords[:, 1:]
    shape = voxels.grid_shapes[voxels.batch_index]
    reach = kernel.dilation * kernel_offsets(kernel.size)
    low, high = -int(reach.min()), int(reach.max())
    n_cells = -(-max(low, high) // int(voxels.grid_shapes.min()))  # cells that the kernel reaches into on either side
    shifts = torch.arange(-n_cells, n_cells + 1, device=cells.device)
    all_coords, all_rows = [voxels.coords], [rows]
    for shift in torch.cartesian_prod(shifts, shifts, shifts):
        image = cells + shift * shape
        kept = ((image >= -low) & (image < shape + high)).all(1) & bool(shift.any())
        all_coords.append(torch.cat([sample[kept], image[kept]], 1))
        all_rows.append(rows[kept])
    return torch.cat(all_coords), torch.cat(all_rows)
