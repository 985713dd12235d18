"""Arithmetic on values of a periodic function at the points (i/nx, j/ny, k/nz) of a cell: plain functions on arrays.

A cell has the rows a, b, c of ``lattice`` (Å). A reflection ``h`` is an integer row; its wave vector is ``h @ inv(lattice).T``,
of length 1/d (1/Å). A change of basis is an integer matrix ``P`` with ``new_lattice = P @ lattice``; then
``frac_coords = new_frac_coords @ P`` and ``new_h = h @ P.T``.
"""

from __future__ import annotations

from math import gcd, prod

import numpy as np
import scipy.fft
from jaxtyping import Bool, Complex, Float, Int

__all__ = [
    "band_limit",
    "below_nyquist",
    "change_basis",
    "coarse_grid_shape",
    "fine_grid_shape",
    "fourier_coefficients",
    "fourier_resample",
    "from_coefficients",
    "matching_grid_shape",
    "mean_resample",
    "points_of_voxel_means",
    "reflections",
    "shift_origin",
    "squared_lengths",
    "within_sphere",
]

GridShape = tuple[int, int, int]


def fine_grid_shape(lattice: Float[np.ndarray, "3 3"], grid_spacing: float) -> GridShape:
    """Return the smallest grid, of sizes that transform fast, whose points are at most `grid_spacing` (Å) apart."""
    lengths = np.linalg.norm(lattice, axis=1)
    return tuple(int(scipy.fft.next_fast_len(max(1, int(np.ceil(n / grid_spacing - 1e-9))), real=True)) for n in lengths)  # type: ignore[return-value]


def coarse_grid_shape(lattice: Float[np.ndarray, "3 3"], voxel_size: float, multiple_of: int = 1) -> GridShape:
    """Return the counts, each a multiple of `multiple_of`, that divide the cell into voxels nearest `voxel_size` (Å)."""
    lengths = np.linalg.norm(lattice, axis=1)
    return tuple(multiple_of * max(1, round(n / voxel_size / multiple_of)) for n in lengths)


def reflections(grid_shape: GridShape) -> Int[np.ndarray, "n_points 3"]:
    """Return the reflection of every entry of a grid's discrete Fourier transform, in the order of ``ravel()``."""
    return np.stack(np.meshgrid(*_index_axes(grid_shape), indexing="ij"), axis=-1).reshape(-1, 3)


def _index_axes(grid_shape: GridShape) -> list[Int[np.ndarray, " n"]]:
    return [np.fft.fftfreq(n, 1 / n).round().astype(np.int64) for n in grid_shape]


def squared_lengths(grid_shape: GridShape, lattice: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "nx ny nz"]:
    """Return 1/d^2 (1/Å^2) of the reflection of every entry of a grid's discrete Fourier transform."""
    x, y, z = np.ix_(*(axis.astype(float) for axis in _index_axes(grid_shape)))
    metric = np.linalg.inv(lattice @ lattice.T)
    plane = metric[0, 0] * x * x + 2 * metric[0, 1] * x * y + metric[1, 1] * y * y
    return plane + (2 * metric[0, 2] * x + 2 * metric[1, 2] * y) * z + metric[2, 2] * z * z


def below_nyquist(grid_shape: GridShape) -> Bool[np.ndarray, "nx ny nz"]:
    """Tell which entries of a grid's discrete Fourier transform have a phase: not those of the Nyquist planes of even grids."""
    x, y, z = ((2 * np.abs(axis) < n) | (axis == 0) for axis, n in zip(_index_axes(grid_shape), grid_shape, strict=True))
    return x[:, None, None] & y[None, :, None] & z[None, None, :]


def fourier_coefficients(rho: Float[np.ndarray, "nx ny nz"]) -> Complex[np.ndarray, "nx ny nz"]:
    """Return F(h) = mean over the grid of rho(x) exp(-2 pi i h.x), in the units of `rho`; F(0) is the mean."""
    return scipy.fft.fftn(rho, norm="forward")


def from_coefficients(
    h: Int[np.ndarray, "n_refl 3"], coefficients: Complex[np.ndarray, " n_refl"], grid_shape: GridShape
) -> Float[np.ndarray, "nx ny nz"]:
    """Sum coefficients(h) exp(2 pi i h.x) on a grid.

    Parameters
    ----------
    h : (n_refl, 3) int
        Reflections; those that `grid_shape` cannot hold (2 abs(h) >= n) are left out.
    coefficients : (n_refl,) complex
        Fourier coefficients, Friedel mates included.
    grid_shape : (int, int, int)
        Points along a, b, c.

    Returns
    -------
    (nx, ny, nz) float
    """
    shape = np.array(grid_shape)
    fits = (2 * np.abs(h) < shape).all(axis=1) | (h == 0).all(axis=1)
    spectrum = np.zeros(grid_shape, dtype=complex)
    spectrum[tuple((h[fits] % shape).T)] = coefficients[fits]
    return scipy.fft.ifftn(spectrum, norm="forward").real


