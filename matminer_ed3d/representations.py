"""The two samples of a density, ``PointCloud`` and ``SparseTensor``: what the feature side makes and the network side eats.

Both are frozen and validated when made, hold numpy arrays only, and have no ``__len__``, ``__iter__`` or ``__array__``: numpy,
pandas and matminer would take such an object apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int32

__all__ = ["PointCloud", "Sample", "SparseTensor"]


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
        On a wrong shape, no points, or a value that is not finite.
    """

    coords: Float32[np.ndarray, "n_points 3"]
    feats: Float32[np.ndarray, "n_points n_channels"]
    channels: tuple[str, ...]
    lattice: Float[np.ndarray, "3 3"]

    def __post_init__(self) -> None:
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
        On a wrong shape, no voxels, a value that is not finite, or indices outside `grid_shape`.
    """

    coords: Int32[np.ndarray, "n_points 3"]
    feats: Float32[np.ndarray, "n_points n_channels"]
    channels: tuple[str, ...]
    voxel_basis: Float[np.ndarray, "3 3"]
    grid_shape: tuple[int, int, int] | None

    def __post_init__(self) -> None:
        _check_sample("SparseTensor", self.coords, self.feats, self.channels)
        _check_basis("voxel_basis", self.voxel_basis)
        if self.grid_shape is not None and (self.coords.min() < 0 or (self.coords.max(0) >= self.grid_shape).any()):
            raise ValueError(
                f"`coords` of a periodic SparseTensor must lie in [0, grid_shape) = [0, {self.grid_shape}), "
                f"got {self.coords.min(0).tolist()} to {self.coords.max(0).tolist()}"
            )

    @property
    def n_points(self) -> int:
        """Number of occupied voxels."""
        return len(self.coords)

    @property
    def lattice(self) -> Float[np.ndarray, "3 3"] | None:
        """Rows a, b, c in Å of the periodic cell; None in open space."""
        return None if self.grid_shape is None else self.voxel_basis * np.array(self.grid_shape)[:, None]


Sample = PointCloud | SparseTensor
