"""The two samples of a density, ``PointCloud`` and ``SparseTensor``: what the feature side makes and the network side eats.

Both are frozen and validated when made, hold numpy arrays of one dtype each, whatever was given, and have no ``__len__``,
``__iter__`` or ``__array__``: numpy, pandas and matminer would take such an object apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int32

__all__ = ["PointCloud", "Sample", "SparseTensor"]


def _cast(name: str, values: Any, dtype: type[np.floating]) -> np.ndarray:
    """Real numbers as an array of `dtype`; no copy where it is one already."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"`{name}` must be real numbers, got dtype {array.dtype}")
    return array.astype(dtype, copy=False)


def _cast_indices(values: Any) -> np.ndarray:
    """Whole numbers as an array of int32."""
    array = np.asarray(values)
    if array.dtype == np.int32:
        return array
    if array.dtype.kind not in "fiu":
        raise ValueError(f"`coords` of a SparseTensor must be whole numbers, got dtype {array.dtype}")
    with np.errstate(invalid="ignore"):  # NaN and what is too large differ below
        indices = array.astype(np.int32)
    if not np.array_equal(indices, array):
        first = array[indices != array][0]
        raise ValueError(f"`coords` of a SparseTensor must be voxel indices, whole numbers within int32, got {first}")
    return indices


def _cast_channels(channels: Any) -> tuple[str, ...]:
    if isinstance(channels, str):
        raise ValueError(f"`channels` must be a tuple of names, got {channels!r}; write ({channels!r},)")
    return tuple(channels)


def _cast_grid_shape(grid_shape: Any) -> tuple[int, int, int]:
    """Three counts as plain integers."""
    counts = tuple(grid_shape)
    if len(counts) != 3 or any(int(n) != n or n < 1 for n in counts):
        raise ValueError(f"`grid_shape` must be three counts of at least 1, or None in open space, got {counts}")
    nx, ny, nz = (int(n) for n in counts)
    return nx, ny, nz


def _has_duplicates(coords: Int32[np.ndarray, "n_points 3"]) -> bool:
    """Tell whether a row comes twice; by counting where the voxels fill their box well, by sorting elsewhere."""
    low = coords.min(axis=0).tolist()
    size = [high - lo + 1 for high, lo in zip(coords.max(axis=0).tolist(), low, strict=True)]
    if prod(size) >= 2**62:
        return len(np.unique(coords, axis=0)) < len(coords)
    i, j, k = (coords[:, axis].astype(np.int64) - low[axis] for axis in range(3))
    key = (i * size[1] + j) * size[2] + k
    if prod(size) <= 16 * len(key):
        return bool(np.bincount(key).max() > 1)
    key.sort()
    return bool((key[1:] == key[:-1]).any())


def _check_sample(name: str, coords: np.ndarray, feats: np.ndarray, channels: tuple[str, ...]) -> None:
    if coords.ndim != 2 or coords.shape[1] != 3:
        raise ValueError(f"`coords` of a {name} must be (n_points, 3), got shape {coords.shape}")
    if feats.shape != (len(coords), len(channels)):
        raise ValueError(
            f"`feats` of a {name} must be (n_points, n_channels) = ({len(coords)}, {len(channels)}) "
            f"for channels {channels}, got shape {feats.shape}"
        )
    if len(coords) == 0:
        raise ValueError(f"a {name} needs at least one point, got none; lower `threshold` or `voxel_size`")
    if not np.isfinite(feats).all():
        raise ValueError(f"`feats` of a {name} must be finite, got {np.count_nonzero(~np.isfinite(feats))} NaN or infinite values")