def fourier_resample(rho: Float[np.ndarray, "nx ny nz"], grid_shape: GridShape) -> Float[np.ndarray, "mx my mz"]:
    """Resample by trigonometric interpolation: exact for what both grids can hold, and the mean never changes.

    A Nyquist term that the finer grid can tell apart is split between +n/2 and -n/2, so the result stays real and
    passes through the old values when the new points fall on old ones.
    """
    spectrum = scipy.fft.fftn(rho, norm="forward")
    for axis, (old, new) in enumerate(zip(rho.shape, grid_shape, strict=True)):
        if new == old:
            continue
        spectrum = np.moveaxis(spectrum, axis, 0)
        out = np.zeros((new, *spectrum.shape[1:]), dtype=complex)
        small = min(old, new)
        half = (small - 1) // 2  # the last frequency below Nyquist of the smaller grid
        out[: half + 1] = spectrum[: half + 1]
        if half:
            out[-half:] = spectrum[-half:]
        if small % 2 == 0:
            nyquist = small // 2
            if new > old:
                out[nyquist] = out[-nyquist] = 0.5 * spectrum[nyquist]
            else:
                out[nyquist] = spectrum[nyquist] + spectrum[-nyquist]
        spectrum = np.moveaxis(out, 0, axis)
    return scipy.fft.ifftn(spectrum, norm="forward").real


def _overlap(n_old: int, n_new: int) -> Float[np.ndarray, "n_new n_old"]:
    """Share of each new interval that each old one covers; interval i of n is [(i - 1/2)/n, (i + 1/2)/n), periodic."""
    weights = np.zeros((n_new, n_old))
    edges = np.unique(np.concatenate([(np.arange(n_old + 1) - 0.5) / n_old % 1.0, (np.arange(n_new + 1) - 0.5) / n_new % 1.0, [0.0, 1.0]]))
    middle = 0.5 * (edges[1:] + edges[:-1])
    new, old = np.floor(middle * n_new + 0.5).astype(int) % n_new, np.floor(middle * n_old + 0.5).astype(int) % n_old
    np.add.at(weights, (new, old), np.diff(edges) * n_new)
    return weights


