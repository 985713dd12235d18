"""Density to samples: points in Cartesian space, or voxels that are Cartesian (the paper's) or aligned with the lattice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from matminer_ed3d import grids
from matminer_ed3d.density import Density
from matminer_ed3d.representations import PointCloud, SparseTensor

__all__ = ["CHANNELS", "PAPER_CAPS", "check_channels", "check_options", "point_cap", "sample_points", "sample_voxels"]

PAPER_CAPS = ((100.0, 5_000), (1_000.0, 30_000))
"""(volume in Å³, most points): the paper keeps 5,000 to 30,000 points by cell size without saying how; we go linearly between these."""

Reduction = Literal["random", "mean"]
Rng = np.random.Generator | int | None

CHANNELS = ("total", "diff", "up", "down", "diff_x", "diff_y", "diff_z")
"""Names that a channel can have; which of them there are, each density knows."""


def point_cap(volume: float) -> int:
    """Return the paper's cap on the number of points for a cell of `volume` (Å³)."""
    (low_volume, low), (high_volume, high) = PAPER_CAPS
    return int(np.interp(volume, (low_volume, high_volume), (low, high)))


def check_channels(channels: Sequence[str]) -> None:
    """Refuse what is no tuple of names of channels.

    Raises
    ------
    ValueError
        Says which name, and those that exist.
    """
    if isinstance(channels, str):
        raise ValueError(f"`channels` must be a tuple of names, got {channels!r}; write ({channels!r},)")
    if not len(channels):
        raise ValueError("`channels` must name at least one channel, got none; take ('total',)")
    unknown = [name for name in channels if name not in CHANNELS]
    if unknown:
        raise ValueError(f"`channels` must be names among {CHANNELS}, got {', '.join(map(repr, unknown))}")


def check_options(
    *,
    voxel_size: float,
    voxel_basis: str = "lattice",
    reduction: str,
    threshold: float,
    max_points: int | str | None,
    channels: Sequence[str],
    multiple_of: int = 1,
) -> None:
    """Refuse options of :func:`sample_points` and :func:`sample_voxels` that have no meaning.

    Raises
    ------
    ValueError
        Says which option, and what to do.
    """
    if not (np.isfinite(voxel_size) and voxel_size > 0):
        raise ValueError(f"`voxel_size` must be a positive length in Å, got {voxel_size}")
    if voxel_basis not in ("lattice", "cartesian"):
        raise ValueError(f"`voxel_basis` must be 'lattice' or 'cartesian', got {voxel_basis!r}")
    if reduction not in ("random", "mean"):
        raise ValueError(f"`reduction` must be 'random' or 'mean', got {reduction!r}")
    if not np.isfinite(threshold):
        raise ValueError(f"`threshold` must be a density in e/Å³, got {threshold}")
    if not (max_points is None or max_points == "paper" or (isinstance(max_points, int | np.integer) and max_points >= 1)):
        raise ValueError(f"`max_points` must be a count of at least 1, 'paper' or None, got {max_points!r}")
    check_channels(channels)
    if multiple_of < 1:
        raise ValueError(f"`multiple_of` must be at least 1, got {multiple_of}")


def _stack(density: Density, channels: tuple[str, ...]) -> Float[np.ndarray, "n_stacked nx ny nz"]:
    """``total``, which decides what is kept, and then the channels asked for."""
    return np.stack([density.channel(name) for name in ("total", *channels)])


def _mean_of_voxels(stack: Float[np.ndarray, "n_stacked nx ny nz"], coarse_shape: grids.GridShape) -> Float[np.ndarray, "n n_stacked"]:
    """Mean over each lattice-aligned voxel of the grid's values, each constant over its own: conserving and in range at any ratio."""
    return np.stack([grids.mean_resample(values, coarse_shape).ravel() for values in stack], axis=1)


def _all_indices(grid_shape: grids.GridShape) -> Int[np.ndarray, "n 3"]:
    return np.stack(np.meshgrid(*[np.arange(n) for n in grid_shape], indexing="ij"), -1).reshape(-1, 3)


