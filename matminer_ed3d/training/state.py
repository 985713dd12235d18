"""What an interrupted training needs to go on, and the name by which it finds it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from matminer_ed3d import tensor_files
from matminer_ed3d.representations import PointCloud, Sample, SparseTensor
from matminer_ed3d.training.options import TrainingOptions

__all__ = ["TrainingState", "fingerprint"]


class TrainingState:
    """Weights, best weights, moments of the optimizer, history; of the loop, which changes the first three in place.

    Parameters
    ----------
    network, averaged : nn.Module
        What is trained, and its average; one object where no average is kept.
    optimizer : torch.optim.Optimizer
        Of the parameters of `network`.
    """

    def __init__(self, network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.network, self.averaged, self.optimizer = network, averaged, optimizer
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.best_epoch = -1

    def add(self, entry: dict[str, Any]) -> None:
        """Take over the result of an epoch; without a validation part the last epoch is the best."""
        self.history.append(entry)
        loss, best = entry["val_loss"], self.history[max(self.best_epoch, 0)]["val_loss"]
        if self.best_epoch < 0 or loss is None or loss < best:
            self.best_epoch = entry["epoch"]
            self.best = {k: v.detach().clone() for k, v in self.averaged.state_dict().items()}

    def stalled(self, patience: int | None) -> bool:
        """Tell whether the validation loss has not improved for `patience` epochs."""
        return patience is not None and len(self.history) - 1 - self.best_epoch >= patience

    def write(self, path: Path) -> None:
        """Write a checkpoint, all or nothing."""
        tensors = {}
        for name, part in self._parts().items():
            tensors.update({f"{name}/{key}": value for key, value in part.items()})
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{index}/{key}": value for key, value in moments.items()})
        tensor_files.write(path, tensors, {"history": self.history, "best_epoch": self.best_epoch})

    def read(self, path: Path, device: torch.device) -> None:
        """Go back to a checkpoint."""
        header, tensors = tensor_files.read(path)
        self.history, self.best_epoch = header["history"], header["best_epoch"]
        parts: dict[str, dict[str, torch.Tensor]] = {"network": {}, "averaged": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = value.to(device)
        self.network.load_state_dict(parts["network"])
        if self.averaged is not self.network:
            self.averaged.load_state_dict(parts["averaged"])
        self.best = parts["best"]
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = value.cpu() if key == "step" else value
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _parts(self) -> dict[str, dict[str, torch.Tensor]]:
        parts = {"network": self.network.state_dict(), "best": self.best}
        return parts if self.averaged is self.network else {**parts, "averaged": self.averaged.state_dict()}


def fingerprint(
    samples: Sequence[Sample],
    arrays: Sequence[np.ndarray],
    network: nn.Module,
    loss: str,
    options: TrainingOptions,
) -> str:
    """Return 16 hex digits of everything that decides a run, so that no run resumes from another one's checkpoint.

    Parameters
    ----------
    samples : sequence of PointCloud or SparseTensor
        All of them.
    arrays : sequence of arrays
        Targets, weights, the validation part.
    network : nn.Module
        With its first weights.
    loss : str
        Its name.
    options : TrainingOptions
        How.
    """
    digest = hashlib.blake2b(json.dumps([loss, asdict(options), repr(network)]).encode(), digest_size=8)
    for array in (*arrays, *(p.cpu().numpy() for p in network.state_dict().values())):
        digest.update(np.ascontiguousarray(array).tobytes())
    for i in range(len(samples)):
        sample = samples[i]
        basis = sample.lattice if isinstance(sample, PointCloud) else sample.voxel_basis
        shape = sample.grid_shape if isinstance(sample, SparseTensor) else None
        digest.update(f"{sample.channels}{shape}{basis.tolist()}".encode())
        digest.update(np.ascontiguousarray(sample.coords).tobytes())
        digest.update(np.ascontiguousarray(sample.feats).tobytes())
    return digest.hexdigest()
