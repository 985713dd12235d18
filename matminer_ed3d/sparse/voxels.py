"""Occupied voxels of a batch, and the kernel maps that say which of them a convolution joins.

A kernel map is a table: for every output voxel and every kernel offset, the row of the input voxel found there. Voxels are
looked up in a table of all cells of the batch's boxes, one integer per cell, so a map costs one gather. In a crystal the box is the
cell and neighbours wrap round its faces; open space is a box with an empty margin wider than the kernel reaches, so that a wrapped
neighbour is never occupied, and both take the same way. The lines of the table along z go on beyond the box, by the images of its other
end, so that what a kernel reaches along z stands side by side and is read at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

__all__ = ["KernelMap", "Voxels", "kernel_map", "kernel_offsets"]

# Above this many cells per voxel (and this many in all) the table of all cells would cost more than a binary search.
MAX_CELLS_PER_VOXEL = 64
MAX_SPARE_CELLS = 1 << 20


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Which input voxel each kernel offset of each output voxel reaches.

    Parameters
    ----------
    neighbours : (n_out, n_offsets) int32
        Row of the input voxel at ``stride * output + dilation * offset``; `n_in` where there is none.
    n_in : int
        Number of input voxels.
    is_symmetric : bool
        True if inputs and outputs are the same voxels and the offsets come in pairs o, -o: the map is then its own inverse
        with the offsets reversed.
    """

    neighbours: Int[Tensor, "n_out n_offsets"]
    n_in: int
    is_symmetric: bool

    @property
    def n_out(self) -> int:
        """Number of output voxels."""
        return self.neighbours.shape[0]

    @cached_property
    def inverse(self) -> Int[Tensor, "n_in n_offsets"]:
        """For every input voxel and offset, the row of the output that reads it there; `n_out` where none does.

        An offset joins an input to at most one output, also where several offsets wrap onto one voxel: adding a constant is
        one to one in a periodic box, and so is multiplying by the stride the indices below box / stride.
        """
        if self.is_symmetric:
            return self.neighbours.flip(1)
        rows = torch.arange(self.n_out, dtype=torch.int32, device=self.neighbours.device)
        inverse = rows.new_full((self.n_in + 1, self.neighbours.shape[1]), self.n_out)
        inverse.scatter_(0, self.neighbours.long(), rows[:, None].expand_as(self.neighbours))
        return inverse[: self.n_in]

    @cached_property
    def transposed(self) -> KernelMap:
        """The same map read backwards, from its outputs to its inputs: that of the transposed convolution."""
        back = KernelMap(self.inverse, self.n_out, self.is_symmetric)
        vars(back)["inverse"] = self.neighbours  # known already
        return back

    @cached_property
    def entries(self) -> tuple[Int[Tensor, " n_entries"], Int[Tensor, " n_out_plus_1"]]:
        """The entries that hold a voxel, row after row, as ``n_offsets * input + offset``, and where each row of the table begins."""
        n_offsets = self.neighbours.shape[1]
        is_present = self.neighbours < self.n_in
        starts = is_present.sum(1).cumsum(0)
        offsets = torch.arange(n_offsets, device=self.neighbours.device)
        return (self.neighbours.long() * n_offsets + offsets)[is_present], functional.pad(starts, (1, 0))


