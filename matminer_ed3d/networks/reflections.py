"""Fourier coefficients of the samples of a batch, low orders only, and how to look them up."""

from __future__ import annotations

import itertools
from functools import cache

import torch
from jaxtyping import Complex64, Float, Int64
from torch import Tensor

__all__ = ["fixed_origin", "gather", "half_space", "low_order_coefficients", "strongest_first"]

AMPLITUDE_STEP = 0.002  # relative; symmetry makes amplitudes equal, and rounding errors must not decide between them
N_ORIGIN = 20  # strongest reflections among which three are looked for that fix the origin


@cache
def half_space(reach: int) -> Int64[Tensor, "n_refl 3"]:
    """One of every Friedel pair of reflections with indices up to `reach`, short ones first."""
    span = range(-reach, reach + 1)
    h = [t for t in itertools.product(span, repeat=3) if next((x for x in t if x), 0) > 0]
    return torch.tensor(sorted(h, key=lambda t: (sum(x * x for x in t), t)))


def low_order_coefficients(
    values: Float[Tensor, " n_voxels"], coords: Int64[Tensor, "n_voxels 4"], grid_shapes: Int64[Tensor, "n_samples 3"], reach: int
) -> Complex64[Tensor, "n_samples n n n"]:
    """Fourier coefficients of every sample for indices from -reach to reach.

    Parameters
    ----------
    values : (n_voxels,) float
        The function at the occupied voxels; zero elsewhere.
    coords : (n_voxels, 4) int64
        Rows [sample, i, j, k].
    grid_shapes : (n_samples, 3) int64
        Voxels along each axis.
    reach : int
        Largest index.

    Returns
    -------
    (n_samples, 2 reach + 1, 2 reach + 1, 2 reach + 1) complex64
        F(h) at index h + reach: mean over the cell of f(x) exp(-2 pi i h.x). Indices that the grid cannot tell apart
        (2 abs(h) >= n), and F(0), are zero.
    """
    sample = coords[:, 0]
    span = torch.arange(-reach, reach + 1, device=values.device)
    nx, ny, nz = grid_shapes.unbind(1)

    def phase(position: Tensor, counts: Tensor) -> Tensor:
        return torch.polar(torch.ones((), device=values.device), -2 * torch.pi * (position / counts)[:, None] * span)

    # One axis at a time: voxels into lines along c, lines into planes, planes into samples.
    samples = torch.arange(len(nx), device=values.device)
    first_plane, first_line = nx.cumsum(0) - nx, (nx * ny).cumsum(0) - nx * ny
    line = first_line[sample] + coords[:, 1] * ny[sample] + coords[:, 2]
    lines = torch.zeros(int((nx * ny).sum()), len(span), dtype=torch.complex64, device=values.device)
    lines.index_add_(0, line, values[:, None] * phase(coords[:, 3], nz[sample]))

    of_line = torch.repeat_interleave(samples, nx * ny)
    i, j = _place(first_line, of_line) // ny[of_line], _place(first_line, of_line) % ny[of_line]
    planes = torch.zeros(int(nx.sum()), len(span), len(span), dtype=torch.complex64, device=values.device)
    planes.index_add_(0, first_plane[of_line] + i, phase(j, ny[of_line])[:, :, None] * lines[:, None, :])

    of_plane = torch.repeat_interleave(samples, nx)
    out = torch.zeros(len(nx), *(3 * (len(span),)), dtype=torch.complex64, device=values.device)
    out.index_add_(0, of_plane, phase(_place(first_plane, of_plane), nx[of_plane])[:, :, None, None] * planes[:, None])
    known = [2 * span.abs() < n[:, None] for n in (nx, ny, nz)]
    mask = known[0][:, :, None, None] & known[1][:, None, :, None] & known[2][:, None, None, :]
    out *= mask / grid_shapes.prod(1)[:, None, None, None]
    out[:, reach, reach, reach] = 0
    return out


def _place(first: Tensor, group: Tensor) -> Tensor:
    """Place of every row within its group, for rows sorted by group, whose first rows are `first`."""
    return torch.arange(len(group), device=group.device) - first[group]


def gather(volume: Tensor, sample: Int64[Tensor, " n_rows"], h: Float[Tensor, "n_rows n_refl 3"]) -> tuple[Tensor, Tensor]:
    """Values at the reflections h of the sample of each row, and which of them lie within reach."""
    size = volume.shape[1]
    index = h.long() + size // 2
    inside = ((index >= 0) & (index < size)).all(-1)
    i, j, k = index.clamp_(0, size - 1).unbind(-1)
    return volume.reshape(-1)[((sample[:, None] * size + i) * size + j) * size + k], inside


def strongest_first(amplitudes: Float[Tensor, "n_samples n_refl"]) -> Int64[Tensor, "n_samples n_refl"]:
    """Order reflections by amplitude in steps of 0.2 %, then as they come."""
    steps = (amplitudes.clamp(min=1e-12).log() / AMPLITUDE_STEP).round()
    return steps.sort(dim=1, descending=True, stable=True)[1]


def fixed_origin(volume: Complex64[Tensor, "n_samples n n n"], reach: int) -> Complex64[Tensor, "n_samples n n n"]:
    """Move the origin of every sample so that three strong reflections get the phase 0.

    Parameters
    ----------
    volume : (n_samples, n, n, n) complex64
        F(h) at index h + n // 2.
    reach : int
        Largest index of the three.

    Returns
    -------
    (n_samples, n, n, n) complex64
        The same for every origin. The three are the first of the strongest whose indices have the determinant 1 or -1, so that their
        phases leave one origin; a sample without such stays as it is.
    """
    n_samples, size = volume.shape[:2]
    everyone = torch.arange(n_samples, device=volume.device)
    base = half_space(reach).to(volume.device)
    values, _ = gather(volume, everyone, base.float().expand(n_samples, -1, -1))
    strong = strongest_first(values.abs())[:, :N_ORIGIN]
    h, phase = base[strong].float(), values.gather(1, strong).angle() / (2 * torch.pi)
    triples = torch.combinations(torch.arange(N_ORIGIN, device=volume.device), 3)
    triples = triples[triples.sum(1).argsort(stable=True)]
    matrices = h[:, triples]
    is_basis = (torch.linalg.det(matrices).abs().round() == 1) & (values.gather(1, strong).abs()[:, triples] > 0).all(2)
    first = is_basis.float().argmax(1)
    basis = torch.where(is_basis.any(1)[:, None, None], matrices[everyone, first], torch.eye(3, device=volume.device))
    wanted = torch.where(is_basis.any(1)[:, None], phase.gather(1, triples[first]), 0)
    shift = torch.linalg.solve(basis, wanted)
    steps = torch.arange(size, device=volume.device) - size // 2
    turn = torch.polar(torch.ones((), device=volume.device), -2 * torch.pi * shift[:, :, None] * steps)
    return volume * turn[:, 0, :, None, None] * turn[:, 1, None, :, None] * turn[:, 2, None, None, :]
