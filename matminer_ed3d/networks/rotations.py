"""The rotations that a lattice can have, as integer matrices with what each of them is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from functools import cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["Rotations", "lattice_rotations", "rotation_table"]


@dataclass(frozen=True, eq=False)
class Rotations:
    """Integer matrices that reduced lattices can have as rotations: h -> M h of indices; coordinates turn by the transpose."""

    matrices: Int64[Tensor, "n 3 3"]
    order: Int64[Tensor, " n"]
    axis_index: Int64[Tensor, "n 3"]
    """Primitive reciprocal-lattice vector along the axis."""
    axis: Int64[Tensor, "n 3"]
    """Primitive lattice vector along the axis."""
    inverse: Int64[Tensor, " n"]
    """Place of the inverse."""

    def to(self, device: torch.device) -> Rotations:
        """Return the table on `device`."""
        return Rotations(*(getattr(self, field.name).to(device) for field in fields(self)))


def _primitive_row(matrix: Tensor) -> Tensor:
    """Return the direction that all rows of an integer matrix of rank one share, without a common divisor."""
    rows = matrix[matrix.abs().sum(1).argmax()]
    divisor = torch.gcd(torch.gcd(rows[0], rows[1]), rows[2])
    return rows // divisor


@cache
def rotation_table() -> Rotations:
    """All integer matrices with entries -1, 0, 1 and determinant 1 that are rotations: those of reduced lattices are among them."""
    matrices = torch.tensor(list(itertools.product((-1, 0, 1), repeat=9))).view(-1, 3, 3)
    matrices = matrices[torch.linalg.det(matrices.double()).round() == 1]
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)
    order = torch.zeros_like(trace)
    for value, n in ((3, 1), (-1, 2), (0, 3), (1, 4), (2, 6)):
        order[trace == value] = n
    identity = torch.eye(3, dtype=matrices.dtype)
    is_rotation = torch.zeros_like(order, dtype=torch.bool)
    sums = torch.zeros_like(matrices)
    power = identity.expand_as(matrices).clone()
    for step in range(1, 7):
        power = power @ matrices
        sums += torch.where((step <= order)[:, None, None], power, 0)
        is_rotation |= (order == step) & (power == identity).all(2).all(1)
    matrices, order, sums = matrices[is_rotation], order[is_rotation], sums[is_rotation]
    # sums = order * projection on the axis: acting on h columns it maps to multiples of axis_index, its rows are multiples of axis
    axis_index = torch.stack([_primitive_row(s.T) for s in sums])
    axis = torch.stack([_primitive_row(s) for s in sums])
    inverses = torch.stack([torch.linalg.matrix_power(m, int(n) - 1) for m, n in zip(matrices, order, strict=True)])
    digits = 3 ** torch.arange(9)
    key, inverse_key = ((x.flatten(1) + 1) @ digits for x in (matrices, inverses))
    ordered, place = key.sort()
    found = torch.searchsorted(ordered, inverse_key).clamp(max=len(ordered) - 1)
    own = torch.arange(len(matrices))  # a few have an inverse with larger entries, which reduced lattices do not have
    return Rotations(matrices, order, axis_index, axis, torch.where(ordered[found] == inverse_key, place[found], own))


def lattice_rotations(
    lattices: Float[Tensor, "n_samples 3 3"], max_error: float
) -> tuple[Int64[Tensor, " n_rows"], Int64[Tensor, " n_rows"], Float[Tensor, " n_rows"]]:
    """Find the rotations that nearly keep the metric of reduced lattices.

    Parameters
    ----------
    lattices : (n_samples, 3, 3) float
        Rows a, b, c in Å.
    max_error : float
        Largest change of g_ij, relative to the edges' lengths.

    Returns
    -------
    sample, which : (n_rows,) int64
        Sample, and place of the rotation in `rotation_table`.
    error : (n_rows,) float
        Change of the metric.
    """
    rotations = rotation_table().matrices.to(lattices)
    metric = lattices @ lattices.transpose(1, 2)
    lengths = metric.diagonal(dim1=1, dim2=2).sqrt()
    unit = metric / (lengths[:, :, None] * lengths[:, None, :])
    scaled = rotations[None] * lengths[:, None, None, :] / lengths[:, None, :, None]
    error = (scaled @ unit[:, None] @ scaled.transpose(2, 3) - unit[:, None]).abs().amax((2, 3))
    sample, which = (error < max_error).nonzero(as_tuple=True)
    return sample, which, error[sample, which]
