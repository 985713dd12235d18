"""The Fourier coefficients of a density in one cell, with their noise: all that the search for symmetry looks at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.fft
from jaxtyping import Complex, Float, Int
from scipy.ndimage import maximum_filter

from matminer_ed3d import grids
from matminer_ed3d.density import Density
from matminer_ed3d.reduction import band_limited_coefficients, noise_power

__all__ = ["Spectrum", "local_maxima", "spectrum_of"]

FINEST_SEARCHED = 1.0  # Å; atoms are told apart at this resolution, and finer data cost more than they tell where there is no noise
FINEST_NOISY = 0.6  # Å; under noise every reflection counts
LEAST_REFLECTIONS = 600  # small cells are read to a finer resolution until they have as many
ROUNDING = 1e-15  # share of the power per reflection that double precision cannot tell from nothing
N_SHELLS = 12
OVERSAMPLING = 1.5  # of the maps; their features are as wide as the resolution


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Fourier coefficients within a sphere, F(0) left out.

    Parameters
    ----------
    lattice : (3, 3) float
        Rows in Å.
    h : (n_refl, 3) int
        Reflections, Friedel mates included.
    coefficients : (n_refl,) complex
        F(h), the mean over the cell of rho(x) exp(-2 pi i h.x), in e/Å³.
    noise : float
        Power abs(F)^2 that noise adds to each coefficient; not zero, but as small as rounding.
    """

    lattice: Float[np.ndarray, "3 3"]
    h: Int[np.ndarray, "n_refl 3"]
    coefficients: Complex[np.ndarray, " n_refl"]
    noise: float

    @cached_property
    def q(self) -> Float[np.ndarray, "n_refl 3"]:
        """Scattering vectors in 1/Å, Cartesian, without 2 pi."""
        return self.h @ np.linalg.inv(self.lattice).T

    @cached_property
    def q_length(self) -> Float[np.ndarray, " n_refl"]:
        """Lengths of the scattering vectors, 1/Å."""
        return np.linalg.norm(self.q, axis=1)

    @cached_property
    def reach(self) -> Int[np.ndarray, "3"]:
        """Largest index along each axis."""
        return np.abs(self.h).max(axis=0)

    @cached_property
    def map_shape(self) -> tuple[int, int, int]:
        """Points of the maps made of these coefficients."""
        return tuple(scipy.fft.next_fast_len(int(np.ceil(OVERSAMPLING * (2 * n + 1))), real=True) for n in self.reach)

    @cached_property
    def _columns(self) -> Int[np.ndarray, "3 n_refl"]:
        return np.ascontiguousarray(self.h.T)

    @cached_property
    def _place(self) -> Int[np.ndarray, "nx ny nz"]:
        """Row of each reflection, at h + reach; -1 where there is none."""
        place = np.full(2 * self.reach + 1, -1)
        place[tuple(self._columns + self.reach[:, None])] = np.arange(len(self.h))
        return place

    @cached_property
    def _known_images(self) -> dict[bytes, Int[np.ndarray, " n_refl"]]:
        return {}

    @cached_property
    def shell(self) -> Int[np.ndarray, " n_refl"]:
        """Number of the resolution shell of each reflection; shells hold about equally many."""
        edges = np.quantile(self.q_length, np.linspace(0, 1, N_SHELLS + 1)[1:-1])
        return np.unique(np.searchsorted(edges, self.q_length), return_inverse=True)[1].ravel()

    def per_shell(self, values: Float[np.ndarray, " n_refl"]) -> Float[np.ndarray, " n_shells"]:
        """Sum over the reflections of each shell."""
        return np.bincount(self.shell, values)

    @cached_property
    def shell_counts(self) -> Float[np.ndarray, " n_shells"]:
        """Reflections of each shell."""
        return np.bincount(self.shell).astype(float)

    @cached_property
    def signal(self) -> Float[np.ndarray, " n_shells"]:
        """Mean power of a reflection of each shell without the noise."""
        power = self.per_shell(np.abs(self.coefficients) ** 2) / self.shell_counts
        return np.maximum(power - self.noise, 1e-12 * power.max() + np.finfo(float).tiny)

    @cached_property
    def weights(self) -> Float[np.ndarray, " n_refl"]:
        """Share of the signal in each reflection's expected power: what a correlation should weigh it with."""
        return (self.signal / (self.signal + self.noise))[self.shell]

    def images(self, rotation: Int[np.ndarray, "3 3"]) -> Int[np.ndarray, " n_refl"]:
        """Rows of the reflections ``h @ rotation``; -1 for those outside the sphere (a metric that is only nearly kept)."""
        key = rotation.astype(np.int8).tobytes()
        if key not in self._known_images:
            x, y, z = rotation.T @ self._columns + self.reach[:, None]
            nx, ny, nz = self._place.shape
            inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny) & (z >= 0) & (z < nz)
            flat = (x * ny + y) * nz + z
            self._known_images[key] = (
                self._place.ravel()[flat] if inside.all() else np.where(inside, self._place.ravel()[flat * inside], -1)
            )
        return self._known_images[key]

    @cached_property
    def half(self) -> Int[np.ndarray, " m_refl"]:
        """Rows of the reflections with l >= 0, among which is one of each Friedel pair."""
        return np.flatnonzero(self.h[:, 2] >= 0)

    @cached_property
    def half_weights(self) -> Float[np.ndarray, " m_refl"]:
        """What the reflections of `half` count, so that a sum over them is one over all: 2, or 1 where the mate is there too."""
        return np.where(self.h[self.half, 2] > 0, 2.0, 1.0)

    @cached_property
    def half_h(self) -> Float[np.ndarray, "m_refl 3"]:
        """Indices of the reflections of `half`, as numbers that the fast products take."""
        return self.h[self.half].astype(float)

    @cached_property
    def _places(self) -> Int[np.ndarray, "3 n_refl"]:
        """Where each reflection's indices are among those of `_indices`."""
        starts = np.cumsum(2 * self.reach + 1) - (2 * self.reach + 1)
        return self._columns + (self.reach + starts)[:, None]

    @cached_property
    def _half_places(self) -> Int[np.ndarray, "3 m_refl"]:
        return np.ascontiguousarray(self._places[:, self.half])

    @cached_property
    def half_products(self) -> Float[np.ndarray, "m_refl 9"]:
        """Products of the indices of the reflections of `half`, two and two."""
        return (self.half_h[:, :, None] * self.half_h[:, None, :]).reshape(-1, 9)

    @cached_property
    def _indices(self) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """Every index of every axis, from -reach to reach, and the axis that it is of."""
        return np.concatenate([np.arange(-n, n + 1) for n in self.reach]), np.repeat(np.arange(3), 2 * self.reach + 1)

    def phases(self, positions: Float[np.ndarray, "n 3"]) -> Complex[np.ndarray, "n m_refl"]:
        """exp(2 pi i h.x) of the reflections of `half`, one axis at a time."""
        indices, axes = self._indices
        along = np.exp(2j * np.pi * positions[:, axes] * indices)
        x, y, z = self._half_places
        waves = along[:, x]
        waves *= along[:, y]
        waves *= along[:, z]
        return waves

    def waves(self, position: Float[np.ndarray, "3"]) -> Complex[np.ndarray, " n_refl"]:
        """exp(2 pi i h.x) of all reflections at one position."""
        indices, axes = self._indices
        along = np.exp(2j * np.pi * position[axes] * indices)
        x, y, z = self._places
        return along[x] * along[y] * along[z]

    @cached_property
    def _places_in_map(self) -> tuple[np.ndarray, ...]:
        return tuple((self.h[self.half] % np.array(self.map_shape)).T)

    def map_of(self, coefficients: Complex[np.ndarray, " n_refl"]) -> Float[np.ndarray, "nx ny nz"]:
        """Sum coefficients exp(2 pi i h.x) on the grid `map_shape`, in single precision; the coefficients are those of a real function."""
        nx, ny, nz = self.map_shape
        box = np.zeros((nx, ny, nz // 2 + 1), np.complex64)
        box[self._places_in_map] = coefficients[self.half]
        return scipy.fft.irfftn(box, s=self.map_shape, norm="forward")

    def cut(self, d_min: float) -> Spectrum:
        """The same to a coarser resolution, Å; itself where it is no finer."""
        kept = self.q_length <= (1 + 1e-9) / d_min
        return self if kept.all() else Spectrum(self.lattice, self.h[kept], self.coefficients[kept], self.noise)

    def in_basis(self, basis: Float[np.ndarray, "3 3"]) -> Spectrum:
        """The same crystal in the cell with rows ``basis @ lattice``; reflections without whole indices there are left out."""
        h = self.h @ basis.T
        whole = np.round(h).astype(np.int64)
        kept = np.abs(h - whole).max(axis=1) < 1e-6
        return Spectrum(basis @ self.lattice, whole[kept], self.coefficients[kept], self.noise)


def local_maxima(values: Float[np.ndarray, "nx ny nz"], limit: float, most: int) -> Float[np.ndarray, "n_peaks 3"]:
    """Fractional places of a periodic map's points above `limit` that no neighbour exceeds, the highest first, at most `most`."""
    places = np.argwhere((values > limit) & (values >= maximum_filter(values, 3, mode="wrap")))
    heights = values[tuple(places.T)]
    return places[np.argsort(-heights, kind="stable")][:most] / np.array(values.shape)


def spectrum_of(density: Density, channel: str = "total", d_min: float | None = None) -> Spectrum:
    """Read the coefficients of a density, to `d_min` (Å) or to what the search needs, and the noise in them.

    Raises
    ------
    ValueError
        If the density is constant.
    """
    finest = 2 * float(density.grid_spacing.max())
    transform = grids.fourier_coefficients(density.channel(channel))
    noise = noise_power(density, channel, transform)
    if d_min is None:
        wanted = FINEST_NOISY if noise > 0 else FINEST_SEARCHED
        d_min = max(finest, min(wanted, (4 / 3 * np.pi * density.volume / LEAST_REFLECTIONS) ** (1 / 3)))
    h, coefficients = band_limited_coefficients(density, channel, d_min, transform)
    h, coefficients = h[1:], coefficients[1:]  # without F(0), which comes first
    power = float((np.abs(coefficients) ** 2).sum())
    if not power > (1e-9 * max(abs(float(density.channel(channel).mean())), 1e-30)) ** 2:
        raise ValueError("the density is constant, so that it has every symmetry; is it the right channel?")
    return Spectrum(density.lattice, h, coefficients, max(noise, ROUNDING * power / len(h)))