def _select(values: Float[np.ndarray, " n"], threshold: float, max_points: int | str | None, volume: float) -> Int[np.ndarray, " m"]:
    """Rows at or above `threshold`, and of those the densest `max_points`.

    Values equal to the first one cut (to 1e-6 of it) are cut too: symmetry makes equal values, and keeping some of them would
    break it. Where the largest values are more than the cap, they are kept, since none can be told from the others; in a constant
    density these are all.
    """
    rows = np.flatnonzero(values >= threshold)
    if not len(rows):
        raise ValueError(f"no point reaches the `threshold` of {threshold} e/Å³, the largest density is {values.max():.4g}; lower it")
    cap = point_cap(volume) if max_points == "paper" else max_points
    if cap is None or len(rows) <= int(cap):
        return rows
    first_cut = -np.partition(-values[rows], int(cap))[int(cap)]
    equal = 1e-6 * abs(first_cut)
    kept = rows[values[rows] > first_cut + equal]
    return kept if len(kept) else rows[values[rows] >= first_cut - equal]


def _random_grid_points(
    grid_shape: grids.GridShape, coarse_shape: grids.GridShape, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "n 3"], Int[np.ndarray, "n 3"]]:
    """One random grid point of each lattice-aligned voxel that holds any: (voxel indices, grid indices).

    A voxel is a product of three intervals, so a random point of it is a random point of each interval.
    """
    starts, counts = [], []
    for n, m in zip(grid_shape, coarse_shape, strict=True):
        nearest = np.floor(np.arange(n) * m / n + 0.5).astype(int)  # voxel of each grid point; m means voxel 0 from below
        edges = np.searchsorted(nearest, np.arange(m + 2))
        first, size = edges[:-1], np.diff(edges)
        below = size[m]
        first, size = first[:m].copy(), size[:m].copy()
        first[0] -= below  # the points just below 1 belong to voxel 0
        size[0] += below
        starts.append(first)
        counts.append(size)
    voxels = np.stack(np.meshgrid(*[np.flatnonzero(c) for c in counts], indexing="ij"), -1).reshape(-1, 3)
    points = np.empty_like(voxels)
    for axis, n in enumerate(grid_shape):
        size = counts[axis][voxels[:, axis]]
        points[:, axis] = (starts[axis][voxels[:, axis]] + rng.integers(0, size)) % n
    return voxels, points


def _cartesian_positions(density: Density, voxel_size: float) -> Iterator[Float[np.ndarray, "nx ny nz"]]:
    """x, y, z of the grid points in units of `voxel_size`: sums of one term per axis."""
    axes = [np.arange(n) / n for n in density.grid_shape]
    for x in (density.lattice / voxel_size).T:
        yield axes[0][:, None, None] * x[0] + axes[1][:, None] * x[1] + axes[2] * x[2]


def _cartesian_means(
    density: Density, stack: Float[np.ndarray, "n_stacked nx ny nz"], voxel_size: float
) -> tuple[Int[np.ndarray, "n 3"], Float[np.ndarray, "n n_stacked"]]:
    """Cartesian voxels that the cell touches, each centred on its indices, and the mean of what of the cell lies in each.

    Each grid point stands for a box, as wide as the step of the grid and no wider than a voxel, and is shared by the voxels that it
    lies in, at most two along an axis. Without that a voxel of three points beside one of two would count a sharp atom twice.
    """
    widths = np.minimum(1.0, np.abs(density.lattice / np.array(density.grid_shape)[:, None]).sum(axis=0) / voxel_size)
    first, upper = [], []
    for x, width in zip(_cartesian_positions(density, voxel_size), widths, strict=True):
        start = (x + 0.5 * (1 - width)).ravel()
        index = np.floor(start + 1e-6 * width).astype(np.int64)
        share = (start + width - index - 1) / width  # of the box, in the next voxel
        first.append(index)
        upper.append(np.where(share > 1e-6, np.minimum(share, 1.0), 0.0))
    low = [int(index.min()) for index in first]
    size = tuple(int(index.max()) - lo + 2 for index, lo in zip(first, low, strict=True))
    sums = np.zeros((1 + len(stack), prod(size)))
    channels = [None, *stack.reshape(len(stack), -1)]
    for corner in product((0, 1), repeat=3):
        weight: Any = prod(share if step else 1 - share for share, step in zip(upper, corner, strict=True))
        rows = np.flatnonzero(weight)
        key = np.ravel_multi_index([index[rows] - lo + step for index, lo, step in zip(first, low, corner, strict=True)], size)
        for total, values in zip(sums, channels, strict=True):
            total += np.bincount(key, weights=weight[rows] * (1.0 if values is None else values[rows]), minlength=prod(size))
    keys = np.flatnonzero(sums[0] > 0)
    return np.stack(np.unravel_index(keys, size), axis=1) + low, (sums[1:, keys] / sums[0, keys]).T