def mean_resample(rho: Float[np.ndarray, "nx ny nz"], grid_shape: GridShape) -> Float[np.ndarray, "mx my mz"]:
    """Average over the voxels of a coarser grid, each centred on its point; any ratio, never a value out of range.

    Each old value stands for the voxel around its own point, and a new voxel takes it by the volume that they share,
    so the mean over the cell never changes.
    """
    for axis, (old, new) in enumerate(zip(rho.shape, grid_shape, strict=True)):
        if old != new:
            rho = np.moveaxis(np.tensordot(_overlap(old, new), rho, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(rho)


def points_of_voxel_means(rho: Float[np.ndarray, "nx ny nz"]) -> Float[np.ndarray, "nx ny nz"]:
    """Values at the points of a function whose means over the voxels around them are given; the mean never changes.

    A mean over a voxel multiplies F(h) by the product of sinc(h_i / n_i), which is undone here; what a grid cannot hold (folded-back
    terms of sharp atoms) stays, and may swing below zero beside a heavy nucleus.
    """
    spectrum = scipy.fft.fftn(rho, norm="forward")
    for axis, n in enumerate(rho.shape):
        spectrum /= np.sinc(np.fft.fftfreq(n)).reshape([-1 if a == axis else 1 for a in range(3)])
    return scipy.fft.ifftn(spectrum, norm="forward").real


def shift_origin(rho: Float[np.ndarray, "nx ny nz"], frac_shift: Float[np.ndarray, "3"]) -> Float[np.ndarray, "nx ny nz"]:
    """Return the function seen from a new origin at `frac_shift`: out(x) = rho(x + frac_shift).

    A whole number of grid steps moves the values without touching them; anything else interpolates by Fourier phases.
    """
    steps = np.asarray(frac_shift, dtype=float) * rho.shape
    if np.allclose(steps, np.round(steps), rtol=0, atol=1e-9):
        return np.roll(rho, -np.round(steps).astype(int), axis=(0, 1, 2))
    spectrum = scipy.fft.fftn(rho)
    for axis, n in enumerate(rho.shape):
        phase = np.exp(2j * np.pi * np.fft.fftfreq(n, 1 / n) * frac_shift[axis])
        if n % 2 == 0:
            phase[n // 2] = phase[n // 2].real
        spectrum *= phase.reshape([-1 if a == axis else 1 for a in range(3)])
    return scipy.fft.ifftn(spectrum).real


def band_limit(
    rho: Float[np.ndarray, "nx ny nz"], lattice: Float[np.ndarray, "3 3"], d_min: float, blur: float = 0.0
) -> tuple[Int[np.ndarray, "n_refl 3"], Complex[np.ndarray, " n_refl"]]:
    """Fourier coefficients within the sphere of resolution `d_min` (Å), damped by exp(-blur s^2).

    Parameters
    ----------
    rho : (nx, ny, nz) float
        Values on the grid.
    lattice : (3, 3) float
        Rows in Å.
    d_min : float
        Smallest lattice-plane distance kept, Å. Where the grid is too coarse for it, all that the grid holds is kept.
    blur : float
        Isotropic B (Å^2) that multiplies each coefficient by exp(-B s^2), s = 1 / (2 d).

    Returns
    -------
    h : (n_refl, 3) int
    coefficients : (n_refl,) complex
        In the units of `rho`; the Nyquist planes of even grids, whose phase is not defined, are left out.
    """
    h, coefficients = within_sphere(fourier_coefficients(rho), lattice, d_min)
    return h, coefficients * np.exp(-0.25 * blur * ((h @ np.linalg.inv(lattice).T) ** 2).sum(axis=1)) if blur else coefficients


def within_sphere(
    transform: Complex[np.ndarray, "nx ny nz"], lattice: Float[np.ndarray, "3 3"], d_min: float
) -> tuple[Int[np.ndarray, "n_refl 3"], Complex[np.ndarray, " n_refl"]]:
    """Reflections within the sphere of `d_min` (Å) and their coefficients, out of those of :func:`fourier_coefficients`.

    F(0) comes first. The Nyquist planes of even grids, whose phase is not defined, are left out.
    """
    shape = transform.shape
    keep = (squared_lengths(shape, lattice) <= d_min**-2 * (1 + 1e-9)) & below_nyquist(shape)
    places = np.nonzero(keep)
    h = np.stack([axis[i] for axis, i in zip(_index_axes(shape), places, strict=True)], axis=1)
    return h, transform[places]


def change_basis(
    rho: Float[np.ndarray, "nx ny nz"], basis_change: Int[np.ndarray, "3 3"], grid_shape: GridShape
) -> Float[np.ndarray, "mx my mz"]:
    """Values of the same function on a grid of the cell ``P @ lattice``.

    Where the new points are the old ones the values are only moved; otherwise, also where the new points are only some of the old
    ones, they are interpolated by Fourier coefficients, without the Nyquist planes of even grids and without what `grid_shape`
    cannot hold. Either way the mean stays.
    """
    shape = np.array(rho.shape)
    steps = basis_change * shape  # old grid steps along each new lattice vector
    if (steps % np.array(grid_shape)[:, None] == 0).all() and _as_many_points(rho.shape, grid_shape, basis_change):
        index = np.zeros((*grid_shape, 3), dtype=np.int64)
        for axis, n in enumerate(grid_shape):
            walk = np.arange(n)[:, None] * (steps[axis] // n)
            index = index + walk.reshape([n if a == axis else 1 for a in range(3)] + [3])
        return rho[tuple(np.moveaxis(index % shape, -1, 0))]
    h = reflections(rho.shape)
    known = ((2 * np.abs(h) < shape) | (h == 0)).all(axis=1)
    return from_coefficients(h[known] @ basis_change.T, fourier_coefficients(rho).ravel()[known], grid_shape)


def _as_many_points(old_shape: GridShape, new_shape: GridShape, basis_change: Int[np.ndarray, "3 3"]) -> bool:
    """Tell whether both grids have the same number of points per volume: then new points that all fall on old ones miss none."""
    return prod(new_shape) == abs(round(float(np.linalg.det(basis_change)))) * prod(old_shape)


def matching_grid_shape(lattice: Float[np.ndarray, "3 3"], old_shape: GridShape, basis_change: Int[np.ndarray, "3 3"]) -> GridShape:
    """Grid for the cell ``P @ lattice``: the old points where they make one with no much larger steps, else as fine as the finest axis."""
    steps = basis_change * np.array(old_shape)
    exact = np.array([gcd(*(int(abs(s)) for s in row)) for row in steps])
    new_lattice = basis_change @ lattice
    old_spacing = np.linalg.norm(lattice, axis=1) / old_shape
    shape: GridShape = tuple(int(n) for n in exact)  # type: ignore[assignment]
    if _as_many_points(old_shape, shape, basis_change) and (np.linalg.norm(new_lattice, axis=1) / exact <= 1.5 * old_spacing.max()).all():
        return shape
    return fine_grid_shape(new_lattice, float(old_spacing.min()))
