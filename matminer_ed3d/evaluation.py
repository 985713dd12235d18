"""Scores of a symmetry model on a table of structures, under a protocol, beside the controls.

A row that the model has seen in training is left out unless it is asked for by name, and the result says how many were.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d import controls, datasets, labels, scores
from matminer_ed3d.conditions import ROW_ERRORS, Conditions, PreparedRow, describe_error, in_parallel, prepare_row, row_features
from matminer_ed3d.prediction import TARGET_NAMES, SymmetryModel, load_model, target_proba

__all__ = ["EVALUATION_SPLITS", "evaluate"]

EVALUATION_SPLITS = ("unseen", "test", "prototype_test", "all")
ROWS_AT_ONCE = 64
MIN_TRAINING_ROWS = 500  # fewer rows of the training split in the table: the controls are cross-validated instead
MAX_NAMED_FAILURES = 100


def _predict(model: SymmetryModel, rows: list[PreparedRow]) -> tuple[list[PreparedRow], Float[np.ndarray, "n k"]]:
    """Predict a batch; where the batch fails, one row at a time, so that a bad row costs no other."""
    try:
        return rows, np.asarray(model.estimator.predict_proba([row.sample for row in rows]), dtype=float)
    except ROW_ERRORS as error:
        if len(rows) == 1:
            return [PreparedRow(rows[0].row_id, failure=describe_error(error))], np.zeros((0, len(model.estimator.classes_)))
    parts = [_predict(model, [row]) for row in rows]
    return [row for part, _ in parts for row in part], np.concatenate([proba for _, proba in parts])


def _score_target(target: str, y: np.ndarray, proba: np.ndarray, classes: np.ndarray, n_failed: int) -> dict[str, Any]:
    """Figures of merit of one target; see :mod:`matminer_ed3d.scores`. The `n_failed` rows without an answer are not in `y`."""
    predicted = classes[proba.argmax(axis=1)]
    top1 = scores.top_k_accuracy(y, proba, classes, 1)
    result: dict[str, Any] = {
        "n_classes_present": len(np.unique(y)),
        "top1": top1,
        "top1_counting_failures": top1 * len(y) / (len(y) + n_failed),
        "top3": scores.top_k_accuracy(y, proba, classes, 3),
        "macro_f1": scores.macro_f1(y, predicted),
        "ece": scores.expected_calibration_error(predicted == y, proba.max(axis=1)),
    }
    if target == "space_group_number":
        hand = [min(int(n), labels.enantiomorph(int(n))) for n in range(1, 231)]
        result["top1_up_to_enantiomorph"] = float(np.mean([hand[a - 1] == hand[b - 1] for a, b in zip(predicted, y, strict=True)]))
    if target == "crystal_system":
        result["per_class_recall"] = scores.per_class_recall(y, predicted, labels.CRYSTAL_SYSTEMS)
    return result


def _score_controls(
    predictions: dict[str, np.ndarray] | None, target: str, y: np.ndarray, model_predicted: np.ndarray
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Scores of the controls, and, for the system, the model's score where the lattice metric misleads."""
    if predictions is None:
        return None, None
    scored = {name: {"top1": float((p == y).mean()), "macro_f1": scores.macro_f1(y, p)} for name, p in predictions.items()}
    if target != "crystal_system":
        return scored, None
    misled = predictions["metric"] != y
    top1 = float((model_predicted[misled] == y[misled]).mean()) if misled.any() else None
    return scored, {"n": int(misled.sum()), "top1": top1}