class Voxels:
    """The occupied voxels of a batch of samples, in the order given, with the maps already made from them.

    Parameters
    ----------
    coords : (n_voxels, 4) int64
        Rows [sample, i, j, k], unique. Periodic: ``0 <= i < nx`` and so on.
    grid_shapes : (n_samples, 3) int64 or None
        Voxels along each axis where neighbours wrap round; None in open space.

    Raises
    ------
    ValueError
        On a wrong shape, no voxels, a voxel outside its box, or one that occurs twice.
    """

    def __init__(self, coords: Int[Tensor, "n_voxels 4"], grid_shapes: Int[Tensor, "n_samples 3"] | None) -> None:
        if coords.ndim != 2 or coords.shape[1] != 4 or len(coords) == 0:
            raise ValueError(f"`coords` must be (n_voxels, 4) rows [sample, i, j, k] with at least one, got shape {tuple(coords.shape)}")
        coords = coords.long()
        if grid_shapes is not None:
            grid_shapes = grid_shapes.long()
            cells = coords[:, 1:]
            if int(coords[:, 0].max()) >= len(grid_shapes) or bool(
                ((cells < 0) | (cells >= grid_shapes.index_select(0, coords[:, 0]))).any()
            ):
                raise ValueError("`coords` of periodic voxels must lie in [0, grid_shape) of their sample; take them modulo grid_shape")
        self.coords = coords
        self.grid_shapes = grid_shapes
        self._strided: dict[int, Voxels] = {}
        self._maps: dict[tuple[int, int, int], KernelMap] = {}
        self._tables: dict[tuple[int, int], _CellTable] = {}
        self.of_backends: dict[Any, Any] = {}  # what engines with maps of their own made from these voxels; theirs alone

    @property
    def n_voxels(self) -> int:
        """Number of occupied voxels in the batch."""
        return len(self.coords)

    @property
    def batch_index(self) -> Int[Tensor, " n_voxels"]:
        """Sample of every voxel."""
        return self.coords[:, 0]

    @cached_property
    def full_shape(self) -> tuple[int, int, int, int] | None:
        """(n_samples, nx, ny, nz) if all boxes have one shape and are full, rows in the order of sample, x, y, z; else None."""
        if self.grid_shapes is None or bool((self.grid_shapes != self.grid_shapes[0]).any()):
            return None
        nx, ny, nz = self.grid_shapes[0].tolist()
        if len(self.grid_shapes) * nx * ny * nz != self.n_voxels:
            return None
        cell = _Boxes.around(self.coords, self.grid_shapes, 0).cell(self.coords)
        is_in_order = torch.equal(cell, torch.arange(self.n_voxels, device=cell.device))
        return (len(self.grid_shapes), nx, ny, nz) if is_in_order else None

    def strided(self, stride: int) -> Voxels:
        """Return the occupied voxels of a grid coarser by `stride`: floor(coords / stride), each once, in order of sample, i, j, k.

        A periodic box of n voxels becomes ceil(n / stride); where the stride does not divide n, the last voxel is thinner than the others.
        """
        if stride == 1:
            return self
        if stride not in self._strided:
            coords = torch.cat([self.coords[:, :1], self.coords[:, 1:].div(stride, rounding_mode="floor")], 1)
            shapes = None if self.grid_shapes is None else (self.grid_shapes + stride - 1).div(stride, rounding_mode="floor")
            boxes = _Boxes.around(coords, shapes, 0)
            kept, row = torch.unique(boxes.cell(coords), return_inverse=True)
            coarse = coords.new_empty((len(kept), 4))
            coarse[row] = coords  # rows that fall together are equal, so their order does not matter
            self._strided[stride] = Voxels(coarse, shapes)
        return self._strided[stride]

    def table(self, below: int, above: int) -> _CellTable:
        """Return the table of the boxes' cells, with lines along z that go on by so many cells at either end."""
        if (below, above) not in self._tables:
            # Open space: a neighbour that wraps must fall into an empty margin, from either side.
            is_periodic = self.grid_shapes is not None
            boxes = _Boxes.around(self.coords, self.grid_shapes, 0 if is_periodic else max(below, above))
            self._tables[below, above] = _CellTable(self.coords, boxes, below, above, is_periodic)
        return self._tables[below, above]

    def __repr__(self) -> str:
        space = "open" if self.grid_shapes is None else "periodic"
        return f"Voxels(n_voxels={self.n_voxels}, {space})"


