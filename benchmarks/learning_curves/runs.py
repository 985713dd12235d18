"""What the curves share: points that are made once and kept, and accuracies of the three targets from probabilities of space groups."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matminer_ed3d import labels

TARGETS = tuple(labels.TARGETS)

Point = tuple[str, dict[str, Any]]  # what it shows; keyword arguments of the function that makes it
Curves = dict[str, list[Point]]
Results = dict[str, dict[str, Any]]  # by `key_of`


def key_of(make: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """Name a point by all keyword arguments that make it, defaults included: one run may stand in several curves."""
    parameters = inspect.signature(make).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    return json.dumps({**defaults, **arguments}, sort_keys=True)


def make_missing(make: Callable[..., dict[str, Any]], data: tuple[Any, ...], curves: Curves, out: Path, **shared: Any) -> None:
    """Make every point that is not in the file, one after another; each is written as it comes."""
    made: Results = json.loads(out.read_text()) if out.exists() else {}
    for curve, points in curves.items():
        for shown, arguments in points:
            key = key_of(make, arguments | shared)
            if key not in made:
                start = time.perf_counter()
                made[key] = make(*data, **(arguments | shared))
                out.write_text(json.dumps(made, indent=1))
                print(curve, shown, round(time.perf_counter() - start), "s", made[key]["accuracy"], file=sys.stderr)


def accuracy(proba: np.ndarray, classes: np.ndarray, truth: np.ndarray, target: str) -> float:
    """Share of right answers for a target, of which the probability is the sum over its space groups."""
    of_class, of_truth = (np.array(labels.target_of(values, target)) for values in (classes, truth))
    names, column = np.unique(of_class, return_inverse=True)
    sums = np.zeros((len(proba), len(names)))
    np.add.at(sums.T, column, proba.T)
    return float((names[sums.argmax(1)] == of_truth).mean())


def result(
    proba: np.ndarray, classes: np.ndarray, truth: np.ndarray, network: torch.nn.Module, history: list[dict[str, Any]]
) -> dict[str, Any]:
    """What is kept of a run."""
    return {
        "accuracy": {target: round(100 * accuracy(proba, classes, truth, target), 2) for target in TARGETS},
        "n_asked": len(truth),
        "n_weights": sum(parameter.numel() for parameter in network.parameters()),
        "by_epoch": [round(100 * entry["val_score"], 1) for entry in history],
        "samples_per_second": round(float(np.median([entry["samples_per_second"] for entry in history]))),
        "seconds": round(sum(entry["seconds"] for entry in history)),
        "threads": torch.get_num_threads(),
    }
