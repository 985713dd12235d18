"""Candidates for symmetry operations: the rotations that a lattice allows, and the translations at which a density repeats under them.

For rho(W x + t) = rho(x) the coefficients obey F(h W) = F(h) exp(2 pi i h.t), so the correlation of the density with its image,
for every t at once, is one Fourier transform of conj(F(h)) F(h W), whose peaks are the candidates.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex, Float, Int

from matminer_ed3d.reduction import lattice_rotations
from matminer_ed3d.symmetry.spectrum import Spectrum, local_maxima

__all__ = [
    "correlation_map",
    "correlation_peaks",
    "image_of",
    "lattice_operations",
    "metric_distance",
    "refined_translations",
    "translation_covariance",
]

LARGEST_STRAIN = 0.05  # relative; operations beyond are not even looked at
LEAST_CORRELATION = 0.6  # of the signal; the peaks of operations that hold reach it even between the map's points
LEAST_OF_BEST = 0.6  # of the highest peak of the same rotation
MOST_PEAKS = 24  # of one rotation
N_STEPS = 4  # Newton's method converges from the grid's peak in three or four


def metric_distance(rotation: Int[np.ndarray, "3 3"], lattice: Float[np.ndarray, "3 3"]) -> float:
    """How far, in Å, a rotation of the lattice moves its vectors' ends against each other: spglib's measure for `symprec`.

    The largest change of a length, or of an angle (its sine, times the mean of the lengths).
    """
    metric = lattice @ lattice.T
    turned = rotation.T @ metric @ rotation
    lengths, new_lengths = np.sqrt(np.diag(metric)), np.sqrt(np.diag(turned))
    largest = np.abs(lengths - new_lengths).max()
    for i, j in ((0, 1), (1, 2), (0, 2)):
        cosines = metric[i, j] / (lengths[i] * lengths[j]), turned[i, j] / (new_lengths[i] * new_lengths[j])
        angles = np.arccos(np.clip(cosines, -1, 1))
        mean_length = 0.25 * (lengths[i] + lengths[j] + new_lengths[i] + new_lengths[j])
        largest = max(largest, abs(np.sin(angles[0] - angles[1])) * mean_length)
    return float(largest)


def lattice_operations(lattice: Float[np.ndarray, "3 3"], symprec: float) -> Int[np.ndarray, "n 3 3"]:
    """Rotations W of fractional coordinates, proper and improper, that keep the metric of a reduced lattice within `symprec` (Å).

    The identity and the inversion come first.
    """
    proper = lattice_rotations(lattice, LARGEST_STRAIN).transpose(0, 2, 1)
    kept = np.array([w for w in proper if metric_distance(w, lattice) <= symprec])
    order = np.argsort(-np.trace(kept, axis1=1, axis2=2), kind="stable")
    return np.stack([kept[order], -kept[order]], axis=1).reshape(-1, 3, 3)


def image_of(spectrum: Spectrum, rows: Int[np.ndarray, " n_refl"], translation: Float[np.ndarray, "3"]) -> Complex[np.ndarray, " n_refl"]:
    """Coefficients of rho(W x + t), with `rows` those of the reflections h W; a reflection without image keeps its own."""
    turned = spectrum.coefficients[rows] * spectrum.waves(-translation)
    return np.where(rows >= 0, turned, spectrum.coefficients)


def correlation_map(spectrum: Spectrum, rows: Int[np.ndarray, " n_refl"]) -> Float[np.ndarray, "nx ny nz"]:
    """Correlation of a density with its image under one rotation for every translation; `rows` are those of the reflections h W."""
    weighted = np.where(rows >= 0, spectrum.coefficients.conj() * spectrum.coefficients[rows], 0) * spectrum.weights
    return spectrum.map_of(weighted.conj())  # C(t) = sum P exp(-2 pi i h.t), and P is that of a real function


def correlation_peaks(spectrum: Spectrum, rows: Int[np.ndarray, " n_refl"]) -> Float[np.ndarray, "n_peaks 3"]:
    """Translations at which a density correlates best with its image under one rotation, unrefined, the best first."""
    correlation = correlation_map(spectrum, rows)
    highest = float(correlation.max())
    signal = float((spectrum.weights * spectrum.signal[spectrum.shell]).sum())
    if highest < LEAST_CORRELATION * signal:
        return np.zeros((0, 3))
    return local_maxima(correlation, max(LEAST_CORRELATION * signal, LEAST_OF_BEST * highest), MOST_PEAKS)


def refined_translations(
    spectrum: Spectrum, rows: Int[np.ndarray, " n_refl"], translations: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 3"]:
    """Move translations to the maxima of the correlation by Newton's method; steps are at most a quarter of the maps' spacing."""
    half = spectrum.half  # Friedel mates say the same
    h, rows = spectrum.half_h, rows[half]
    weighted = np.where(rows >= 0, spectrum.coefficients[half].conj() * spectrum.coefficients[rows], 0) * spectrum.weights[half]
    longest = 0.25 / np.array(spectrum.map_shape)
    for _ in range(N_STEPS):
        terms = weighted * spectrum.phases(-translations)
        gradient = 2 * np.pi * (terms.imag @ h)
        curvature = (2 * np.pi) ** 2 * (terms.real @ spectrum.half_products).reshape(-1, 3, 3)
        # A density that is constant along a line leaves one direction open: no step along it.
        step = np.clip((np.linalg.pinv(curvature, rcond=1e-9, hermitian=True) @ gradient[:, :, None])[:, :, 0], -longest, longest)
        translations = translations + step
        if np.abs(step).max() < 1e-7:
            break
    return translations % 1.0


def translation_covariance(spectrum: Spectrum) -> Float[np.ndarray, "3 3"]:
    """Covariance (fractional) that the noise gives to a refined translation: the difference of two noisy densities is fitted."""
    power = np.maximum(np.abs(spectrum.coefficients) ** 2 - spectrum.noise, 0)
    information = (2 * np.pi) ** 2 * (spectrum.h.T * power) @ spectrum.h / (2 * spectrum.noise)
    return np.linalg.pinv(information)
