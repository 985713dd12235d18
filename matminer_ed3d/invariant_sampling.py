"""Voxels that are the same for every cell, origin and orientation of one crystal: the band-limited density in its reduced cell."""

from __future__ import annotations

import numpy as np

from matminer_ed3d import grids
from matminer_ed3d.density import Density
from matminer_ed3d.reduction import band_limited_coefficients, find_reduction, noise_power
from matminer_ed3d.representations import SparseTensor

__all__ = ["sample_reduced_voxels"]

BLUR = 12.0  # B in Å² at 1 Å resolution, growing with d_min²: exp(-B s²) is 0.05 at the edge of the sphere, so the sum rings little
ENLARGE = 1.02  # step by which voxels grow until they are few enough


def _voxel_counts(lattice: np.ndarray, voxel_size: float, max_voxels: int | None, multiple_of: int) -> tuple[grids.GridShape, float]:
    """Counts along a, b, c, and the voxel size at which they are few enough."""
    shape = grids.coarse_grid_shape(lattice, voxel_size, multiple_of)
    while max_voxels is not None and np.prod(shape) > max_voxels and max(shape) > multiple_of:
        voxel_size *= ENLARGE
        shape = grids.coarse_grid_shape(lattice, voxel_size, multiple_of)
    return shape, voxel_size


def _standardized(values: np.ndarray, scale: float) -> np.ndarray:
    """(values - mean) / rms; a channel that is flat to rounding, such as the spin of a crystal without any, becomes zero."""
    values = values - values.mean()
    rms = np.sqrt((values**2).mean())
    return values / rms if rms > 1e-9 * max(1.0, scale) else np.zeros_like(values)


def sample_reduced_voxels(
    density: Density,
    *,
    d_min: float,
    voxel_size: float,
    max_voxels: int | None = None,
    multiple_of: int = 1,
    threshold: float = 0.0,
    standardize: bool = False,
    channels: tuple[str, ...] = ("total",),
) -> SparseTensor:
    """Sample the band-limited density at the voxels of its primitive Niggli cell, in the setting and origin that it fixes.

    The Fourier coefficients within the sphere of `d_min`, damped by exp(-B s²) so that the sum does not ring, are summed at the
    voxels' centres. They do not depend on the cell, origin or orientation in which the density came, so neither does the sample.

    Parameters
    ----------
    density : Density
        On a grid no coarser than ``d_min / 2``; a coarser one warns.
    d_min : float
        Resolution in Å.
    voxel_size : float
        Edge of a voxel in Å; half of `d_min` holds all that is kept.
    max_voxels : int, optional
        Enlarge the voxels, and `d_min` with them, until no more than this many fill the cell.
    multiple_of : int
        Make the counts along a, b, c multiples of this.
    threshold : float
        Voxels whose total lies below this are left out: e/Å³, or standard deviations above the mean if `standardize`.
    standardize : bool
        Features are (rho - mean) / rms of each channel, in which a density of valence electrons and one of all electrons look
        much alike.
    channels : tuple of str
        Of the density.

    Returns
    -------
    SparseTensor
        Periodic, on the reduced lattice.

    Raises
    ------
    ValueError
        If no voxel reaches the threshold.
    """
    given = {name: band_limited_coefficients(density, name, d_min) for name in dict.fromkeys(("total", *channels))}
    found = find_reduction(density.lattice, *given["total"], noise=noise_power(density))
    lattice = found.basis @ density.lattice
    shape, enlarged = _voxel_counts(lattice, voxel_size, max_voxels, multiple_of)
    resolution = d_min * enlarged / voxel_size
    columns = {}
    for name, reflections in given.items():
        h, coefficients = found.apply(*reflections)
        q_squared = ((h @ np.linalg.inv(lattice).T) ** 2).sum(axis=1)
        inside = q_squared <= resolution**-2 * (1 + 1e-9)
        damped = coefficients[inside] * np.exp(-0.25 * BLUR * resolution**2 * q_squared[inside])
        values = grids.from_coefficients(h[inside], damped, shape).ravel()
        columns[name] = _standardized(values, float(np.abs(coefficients).max())) if standardize else values
    total, feats = columns["total"], np.stack([columns[name] for name in channels], axis=1)
    kept = np.flatnonzero(total >= threshold - 1e-9)
    if not len(kept):
        raise ValueError(f"no voxel reaches the `threshold` of {threshold}, the largest value is {total.max():.4g}; lower it")
    coords = np.stack(np.unravel_index(kept, shape), axis=1).astype(np.int32)
    return SparseTensor(coords, feats[kept].astype(np.float32), tuple(channels), lattice / np.array(shape)[:, None], shape)
