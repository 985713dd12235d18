"""The symmetry operations that a periodic sample's density obeys, counted by kind: how many 2, 2_1, 3_1, m, axial and diagonal glides.

An operation x -> R x + t is obeyed where F(R^T h) = F(h) exp(2 pi i h.t). For every rotation or rotoinversion R of the lattice the
translation t is the peak of the correlation sum_h F*(h) F(R^T h) exp(-2 pi i h.t), refined by Gauss-Newton steps; it names the
operation (:mod:`matminer_ed3d.networks.operation_kinds`). What then remains of the difference of the two sides is told as a
displacement of atoms, over the cell and where it is worst, and as the largest relative difference of densities at a point. Nothing here
has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import torch
from jaxtyping import Complex64, Float, Int64
from torch import Tensor

from matminer_ed3d.networks.operation_kinds import KINDS, MIRROR, PAIRS, TWOFOLD, axis_classes, kinds_of_operations
from matminer_ed3d.networks.reflections import gather
from matminer_ed3d.networks.rotations import Rotations, rotation_table

__all__ = ["N_OPERATION_FEATURES", "SOFTNESS", "TINY", "operation_features", "soft_below"]

GRID = 16  # translations are searched on a grid of so many points along each axis, with indices below half of it
N_STEPS = 3
MAX_ROWS = 64  # operations at once: an array of 1 MB stays in a core's cache
EDGE = 0.97  # of the largest |h| that a sample holds
DISPLACEMENTS = (0.004, 0.012, 0.03, 0.06, 0.1, 0.16, 0.3)  # Å
DIFFERENCES = (0.004, 0.012, 0.03, 0.08, 0.15, 0.3)  # of densities at a point
WINDOW = 0.5  # Å; sigma of the Gaussian in which a local displacement is told: an atom, and not its neighbours
FLAT = 1e-4  # of the largest mean squared gradient; where the density is flatter, nothing can be displaced
SOFTNESS = 0.35  # width of a soft limit in the logarithm
TINY = 1e-6
FLOOR = 0.3  # of the rms of the density: smaller densities do not count in relative differences
DAMPING = 1e-5  # of the steps, relative to the curvature
NEIGHBOURHOOD = 2  # points of the grid around a peak that belong to it
NEARLY_TIED = 0.8  # of the highest peak, on the grid, where it is not at its best
MOST_TIED = 8
LEAST_AGREEMENT = 0.3  # of the phases; below, an operation is none
SHARPNESS = 0.5  # power of the amplitude that weighs a reflection in the search of a translation


@cache
def _half_grid() -> tuple[Int64[Tensor, "n_refl 3"], Float[Tensor, " n_refl"]]:
    """Reflections in the layout of a real FFT on the grid, and how often each counts; those of the edge, whose sign is open, count 0."""
    full = torch.fft.fftfreq(GRID, 1 / GRID).round().long()
    half = torch.arange(GRID // 2 + 1)
    h = torch.cartesian_prod(full, full, half)
    weight = torch.where(h[:, 2] == 0, 1.0, 2.0) * (h.abs().amax(1) < GRID // 2)
    weight[0] = 0
    return h, weight


def soft_below(value: Tensor, limits: tuple[float, ...]) -> Tensor:
    """How surely a residual lies below each limit: (..., n_limits) in (0, 1)."""
    levels = torch.tensor(limits, device=value.device).log()
    return torch.sigmoid((levels - (value[..., None] + TINY).log()) / SOFTNESS)


def _density_map(coefficients: Tensor) -> Tensor:
    """Values on the grid, (n_rows, GRID^3), of coefficients in the layout of `_half_grid`."""
    shape = (len(coefficients), GRID, GRID, GRID // 2 + 1)
    return torch.fft.irfftn(coefficients.view(shape), s=(GRID, GRID, GRID), dim=(1, 2, 3), norm="forward").flatten(1)


def _phases(t: Float[Tensor, "n_rows 3"], sign: int) -> Complex64[Tensor, "n_rows n_refl"]:
    """exp(sign 2 pi i h.t) in the layout of `_half_grid`, as a product along the axes."""
    steps = torch.fft.fftfreq(GRID, 1 / GRID, device=t.device).round()
    angle = (2 * torch.pi * sign) * t[:, :, None] * steps
    along = torch.complex(angle.cos(), angle.sin())
    plane = along[:, 0, :, None] * along[:, 1, None, :]
    return (plane[:, :, :, None] * along[:, 2, None, None, : GRID // 2 + 1]).flatten(1)


def _squared(values: Tensor) -> Tensor:
    """Squared modulus; faster than abs() ** 2, which guards against overflow."""
    return values.real.square() + values.imag.square()


def _smoothed(values: Tensor, window: Tensor) -> Tensor:
    """Means of maps in a Gaussian window, given as its transform in the layout of `_half_grid`."""
    coefficients = torch.fft.rfftn(values.view(-1, GRID, GRID, GRID), dim=(1, 2, 3), norm="forward").flatten(1)
    return _density_map(coefficients * window)


class _Densities:
    """What the densities of a batch are compared by."""

    def __init__(self, volume: Tensor, lattices: Tensor) -> None:
        device = volume.device
        self.volume, self.lattices = volume, lattices
        self.h, self.weight = (part.to(lattices) for part in _half_grid())
        coefficients, _ = gather(volume, torch.arange(len(volume), device=device), self.h.expand(len(volume), -1, -1))
        q = 2 * torch.pi * (self.h @ torch.linalg.inv(lattices).transpose(1, 2))
        self.q_squared = q.square().sum(2)
        # Within the sphere of resolution less a margin: at its edge a reflection may lie inside and its image outside.
        reach = (self.q_squared * (_squared(coefficients) > 0)).amax(1, keepdim=True)
        self.coefficients = coefficients * ((self.weight > 0) & (self.q_squared <= EDGE**2 * reach))
        density = _density_map(self.coefficients)
        rms = density.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
        self.density = density - density.amin(1, keepdim=True) + FLOOR * rms
        self.window = torch.exp(-0.5 * WINDOW**2 * self.q_squared)
        squares = [_density_map(1j * q[:, :, axis] * self.coefficients).square() for axis in range(3)]
        gradient = _smoothed(squares[0] + squares[1] + squares[2], self.window)
        self.gradient_squared = gradient.clamp(min=0) + FLAT * gradient.amax(1, keepdim=True).clamp(min=1e-12)


def _highest(
    maps: Float[Tensor, "n_rows n_points"], n_peaks: int
) -> tuple[Int64[Tensor, "n_rows n_peaks"], Float[Tensor, "n_rows n_peaks"]]:
    """The highest points of maps, (n_rows, n_peaks), each outside the neighbourhood of the higher ones, and their values."""
    near = torch.cartesian_prod(*3 * (torch.arange(-NEIGHBOURHOOD, NEIGHBOURHOOD + 1, device=maps.device),))
    maps, places, values = maps.clone(), [], []
    for _ in range(n_peaks):
        value, place = maps.max(1)
        i, j, k = ((_grid_index(place)[:, None, :] + near) % GRID).unbind(2)
        maps.scatter_(1, (i * GRID + j) * GRID + k, -torch.inf)
        places.append(place)
        values.append(value)
    return torch.stack(places, 1), torch.stack(values, 1)


def _grid_index(place: Int64[Tensor, " n"]) -> Int64[Tensor, "n 3"]:
    return torch.stack([place // GRID**2, place // GRID % GRID, place % GRID], 1)


def _translations(
    densities: _Densities, here: Complex64[Tensor, "n_rows n_refl"], image: Complex64[Tensor, "n_rows n_refl"]
) -> tuple[Int64[Tensor, " n_found"], Float[Tensor, "n_found 3"], Float[Tensor, " n_found"]]:
    """The translations that fit best: row, translation, agreement (1 if exact). Those of a row fit equally well to 1 %."""
    h, weight = densities.h, densities.weight
    product = here.conj() * image
    sharp = product * ((_squared(product) + 1e-30).pow(-SHARPNESS / 2) * weight)
    amplitude = _squared(sharp).sqrt()
    maps = _density_map(sharp.conj())
    places, values = _highest(maps, 2)
    total = amplitude.sum(1)
    tied = (values[:, 1] > NEARLY_TIED * values[:, 0]) & (values[:, 0] > LEAST_AGREEMENT * total)
    rows = torch.arange(len(here), device=h.device)
    more, _ = _highest(maps[tied], MOST_TIED)
    row = torch.cat([rows[~tied], rows[tied].repeat_interleave(MOST_TIED)])
    t = _grid_index(torch.cat([places[~tied, 0], more.flatten()])) / GRID
    pairs = (h[:, :, None] * h[:, None, :]).flatten(1)
    normal = (amplitude @ pairs).view(-1, 3, 3)[row]
    # Damped: a density that varies along one direction only leaves two others open.
    damping = DAMPING * normal.diagonal(dim1=1, dim2=2).sum(1) + 1e-12
    normal = normal + damping[:, None, None] * torch.eye(3, device=h.device)
    sharp = sharp[row]
    for _ in range(N_STEPS):
        t = t + torch.linalg.solve(normal, (sharp * _phases(t, -1)).imag @ h) / (2 * torch.pi)
    agreement = (sharp * _phases(t, -1)).real.sum(1) / total.clamp(min=1e-20)[row]
    best = torch.full_like(total, -torch.inf).scatter_reduce(0, row, agreement, "amax")[row]
    kept = agreement >= best - 0.01 * best.abs()
    return row[kept], t[kept], agreement[kept]


@dataclass(frozen=True, eq=False)
class _Compared:
    """Operations, one a row: their kinds, and how far the density is from obeying them."""

    kind: Int64[Tensor, " n_rows"]
    agreement: Float[Tensor, " n_rows"]
    overall: Float[Tensor, " n_rows"]
    """Displacement over the cell, Å."""
    local: Float[Tensor, " n_rows"]
    """Displacement where it is largest, Å."""
    relative: Float[Tensor, " n_rows"]
    """Largest relative difference of densities at a point."""


def _compare(densities: _Densities, table: Rotations, sample: Tensor, which: Tensor, axis_class: Tensor, sign: int) -> _Compared:
    """Compare densities with their images under the rotations (`sign` 1) or rotoinversions (-1) of a table."""
    turned = sign * densities.h @ table.matrices[which].transpose(1, 2).to(densities.h)
    image, inside = gather(densities.volume, sample, turned)
    here = densities.coefficients[sample] * inside
    image = image * (_squared(here) > 0)
    row, t, agreement = _translations(densities, here, image)
    kinds = kinds_of_operations(table, which[row], axis_class[row], sign, t, densities.lattices[sample[row]])
    # Of translations that fit equally well the one whose kind comes first: none depends on the origin.
    key = kinds * len(kinds) + torch.arange(len(kinds), device=kinds.device)
    chosen = torch.full_like(which, len(KINDS) * len(kinds)).scatter_reduce(0, row, key, "amin") % len(kinds)
    t, kind, agreement = t[chosen], kinds[chosen], agreement[chosen]

    difference = image * _phases(t, -1) - here  # of the density and its image, at x
    power = (densities.weight * (_squared(here) + _squared(image)) * densities.q_squared[sample]).sum(1)
    overall = (6 * (densities.weight * _squared(difference)).sum(1) / power.clamp(min=1e-20)).sqrt()
    at_point = _density_map(difference)
    squared = _smoothed(at_point.square(), densities.window[sample]).clamp(min=0)
    local = (3 * squared / densities.gradient_squared[sample]).amax(1).sqrt()
    relative = (at_point.abs() / densities.density[sample]).amax(1)
    return _Compared(kind, agreement, overall, local, relative)


@torch.no_grad()
def operation_features(
    volume: Complex64[Tensor, "n_samples n n n"],
    lattices: Float[Tensor, "n_samples 3 3"],
    sample: Int64[Tensor, " n_rows"],
    which: Int64[Tensor, " n_rows"],
    lattice_error: Float[Tensor, " n_rows"],
) -> Float[Tensor, "n_samples n_features"]:
    """Count the operations that densities obey, by kind and tolerance.

    Parameters
    ----------
    volume : (n_samples, n, n, n) complex64
        F(h) at index h + n // 2, of densities with an rms of 1.
    lattices : (n_samples, 3, 3) float32
        Rows a, b, c of primitive reduced cells in Å.
    sample, which : (n_rows,) int64
        Rotations of the lattices to try: sample, and place in `rotation_table`.
    lattice_error : (n_rows,) float32
        Largest relative change that the rotation makes to the metric.

    Returns
    -------
    (n_samples, N_OPERATION_FEATURES) float32
        For every kind, sums over operations of how surely the displacement over the cell, the displacement where it is worst, and the
        relative difference lie below each limit.
    """
    device = lattices.device
    table = rotation_table().to(device)
    one_of_two = which <= table.inverse[which]  # an operation and its inverse hold alike
    sample, which, lattice_error = sample[one_of_two], which[one_of_two], lattice_error[one_of_two]
    n_samples, n_rows = len(lattices), len(sample)
    if n_rows == 0:  # nothing to compare, such as densities that are flat
        return torch.zeros(n_samples, N_OPERATION_FEATURES, device=device)
    densities = _Densities(volume, lattices)
    axis_class = axis_classes(table, sample, which, lattices)
    rows = torch.split(torch.arange(n_rows, device=device), MAX_ROWS)
    stretch = 0.25 * lattice_error * lattices[sample].norm(dim=2).amax(1)

    def held(sign: int) -> tuple[Tensor, Tensor]:
        """Kind, and how surely within each limit, of rotations or rotoinversions."""
        compared = [_compare(densities, table, sample[part], which[part], axis_class[part], sign) for part in rows]
        kind, agreement, overall, local, relative = (torch.cat([getattr(c, f.name) for c in compared]) for f in fields(_Compared))
        displaced = [soft_below(torch.maximum(x, stretch), DISPLACEMENTS) for x in (overall, local)]
        surely = ((agreement - LEAST_AGREEMENT) / LEAST_AGREEMENT).clamp(0, 1)[:, None]
        return kind, surely * torch.cat([*displaced, soft_below(relative, DIFFERENCES)], 1)

    (proper, of_proper), (improper, of_improper) = held(1), held(-1)
    # A twofold axis and the plane across it: Pccn and Pbcn have the same of each, but not together.
    pair = torch.where(table.order[which] == 2, PAIRS + 3 * ((proper - TWOFOLD) % 2) + (improper - MIRROR) % 3, -1)
    kind, values = torch.cat([proper, improper, pair]), torch.cat([of_proper, of_improper, of_proper * of_improper])
    values *= torch.where(table.inverse[which] == which, 1.0, 2.0).repeat(3)[:, None]
    counted = kind >= 0
    out = torch.zeros(n_samples * len(KINDS), values.shape[1], device=device)
    out.index_add_(0, sample.repeat(3)[counted] * len(KINDS) + kind[counted], values[counted])
    return out.view(n_samples, -1)


N_OPERATION_FEATURES = len(KINDS) * (2 * len(DISPLACEMENTS) + len(DIFFERENCES))
"""Columns of :func:`operation_features`."""
