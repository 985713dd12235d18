"""Figures of merit of class predictions: plain functions on labels and probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = ["expected_calibration_error", "macro_f1", "per_class_recall", "top_k_accuracy"]

Labels = Any  # (n,) array of str or int


def top_k_accuracy(y_true: Labels, proba: Float[np.ndarray, "n k"], classes: Labels, top: int = 1) -> float:
    """Share of rows whose label is among the `top` most probable classes; ties go to the class that comes first."""
    order = np.argsort(-proba, axis=1, kind="stable")[:, :top]
    return float((np.asarray(classes)[order] == np.asarray(y_true)[:, None]).any(axis=1).mean())


def macro_f1(y_true: Labels, y_pred: Labels) -> float:
    """Mean F1 over the classes that occur in `y_true`; a class that is never predicted counts 0."""
    from sklearn.metrics import f1_score

    return float(f1_score(y_true, y_pred, labels=np.unique(y_true), average="macro", zero_division=0))


def per_class_recall(y_true: Labels, y_pred: Labels, classes: Labels) -> dict[str, float | None]:
    """Share of each class that is found; None for a class that does not occur in `y_true`."""
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    recall: dict[str, float | None] = {}
    for label in classes:
        rows = y_true == label
        recall[str(label)] = float((y_pred[rows] == label).mean()) if rows.any() else None
    return recall


def expected_calibration_error(correct: np.ndarray, confidence: Float[np.ndarray, " n"], n_bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over equal bins of confidence, weighted by their rows.

    Parameters
    ----------
    correct : (n,) bool
        Whether the most probable class was right.
    confidence : (n,) float
        Its probability.
    n_bins : int
        Equal bins of [0, 1], as Guo et al., ICML 2017, eq. 3.
    """
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gap = np.bincount(bins, np.asarray(correct, dtype=float) - confidence, n_bins)
    return float(np.abs(gap).sum() / len(confidence))
