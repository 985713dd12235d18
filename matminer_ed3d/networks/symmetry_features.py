"""Numbers that a periodic sample has before anything is learned: its lattice's rotations, and which of them its density obeys.

All come from the Fourier coefficients F(h) of low order and none depends on the origin. A rotation W of the lattice belongs to the
crystal's point group if the triplet invariants T(h, k) = F(h) F(k) F*(h + k) obey T(hW, kW) = T(h, k), and -W does if
T(hW, kW) = T*(h, k); of the reflections that an operation leaves where they are, those that its screw or glide forbids are absent
(International Tables A, chapter 1.6: reflection conditions). Residuals are turned into counts of operations that hold at several
tolerances, so most numbers do not depend on the choice of axes either. Nothing here has a gradient.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from jaxtyping import Complex64, Float, Int64
from torch import Tensor

from matminer_ed3d.networks.batching import VoxelBatch

__all__ = ["N_SYMMETRY_FEATURES", "low_order_coefficients", "symmetry_features"]

REACH = 8  # coefficients are made for indices up to this
BASE_REACH = 4  # and compared for indices up to this
MAX_LATTICE_ERROR = 0.2
N_STRONGEST = 16  # reflections whose pairs make the triplets
TOLERANCES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
TOLD = slice(3, 5)  # tolerances within which an operation is asked for its screw or glide
TRACES = (-1, 0, 1, 2)  # two-, three-, four- and sixfold
PRESENT_SHARES = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 6)  # of the reflections that a mirror or axis (1), glide, 3_1, 4_1, 6_1 leaves present
LOW_REACH = 2
PRESENT = 0.03  # of the mean amplitude
SOFTNESS = 0.35  # width of a soft limit in the logarithm
TINY = 1e-6
ROUNDING = 3e-6  # of a standardized density: what single precision cannot tell from an absent reflection


@cache
def _rotations() -> Int64[Tensor, "n_matrices 3 3"]:
    """All integer matrices with entries -1, 0, 1, determinant 1 and the trace of a rotation: those of reduced lattices are among them."""
    matrices = torch.tensor(list(itertools.product((-1, 0, 1), repeat=9))).view(-1, 3, 3)
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)
    is_rotation = (torch.linalg.det(matrices.double()).round() == 1) & (trace >= -1)
    is_identity = (matrices == torch.eye(3, dtype=matrices.dtype)).all(2).all(1)
    return matrices[is_rotation & ((trace < 3) | is_identity)]


@cache
def _half_space(reach: int) -> Int64[Tensor, "n_refl 3"]:
    """One of every Friedel pair of reflections with indices up to `reach`, short ones first."""
    span = range(-reach, reach + 1)
    h = [t for t in itertools.product(span, repeat=3) if next((x for x in t if x), 0) > 0]
    return torch.tensor(sorted(h, key=lambda t: (sum(x * x for x in t), t)))


def low_order_coefficients(
    values: Float[Tensor, " n_voxels"], coords: Int64[Tensor, "n_voxels 4"], grid_shapes: Int64[Tensor, "n_samples 3"], reach: int = REACH
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


def _gather(volume: Tensor, sample: Int64[Tensor, " n_rows"], h: Float[Tensor, "n_rows n_refl 3"]) -> tuple[Tensor, Tensor]:
    """Values at the reflections h of the sample of each row, and which of them lie within reach."""
    size = volume.shape[1]
    index = h.long() + size // 2
    inside = ((index >= 0) & (index < size)).all(-1)
    i, j, k = index.clamp_(0, size - 1).unbind(-1)
    return volume.reshape(-1)[((sample[:, None] * size + i) * size + j) * size + k], inside


def _soft_below(value: Tensor, limits: tuple[float, ...] = TOLERANCES) -> Tensor:
    """How surely a residual lies below each limit: (..., n_limits) in (0, 1)."""
    levels = torch.tensor(limits, device=value.device).log()
    return torch.sigmoid((levels - (value[..., None] + TINY).log()) / SOFTNESS)


def _lattice_shape(lattices: Float[Tensor, "n_samples 3 3"]) -> Float[Tensor, "n_samples n"]:
    """Lengths, angles and volume, with how surely lengths are equal and angles special."""
    lengths = lattices.norm(dim=2)
    unit = lattices / lengths[:, :, None]
    cosines = torch.stack([(unit[:, 1] * unit[:, 2]).sum(1), (unit[:, 0] * unit[:, 2]).sum(1), (unit[:, 0] * unit[:, 1]).sum(1)], 1)
    ratios = torch.stack([lengths[:, 0] / lengths[:, 1], lengths[:, 1] / lengths[:, 2], lengths[:, 0] / lengths[:, 2]], 1).log()
    # Niggli's special cells: a shared projection, g_ij = g_ii / 2, marks centred lattices.
    halves = torch.stack(
        [cosines[:, 2] / ratios[:, 0].exp(), cosines[:, 1] / ratios[:, 2].exp(), cosines[:, 0] / ratios[:, 1].exp()], 1
    ).abs()
    tests = [ratios, cosines, cosines.abs() - 0.5, cosines.abs() - 1 / 3, halves - 0.5, cosines[:, [0, 0, 1]] - cosines[:, [1, 2, 2]]]
    near = torch.cat([_soft_below(test.abs(), (0.003, 0.02)).flatten(1) for test in tests], 1)
    return torch.cat([lengths.log(), cosines, ratios, lattices.det().abs().log()[:, None] / 3, near], 1)


def _lattice_rotations(lattices: Tensor) -> tuple[Int64[Tensor, " n_rows"], Float[Tensor, "n_rows 3 3"], Float[Tensor, " n_rows"]]:
    """Rotations that nearly keep a metric: sample, matrix, and the largest change of g_ij relative to the edges' lengths."""
    rotations = _rotations().to(lattices)
    metric = lattices @ lattices.transpose(1, 2)
    lengths = metric.diagonal(dim1=1, dim2=2).sqrt()
    unit = metric / (lengths[:, :, None] * lengths[:, None, :])
    scaled = rotations[None] * lengths[:, None, None, :] / lengths[:, None, :, None]
    error = (scaled @ unit[:, None] @ scaled.transpose(2, 3) - unit[:, None]).abs().amax((2, 3))
    sample, which = (error < MAX_LATTICE_ERROR).nonzero(as_tuple=True)
    return sample, rotations[which], error[sample, which]