@dataclass(frozen=True, eq=False)
class _Boxes:
    """The box of every sample: its first voxel, its counts, and the number of cells in the boxes before it."""

    origin: Int[Tensor, "n_samples 3"]
    shape: Int[Tensor, "n_samples 3"]
    first_cell: Int[Tensor, " n_samples"]

    @classmethod
    def around(cls, coords: Int[Tensor, "n_voxels 4"], grid_shapes: Int[Tensor, "n_samples 3"] | None, margin: int) -> _Boxes:
        if grid_shapes is None:
            sample, cells = coords[:, 0], coords[:, 1:]
            low = cells.new_zeros((int(sample.max()) + 1, 3))
            index = sample[:, None].expand_as(cells)
            high = low.scatter_reduce(0, index, cells, "amax", include_self=False)
            low = low.scatter_reduce(0, index, cells, "amin", include_self=False)
            shape = high - low + 1 + margin
        else:
            low, shape = torch.zeros_like(grid_shapes), grid_shapes
        return cls.of_shape(low, shape)

    @classmethod
    def of_shape(cls, origin: Int[Tensor, "n_samples 3"], shape: Int[Tensor, "n_samples 3"]) -> _Boxes:
        n_cells = shape.prod(1)
        return cls(origin, shape, n_cells.cumsum(0) - n_cells)

    @property
    def n_cells(self) -> int:
        return int(self.first_cell[-1] + self.shape[-1].prod())

    def cell(self, coords: Int[Tensor, "n_voxels 4"]) -> Int[Tensor, " n_voxels"]:
        """Return the number of every voxel's cell among the cells of all boxes."""
        sample = coords[:, 0]
        i, j, k = (coords[:, 1:] - self.origin.index_select(0, sample)).unbind(1)
        ny, nz, first_cell = (n.index_select(0, sample) for n in (*self.shape[:, 1:].unbind(1), self.first_cell))
        return ((i * ny + j) * nz + k) + first_cell