def evaluate(
    path: str | os.PathLike[str],
    model: str | SymmetryModel = "default",
    targets: str = "all",
    *,
    protocol: str = "blind",
    symprec: float = 0.1,
    noise: float = 0.0,
    d_min: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    split: str = "unseen",
    control_rows: int = controls.MAX_TRAINING_ROWS,
    n_jobs: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Score a model on a table of structures.

    Parameters
    ----------
    path : path
        A parquet file with the columns of :mod:`matminer_ed3d.datasets`.
    model : str or SymmetryModel
        Name of a shipped model, path of a ``.safetensors`` file, or a loaded model; ``evidence`` is the symmetry that the density
        itself proves, to `symprec`, which has seen no row in training.
    targets : {"all", "crystal_system", "extinction_group", "space_group"}
        What to score; ``all`` is all that the model can tell.
    protocol : {"conventional", "primitive", "blind"}
        In which cell, origin and orientation a crystal is shown; see :mod:`matminer_ed3d.protocols`.
    symprec : {0.1, 0.01}
        Tolerance in Å of the labels and of the protocol's cell.
    noise : float
        Rms of white noise on a 0.25 Å grid, relative to the rms of the density about its mean.
    d_min : float, optional
        Cut the density at this resolution, Å.
    limit : int, optional
        Take this many of the eligible rows, drawn by `seed`.
    seed : int
        Of that draw, the blind cells, the noise, the sampling and the controls.
    split : {"unseen", "test", "prototype_test", "all"}
        ``unseen``: all rows but those that the model was trained or validated on. ``test``, ``prototype_test``: that side of
        :func:`~matminer_ed3d.protocols.assign_split`, less what the model has seen. ``all``: every row, seen ones included.
    control_rows : int
        Most rows to fit the controls on; 0 for no controls.
    n_jobs : int
        Processes that make samples, or look for symmetry.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    dict
        JSON values: ``n`` rows with an answer, ``n_failed`` without, ``failures``, the conditions, and for each target ``top1``,
        ``top1_counting_failures`` (a row without an answer counts as wrong; all other scores leave such rows out), ``top3``,
        ``macro_f1`` (over the classes that occur among the labels), ``ece`` (15 bins), ``controls``; for ``space_group``
        ``top1_up_to_enantiomorph``; for ``crystal_system`` ``per_class_recall`` and ``metric_misleads``, the score on the rows
        that the metric control gets wrong. A score of a model that returns no row is None.

    Raises
    ------
    ValueError
        On an unknown option, a table without the columns, or no eligible row.
    """
    conditions = Conditions(protocol, symprec, noise, d_min, seed)
    if split not in EVALUATION_SPLITS:
        raise ValueError(f"`split` must be one of {EVALUATION_SPLITS}, got {split!r}")
    if targets != "all" and targets not in TARGET_NAMES:
        raise ValueError(f"`targets` must be 'all' or one of {tuple(TARGET_NAMES)}, got {targets!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1, got {limit}")
    table = datasets.read_structures(path)
    if isinstance(model, str):
        model = load_model(model, symprec)
    wanted = [name for name, target in TARGET_NAMES.items() if target in model.targets] if targets == "all" else [targets]
    for name in wanted:
        if TARGET_NAMES[name] not in model.targets:
            raise ValueError(f"the model {model.name!r} tells {model.targets}, not {name!r}; use another model or target")

    ids = table.values("id")
    seen = datasets.seen_in_training(ids, model.train_ids or frozenset())
    sides = datasets.assigned_sides(table) if split in ("test", "prototype_test") else None
    eligible = np.ones(table.n_rows, dtype=bool) if sides is None else sides == split
    n_seen = int((eligible & seen).sum())
    if split != "all":
        eligible &= ~seen
    if not eligible.any():
        raise ValueError(f"{table.path}: no row is eligible for the split {split!r} ({n_seen} of them seen in training); use another split")
    rows = table.take(datasets.random_rows(np.flatnonzero(eligible), limit, seed))

    kept, proba, failed = _run(model, rows, conditions, n_jobs, progress)
    result: dict[str, Any] = {
        "n": len(kept),
        "n_failed": len(failed),
        "failures": {
            "reasons": dict(Counter(row.failure.split(":")[0] for row in failed)),
            "rows": [{"id": row.row_id, "reason": row.failure} for row in failed[:MAX_NAMED_FAILURES]],
        },
        "table": Path(table.path).name,
        "model": model.name,
        "protocol": protocol,
        "split": split,
        "symprec": symprec,
        "noise": noise,
        "d_min": d_min,
        "limit": limit,
        "seed": seed,
        "training_ids_known": model.train_ids is not None,
        "n_seen_in_training": n_seen,
        "seen_rows": "evaluated" if split == "all" else "left out",
    }
    if not kept:
        return result | {name: None for name in wanted}
    features = controls.stack_features([row.features for row in kept])
    numbers = np.array([row.space_group_number for row in kept])
    train, how = _training_rows(table, seen, sides, conditions, control_rows, n_jobs, progress)
    result["controls_fitted_on"] = how
    for name in wanted:
        target = TARGET_NAMES[name]
        y = np.asarray(labels.target_of(numbers, target))
        values, classes = target_proba(proba, model.estimator.classes_, model.target, target)
        scored = _score_target(target, y, values, np.asarray(classes), len(failed))
        fit = None if train is None else (train[0], np.asarray(labels.target_of(train[1], target)))
        predicted = controls.control_predictions(features, y, target, fit, seed, n_jobs) if control_rows else None
        scored["controls"], misled = _score_controls(predicted, target, y, np.asarray(classes)[values.argmax(axis=1)])
        if predicted is None:
            scored["controls_reason"] = "switched off" if not control_rows else f"fewer than {controls.MIN_ROWS} rows to fit them on"
        if target == "crystal_system":
            scored["metric_misleads"] = misled
        result[name] = scored
    return result


def _run(
    model: SymmetryModel, rows: datasets.StructureTable, conditions: Conditions, n_jobs: int, progress: bool
) -> tuple[list[PreparedRow], Float[np.ndarray, "n k"], list[PreparedRow]]:
    """Show every row to the model: the rows that came through, their probabilities, and the others."""
    from tqdm import tqdm

    known = datasets.space_group_labels(rows, conditions.symprec)
    options = model.estimator.sample_options_
    kept: list[PreparedRow] = []
    failed: list[PreparedRow] = []
    parts: list[np.ndarray] = []
    waiting: list[PreparedRow] = []

    def flush() -> None:
        done, proba = _predict(model, waiting) if waiting else ([], np.zeros((0, 0)))
        for row in done:
            (failed if row.failure else kept).append(PreparedRow(row.row_id, None, row.space_group_number, row.features, row.failure))
        if len(proba):
            parts.append(proba)
        waiting.clear()

    stream = in_parallel(prepare_row, rows, known, n_jobs, conditions, options)
    for row in tqdm(stream, total=rows.n_rows, desc="evaluate", unit="structure", file=sys.stderr, disable=not progress):
        if row.failure:
            failed.append(row)
            continue
        waiting.append(row)
        if len(waiting) == ROWS_AT_ONCE:
            flush()
    flush()
    return kept, np.concatenate(parts) if parts else np.zeros((0, len(model.estimator.classes_))), failed


def _training_rows(
    table: datasets.StructureTable,
    seen: np.ndarray,
    sides: np.ndarray | None,
    conditions: Conditions,
    control_rows: int,
    n_jobs: int,
    progress: bool,
) -> tuple[tuple[controls.Features, np.ndarray] | None, str]:
    """Features and space groups of rows to fit the controls on, where the table has such rows; and a line that says what they are."""
    from tqdm import tqdm

    fallback = f"{controls.N_FOLDS}-fold cross-validation over the evaluated rows"
    candidates = np.flatnonzero(seen)
    source = "rows that the model was trained or validated on"
    if len(candidates) < MIN_TRAINING_ROWS and sides is not None:
        candidates, source = np.flatnonzero(sides == "train"), "rows of the split 'train'"
    if len(candidates) < MIN_TRAINING_ROWS or not control_rows:
        return None, fallback if control_rows else "nothing"
    rows = table.take(datasets.random_rows(candidates, control_rows, conditions.seed))
    stream = in_parallel(row_features, rows, datasets.space_group_labels(rows, conditions.symprec), n_jobs, conditions)
    bar = tqdm(stream, total=rows.n_rows, desc="controls", unit="structure", file=sys.stderr, disable=not progress)
    good = [row for row in bar if not row.failure]
    if len(good) < MIN_TRAINING_ROWS:
        return None, fallback
    numbers = np.array([row.space_group_number for row in good])
    return (controls.stack_features([row.features for row in good]), numbers), f"{len(good)} {source}"