def _triplets(coefficients: Tensor, sample: Tensor, h: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """F(h) F(k) F*(h + k), scaled to the modulus of one coefficient, and which lie within reach."""
    (first, a), (second, b), (third, c) = (_gather(coefficients, sample, x) for x in (h, k, h + k))
    product = first * second * third.conj()
    return product / (product.abs() + 1e-30).pow(2 / 3), a & b & c


def _residual(difference: Tensor, scale: Tensor, inside: Tensor) -> Tensor:
    """Sum of differences over the sum of scales; 1 where nothing can be compared."""
    total = (scale * inside).sum(-1)
    return torch.where(total > 0, (difference * inside).sum(-1) / total.clamp(min=1e-30), 1.0)


def _symmetry_of_density(coefficients: Tensor, lattices: Tensor, longest_edge: Tensor) -> list[Tensor]:
    n_samples, device = len(lattices), lattices.device
    sample, rotations, lattice_error = _lattice_rotations(lattices)
    # (n_rows, 4): which order a row's rotation has; the identity has none and drops out of the sums below
    trace = rotations.diagonal(dim1=1, dim2=2).sum(1)
    of_order = torch.stack([trace == t for t in TRACES], 1).float()

    def per_order(values: Tensor) -> Tensor:
        """Sum rows (n_rows, ...) over the rotations of each order of each sample: (n_samples, 4 ...)."""
        flat = (of_order[:, :, None] * values.flatten(1)[:, None, :]).flatten(1)
        return flat.new_zeros(n_samples, flat.shape[1]).index_add(0, sample, flat)

    everyone = torch.arange(n_samples, device=device)
    amplitude = coefficients.abs()
    base = _half_space(BASE_REACH).to(lattices).expand(n_samples, -1, -1)
    here, _ = _gather(amplitude, everyone, base)
    image = base[sample] @ rotations.transpose(1, 2)
    there, inside = _gather(amplitude, sample, image)
    of_amplitudes = _residual((there - here[sample]).abs(), there + here[sample], inside)

    # Symmetry makes equal amplitudes, and rounding errors must not decide between them: steps of 0.2 %, then the order of the table.
    steps = (here.clamp(min=1e-12).log() * 500).round()
    strongest = steps.sort(dim=1, descending=True, stable=True)[1][:, :N_STRONGEST]
    strong = base.gather(1, strongest[..., None].expand(-1, -1, 3))
    first, second = torch.triu_indices(N_STRONGEST, N_STRONGEST, device=device)
    h = torch.cat([strong[:, first], strong[:, first]], 1)
    k = torch.cat([strong[:, second], -strong[:, second]], 1)
    triplet, known = _triplets(coefficients, everyone, h, k)
    turned, turned_known = _triplets(coefficients, sample, *(x[sample] @ rotations.transpose(1, 2) for x in (h, k)))
    turned_known &= known[sample]
    scale = turned.abs() + triplet.abs()[sample]

    # An absent reflection says something only where the sample's resolution, about two voxels, reaches it.
    q = (base @ torch.linalg.inv(lattices).transpose(1, 2)).norm(dim=2)
    resolved = (q * longest_edge[:, None] <= 0.4)[sample]
    mean = here.sum(1, keepdim=True) / (here > 0).sum(1, keepdim=True).clamp(min=1)
    relative = here / mean.clamp(min=1e-30)
    present = torch.sigmoid(((relative + TINY) / PRESENT).log() / SOFTNESS)[sample]
    features = [_soft_below(_residual(triplet.imag.abs(), triplet.abs(), known)), per_order(_soft_below(lattice_error))]
    for sign, expected in ((1, triplet), (-1, triplet.conj())):
        of_triplets = _residual((turned - expected[sample]).abs(), scale, turned_known)
        holds = _soft_below(torch.maximum(torch.maximum(of_triplets, of_amplitudes), 0.5 * lattice_error))
        fixed = (image == sign * base[sample]).all(-1) & resolved
        n_fixed = fixed.sum(1, keepdim=True)
        share = (present * fixed).sum(1, keepdim=True) / n_fixed.clamp(min=1)
        nearness = torch.exp(-(((share - torch.tensor(PRESENT_SHARES, device=device)) / 0.06) ** 2))
        told = holds[:, TOLD] * (n_fixed > 0)
        features += [per_order(holds), per_order(told[:, :, None] * nearness[:, None, :]), per_order(told * share)]
    low, _ = _gather(amplitude, everyone, _half_space(LOW_REACH).to(lattices).expand(n_samples, -1, -1))
    return [*features, (low / mean.clamp(min=1e-30) + 1e-3).log()]


@torch.no_grad()
def symmetry_features(batch: VoxelBatch) -> Float[Tensor, "n_samples n_features"]:
    """Describe the lattice and the symmetry of the first channel of periodic samples.

    Parameters
    ----------
    batch : VoxelBatch
        Periodic voxels of a reduced cell, all of them: a thresholded sample works, but its edge spoils small residuals.

    Returns
    -------
    (n_samples, N_SYMMETRY_FEATURES) float32
        Of order one.

    Raises
    ------
    ValueError
        If the voxels are in open space.
    """
    if batch.grid_shapes is None:
        raise ValueError("this network needs periodic voxels, got voxels in open space; sample with voxel_basis='lattice'")
    with torch.autocast(batch.feats.device.type, enabled=False):
        lattices = batch.voxel_bases * batch.grid_shapes[:, :, None]
        longest_edge = batch.voxel_bases.norm(dim=2).amax(1)
        coefficients = low_order_coefficients(batch.feats[:, 0].float(), batch.coords, batch.grid_shapes)
        coefficients = torch.where(coefficients.abs() > ROUNDING, coefficients, 0)
        return torch.cat([_lattice_shape(lattices), *_symmetry_of_density(coefficients, lattices, longest_edge)], 1).float()


N_SYMMETRY_FEATURES = 10 + 36 + 6 + 24 + 2 * (24 + 40 + 8) + 62
"""Columns of :func:`symmetry_features`: shape of the lattice (and special shapes), centre of symmetry, rotations of the lattice,
for proper and improper operations how many hold, which shares of their reflections are present and how many in all, low amplitudes."""
