"""Names of symmetry operations: 2, 2_1, 3_1, m, axial and other glides, and on which kind of axis.

Its translation's part along the axis, or in the plane, of an operation x -> R x + t does not depend on the origin and names it
(International Tables A, chapter 1.2): 3_1 and 3_2 differ in its sign.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from matminer_ed3d.networks.rotations import Rotations

__all__ = ["KINDS", "MIRROR", "PAIRS", "TWOFOLD", "axis_classes", "kinds_of_operations"]

# Kinds of operations. Twofold axes and mirrors are told apart by their axis: a higher axis too (main), or a shorter or longer one across
# it; a twofold axis is looked at once more together with the plane across it. Glides are axial (a) or not (n).
_AXES = ("main", "short", "long")
KINDS = (
    *(f"{screw} {axis}" for axis in _AXES for screw in ("2", "2_1")),
    *("3", "3_1", "3_2", "4", "4_1", "4_2", "4_3", "6", "6_1", "6_2", "6_3", "6_4", "6_5", "-1"),
    *(f"{glide} {axis}" for axis in _AXES for glide in "man"),
    *("-3", "-4", "-6"),
    *(f"{screw}/{glide}" for screw in ("2", "2_1") for glide in "man"),
)
TWOFOLD, THREEFOLD, FOURFOLD, SIXFOLD, CENTRE = (KINDS.index(name) for name in ("2 main", "3", "4", "6", "-1"))
MIRROR, INVERSION_AXES, PAIRS = (KINDS.index(name) for name in ("m main", "-3", "2/m"))


def kinds_of_operations(
    table: Rotations,
    which: Int64[Tensor, " n_rows"],
    axis_class: Int64[Tensor, " n_rows"],
    sign: int,
    t: Float[Tensor, "n_rows 3"],
    lattices: Float[Tensor, "n_rows 3 3"],
) -> Int64[Tensor, " n_rows"]:
    """Return places in `KINDS`; -1 for the identity.

    Parameters
    ----------
    table : Rotations
        All rotations of primitive reduced lattices.
    which : (n_rows,) int64
        Place in it.
    axis_class : (n_rows,) int64
        Of `axis_classes`.
    sign : {1, -1}
        The rotations themselves, or the rotoinversions.
    t : (n_rows, 3) float
        Translations, fractional.
    lattices : (n_rows, 3, 3) float
        Rows a, b, c in Å.
    """
    order = table.order[which]
    kind = torch.full_like(order, -1)
    if sign > 0:
        screw = _screw_step(table, which, t, lattices)
        for n, first in ((2, TWOFOLD + 2 * axis_class), (3, THREEFOLD), (4, FOURFOLD), (6, SIXFOLD)):
            kind = torch.where(order == n, first + screw, kind)
        return kind
    mirror = MIRROR + 3 * axis_class + _glide(table.matrices[which], t, lattices)
    for n, first in ((1, CENTRE), (2, mirror), (3, INVERSION_AXES), (4, INVERSION_AXES + 1), (6, INVERSION_AXES + 2)):
        kind = torch.where(order == n, first, kind)
    return kind


def _screw_step(table: Rotations, which: Tensor, t: Tensor, lattices: Tensor) -> Int64[Tensor, " n_rows"]:
    """Return k of the screw n_k of proper rotations, in the right-handed sense."""
    index = table.axis_index[which].to(t)
    inverse = torch.linalg.inv(lattices)
    rotation = lattices.transpose(1, 2) @ table.matrices[which].to(t).transpose(1, 2) @ inverse.transpose(1, 2)
    turn = torch.stack(
        [rotation[:, 2, 1] - rotation[:, 1, 2], rotation[:, 0, 2] - rotation[:, 2, 0], rotation[:, 1, 0] - rotation[:, 0, 1]], 1
    )
    sense = torch.where((turn * (inverse @ index[:, :, None])[:, :, 0]).sum(1) < 0, -1, 1)
    order = table.order[which]
    return ((index * t).sum(1) * sense * order).round().long() % order


def _glide(matrices: Tensor, t: Tensor, lattices: Tensor) -> Int64[Tensor, " n_rows"]:
    """Return 0 for a mirror, 1 for a glide along a twofold axis of the lattice, 2 for any other; `matrices` are twofold."""
    to_plane = torch.eye(3, device=t.device) - matrices.to(t).transpose(1, 2)
    v = (to_plane @ t[:, :, None])[:, :, 0].round()
    span = torch.arange(-2, 3, device=t.device, dtype=t.dtype)
    candidates = v[:, None, :] + torch.cartesian_prod(span, span, span) @ to_plane.transpose(1, 2)
    cartesian = candidates @ lattices
    shortest = cartesian.norm(dim=2).argmin(1)
    rows = torch.arange(len(t), device=t.device)
    v, cartesian = candidates[rows, shortest], cartesian[rows, shortest]
    length = cartesian.square().sum(1)
    turn = 2 * v[:, :, None] * (lattices @ cartesian[:, :, None]).transpose(1, 2) / length.clamp(min=1e-6)[:, None, None]
    is_axial = (turn - turn.round()).abs().amax((1, 2)) < 0.1
    return torch.where(length < 1e-3, 0, torch.where(is_axial, 1, 2))


def axis_classes(
    table: Rotations, sample: Int64[Tensor, " n_rows"], which: Int64[Tensor, " n_rows"], lattices: Float[Tensor, "n_samples 3 3"]
) -> Int64[Tensor, " n_rows"]:
    """Return 0 where a rotation's axis is that of a higher one of its sample, else 1 or, if it is longer than others across, 2."""
    n_samples = len(lattices)
    axis = table.axis[which]
    sign = torch.sign((axis * torch.tensor([9, 3, 1], device=axis.device)).sum(1))  # entries are -2 to 2: one of each pair
    key = ((axis * sign[:, None] + 4) * torch.tensor([100, 10, 1], device=axis.device)).sum(1) + 1000 * sample
    is_high = table.order[which] > 2
    is_main = torch.isin(key, key[is_high])
    length = (axis.to(lattices)[:, None, :] @ lattices[sample])[:, 0].norm(dim=1)
    across = ~is_main & (table.order[which] == 2)
    shortest = torch.full((n_samples,), torch.inf, device=length.device).scatter_reduce(0, sample[across], length[across], "amin")
    has_main = torch.zeros(n_samples, dtype=torch.bool, device=length.device)
    has_main[sample[is_main]] = True
    is_long = has_main[sample] & (length > 1.2 * shortest[sample])
    return torch.where(is_main, 0, torch.where(is_long, 2, 1))
