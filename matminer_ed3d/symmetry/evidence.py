"""How well an operation holds: in power, as a displacement of atoms in Å, as a difference of their scattering, and against the noise.

The difference d(x) = rho(W x + t) - rho(x) is looked at in two ways.

- *Near every point* the power of d is compared with that of the gradient of rho. An atom displaced by u makes d = -u.grad(rho), so
  ``sqrt(3 <d^2> / <|grad rho|^2>)`` in a window is a displacement in Å, whatever the atom weighs; and the projection of d on rho itself at
  the atoms tells a difference in scattering (another element, another occupancy). Only what exceeds the noise counts.
- *Over all atoms*, where noise hides single ones, matched filters estimate each atom's displacement and scattering difference, and the
  logarithm of the ratio of two likelihoods weighs "broken" against "holds": their amplitudes are unknown, and both hypotheses are
  mixtures over a prior of amplitudes. The same is done for the reflections of each resolution shell. This is the place of an
  information criterion: a mixture pays for its freedom by its spread, and no threshold depends on the level of the noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.fft
from jaxtyping import Complex, Float, Int
from scipy.stats import chi2

from matminer_ed3d.symmetry import operations
from matminer_ed3d.symmetry.spectrum import Spectrum, local_maxima

__all__ = ["Evidence", "Operation", "Traces"]

WINDOW = 0.35  # Å; sigma of the Gaussian window: an atom, and not its neighbours
FLOOR = 1e-5  # of the largest mean squared gradient; where the density is flatter, nothing can be displaced
FALSE_ALARM = 1e-8  # of a window, with as many degrees of freedom as it holds; many windows are looked at
FALSE_ALARM_LIMIT = float(chi2.isf(FALSE_ALARM, 1))
FEWER_AT_SPECIAL_POSITIONS = 0.8  # noise repeats near symmetry elements; measured on operations that hold
LEAST_PEAK = 0.02  # of the highest; lower ones are ripples
PEAK_SIGMAS = 6
MOST_PEAKS = 80
HEAVY = 0.4  # of the highest; a lighter atom's neighbour in the periodic table differs by more, and shows as a displacement
LEAK = 2.0  # 1/Å; an atom displaced by 0.005 Å may look 1 % lighter
HOPELESS = 5.0  # times `symprec`, as the mean over the cell: such an operation is not looked at any further

# Amplitudes and their prior probabilities if an operation holds: what relaxed structures of the Materials Project leave. If it is
# broken: all the same, from where the first end.
DISPLACED_HELD = np.array([0, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3]), np.log([0.93, 0.03, 0.02, 0.01, 0.006, 0.003])  # Å, rms along an axis
DISPLACED_BROKEN = np.array([2e-3, 3e-3, 5e-3, 8e-3, 0.013, 0.02, 0.035, 0.06, 0.1, 0.2, 0.5])
SCATTERING_HELD = np.array([0, 1e-3, 3e-3, 5e-3]), np.log([0.97, 0.015, 0.006, 0.003])  # relative
SCATTERING_BROKEN = np.array([0.006, 0.01, 0.02, 0.04, 0.08, 0.16, 0.3, 0.6, 1.0])
POWER_HELD = np.sqrt([0, 1e-6, 1e-5, 1e-4]), np.log([0.95, 0.03, 0.015, 0.003])  # of the amplitude of a reflection
POWER_BROKEN = np.logspace(-2, 0, 9)
FIXED = 0.3  # Å; an operation that moves an atom by less leaves it in its place
LEAST_FREEDOM = 1e-6
NO_NOISE = 1e-6  # of the density's power
NO_AMPLITUDE = 3e-4  # what is below is nothing, Å or relative


@dataclass(frozen=True, eq=False)
class Operation:
    """A symmetry operation x -> W x + t of a density, and how well it holds.

    Parameters
    ----------
    rotation : (3, 3) int
        W, of fractional coordinates (columns).
    translation : (3,) float
        t, fractional.
    residual : float
        Sum of abs(F' - F)^2 over twice the sum of abs(F)^2, without F(0): 0 if it holds, about 1 if nothing agrees; with the noise.
    displacement : float
        Largest displacement in Å that a difference between the density and its image can be read as, beyond the noise; of operations
        that are far from holding the mean over the cell, which is less.
    scattering_difference : float
        Largest relative difference of two atoms' scattering, beyond the noise; NaN where it was not looked at.
    log_evidence : float
        Logarithm of the odds that the data give "broken" against "holds"; 0 where noise is so small that the displacement decides.
    translation_uncertainty : float
        Standard deviation of the translation in Å, from the noise.
    """

    rotation: Int[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    residual: float
    displacement: float
    scattering_difference: float
    log_evidence: float
    translation_uncertainty: float


@dataclass(frozen=True, eq=False)
class Traces:
    """Traces, or degrees of freedom, of the three kinds of numbers that the odds look at.

    Parameters
    ----------
    shells : (n_shells,) float
        Coefficients of each resolution shell.
    scattering, displacements : (n_peaks,) float
        Of each atom: 1 and 3 for the identity.
    """

    shells: Float[np.ndarray, " n_shells"]
    scattering: Float[np.ndarray, " n_peaks"]
    displacements: Float[np.ndarray, " n_peaks"]

    def __sub__(self, other: Traces) -> Traces:
        return Traces(self.shells - other.shells, self.scattering - other.scattering, self.displacements - other.displacements)

    def __rmul__(self, factor: float) -> Traces:
        return Traces(factor * self.shells, factor * self.scattering, factor * self.displacements)

    @staticmethod
    def mean(traces: list[Traces]) -> Traces:
        """Mean over the members of a group."""
        return Traces(
            np.mean([t.shells for t in traces], axis=0),
            np.mean([t.scattering for t in traces], axis=0),
            np.mean([t.displacements for t in traces], axis=0),
        )


def _log_odds(
    power: Float[np.ndarray, " n_bins"],
    degrees: Float[np.ndarray, " n_bins"],
    variance: Float[np.ndarray, " n_bins"],
    scale: Float[np.ndarray, " n_bins"],
    held: tuple[np.ndarray, np.ndarray],
    broken: np.ndarray,
) -> float:
    """Log of p(power | broken) / p(power | holds); an amplitude tau adds tau^2 * scale to the variance of each degree of freedom."""
    free = degrees > LEAST_FREEDOM
    if not free.any():
        return 0.0
    power, degrees, variance, scale = power[free], degrees[free], variance[free], scale[free]

    def log_likelihood(amplitudes: np.ndarray) -> np.ndarray:
        added = amplitudes[:, None] ** 2 * scale
        return (-0.5 * degrees * np.log1p(added / variance) + 0.5 * power * (1 / variance - 1 / (variance + added))).sum(axis=1)

    of_broken, of_held = np.logaddexp.reduce(log_likelihood(broken)), np.logaddexp.reduce(log_likelihood(held[0]) + held[1])
    return float(of_broken - np.log(len(broken)) - of_held)


class Evidence:
    """What one spectrum says about operations.

    Parameters
    ----------
    spectrum : Spectrum
        In the cell in which the operations are given.
    symprec : float
        Largest displacement, Å, that still counts as symmetry.
    """

    def __init__(self, spectrum: Spectrum, symprec: float) -> None:
        self.spectrum = spectrum
        self.symprec = symprec

    # Windows

    @cached_property
    def _window(self) -> Float[np.ndarray, "nx ny nz"]:
        shape = self.spectrum.map_shape
        axes = [np.fft.fftfreq(n, 1 / n) for n in shape[:2]] + [np.arange(shape[2] // 2 + 1)]
        q = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) @ np.linalg.inv(self.spectrum.lattice).T
        return np.exp(-2 * np.pi**2 * WINDOW**2 * (q**2).sum(axis=-1)).astype(np.float32)

    def _windowed(self, values: np.ndarray) -> np.ndarray:
        return scipy.fft.irfftn(scipy.fft.rfftn(values) * self._window, s=self.spectrum.map_shape)

    @cached_property
    def _squared_gradient(self) -> np.ndarray:
        spectrum = self.spectrum
        total = np.zeros(spectrum.map_shape, np.float32)
        for axis in range(3):
            total += spectrum.map_of(2j * np.pi * spectrum.q[:, axis] * spectrum.coefficients) ** 2
        mean = self._windowed(total) - spectrum.noise * float(((2 * np.pi * spectrum.q_length) ** 2).sum())
        return np.maximum(mean, FLOOR * mean.max())

    @cached_property
    def _noise_limit(self) -> float:
        """How many times its mean the power of noise in a window may be."""
        spectrum = self.spectrum
        per_volume = len(spectrum.h) / abs(np.linalg.det(spectrum.lattice))
        degrees = max(1.0, FEWER_AT_SPECIAL_POSITIONS * per_volume * (4 * np.pi * WINDOW**2) ** 1.5)
        return float(chi2.isf(FALSE_ALARM, degrees) / degrees)

    def displacement(self, difference: Complex[np.ndarray, " n_refl"]) -> float:
        """Largest displacement in Å that d can be read as, beyond the noise of two densities."""
        spectrum = self.spectrum
        power = self._windowed(spectrum.map_of(difference) ** 2)
        limit = 2 * spectrum.noise * len(spectrum.h) * self._noise_limit
        return float(np.sqrt(3 * np.maximum(power - limit, 0) / self._squared_gradient).max())

    # Atoms

    @cached_property
    def _peaks(self) -> tuple[np.ndarray, np.ndarray, float, float, np.ndarray]:
        """Filters (n_peaks, m_refl) of the peaks for the reflections of `half`, heights, norms for scattering and displacement, places."""
        spectrum = self.spectrum
        profile = np.sqrt(spectrum.signal[spectrum.shell])
        profile = profile / profile.max()
        norm, steep = float((profile**2).sum()), float(((2 * np.pi * spectrum.q_length * profile) ** 2).sum()) / 3
        filtered = spectrum.coefficients * profile
        density = spectrum.map_of(filtered)
        limit = max(PEAK_SIGMAS * np.sqrt(spectrum.noise * norm), LEAST_PEAK * float(density.max()))
        positions = local_maxima(density, limit, MOST_PEAKS)
        to_frac = np.linalg.inv(spectrum.lattice)
        half = spectrum.half
        q, weighted = spectrum.q[half], spectrum.half_weights * profile[half]
        filtered = weighted * spectrum.coefficients[half]
        products = (q[:, :, None] * q[:, None, :]).reshape(-1, 9)
        for _ in range(2):  # to the tops, between the grid's points
            terms = spectrum.phases(positions) * filtered
            slope = -2 * np.pi * terms.imag @ q
            bend = -((2 * np.pi) ** 2) * (terms.real @ products).reshape(-1, 3, 3)
            step = np.clip(-np.linalg.solve(bend, slope[:, :, None])[:, :, 0], -0.15, 0.15)
            positions = positions + step @ to_frac
        filters = spectrum.phases(positions) * weighted
        heights = (filters @ spectrum.coefficients[half]).real / norm
        return filters, np.maximum(heights, 1e-3 * heights.max()), norm, steep, positions

    def _atoms(self, difference: Complex[np.ndarray, " n_refl"]) -> tuple[np.ndarray, np.ndarray]:
        """Estimate the relative scattering differences (n_peaks,) and the displacements in Å (n_peaks, 3) that make d."""
        _, heights, norm, steep, _ = self._peaks
        half = difference[self.spectrum.half]
        turned = np.empty((2 * len(half), 4))  # real and imaginary parts below each other: only the real part of the sum is wanted
        turned[: len(half), 0], turned[len(half) :, 0] = half.real, half.imag
        turned[: len(half), 1:], turned[len(half) :, 1:] = -half.imag[:, None] * self._steps, half.real[:, None] * self._steps
        estimates = self._real_filters @ turned / heights[:, None]
        return estimates[:, 0] / norm, estimates[:, 1:] / steep

    @cached_property
    def _steps(self) -> Float[np.ndarray, "m_refl 3"]:
        return 2 * np.pi * self.spectrum.q[self.spectrum.half]

    @cached_property
    def _real_filters(self) -> Float[np.ndarray, "n_peaks two_m_refl"]:
        filters = self._peaks[0]
        return np.concatenate([filters.real, -filters.imag], axis=1)

    def scattering_difference(self, difference: Complex[np.ndarray, " n_refl"]) -> float:
        """Largest relative difference in scattering of a heavy atom and its image, beyond noise and what displacements look like."""
        heights, norm = self._peaks[1:3]
        scattering, displaced = self._atoms(difference)
        heavy = heights > HEAVY * heights.max()
        limit = np.sqrt(2 * self.spectrum.noise / norm * FALSE_ALARM_LIMIT) / heights[heavy]
        leak = LEAK * float(np.linalg.norm(displaced[heavy], axis=1).max())
        return float(np.maximum(np.abs(scattering[heavy]) - limit - leak, 0).max())

    @cached_property
    def is_precise(self) -> bool:
        """Whether there is next to no noise, and every atom's displacement is known to a third of `symprec`: then the largest decides."""
        spectrum = self.spectrum
        if spectrum.noise * len(spectrum.h) > NO_NOISE * float((np.abs(spectrum.coefficients) ** 2).sum()):
            return False
        _, heights, _, steep, _ = self._peaks
        return bool(np.sqrt(spectrum.noise / steep) / heights.min() < self.symprec / 3)

    # Odds

    def traces(self, rotation: Int[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]) -> Traces:
        """Traces of an operation, as it acts on coefficients, scattering differences and displacements; their means over a group are
        the numbers of degrees of freedom that the group leaves.
        """
        spectrum = self.spectrum
        stays = spectrum.images(rotation) == np.arange(len(spectrum.h))
        waves = np.zeros(len(stays))
        waves[stays] = np.cos(2 * np.pi * (spectrum.h[stays] @ translation))
        positions = self._peaks[4]
        moved = (positions @ rotation.T + translation - positions + 0.5) % 1.0 - 0.5
        fixed = (np.linalg.norm(moved @ spectrum.lattice, axis=1) < FIXED).astype(float)
        return Traces(spectrum.per_shell(waves), fixed, fixed * float(np.trace(rotation)))

    def log_odds(self, difference: Complex[np.ndarray, " n_refl"], degrees: Traces, n_averaged: int) -> float:
        """Log odds of "broken" against "holds" that a difference d gives.

        Parameters
        ----------
        difference : (n_refl,) complex
            The mean over the images under a group minus the mean over those under a larger one.
        degrees : Traces
            Degrees of freedom in which noise can make such a difference: those that the smaller group leaves minus those of the larger.
        n_averaged : int
            Order of the smaller group.
        """
        spectrum = self.spectrum
        power = spectrum.per_shell(np.abs(difference) ** 2)
        variance = np.full(len(power), spectrum.noise)
        odds = [_log_odds(power, degrees.shells, variance, spectrum.signal * n_averaged, POWER_HELD, POWER_BROKEN)]
        _, heights, norm, steep, _ = self._peaks
        scattering, displaced = self._atoms(difference)
        group = np.minimum(np.log2(heights.max() / heights).astype(int), 6)  # atoms that are known about equally well
        group = np.unique(group, return_inverse=True)[1].ravel()
        counts = np.bincount(group).astype(float)
        for freedom, values, width, held, broken in (
            (degrees.scattering, scattering**2, norm, SCATTERING_HELD, SCATTERING_BROKEN),
            (degrees.displacements, (displaced**2).sum(axis=1), steep, DISPLACED_HELD, DISPLACED_BROKEN),
        ):
            variance = np.bincount(group, spectrum.noise / width / heights**2) / counts + n_averaged * NO_AMPLITUDE**2
            scale = np.full(len(counts), float(n_averaged))
            odds.append(_log_odds(np.bincount(group, values), np.bincount(group, freedom), variance, scale, held, broken))
        return float(np.logaddexp.reduce(odds) - np.log(len(odds)))

    def test(
        self, rotation: Int[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]
    ) -> tuple[Operation, Complex[np.ndarray, " n_refl"]]:
        """Refine an operation's translation and say how well it holds; also return the coefficients of the image."""
        rows = self.spectrum.images(rotation)
        operation, image = self.compared(rotation, operations.refined_translations(self.spectrum, rows, translation[None])[0])
        return self.examined(operation, image), image

    def compared(
        self, rotation: Int[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]
    ) -> tuple[Operation, Complex[np.ndarray, " n_refl"]]:
        """Residual and mean displacement of an operation, quickly, and the coefficients of the image; `log_evidence` is NaN, or infinite
        where there is no hope.
        """
        spectrum = self.spectrum
        image = operations.image_of(spectrum, spectrum.images(rotation), translation)
        difference = image - spectrum.coefficients
        power = float((np.abs(spectrum.coefficients) ** 2).sum())
        broken = float((np.abs(difference) ** 2).sum())
        mean = float(np.sqrt(3 * max(broken - 2 * spectrum.noise * len(difference), 0.0) / self._gradient_power))
        log_evidence = np.inf if mean > HOPELESS * self.symprec else np.nan
        return Operation(rotation, translation, broken / (2 * power), mean, np.nan, log_evidence, self._translation_uncertainty), image

    def examined(self, operation: Operation, image: Complex[np.ndarray, " n_refl"]) -> Operation:
        """The same operation with its largest displacement, difference in scattering and odds, unless there is no hope."""
        if not np.isnan(operation.log_evidence):
            return operation
        difference = image - self.spectrum.coefficients
        halves = self._halves(operation.rotation, operation.translation)
        return replace(
            operation,
            displacement=self.displacement(difference),
            scattering_difference=self.scattering_difference(difference),
            log_evidence=0.0 if self.is_precise else self.log_odds(difference / 2, halves, 1),
        )

    def _halves(self, rotation: Int[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]) -> Traces:
        """Degrees of freedom of half the difference between noise and its image, which has the variance (1 - trace / n) / 2."""
        return 0.5 * (self.traces(np.eye(3, dtype=np.int64), np.zeros(3)) - self.traces(rotation, translation))

    @cached_property
    def _gradient_power(self) -> float:
        spectrum = self.spectrum
        power = np.maximum(spectrum.signal[spectrum.shell], 0) * (2 * np.pi * spectrum.q_length) ** 2
        return float(power.sum())

    @cached_property
    def _translation_uncertainty(self) -> float:
        covariance = self.spectrum.lattice.T @ operations.translation_covariance(self.spectrum) @ self.spectrum.lattice
        return float(np.sqrt(np.trace(covariance) / 3))
