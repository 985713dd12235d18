"""The cell of a density that does not depend on how the crystal was given: primitive, Niggli-reduced, in one fixed setting.

It is found from the Fourier coefficients F(h) alone, so it works for a density of any source: translations are read from the
reflections that are absent, the lattice is Niggli-reduced, and where the lattice has rotations that leave its metric unchanged, the
one of its equivalent settings is taken in which the intensities, then the phases, come first in a fixed order. The origin is put where
three reflections have phase zero.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Complex, Float, Int

from matminer_ed3d import grids
from matminer_ed3d._spglib import call_spglib
from matminer_ed3d.density import Density

__all__ = [
    "Reduction",
    "band_limited_coefficients",
    "find_reduction",
    "lattice_rotations",
    "noise_power",
    "reduce_cell",
    "sublattice_directions",
]

PRIMES = (2, 3, 5, 7, 11, 13)
METRIC_TOLERANCE = 1e-3  # relative difference of metric entries that a rotation of the lattice may leave
KEY_RANGE = 3  # reflections with indices up to this decide between equivalent settings
KEY_DIGITS = 5
NOISE_SIGMAS = 6
MIN_CORNER = 200  # reflections that tell whether the highest resolution is white noise
MOST_UNEVEN = 0.6  # of its mean; what few reflections of an atom's tail may differ by is not taken for noise


@cache
def sublattice_directions(prime: int) -> Int[np.ndarray, "n 3"]:
    """Integer vectors v, one of each line modulo `prime`: v / prime are the translations that divide a cell by it."""
    vectors = np.array(list(itertools.product(range(prime), repeat=3)))[1:]
    leading = np.array([row[np.flatnonzero(row)[0]] for row in vectors])
    return vectors[leading == 1]


def _finer_lattice(
    h: Int[np.ndarray, "n_refl 3"], power: Float[np.ndarray, " n_refl"], tolerance: float, noise: float
) -> Float[np.ndarray, "3 3"] | None:
    """Rows (in the old basis) of a cell that a translation divides, or None if the cell is primitive.

    What a translation leaves unexplained must lie within `tolerance` and what `noise` in each of those reflections adds up to, with six
    standard deviations (of a sum of exponentials that come in Friedel pairs).
    """
    seen = h[power > 1e-12].astype(float)
    if np.linalg.matrix_rank(seen.T @ seen) < 3:
        return None  # constant along some direction: every translation along it would do
    strongest = np.argsort(-power)[:200]
    for prime in PRIMES:
        candidates = sublattice_directions(prime)
        broken = (h[strongest] @ candidates.T) % prime != 0
        candidates = candidates[power[strongest] @ broken <= tolerance + noise * (len(h) + NOISE_SIGMAS * np.sqrt(2 * len(h)))]
        if not len(candidates):
            continue
        broken = (h @ candidates.T) % prime != 0
        n_broken = broken.sum(axis=0)
        excess = power @ broken - noise * (n_broken + NOISE_SIGMAS * np.sqrt(2 * n_broken))
        best = int(np.argmin(excess))
        if excess[best] > tolerance:
            continue
        translation = candidates[best]  # its first non-zero entry is 1, so it can replace that row
        rows = np.eye(3)
        rows[np.flatnonzero(translation)[0]] = translation / prime
        return rows
    return None


@cache
def _unimodular_matrices() -> Int[np.ndarray, "n 3 3"]:
    """All integer matrices with entries -1, 0, 1 and determinant +1: every rotation of a reduced lattice is among them."""
    matrices = np.array(list(itertools.product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
    return matrices[np.linalg.det(matrices).round() == 1]


def lattice_rotations(lattice: Float[np.ndarray, "3 3"], tolerance: float = METRIC_TOLERANCE) -> Int[np.ndarray, "n 3 3"]:
    """Basis changes P of determinant +1 that leave the metric of a reduced lattice unchanged; identity included.

    Parameters
    ----------
    lattice : (3, 3) float
        Rows of a Niggli- or Minkowski-reduced cell, Å.
    tolerance : float
        Largest change of a metric entry g_ij, relative to sqrt(g_ii g_jj).

    Returns
    -------
    (n, 3, 3) int
        1 (triclinic) to 24 (cubic) matrices; the new basis is ``P @ lattice``.
    """
    metric = lattice @ lattice.T
    lengths = np.sqrt(np.diag(metric))
    matrices = _unimodular_matrices()
    # Rows first: a row that changes its vector's length drops the matrix before the full product.
    row_squares = np.einsum("nij,jk,nik->ni", matrices, metric, matrices)
    matrices = matrices[(np.abs(row_squares - np.diag(metric)) <= tolerance * np.diag(metric)).all(axis=1)]
    changed = matrices @ metric @ matrices.transpose(0, 2, 1)
    return matrices[(np.abs(changed - metric) <= tolerance * np.outer(lengths, lengths)).all(axis=(1, 2))]


@cache
def _key_reflections() -> tuple[Int[np.ndarray, "n 3"], Int[np.ndarray, "m 2 3"]]:
    """Reflections, and pairs of them, that tell equivalent settings apart; short ones first."""
    h = np.array(list(itertools.product(range(-KEY_RANGE, KEY_RANGE + 1), repeat=3)))
    h = h[[next((x for x in row if x), 0) > 0 for row in h]]  # one of each Friedel pair
    h = h[np.lexsort((*h.T, (h**2).sum(axis=1)))]
    pairs = sorted(itertools.combinations(range(24), 2), key=lambda pair: pair[1] >= 13)  # stable: those of the first 13 first
    return h, h[np.array(pairs)]


def _fixed_setting(
    lattice: Float[np.ndarray, "3 3"], h: Int[np.ndarray, "n_refl 3"], coefficients: Complex[np.ndarray, " n_refl"]
) -> Int[np.ndarray, "3 3"]:
    """Choose one of the equivalent settings of a lattice by the density: largest intensities first, then phases."""
    rotations = lattice_rotations(lattice)
    if len(rotations) == 1:
        return rotations[0]
    reach = 6 * KEY_RANGE  # a rotation's inverse has entries up to 2 in a reduced basis
    size = 2 * reach + 1
    spectrum = np.zeros((size,) * 3, dtype=complex)
    near = (np.abs(h) <= reach).all(axis=1)
    spectrum[tuple((h[near] % size).T)] = coefficients[near]
    spectrum[0, 0, 0] = 0
    norm = np.sqrt((np.abs(spectrum) ** 2).sum()) or 1.0
    spectrum /= norm

    def value(index: np.ndarray) -> np.ndarray:
        return spectrum[tuple(np.moveaxis(index % size, -1, 0))]

    singles, pairs = _key_reflections()
    # In the basis P @ lattice the reflection h' is the old h = h' @ inv(P).T
    back = np.round(np.linalg.inv(rotations)).astype(np.int64).transpose(0, 2, 1)
    intensities = np.abs(value(np.einsum("hj,njk->nhk", singles, back))) ** 2
    first, second = (np.einsum("hj,njk->nhk", pairs[:, i], back) for i in (0, 1))
    triplets = value(first) * value(second) * np.conj(value(first + second))
    # Where the crystal is nearly centrosymmetric all of these round to zero; scaled to the size of one coefficient they tell.
    scaled = triplets.imag / (np.abs(triplets) + 1e-9) ** (2 / 3)
    keys = np.round(np.concatenate([intensities, triplets[:, :78].imag, scaled], axis=1), KEY_DIGITS)
    return rotations[np.lexsort(keys.T[::-1])[-1]]


@cache
def _origin_triples() -> tuple[Int[np.ndarray, "n 3"], Int[np.ndarray, "m 3"]]:
    """Reflections with indices up to 2, and the triples of them whose phases fix an origin: those of determinant ±1.

    With indices up to 1 there may be none, as glides and screws make reflections absent.
    """
    h = _key_reflections()[0]
    h = h[np.abs(h).max(axis=1) <= 2]
    triples = np.array(list(itertools.combinations(range(len(h)), 3)))
    return h, triples[np.abs(np.linalg.det(h[triples])).round() == 1]


def _fixed_origin(h: Int[np.ndarray, "n_refl 3"], coefficients: Complex[np.ndarray, " n_refl"]) -> Float[np.ndarray, "3"]:
    """Find the origin seen from which the triple of low reflections whose weakest is strongest has phase zero."""
    low, triples = _origin_triples()
    index = np.full((5, 5, 5), -1)
    inside = np.flatnonzero((np.abs(h) <= 2).all(axis=1))
    index[tuple(h[inside].T)] = inside
    rows = index[tuple(low.T)]
    values = np.where(rows >= 0, coefficients[rows], 0)
    # Symmetry makes equal amplitudes; rounded logarithms let the first of equals win whatever the rounding errors.
    strength = np.round(np.log(np.abs(values) + 1e-300), 4)
    triple = triples[int(np.argmax(strength[triples].min(axis=1)))]
    return np.linalg.solve(low[triple].astype(float), -np.angle(values[triple]) / (2 * np.pi))


@dataclass(frozen=True, eq=False)
class Reduction:
    """The way from a given cell to the reduced one.

    Parameters
    ----------
    basis : (3, 3) float
        Rows: the reduced cell's vectors in the basis of the given cell; fractions where the given cell is not primitive.
    frac_origin : (3,) float
        The new origin in fractional coordinates of the reduced cell.
    """

    basis: Float[np.ndarray, "3 3"]
    frac_origin: Float[np.ndarray, "3"]

    def apply(
        self, h: Int[np.ndarray, "n_refl 3"], coefficients: Complex[np.ndarray, " n_refl"]
    ) -> tuple[Int[np.ndarray, "m_refl 3"], Complex[np.ndarray, " m_refl"]]:
        """Reflections and coefficients in the reduced cell; those that break its translations are left out."""
        new_h, kept = _indices_in(self.basis, h)
        return new_h, coefficients[kept] * np.exp(2j * np.pi * (new_h @ self.frac_origin))


def _indices_in(basis: Float[np.ndarray, "3 3"], h: Int[np.ndarray, "n_refl 3"]) -> tuple[Int[np.ndarray, "m_refl 3"], np.ndarray]:
    """Indices in another basis of the reflections that have whole ones there, and which they are."""
    new_h = h @ basis.T
    kept = np.abs(new_h - np.round(new_h)).max(axis=1) < 1e-6
    return np.round(new_h[kept]).astype(np.int64), kept


def find_reduction(
    lattice: Float[np.ndarray, "3 3"],
    h: Int[np.ndarray, "n_refl 3"],
    coefficients: Complex[np.ndarray, " n_refl"],
    tolerance: float = 1e-4,
    noise: float = 0.0,
) -> Reduction:
    """Find the primitive Niggli cell, setting and origin of a density.

    Parameters
    ----------
    lattice : (3, 3) float
        Rows in Å; a left-handed cell comes back right-handed.
    h, coefficients : (n_refl, 3) int, (n_refl,) complex
        Reflections, Friedel mates included, and their Fourier coefficients.
    tolerance : float
        Share of the power (without F(0)) that a translation may leave unexplained and still divide the cell.
    noise : float
        Power that white noise adds to each coefficient, see :func:`noise_power`; it is allowed for beside `tolerance`.

    Returns
    -------
    Reduction
        Applied to the coefficients it gives the same numbers, to rounding, for every cell, origin and orientation of one
        crystal.

    Raises
    ------
    ValueError
        If the lattice cannot be Niggli-reduced.
    """
    basis = np.eye(3)
    power = np.abs(coefficients) ** 2
    power[(h == 0).all(axis=1)] = 0
    total = power.sum()
    if total > 0:
        power /= total
        while (rows := _finer_lattice(h, power, tolerance, noise / total)) is not None:
            h, kept = _indices_in(rows, h)
            coefficients, power, basis = coefficients[kept], power[kept], rows @ basis
    reduced = call_spglib("niggli_reduce", basis @ lattice, eps=1e-5)
    if reduced is None:
        raise ValueError(f"the lattice {np.round(lattice, 4).tolist()} cannot be Niggli-reduced; check that its vectors span a volume")
    change = np.round(np.asarray(reduced) @ np.linalg.inv(basis @ lattice)).astype(np.int64)
    if np.linalg.det(change @ basis @ lattice) < 0:
        change = -change
    change = _fixed_setting(change @ basis @ lattice, h @ change.T, coefficients) @ change
    return Reduction(basis=change @ basis, frac_origin=_fixed_origin(h @ change.T, coefficients))


def band_limited_coefficients(
    density: Density, channel: str, d_min: float | None, transform: Complex[np.ndarray, "nx ny nz"] | None = None
) -> tuple[Int[np.ndarray, "n_refl 3"], Complex[np.ndarray, " n_refl"]]:
    """Fourier coefficients of one channel to `d_min` (Å), or to all that the grid holds in a sphere if None.

    `transform` is that of the channel (:func:`matminer_ed3d.grids.fourier_coefficients`), where it is known. Warns where the grid is too
    coarse for `d_min`.
    """
    finest = 2 * float(density.grid_spacing.max())
    if d_min is None:
        d_min = finest
    elif finest > d_min * (1 + 1e-6):
        warnings.warn(
            f"the grid {density.grid_shape} resolves {finest:.2f} Å, coarser than the {d_min:.2f} Å asked for; "
            "a finer grid may change the answer",
            stacklevel=2,
        )
    if transform is None:
        transform = grids.fourier_coefficients(density.channel(channel))
    h, coefficients = grids.within_sphere(transform, density.lattice, d_min)
    if density.is_voxel_mean:
        coefficients = coefficients / np.sinc(h / np.array(density.grid_shape)).prod(axis=1)
    return h, coefficients


def noise_power(density: Density, channel: str = "total", transform: Complex[np.ndarray, "nx ny nz"] | None = None) -> float:
    """Power abs(F)^2 that white noise adds to each Fourier coefficient of a channel, read where the grid's resolution ends.

    Beyond the largest sphere that a grid holds there is next to nothing of a crystal. What is there counts as noise if it is white: as
    strong in the outer half as in the inner one, to five standard deviations or `MOST_UNEVEN`. Atoms sharper than the grid fall off, and
    give 0. `transform` is that of the channel, where it is known.
    """
    q_squared = grids.squared_lengths(density.grid_shape, density.lattice)
    corner = (q_squared > (2 * density.grid_spacing.max()) ** -2) & grids.below_nyquist(density.grid_shape)
    n_corner = int(np.count_nonzero(corner))
    if n_corner < MIN_CORNER:
        return 0.0
    if transform is None:
        transform = grids.fourier_coefficients(density.channel(channel))
    power = np.abs(transform[corner]) ** 2
    outer = q_squared[corner] > np.median(q_squared[corner])
    means = power[outer].mean(), power[~outer].mean()
    is_white = abs(means[0] - means[1]) <= min(5 * np.sqrt(8 / n_corner), MOST_UNEVEN) * power.mean()
    return float(power.mean()) if is_white else 0.0


def reduce_cell(density: Density, tolerance: float = 1e-4, d_min: float | None = None) -> Density:
    """Return the same crystal in its primitive Niggli cell, in a setting that the density fixes.

    Parameters
    ----------
    density : Density
        Of any cell: primitive, centred, a supercell, skewed.
    tolerance : float
        Share of the power that a translation may leave unexplained, see :func:`find_reduction`.
    d_min : float, optional
        Resolution in Å of what is kept; by default all that the grid holds within a sphere.

    Returns
    -------
    Density
        On a grid as fine as the old one's finest axis; without the structure, whose sites may not fit the smaller cell.
    """
    given = {name: band_limited_coefficients(density, name, d_min) for name in density.channels}
    found = find_reduction(density.lattice, *given["total"], tolerance, noise_power(density))
    lattice = found.basis @ density.lattice
    shape = grids.fine_grid_shape(lattice, 0.5 * d_min if d_min else float(density.grid_spacing.min()))
    channels = {name: grids.from_coefficients(*found.apply(*reflections), shape) for name, reflections in given.items()}
    return Density(lattice=lattice, channels=channels)