class _CellTable:
    """The row of the voxel in a cell; `n_voxels` where the cell is empty."""

    def __init__(self, coords: Int[Tensor, "n_voxels 4"], boxes: _Boxes, below: int, above: int, is_periodic: bool) -> None:
        self.boxes, self.below = boxes, below
        self.lines = _Boxes.of_shape(boxes.origin, boxes.shape + boxes.shape.new_tensor([0, 0, below + above]))
        self.n_voxels = len(coords)
        rows = torch.arange(self.n_voxels, dtype=torch.int32, device=coords.device)
        self.is_dense = self.lines.n_cells <= MAX_CELLS_PER_VOXEL * self.n_voxels + MAX_SPARE_CELLS
        if self.is_dense:
            self.rows = rows.new_full((self.lines.n_cells,), self.n_voxels)
            cell = self.lines.cell(coords) + below
            self.rows[cell] = rows
            is_unique = bool((self.rows.index_select(0, cell) == rows).all())
            if is_periodic:
                self._continue_lines(coords, cell, rows, below, above)
        else:
            self.cells, order = boxes.cell(coords).sort()
            self.rows = order.int()
            is_unique = bool((self.cells[1:] != self.cells[:-1]).all())
        if not is_unique:
            raise ValueError("`coords` must hold every voxel once, got some twice; merge them first")

    def _continue_lines(self, coords: Tensor, cell: Tensor, rows: Tensor, below: int, above: int) -> None:
        """Write the images of the voxels along z, as many as lie within the lines."""
        nz = self.boxes.shape[:, 2].index_select(0, coords[:, 0])
        k = coords[:, 3] - self.boxes.origin[:, 2].index_select(0, coords[:, 0])
        shortest = int(self.boxes.shape[:, 2].min())
        for image in range(-below // shortest, 1 - (-above // shortest)):
            if image:
                place = k + image * nz
                inside = ((place >= -below) & (place < nz + above)).nonzero()[:, 0]
                self.rows[cell[inside] + image * nz[inside]] = rows[inside]

    def neighbours(self, base: Int[Tensor, "3 n_out"], sample: Int[Tensor, " n_out"], steps: Int[Tensor, " k"]) -> Int[Tensor, "n_out k3"]:
        """Return the rows of the voxels at ``base + (i, j, k)`` for all steps i, j, k, z fastest; `base` counts from the box's origin."""
        # The coordinates of a neighbour are independent, so each is wrapped once per axis, not per offset; the voxels are the long axis,
        # which stays the contiguous one until the end; and numbers have 32 bits where these suffice.
        table = self.lines if self.is_dense else self.boxes
        dtype = torch.int32 if table.n_cells < torch.iinfo(torch.int32).max else torch.int64
        x, y, z = base.to(dtype)
        of_box = torch.cat([self.boxes.shape, table.shape[:, 2:], table.first_cell[:, None]], 1).to(dtype)
        nx, ny, nz, length, first_cell = of_box.index_select(0, sample).t()
        steps = steps.to(base.device, dtype)
        i, j = ((along + steps[:, None]).remainder(n) for along, n in ((x, nx), (y, ny)))
        line = ((i * ny)[:, None] + j).mul_(length).add_(first_cell)
        if self.is_dense:
            start = line.add_(z + (self.below + steps[0])).view(-1, len(sample)).t().reshape(-1)
            spread = int(steps[-1] - steps[0])
            windows = self.rows.as_strided((len(self.rows) - spread, len(steps)), (1, int(steps[1] - steps[0]) if spread else 1))
            return windows.index_select(0, start).view(len(sample), -1)
        cell = line[:, :, None] + (z + steps[:, None]).remainder(nz)
        return self._searched(cell.view(-1)).view(-1, len(sample)).t().contiguous()

    def _searched(self, cell: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        place = torch.searchsorted(self.cells, cell).clamp_(max=self.n_voxels - 1)
        return torch.where(self.cells[place] == cell, self.rows[place], self.n_voxels)


def kernel_offsets(kernel_size: int) -> Int[Tensor, "n_offsets 3"]:
    """Return the offsets of a cubic kernel in voxels, x slowest and z fastest: the order of a weight's first axis.

    Odd kernels are centred, from -(k // 2) to k // 2; even ones run from 0 to k - 1.
    """
    steps = _steps(kernel_size)
    return torch.cartesian_prod(steps, steps, steps)


def _steps(kernel_size: int) -> Int[Tensor, " kernel_size"]:
    return torch.arange(kernel_size) - (kernel_size // 2 if kernel_size % 2 else 0)


def kernel_map(voxels: Voxels, kernel_size: int, stride: int = 1, dilation: int = 1) -> tuple[KernelMap, Voxels]:
    """Find the input voxel that every offset of every output voxel reaches; made once for each set of voxels.

    Parameters
    ----------
    voxels : Voxels
        The inputs.
    kernel_size : int
        Offsets along each axis; see `kernel_offsets`.
    stride : int
        The outputs are ``voxels.strided(stride)``.
    dilation : int
        Voxels between neighbouring offsets.

    Returns
    -------
    KernelMap, Voxels
        The map and the output voxels. Output v reads the inputs at ``stride * v + dilation * offset``, modulo the box when periodic;
        a box smaller than the kernel's reach is wrapped as often as needed.

    Raises
    ------
    ValueError
        If `kernel_size`, `stride` or `dilation` is smaller than 1.
    """
    for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
        if value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value}")
    out = voxels.strided(stride)
    key = (kernel_size, stride, dilation)
    if key not in voxels._maps:
        steps = dilation * _steps(kernel_size)
        # Strided outputs begin up to stride - 1 below the first voxel of open space.
        table = voxels.table(below=-int(steps[0]) + stride - 1, above=int(steps[-1]))
        base = (stride * out.coords[:, 1:] - table.boxes.origin.index_select(0, out.batch_index)).t()
        is_symmetric = stride == 1 and kernel_size % 2 == 1
        voxels._maps[key] = KernelMap(table.neighbours(base, out.batch_index, steps), voxels.n_voxels, is_symmetric)
    return voxels._maps[key], out