def _cartesian_voxels(density: Density, voxel_size: float) -> tuple[Int[np.ndarray, "n 3"], Int[np.ndarray, " n_grid"]]:
    """Occupied Cartesian voxels of the cell's grid points, each centred on its indices, and the voxel of each grid point."""
    index = [np.floor(x + (0.5 + 1e-9)).astype(np.int64) for x in _cartesian_positions(density, voxel_size)]
    low = [int(x.min()) for x in index]
    size = [int(x.max()) - lo + 1 for x, lo in zip(index, low, strict=True)]
    key = ((index[0] - low[0]) * size[1] + (index[1] - low[1])) * size[2] + (index[2] - low[2])
    occupied = np.bincount(key.ravel(), minlength=size[0] * size[1] * size[2]) > 0
    row_of_key = np.cumsum(occupied) - 1
    keys = np.flatnonzero(occupied)
    voxels = np.stack([keys // (size[1] * size[2]), keys // size[2] % size[1], keys % size[2]], axis=1) + low
    return voxels, row_of_key[key.ravel()]


def _one_of_each(row: Int[np.ndarray, " n_grid"], n_rows: int, rng: np.random.Generator) -> Int[np.ndarray, " n_rows"]:
    """A uniformly random member of each of the groups 0 … n_rows - 1."""
    order = rng.permutation(len(row))
    chosen = np.empty(n_rows, dtype=np.int64)
    chosen[row[order]] = order  # the last one written wins, and the order is random
    return chosen


def sample_points(
    density: Density,
    *,
    voxel_size: float = 0.25,
    reduction: Reduction = "random",
    threshold: float = 0.0,
    max_points: int | Literal["paper"] | None = "paper",
    channels: tuple[str, ...] = ("total",),
    rng: Rng = None,
) -> PointCloud:
    """Sample a density as points in Cartesian space.

    The cell is divided into voxels along its own axes, and each gives one point: a grid point at random (the paper's way), or its
    centre with the mean density ("grid sampling" in the paper, its better variant).

    Parameters
    ----------
    density : Density
        In any cell.
    voxel_size : float
        Edge of a voxel in Å, adjusted so that a whole number of them fills the cell; the paper's 0.25 by default.
    reduction : {"random", "mean"}
        See above. Where the grid is coarser than the voxels, ``random`` gives each grid point, and ``mean`` takes each value of the
        grid as constant over the voxel around its point, so that at any ratio the electrons stay and nothing is out of range.
    threshold : float
        Points whose total density lies below this (e/Å³) are left out.
    max_points : int, "paper" or None
        Keep the densest points up to this many, equal ones together; ``"paper"`` is :func:`point_cap`.
    channels : tuple of str
        ``("total",)``, or the paper's four, ``("total", "diff", "up", "down")``.
    rng : numpy Generator, int or None
        For ``random``.

    Returns
    -------
    PointCloud

    Raises
    ------
    ValueError
        If an argument is off or no point reaches the threshold.
    """
    check_options(voxel_size=voxel_size, reduction=reduction, threshold=threshold, max_points=max_points, channels=channels)
    stack = _stack(density, channels)
    coarse_shape = grids.coarse_grid_shape(density.lattice, voxel_size)
    if reduction == "mean":
        values = _mean_of_voxels(stack, coarse_shape)
        frac_coords = _all_indices(coarse_shape) / np.array(coarse_shape)
    else:
        _, points = _random_grid_points(density.grid_shape, coarse_shape, np.random.default_rng(rng))
        values = stack[(slice(None), *points.T)].T
        frac_coords = points / np.array(density.grid_shape)
    rows = _select(values[:, 0], threshold, max_points, density.volume)
    return PointCloud(
        coords=(frac_coords[rows] @ density.lattice).astype(np.float32),
        feats=values[rows, 1:].astype(np.float32),
        channels=tuple(channels),
        lattice=density.lattice,
    )


def sample_voxels(
    density: Density,
    *,
    voxel_size: float = 0.25,
    voxel_basis: Literal["lattice", "cartesian"] = "lattice",
    reduction: Reduction = "mean",
    threshold: float = 0.0,
    max_points: int | Literal["paper"] | None = None,
    channels: tuple[str, ...] = ("total",),
    multiple_of: int = 1,
    rng: Rng = None,
) -> SparseTensor:
    """Sample a density as occupied voxels.

    Parameters
    ----------
    density : Density
        In any cell.
    voxel_size : float
        Edge in Å. Lattice-aligned voxels take the nearest size of which a whole number fills the cell.
    voxel_basis : {"lattice", "cartesian"}
        Voxels along the cell's own axes, whose neighbours wrap round its faces, so that a network sees the crystal; or the
        paper's cubes in Cartesian space, which see one cell as a body in empty space.
    reduction : {"mean", "random"}
        Mean density of each voxel, or the value of one of its grid points at random (the paper's default). The mean over a
        lattice-aligned voxel takes each value of the grid as constant over the voxel around its point, so that at any ratio the
        electrons stay and nothing is out of range; that over a Cartesian one is over the part of the cell that lies in it.
    threshold : float
        Voxels whose total density lies below this (e/Å³) are left out.
    max_points : int, "paper" or None
        Keep the densest voxels up to this many, equal ones together.
    channels : tuple of str
        As in :func:`sample_points`.
    multiple_of : int
        Make lattice-aligned counts multiples of this: 2**k lets k strides of 2 divide the cell without a seam.
    rng : numpy Generator, int or None
        For ``random``.

    Returns
    -------
    SparseTensor

    Raises
    ------
    ValueError
        If an argument is off or no voxel reaches the threshold.
    """
    check_options(
        voxel_size=voxel_size,
        voxel_basis=voxel_basis,
        reduction=reduction,
        threshold=threshold,
        max_points=max_points,
        channels=channels,
        multiple_of=multiple_of,
    )
    stack = _stack(density, channels)
    generator = np.random.default_rng(rng)
    grid_shape: grids.GridShape | None = None
    if voxel_basis == "lattice":
        grid_shape = grids.coarse_grid_shape(density.lattice, voxel_size, multiple_of)
        basis = density.lattice / np.array(grid_shape)[:, None]
        if reduction == "mean":
            coords, values = _all_indices(grid_shape), _mean_of_voxels(stack, grid_shape)
        else:
            coords, points = _random_grid_points(density.grid_shape, grid_shape, generator)
            values = stack[(slice(None), *points.T)].T
    else:
        basis = voxel_size * np.eye(3)
        if reduction == "mean":
            coords, values = _cartesian_means(density, stack, voxel_size)
        else:
            coords, row = _cartesian_voxels(density, voxel_size)
            values = stack.reshape(len(stack), -1)[:, _one_of_each(row, len(coords), generator)].T
    rows = _select(values[:, 0], threshold, max_points, density.volume)
    return SparseTensor(
        coords=coords[rows].astype(np.int32),
        feats=values[rows, 1:].astype(np.float32),
        channels=tuple(channels),
        voxel_basis=basis,
        grid_shape=grid_shape,
    )
