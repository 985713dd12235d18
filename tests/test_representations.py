"""The two samples: what they convert, and what they refuse before a network meets it."""

from __future__ import annotations

import numpy as np
import pytest

from matminer_ed3d.representations import PointCloud, SparseTensor

COORDS = np.array([[0, 0, 0], [1, 2, 3], [3, 2, 1]], dtype=np.int32)
FEATS = np.array([[0.5], [1.0], [2.0]], dtype=np.float32)


def sparse_tensor(**changes) -> SparseTensor:
    given = {"coords": COORDS, "feats": FEATS, "channels": ("total",), "voxel_basis": 0.25 * np.eye(3), "grid_shape": (4, 4, 4)}
    return SparseTensor(**{**given, **changes})


def point_cloud(**changes) -> PointCloud:
    given = {"coords": COORDS.astype(np.float32), "feats": FEATS, "channels": ("total",), "lattice": 4 * np.eye(3)}
    return PointCloud(**{**given, **changes})


def test_right_arrays_are_taken_as_they_are() -> None:
    tensor = sparse_tensor()
    assert tensor.coords is COORDS
    assert tensor.feats is FEATS
    assert point_cloud().feats is FEATS


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float64])
def test_whole_numbers_become_int32(dtype: type) -> None:
    tensor = sparse_tensor(coords=COORDS.astype(dtype))
    assert tensor.coords.dtype == np.int32
    np.testing.assert_array_equal(tensor.coords, COORDS)


@pytest.mark.usefixtures("as_user")
def test_other_dtypes_become_those_that_are_promised() -> None:
    tensor = sparse_tensor(feats=FEATS.astype(float), channels=["total"], voxel_basis=np.eye(3, dtype=int), grid_shape=np.array([4, 4, 4]))
    assert (tensor.feats.dtype, tensor.voxel_basis.dtype) == (np.float32, np.float64)
    assert tensor.channels == ("total",)
    assert tensor.grid_shape == (4, 4, 4)
    assert all(type(n) is int for n in tensor.grid_shape)
    cloud = point_cloud(
        coords=COORDS.astype(float), feats=FEATS.astype(np.float16), channels=["total"], lattice=np.eye(3, dtype=np.float32)
    )
    assert (cloud.coords.dtype, cloud.feats.dtype, cloud.lattice.dtype) == (np.float32, np.float32, np.float64)
    assert cloud.channels == ("total",)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coords": COORDS + 0.5}, "must be voxel indices, whole numbers within int32, got 0.5"),
        ({"coords": np.where(COORDS == 2, np.nan, COORDS)}, "must be voxel indices, .* got nan"),
        ({"coords": COORDS.astype(np.int64) + 2**40}, "must be voxel indices, .* got 1099511627776"),
        ({"coords": COORDS.astype(bool)}, "must be whole numbers, got dtype bool"),
        ({"coords": COORDS[:, :2]}, r"must be \(n_points, 3\), got shape \(3, 2\)"),
        ({"coords": COORDS[[0, 1, 1]]}, "must be unique rows"),
        ({"coords": COORDS[[0, 1, 0]] * 100, "grid_shape": None}, "must be unique rows"),
        ({"coords": COORDS[[2, 1, 2]] * 600_000_000, "grid_shape": None}, "must be unique rows"),
        ({"coords": COORDS + 1}, r"must lie in \[0, grid_shape\)"),
        ({"feats": FEATS + 0j}, "`feats` must be real numbers, got dtype complex"),
        ({"feats": FEATS + np.float32(np.nan)}, "`feats` of a SparseTensor must be finite"),
        ({"channels": "total"}, "`channels` must be a tuple of names, got 'total'"),
        ({"grid_shape": (4, 4)}, "`grid_shape` must be three counts of at least 1, or None"),
        ({"grid_shape": (4, 4, 0)}, "`grid_shape` must be three counts of at least 1, or None"),
        ({"grid_shape": (4, 4, 4.5)}, "`grid_shape` must be three counts of at least 1, or None"),
        ({"voxel_basis": np.zeros((3, 3))}, "`voxel_basis` must be finite with a non-zero volume"),
    ],
)
def test_what_is_no_sparse_tensor_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparse_tensor(**changes)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coords": COORDS + 0j}, "`coords` must be real numbers, got dtype complex128"),
        ({"coords": COORDS + np.inf}, "`coords` of a PointCloud must be finite"),
        ({"feats": FEATS.astype(str)}, "`feats` must be real numbers, got dtype <U"),
        ({"feats": FEATS[:2]}, r"must be \(n_points, n_channels\) = \(3, 1\)"),
        ({"lattice": np.eye(2)}, r"`lattice` must be \(3, 3\)"),
        ({"coords": np.zeros((0, 3)), "feats": np.zeros((0, 1))}, "needs at least one point"),
    ],
)
def test_what_is_no_point_cloud_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        point_cloud(**changes)


def test_unique_rows_pass_however_far_apart() -> None:
    assert sparse_tensor(coords=COORDS * 100, grid_shape=None).lattice is None
    assert sparse_tensor(coords=COORDS * 600_000_000 - 7, grid_shape=None).n_points == 3
    np.testing.assert_array_equal(sparse_tensor().lattice, np.eye(3))
