"""Train an estimator on a table of structures, and keep the list of the ids it has seen beside its weights."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np

from matminer_ed3d import datasets, labels
from matminer_ed3d.conditions import ROW_ERRORS, describe_error
from matminer_ed3d.prediction import TARGET_NAMES, train_ids_path

__all__ = ["CRYSTAL_SAMPLES", "TrainingRows", "build_estimator", "cached_samples", "train_on_table", "training_rows"]

# The shipped model's preprocessing: what the architecture `crystal` is made for.
CRYSTAL_SAMPLES = {"cell": "reduced", "d_min": 1.0, "voxel_size": 0.5, "max_voxels": 2048, "threshold": -100.0, "standardize": True}


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """Structures to learn from: ids, pymatgen Structures, labels or numbers; and the rows left out, with the reason."""

    ids: list[str]
    structures: list[Any]
    targets: np.ndarray
    failed: list[tuple[str, str]]


def training_rows(
    path: str | os.PathLike[str], target: str, *, symprec: float = 0.1, split: str = "train", limit: int | None = None, seed: int = 0
) -> TrainingRows:
    """Choose and read the rows to train on.

    Parameters
    ----------
    path : path
        A parquet file with the columns of :mod:`matminer_ed3d.datasets`.
    target : str
        ``crystal_system``, ``extinction_group``, ``space_group``, or the name of a column of numbers.
    symprec : {0.1, 0.01}
        Tolerance of the symmetry labels, Å; a label that the table does not have is found by spglib.
    split : {"train", "all"}
        ``train`` leaves out the rows that :func:`~matminer_ed3d.protocols.assign_split` keeps for testing; it needs the columns
        ``formula`` and ``sg_symprec_01``.
    limit : int, optional
        At most this many rows, drawn by `seed`.
    seed : int
        Of that draw.

    Raises
    ------
    ValueError
        On an unknown option, missing columns, or no row with a target.
    """
    if split not in ("train", "all"):
        raise ValueError(f"`split` must be 'train' or 'all', got {split!r}")
    table = datasets.read_structures(path)
    if target not in TARGET_NAMES and target not in table.columns:
        raise ValueError(f"`target` must be one of {tuple(TARGET_NAMES)} or a column of {table.path}, got {target!r}")
    rows = np.arange(table.n_rows)
    if split == "train":
        rows = rows[np.isin(datasets.assigned_sides(table), ("train", "validation"))]
    if target not in TARGET_NAMES:
        values = _numbers(table, target)
        rows = rows[np.isfinite(values[rows])]
    table = table.take(datasets.random_rows(rows, limit, seed))
    known: list[Any] = datasets.space_group_labels(table, symprec) if target in TARGET_NAMES else table.values(target)
    ids, structures, targets, failed = [], [], [], []
    for index, row_id in enumerate(table.values("id")):
        try:
            structure = table.structure(index)
            value = known[index] if known[index] is not None else labels.space_group_number(structure, symprec)
        except ROW_ERRORS as error:
            failed.append((str(row_id), describe_error(error)))
            continue
        ids.append(str(row_id))
        structures.append(structure)
        targets.append(value)
    if not ids:
        raise ValueError(f"{table.path}: no row to train on for {target!r} in the split {split!r}; use split 'all' or another table")
    if target in TARGET_NAMES:
        return TrainingRows(ids, structures, np.asarray(labels.target_of(np.array(targets), TARGET_NAMES[target])), failed)
    return TrainingRows(ids, structures, np.array(targets, dtype=float), failed)


def _numbers(table: datasets.StructureTable, column: str) -> np.ndarray:
    """Return a column as floats, NaN where a row has none."""
    values = []
    for row_id, value in zip(table.values("id"), table.values(column), strict=True):
        if isinstance(value, str | bytes) or not isinstance(value, SupportsFloat | None):
            raise ValueError(
                f"{table.path}: `target` must be one of {tuple(TARGET_NAMES)} or a column of numbers, got {column!r} with "
                f"{value!r:.40} in row {row_id}"
            )
        values.append(np.nan if value is None else float(value))
    return np.array(values)


def build_estimator(family: str, *, regression: bool, **parameters: Any) -> Any:
    """Make an estimator of a family; a parameter that is None, or empty, stays at its default.

    The architecture ``crystal`` has the shipped model's preprocessing as its default, ``CRYSTAL_SAMPLES``, unless `parameters` ask
    for cells as given or Cartesian voxels, with which it has no meaning.

    Parameters
    ----------
    family : {"sparse_cnn", "pointnet"}
    regression : bool
        A regressor, not a classifier.
    parameters
        Of the estimator.

    Raises
    ------
    ValueError
        If there is no such family, or it does not have a parameter.
    """
    from matminer_ed3d import estimators

    families = {
        "sparse_cnn": (estimators.SparseCNNClassifier, estimators.SparseCNNRegressor),
        "pointnet": (estimators.PointNetClassifier, estimators.PointNetRegressor),
    }
    if family not in families:
        raise ValueError(f"`family` must be one of {tuple(families)}, got {family!r}")
    estimator: Any = families[family][regression]()
    given = {name: value for name, value in parameters.items() if value is not None and value != ()}
    for name in given:
        if name not in estimator.get_params():
            others = [other for other in families if other != family and hasattr(families[other][regression](), name)]
            way_out = f"it belongs to the family {others[0]!r}" if others else f"it has {sorted(estimator.get_params())}"
            raise ValueError(f"the family {family!r} has no parameter {name!r}; {way_out}")
    has_meaning = given.get("cell") != "as_given" and given.get("voxel_basis") != "cartesian"
    if family == "sparse_cnn" and given.get("architecture") == "crystal" and has_meaning:
        given = CRYSTAL_SAMPLES | given
    return estimator.set_params(**given)


def cached_samples(estimator: Any, structures: list[Any], cache: str | os.PathLike[str]) -> list[Any]:
    """Make the samples that an estimator trains on once: they are kept in `cache`, and read from there in every later run.

    Parameters
    ----------
    estimator : classifier or regressor
        Its parameters say what a sample is; an int as `random_state` where points are drawn at random.
    structures : list of Structure
        Or of anything that a featurizer takes.
    cache : path
        A folder, of :class:`matminer_ed3d.cache.DiskCache`; that of the featurizer with the same parameters can be shared.

    Returns
    -------
    list of PointCloud or SparseTensor
        To be given to ``fit`` in place of the structures. Random points are drawn from `random_state` itself for every row, and so
        differ from those that ``fit`` would draw.
    """
    from matminer_ed3d.featurizers import DensityPointCloud, DensitySparseTensor

    options = estimator._sample_options()
    kind = DensityPointCloud if options.kind == "points" else DensitySparseTensor
    featurizer = kind(random_state=estimator.random_state, n_jobs=estimator.n_jobs, cache=cache)
    taken = featurizer.get_params()
    featurizer.set_params(**{name: value for name, value in options.as_dict().items() if name in taken})
    return [sample for (sample,) in featurizer.featurize_many(structures, pbar=False)]


def train_on_table(
    estimator: Any,
    rows: TrainingRows,
    target: str,
    out: str | os.PathLike[str],
    *,
    data: Any,
    protocol: Any,
    cache: str | os.PathLike[str] | None = None,
) -> None:
    """Fit an estimator and write its weights, and beside them the list of the ids it has seen.

    Parameters
    ----------
    estimator : classifier or regressor
        Not fitted.
    rows : TrainingRows
        From :func:`training_rows`.
    target : str
        As there.
    out : path
        Ends in ``.safetensors``.
    data, protocol : JSON
        Written into the header.
    cache : path, optional
        Keep the samples in this folder, and look there first (:func:`cached_samples`).

    Raises
    ------
    ValueError
        If `out` has another ending.
    """
    if not str(out).endswith(".safetensors"):
        raise ValueError(f"`out` must end in .safetensors, got {os.fspath(out)!r}")
    for row_id, reason in rows.failed:
        print(f"{row_id}: left out: {reason}", file=sys.stderr)
    estimator.fit(rows.structures if cache is None else cached_samples(estimator, rows.structures, cache), rows.targets)
    estimator.save(out, target=TARGET_NAMES.get(target), data=data, protocol=protocol)
    datasets.save_train_ids(train_ids_path(out), rows.ids)