def _check_basis(name: str, basis: np.ndarray) -> None:
    if basis.shape != (3, 3):
        raise ValueError(f"`{name}` must be (3, 3) rows in Å, got shape {basis.shape}")
    if not np.isfinite(basis).all() or abs(np.linalg.det(basis)) < 1e-12:
        raise ValueError(f"`{name}` must be finite with a non-zero volume, got {basis.tolist()}")


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Points of a density in Cartesian space.

    Parameters
    ----------
    coords : (n_points, 3) float32
        Cartesian coordinates in Å.
    feats : (n_points, n_channels) float32
        Density at each point, e/Å³.
    channels : tuple of str
        Name of each column of `feats`: ``total``, ``diff``, ``up`` or ``down``.
    lattice : (3, 3) float64
        Rows a, b, c in Å of the cell that the points fill.

    Raises
    ------
    ValueError
        On a wrong shape, no points, or a value that is not a finite real number. Other real dtypes are converted.
    """

    coords: Float32[np.ndarray, "n_points 3"]
    feats: Float32[np.ndarray, "n_points n_channels"]
    channels: tuple[str, ...]
    lattice: Float[np.ndarray, "3 3"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "coords", _cast("coords", self.coords, np.float32))
        object.__setattr__(self, "feats", _cast("feats", self.feats, np.float32))
        object.__setattr__(self, "channels", _cast_channels(self.channels))
        object.__setattr__(self, "lattice", _cast("lattice", self.lattice, np.float64))
        _check_sample("PointCloud", self.coords, self.feats, self.channels)
        _check_basis("lattice", self.lattice)
        if not np.isfinite(self.coords).all():
            raise ValueError("`coords` of a PointCloud must be finite")

    @property
    def n_points(self) -> int:
        """Number of points."""
        return len(self.coords)


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Occupied voxels of a density.

    Parameters
    ----------
    coords : (n_points, 3) int32
        Voxel indices; unique rows. Voxel (i, j, k) is centred on ``coords @ voxel_basis`` in Å.
    feats : (n_points, n_channels) float32
        Density of each voxel, e/Å³.
    channels : tuple of str
        Name of each column of `feats`.
    voxel_basis : (3, 3) float64
        Rows: the step in Å from one voxel to the next along each axis.
    grid_shape : (int, int, int) or None
        Voxels along each lattice vector where neighbours wrap round the cell's faces (lattice-aligned voxels; the
        lattice is then ``voxel_basis * grid_shape[:, None]``); None in open space (Cartesian voxels, as in the paper).

    Raises
    ------
    ValueError
        On a wrong shape, no voxels, a value that is not a finite real number, or indices that are no whole numbers, come twice or
        lie outside `grid_shape`. Other dtypes that hold the same numbers are converted.
    """

    coords: Int32[np.ndarray, "n_points 3"]
    feats: Float32[np.ndarray, "n_points n_channels"]
    channels: tuple[str, ...]
    voxel_basis: Float[np.ndarray, "3 3"]
    grid_shape: tuple[int, int, int] | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "coords", _cast_indices(self.coords))
        object.__setattr__(self, "feats", _cast("feats", self.feats, np.float32))
        object.__setattr__(self, "channels", _cast_channels(self.channels))
        object.__setattr__(self, "voxel_basis", _cast("voxel_basis", self.voxel_basis, np.float64))
        if self.grid_shape is not None:
            object.__setattr__(self, "grid_shape", _cast_grid_shape(self.grid_shape))
        _check_sample("SparseTensor", self.coords, self.feats, self.channels)
        _check_basis("voxel_basis", self.voxel_basis)
        if self.grid_shape is not None and (self.coords.min() < 0 or (self.coords.max(0) >= self.grid_shape).any()):
            raise ValueError(
                f"`coords` of a periodic SparseTensor must lie in [0, grid_shape) = [0, {self.grid_shape}), "
                f"got {self.coords.min(0).tolist()} to {self.coords.max(0).tolist()}"
            )
        if _has_duplicates(self.coords):
            raise ValueError("`coords` of a SparseTensor must be unique rows, got some twice; merge those voxels")

    @property
    def n_points(self) -> int:
        """Number of occupied voxels."""
        return len(self.coords)

    @property
    def lattice(self) -> Float[np.ndarray, "3 3"] | None:
        """Rows a, b, c in Å of the periodic cell; None in open space."""
        return None if self.grid_shape is None else self.voxel_basis * np.array(self.grid_shape)[:, None]


Sample = PointCloud | SparseTensor
