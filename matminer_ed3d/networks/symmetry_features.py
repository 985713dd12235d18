"""Numbers that a periodic sample has before anything is learned: its lattice's rotations, and which of them its density obeys.

All come from the Fourier coefficients F(h) of low order and none depends on the origin. A rotation W of the lattice belongs to the
crystal's point group if the triplet invariants T(h, k) = F(h) F(k) F*(h + k) obey T(hW, kW) = T(h, k), and -W does if
T(hW, kW) = T*(h, k); of the reflections that an operation leaves where they are, those that its screw or glide forbids are absent
(International Tables A, chapter 1.6: reflection conditions). What is near to holding is then looked at with its translation
(:mod:`matminer_ed3d.networks.operation_features`). Residuals are turned into counts of operations that hold at several
tolerances, so most numbers do not depend on the choice of axes either. Nothing here has a gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from matminer_ed3d.networks.batching import VoxelBatch
from matminer_ed3d.networks.operation_features import N_OPERATION_FEATURES, SOFTNESS, TINY, operation_features, soft_below
from matminer_ed3d.networks.reflections import fixed_origin, gather, half_space, low_order_coefficients, strongest_first
from matminer_ed3d.networks.rotations import lattice_rotations, rotation_table

__all__ = ["N_SYMMETRY_FEATURES", "symmetry_features"]

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
MAX_OPERATION_LATTICE_ERROR = 0.06  # what is worse is not asked for its translation
MAX_OPERATION_AMPLITUDE_RESIDUAL = 0.5
ROUNDING = 3e-6  # of a standardized density: what single precision cannot tell from an absent reflection


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
    near = torch.cat([soft_below(test.abs(), (0.003, 0.02)).flatten(1) for test in tests], 1)
    return torch.cat([lengths.log(), cosines, ratios, lattices.det().abs().log()[:, None] / 3, near], 1)


def _triplets(coefficients: Tensor, sample: Tensor, h: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """F(h) F(k) F*(h + k), scaled to the modulus of one coefficient, and which lie within reach."""
    (first, a), (second, b), (third, c) = (gather(coefficients, sample, x) for x in (h, k, h + k))
    product = first * second * third.conj()
    return product / (product.abs() + 1e-30).pow(2 / 3), a & b & c


def _residual(difference: Tensor, scale: Tensor, inside: Tensor) -> Tensor:
    """Sum of differences over the sum of scales; 1 where nothing can be compared."""
    total = (scale * inside).sum(-1)
    return torch.where(total > 0, (difference * inside).sum(-1) / total.clamp(min=1e-30), 1.0)


def _symmetry_of_density(coefficients: Tensor, lattices: Tensor, longest_edge: Tensor) -> list[Tensor]:
    n_samples, device = len(lattices), lattices.device
    sample, which, lattice_error = lattice_rotations(lattices, MAX_LATTICE_ERROR)
    rotations = rotation_table().matrices.to(lattices)[which]
    # (n_rows, 4): which order a row's rotation has; the identity has none and drops out of the sums below
    trace = rotations.diagonal(dim1=1, dim2=2).sum(1)
    of_order = torch.stack([trace == t for t in TRACES], 1).float()

    def per_order(values: Tensor) -> Tensor:
        """Sum rows (n_rows, ...) over the rotations of each order of each sample: (n_samples, 4 ...)."""
        flat = (of_order[:, :, None] * values.flatten(1)[:, None, :]).flatten(1)
        return flat.new_zeros(n_samples, flat.shape[1]).index_add(0, sample, flat)

    everyone = torch.arange(n_samples, device=device)
    amplitude = coefficients.abs()
    base = half_space(BASE_REACH).to(lattices).expand(n_samples, -1, -1)
    here, _ = gather(amplitude, everyone, base)
    image = base[sample] @ rotations.transpose(1, 2)
    there, inside = gather(amplitude, sample, image)
    of_amplitudes = _residual((there - here[sample]).abs(), there + here[sample], inside)

    strongest = strongest_first(here)[:, :N_STRONGEST]
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
    features = [
        soft_below(_residual(triplet.imag.abs(), triplet.abs(), known), TOLERANCES),
        per_order(soft_below(lattice_error, TOLERANCES)),
    ]
    for sign, expected in ((1, triplet), (-1, triplet.conj())):
        of_triplets = _residual((turned - expected[sample]).abs(), scale, turned_known)
        holds = soft_below(torch.maximum(torch.maximum(of_triplets, of_amplitudes), 0.5 * lattice_error), TOLERANCES)
        fixed = (image == sign * base[sample]).all(-1) & resolved
        n_fixed = fixed.sum(1, keepdim=True)
        share = (present * fixed).sum(1, keepdim=True) / n_fixed.clamp(min=1)
        nearness = torch.exp(-(((share - torch.tensor(PRESENT_SHARES, device=device)) / 0.06) ** 2))
        told = holds[:, TOLD] * (n_fixed > 0)
        features += [per_order(holds), per_order(told[:, :, None] * nearness[:, None, :]), per_order(told * share)]
    low, _ = gather(amplitude, everyone, half_space(LOW_REACH).to(lattices).expand(n_samples, -1, -1))
    likely = (lattice_error < MAX_OPERATION_LATTICE_ERROR) & (of_amplitudes < MAX_OPERATION_AMPLITUDE_RESIDUAL)
    counts = operation_features(fixed_origin(coefficients, BASE_REACH), lattices, sample[likely], which[likely], lattice_error[likely])
    return [*features, counts, (low / mean.clamp(min=1e-30) + 1e-3).log()]


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
        coefficients = low_order_coefficients(batch.feats[:, 0].float(), batch.coords, batch.grid_shapes, REACH)
        coefficients = torch.where(coefficients.abs() > ROUNDING, coefficients, 0)
        density = _symmetry_of_density(coefficients, lattices, longest_edge)
        return torch.cat([_lattice_shape(lattices), *density], 1).float()


N_SYMMETRY_FEATURES = 10 + 36 + 6 + 24 + 2 * (24 + 40 + 8) + N_OPERATION_FEATURES + 62
"""Columns of :func:`symmetry_features`: shape of the lattice (and special shapes), centre of symmetry, rotations of the lattice,
for proper and improper operations how many hold, which shares of their reflections are present and how many in all, operations by kind, low
amplitudes."""
