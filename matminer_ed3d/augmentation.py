"""Random motions of a sample that keep its crystal: origin, orientation, choice of cell; and measurement noise.

Plain functions on samples with an explicit ``rng``. The motions follow :class:`matminer_ed3d.density.Density`: the origin moves *to*
the shift, so points move by minus the shift, and a change of basis is the integer matrix ``P`` of ``new_lattice = P @ lattice``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from matminer_ed3d.representations import PointCloud, Sample, SparseTensor

__all__ = [
    "AUGMENTATIONS",
    "add_noise",
    "augment",
    "basis_changes",
    "change_basis",
    "check_names",
    "exact_basis_changes",
    "rotate",
    "shift_origin",
]

AUGMENTATIONS = ("origin_shift", "rotation", "permutation", "basis_change", "noise")
OPEN_SHIFT = 16  # voxels; the paper's network strides by 16 in all, so these shifts reach every alignment of a box with its strides


def shift_origin(sample: Sample, shift: Float[np.ndarray, "3"] | Int[np.ndarray, "3"]) -> Sample:
    """Move the origin of a sample to `shift`; what leaves the cell comes back on the other side.

    Parameters
    ----------
    sample : PointCloud or SparseTensor
        The sample to see from a new origin.
    shift : (3,) float or int
        Fractional coordinates for a PointCloud; whole voxels for a SparseTensor, where a fraction of a voxel would need values
        that the sample does not hold.

    Returns
    -------
    PointCloud or SparseTensor
        The same values at moved places. A SparseTensor in open space is translated, as nothing wraps there.

    Raises
    ------
    ValueError
        If the shift of a SparseTensor is not whole.
    """
    if isinstance(sample, PointCloud):
        frac_coords = sample.coords @ np.linalg.inv(sample.lattice) - shift
        return replace(sample, coords=(_wrap(frac_coords) @ sample.lattice).astype(np.float32))
    if not np.array_equal(shift, np.round(shift)):
        raise ValueError(f"`shift` of a SparseTensor must be whole voxels, got {shift.tolist()}; shift the Density to move by less")
    coords = sample.coords - np.round(shift).astype(np.int64)
    return replace(sample, coords=(coords if sample.grid_shape is None else coords % sample.grid_shape).astype(np.int32))


def rotate(sample: Sample, rotation: Float[np.ndarray, "3 3"]) -> Sample:
    """Rotate a sample in space: a PointCloud's points and lattice, a SparseTensor's voxel basis.

    Parameters
    ----------
    sample : PointCloud or SparseTensor
        The sample.
    rotation : (3, 3) float
        Orthogonal; acts on column vectors, ``new = rotation @ old``.

    Returns
    -------
    PointCloud or SparseTensor

    Raises
    ------
    ValueError
        If `rotation` is not orthogonal.

    Notes
    -----
    The voxel indices of a SparseTensor stay: a network that looks at indices only does not see the rotation. To turn the density
    against Cartesian voxels, rotate the structure or the PointCloud before the voxels are made.
    """
    if not np.allclose(rotation @ rotation.T, np.eye(3), rtol=0, atol=1e-6):
        raise ValueError(f"`rotation` must be an orthogonal (3, 3) matrix, got {rotation.tolist()}")
    if isinstance(sample, PointCloud):
        return replace(sample, coords=(sample.coords @ rotation.T).astype(np.float32), lattice=sample.lattice @ rotation.T)
    return replace(sample, voxel_basis=sample.voxel_basis @ rotation.T)


def change_basis(sample: Sample, basis_change: Int[np.ndarray, "3 3"]) -> Sample:
    """Describe a sample in another cell of the same lattice; every point stays where it is in the crystal.

    Parameters
    ----------
    sample : PointCloud or SparseTensor
        The sample; a SparseTensor in open space has axes to rename, but no lattice.
    basis_change : (3, 3) int
        ``P`` with determinant 1 or -1; the new cell has the rows ``P @ lattice``.

    Returns
    -------
    PointCloud or SparseTensor
        Points are wrapped into the new cell. Voxels keep their volume; a shear makes them as skew as the new cell.

    Raises
    ------
    ValueError
        If the determinant is not 1 or -1, or if voxels of the new cell cannot fall on those of the old one.
    """
    if abs(round(float(np.linalg.det(basis_change)))) != 1:
        raise ValueError(f"`basis_change` must be an integer matrix of determinant 1 or -1, got {basis_change.tolist()}")
    inverse = np.round(np.linalg.inv(basis_change)).astype(np.int64)
    if isinstance(sample, PointCloud):
        lattice = basis_change @ sample.lattice
        frac_coords = sample.coords @ np.linalg.inv(sample.lattice) @ inverse
        return replace(sample, coords=(_wrap(frac_coords) @ lattice).astype(np.float32), lattice=lattice)
    old_shape = np.array((1, 1, 1) if sample.grid_shape is None else sample.grid_shape)
    new_shape = np.gcd.reduce(np.abs(basis_change) * old_shape, axis=1)
    signed_permutation = np.abs(basis_change).sum() == 3
    if new_shape.prod() != old_shape.prod() or (sample.grid_shape is None and not signed_permutation):
        raise ValueError(
            f"`basis_change` {basis_change.tolist()} does not map the voxels of a SparseTensor with `grid_shape` {sample.grid_shape} "
            "onto each other; take one of exact_basis_changes(grid_shape), or change the basis of the Density"
        )
    voxel_change = basis_change * old_shape // new_shape[:, None]  # integer and unimodular: new voxel steps in old ones
    coords = sample.coords @ np.round(np.linalg.inv(voxel_change)).astype(np.int64)
    return replace(
        sample,
        coords=(coords if sample.grid_shape is None else coords % new_shape).astype(np.int32),
        voxel_basis=voxel_change @ sample.voxel_basis,
        grid_shape=None if sample.grid_shape is None else (int(new_shape[0]), int(new_shape[1]), int(new_shape[2])),
    )


@cache
def basis_changes() -> Int[np.ndarray, "n_changes 3 3"]:
    """Return every (3, 3) matrix with entries -1, 0, 1 and determinant 1: 3480 cells of one lattice, all right-handed."""
    matrices = np.stack(np.meshgrid(*[[-1, 0, 1]] * 9, indexing="ij"), axis=-1).reshape(-1, 3, 3)
    matrices = matrices[np.round(np.linalg.det(matrices)) == 1]
    matrices.flags.writeable = False
    return matrices


@lru_cache(maxsize=128)
def exact_basis_changes(grid_shape: tuple[int, int, int] | None) -> Int[np.ndarray, "n_changes 3 3"]:
    """Return those of :func:`basis_changes` that map the voxels of `grid_shape` onto each other; None: axes are renamed, never sheared.

    Row a of ``P`` divides the new cell's edge into gcd_b(P_ab n_b) voxel steps; voxels fall on voxels where the product of these
    counts is still the number of voxels. The 24 signed permutations are always among them.
    """
    if grid_shape is None:
        return basis_changes()[np.abs(basis_changes()).sum(axis=(1, 2)) == 3]
    counts = np.gcd.reduce(np.abs(basis_changes()) * np.array(grid_shape), axis=2)
    return basis_changes()[counts.prod(axis=1) == np.prod(grid_shape)]


def add_noise(sample: Sample, noise_level: float, rng: np.random.Generator) -> Sample:
    """Add white noise to every channel, its rms `noise_level` times the rms of the channel about its mean."""
    scale = noise_level * sample.feats.std(axis=0, dtype=np.float64)
    noise = scale * rng.standard_normal(sample.feats.shape)
    return replace(sample, feats=(sample.feats + noise).astype(np.float32))


def check_names(names: Sequence[str]) -> None:
    """Refuse names that are not in ``AUGMENTATIONS``.

    Raises
    ------
    ValueError
        On an unknown name, or a string in place of a sequence of names.
    """
    if isinstance(names, str) or not set(names) <= set(AUGMENTATIONS):
        raise ValueError(f"`augmentations` must be a sequence of names out of {AUGMENTATIONS}, got {names!r}")


def augment(sample: Sample, names: Sequence[str], rng: np.random.Generator, noise_level: float = 0.05) -> Sample:
    """Apply random motions to a sample, in the order of ``AUGMENTATIONS``.

    Parameters
    ----------
    sample : PointCloud or SparseTensor
        The sample.
    names : sequence of str
        ``origin_shift`` (uniform over the cell), ``rotation`` (proper, uniform), ``permutation`` (a, b, c renamed and reversed;
        right-handed), ``basis_change`` (any cell with entries -1, 0, 1; of voxels, those that stay exact), ``noise``.
    rng : numpy Generator
        Where all draws come from.
    noise_level : float
        Largest noise; the level of one call is uniform between 0 and this, so that clean samples are seen too.

    Returns
    -------
    PointCloud or SparseTensor

    Raises
    ------
    ValueError
        On an unknown name.
    """
    check_names(names)
    grid_shape = sample.grid_shape if isinstance(sample, SparseTensor) else None
    if "origin_shift" in names:
        shift = rng.random(3) if isinstance(sample, PointCloud) else rng.integers(0, grid_shape or (OPEN_SHIFT,) * 3)
        sample = shift_origin(sample, shift)
    if "rotation" in names:
        sample = rotate(sample, Rotation.from_quat(rng.standard_normal(4)).as_matrix())  # uniform over all orientations
    if "permutation" in names:
        sample = change_basis(sample, rng.choice(exact_basis_changes(None)))
    if "basis_change" in names:
        points = isinstance(sample, PointCloud)
        grid_shape = sample.grid_shape if isinstance(sample, SparseTensor) else None
        sample = change_basis(sample, rng.choice(basis_changes() if points else exact_basis_changes(grid_shape)))
    if "noise" in names:
        sample = add_noise(sample, float(rng.uniform(0.0, noise_level)), rng)
    return sample


def _wrap(frac_coords: np.ndarray) -> np.ndarray:
    """Wrap into [0, 1); what is a rounding away from a face goes to 0, so that float32 noise moves no point across the cell."""
    nearest = np.round(frac_coords)
    return np.where(np.abs(frac_coords - nearest) < 1e-6, 0.0, frac_coords % 1.0)
