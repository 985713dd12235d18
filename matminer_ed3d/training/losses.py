"""What is minimised, and what is reported, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

__all__ = ["LOSSES"]


def _cross_entropy(outputs: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=label_smoothing)


def _squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs[:, 0] - targets) ** 2


def _absolute_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs[:, 0] - targets).abs()


def _accuracy(outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> float:
    return float(((outputs.argmax(dim=1) == targets) * weights).sum() / weights.sum())


def _r2(outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> float:
    mean = (targets * weights).sum() / weights.sum()
    spread = ((targets - mean) ** 2 * weights).sum()
    return float(1 - ((outputs[:, 0] - targets) ** 2 * weights).sum() / spread) if spread > 0 else math.nan


# name -> (loss of each sample, score of a set: accuracy or R^2)
LOSSES: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., float]]] = {
    "cross_entropy": (_cross_entropy, _accuracy),
    "squared_error": (_squared_error, _r2),
    "absolute_error": (_absolute_error, _r2),
}
