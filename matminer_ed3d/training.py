"""The training loop: seeded batches, AdamW with warm-up, early stopping on a validation part, checkpoints that resume exactly.

Nothing global is touched: every epoch draws from generators made of (seed, epoch), so a resumed run needs no stored generator state,
and torch's own generators are put back when the loop ends.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from matminer_ed3d import augmentation, tensor_files
from matminer_ed3d.networks.batching import collate
from matminer_ed3d.representations import PointCloud, Sample, SparseTensor

__all__ = [
    "LOSSES",
    "TrainingOptions",
    "learning_rate_factor",
    "network_outputs",
    "resolve_device",
    "seeded_network",
    "split_validation",
    "train",
]

Outputs = Float[torch.Tensor, "n_samples n_outputs"]


def _cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


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


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; all that decides the result, beside the samples and the network.

    Parameters
    ----------
    seed : int
        Decides the split, the order of samples, the augmentations and the dropout.
    max_epochs : int
        Passes over the training part.
    batch_size : int
        Samples in a batch, at most; batches of an epoch are of equal size, to one.
    learning_rate, weight_decay : float
        Of AdamW.
    lr_schedule : {"cosine", "constant"}
        After the warm-up: half a cosine down to 1 % of `learning_rate`, or no change.
    warmup_fraction : float
        Part of all steps in which the learning rate grows linearly from zero: the second moments of AdamW are noise at first.
    validation_fraction : float
        Part of the samples held out to choose the best epoch, in [0, 0.5]. 0 keeps the last weights.
    early_stopping : int or None
        Stop when the validation loss has not improved for this many epochs; None trains to the end. The weights of the best epoch
        are restored either way.
    augmentations : tuple of str
        Names out of :data:`matminer_ed3d.augmentation.AUGMENTATIONS`, drawn anew for each sample in each epoch.
    noise_level : float
        Largest noise, relative to the rms of the channel about its mean.
    gradient_norm : float
        Gradients longer than this are shortened to it.
    ema_decay : float or None
        Keep an exponential average of the weights and use it for validation and as the result.
    precision : {"float32", "bf16"}
        bf16 runs the forward pass under autocast; weights and loss stay float32.
    device : str
        ``auto`` is ``cuda`` where there is one, else ``cpu``.

    Raises
    ------
    ValueError
        On a value out of range.
    """

    seed: int = 0
    max_epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    lr_schedule: str = "cosine"
    warmup_fraction: float = 0.05
    validation_fraction: float = 0.1
    early_stopping: int | None = 5
    augmentations: tuple[str, ...] = ()
    noise_level: float = 0.05
    gradient_norm: float = 1.0
    ema_decay: float | None = None
    precision: str = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        for names, kind, expected in (
            (("max_epochs", "batch_size"), Integral, "an integer"),
            (("early_stopping",), Integral, "None or an integer"),
            (("learning_rate", "weight_decay", "warmup_fraction", "validation_fraction"), Real, "a number"),
            (("noise_level", "gradient_norm"), Real, "a number"),
            (("ema_decay",), Real, "None or a number"),
        ):
            for name in names:
                value = getattr(self, name)
                is_right = type(value) is not bool and isinstance(value, kind)
                if not is_right and not (value is None and "None" in expected):
                    raise ValueError(f"`{name}` must be {expected}, got {value!r}")
        in_range = {
            "max_epochs": (self.max_epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (self.learning_rate > 0, "positive"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "lr_schedule": (self.lr_schedule in ("cosine", "constant"), "'cosine' or 'constant'"),
            "warmup_fraction": (0 <= self.warmup_fraction < 1, "in [0, 1)"),
            "validation_fraction": (0 <= self.validation_fraction <= 0.5, "in [0, 0.5]"),
            "early_stopping": (self.early_stopping is None or self.early_stopping >= 1, "None or at least 1 epoch"),
            "noise_level": (self.noise_level >= 0, "at least 0"),
            "gradient_norm": (self.gradient_norm > 0, "positive"),
            "ema_decay": (self.ema_decay is None or 0 < self.ema_decay < 1, "None or in (0, 1)"),
            "precision": (self.precision in ("float32", "bf16"), "'float32' or 'bf16'"),
        }
        for name, (valid, expected) in in_range.items():
            if not valid:
                raise ValueError(f"`{name}` must be {expected}, got {getattr(self, name)!r}")
        augmentation.check_names(self.augmentations)


def resolve_device(device: str) -> torch.device:
    """Turn ``auto`` into ``cuda`` or ``cpu``, and refuse a device that this machine does not have.

    Raises
    ------
    ValueError
        If torch does not know the name, or finds no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"`device` must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`device` is {device!r}, but torch finds no CUDA device here; use device='auto' or 'cpu'")
    return resolved


@contextmanager
def _own_torch_generators(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Yield a function that seeds torch's generators for us; put them back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):

        def seed_torch(seed: int) -> None:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)

        yield seed_torch


def seeded_network(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network whose first weights depend on `seed` only, without a change to torch's global generator."""
    with _own_torch_generators(torch.device("cpu")) as seed_torch:
        seed_torch(seed)
        return build()


def split_validation(
    targets: Shaped[np.ndarray, " n_samples"], fraction: float, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " n_train"], Int[np.ndarray, " n_validation"]]:
    """Split samples at random so that both parts have the same mixture of targets.

    Parameters
    ----------
    targets : (n_samples,) int or float
        Classes, or values: samples are sorted by them and every 1/`fraction`-th is held out, so the share of each class (each
        range of values) is kept to one sample.
    fraction : float
        Part to hold out, in [0, 0.5].
    rng : numpy Generator
        Decides which samples of equal target are held out.

    Returns
    -------
    train, validation : (n,) int
        Sorted indices. The only sample of a class is never held out; with few samples the validation part may be empty.
    """
    order = rng.permutation(len(targets))
    if np.issubdtype(targets.dtype, np.integer):
        order = order[np.bincount(targets)[targets[order]] > 1]
    order = order[np.argsort(targets[order], kind="stable")]
    held_out = np.diff(np.floor(np.arange(len(order) + 1) * fraction + rng.random())) > 0
    validation = np.sort(order[held_out]) if len(order) > 1 else order[:0]
    return np.setdiff1d(np.arange(len(targets)), validation), validation


def learning_rate_factor(step: int, n_steps: int, options: TrainingOptions) -> float:
    """Return the learning rate of a step (from 0) as a part of ``options.learning_rate``."""
    n_warmup = math.ceil(options.warmup_fraction * n_steps)
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    if options.lr_schedule == "constant":
        return 1.0
    progress = (step - n_warmup) / max(1, n_steps - n_warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def network_outputs(
    network: nn.Module, samples: Sequence[Sample], *, batch_size: int = 32, device: str = "auto", precision: str = "float32"
) -> Float[np.ndarray, "n_samples n_outputs"]:
    """Run a network over samples without gradients, batch by batch.

    Parameters
    ----------
    network : nn.Module
        ``forward(batch) -> (n_samples, n_outputs)``; put in evaluation mode and moved to `device`.
    samples : sequence of PointCloud or SparseTensor
        One kind, one set of channels; at least one.
    batch_size : int
        Samples at once.
    device, precision : str
        As in :class:`TrainingOptions`.

    Returns
    -------
    (n_samples, n_outputs) float32
    """
    where = resolve_device(device)
    network.to(where).eval()
    batches = np.array_split(np.arange(len(samples)), math.ceil(len(samples) / batch_size))
    with torch.inference_mode():
        outputs = [_forward(network, [samples[i] for i in batch], where, precision).cpu() for batch in batches]
    return torch.cat(outputs).numpy()


def _forward(
    network: nn.Module, samples: Sequence[Sample], device: torch.device, precision: str, constants: torch.Tensor | None = None
) -> Outputs:
    batch = collate(list(samples)).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        outputs = network(batch) if constants is None else network(batch, constants)
    return outputs.float()


def train(
    network: nn.Module,
    samples: Sequence[Sample],
    targets: Shaped[np.ndarray, " n_samples"],
    weights: Float[np.ndarray, " n_samples"] | None = None,
    loss: str = "cross_entropy",
    options: TrainingOptions | None = None,
    *,
    validation: Int[np.ndarray, " n_validation"] | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    verbose: int = 0,
) -> list[dict[str, Any]]:
    """Train a network in place and return its history.

    Parameters
    ----------
    network : nn.Module
        ``forward(batch) -> (n_samples, n_outputs)``. Its weights at the call are the start; the best ones are in it on return.
    samples : sequence of PointCloud or SparseTensor
        One kind, one set of channels.
    targets : (n_samples,) int64 or float32
        Class indices for ``cross_entropy``, values for the other losses.
    weights : (n_samples,) float, optional
        Weight of each sample in the loss; default 1.
    loss : {"cross_entropy", "squared_error", "absolute_error"}
        What to minimise.
    options : TrainingOptions, optional
        How.
    validation : (n_validation,) int, optional
        Samples to hold out, in place of a random part of ``options.validation_fraction``.
    checkpoint_dir : path, optional
        Write the state after every epoch, and resume from it where this very run (samples, targets, network, options) was
        interrupted. Runs that differ in anything have files of their own.
    on_epoch : callable, optional
        Called with the entry of `history` when an epoch, its checkpoint included, is done.
    verbose : int
        1 shows a progress bar.

    Returns
    -------
    list of dict
        One per epoch: ``epoch``, ``train_loss``, ``val_loss``, ``val_score`` (accuracy or R²; None without a validation part),
        ``learning_rate`` and ``seconds``.

    Raises
    ------
    FloatingPointError
        If the loss is no longer finite.
    """
    options = options or TrainingOptions()
    device = resolve_device(options.device)
    loss_function, score_function = LOSSES[loss]
    target_tensor = torch.as_tensor(targets, device=device)
    weight_tensor = torch.ones(len(samples)) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    weight_tensor = weight_tensor.to(device)
    if validation is None:
        train_part, val_part = split_validation(np.asarray(targets), options.validation_fraction, np.random.default_rng([options.seed, 0]))
    else:
        train_part, val_part = np.setdiff1d(np.arange(len(samples)), validation), np.asarray(validation)

    checkpoint = None
    if checkpoint_dir is not None:
        parts = (samples, target_tensor, weight_tensor, val_part, network, loss, options)
        checkpoint = Path(checkpoint_dir) / f"training-{_fingerprint(*parts)}.safetensors"
    network.to(device)
    averaged = copy.deepcopy(network) if options.ema_decay else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    state = _State(network, averaged, optimizer)
    if checkpoint is not None and checkpoint.exists():
        state.read(checkpoint, device)

    constants = None if options.augmentations else _constants(network, samples, options.batch_size, device)
    n_batches = math.ceil(len(train_part) / options.batch_size)
    n_steps = options.max_epochs * n_batches
    progress = tqdm(total=n_steps, initial=len(state.history) * n_batches, unit="batch", disable=not verbose)
    with _own_torch_generators(device) as seed_torch, progress:
        while len(state.history) < options.max_epochs and not state.stalled(options.early_stopping):
            epoch, start = len(state.history), time.perf_counter()
            rng = np.random.default_rng([options.seed, 1, epoch])
            seed_torch(int(rng.integers(2**63)))
            network.train()
            total_loss = 0.0
            for i, rows in enumerate(np.array_split(rng.permutation(train_part), n_batches)):
                step = epoch * n_batches + i
                learning_rate = options.learning_rate * learning_rate_factor(step, n_steps, options)
                optimizer.param_groups[0]["lr"] = learning_rate
                batch = [augmentation.augment(samples[k], options.augmentations, rng, options.noise_level) for k in rows]
                known = None if constants is None else constants[rows]
                losses = loss_function(_forward(network, batch, device, options.precision, known), target_tensor[rows])
                batch_loss = (losses * weight_tensor[rows]).mean()
                _check_finite(batch_loss.item(), "training", epoch, options)
                optimizer.zero_grad(set_to_none=True)
                batch_loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(network.parameters(), options.gradient_norm)
                optimizer.step()
                if options.ema_decay:
                    _average(averaged, network, min(options.ema_decay, (1 + step) / (10 + step)))
                total_loss += batch_loss.item() * len(rows)
                progress.update()

            val_loss = val_score = None
            if len(val_part):
                held_out = [samples[k] for k in val_part]
                values = network_outputs(averaged, held_out, batch_size=options.batch_size, device=str(device), precision=options.precision)
                outputs, expected, weight = torch.from_numpy(values), target_tensor[val_part].cpu(), weight_tensor[val_part].cpu()
                val_loss = float((loss_function(outputs, expected) * weight).sum() / weight.sum())
                val_score = score_function(outputs, expected, weight)
                _check_finite(val_loss, "validation", epoch, options)
            entry = {
                "epoch": epoch,
                "train_loss": total_loss / float(weight_tensor[train_part].sum()),
                "val_loss": val_loss,
                "val_score": val_score,
                "learning_rate": learning_rate,
                "seconds": time.perf_counter() - start,
            }
            state.add(entry)
            if checkpoint is not None:
                state.write(checkpoint)
            progress.set_postfix({k: v for k, v in entry.items() if k in ("train_loss", "val_loss", "val_score") and v is not None})
            if on_epoch is not None:
                on_epoch(entry)
    network.load_state_dict(state.best)
    network.eval()
    return state.history


def _constants(network: nn.Module, samples: Sequence[Sample], batch_size: int, device: torch.device) -> torch.Tensor | None:
    """What a network computes of each sample without any weight (its method ``constants``), made once; None if it has no such method."""
    compute: Callable[..., torch.Tensor] | None = getattr(network, "constants", None)
    if compute is None:
        return None
    batches = np.array_split(np.arange(len(samples)), math.ceil(len(samples) / batch_size))
    return torch.cat([compute(collate([samples[i] for i in batch]).to(device)) for batch in batches])


def _check_finite(loss: float, part: str, epoch: int, options: TrainingOptions) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the {part} loss is {loss} in epoch {epoch}: training diverged; lower `learning_rate` (now {options.learning_rate:g}), "
            "use precision='float32', or look for extreme targets and densities"
        )


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the network's; buffers (batch statistics, counters) are taken over."""
    for old, new in zip(averaged.parameters(), network.parameters(), strict=True):
        old.lerp_(new, 1 - decay)
    for old_buffer, new_buffer in zip(averaged.buffers(), network.buffers(), strict=True):
        old_buffer.copy_(new_buffer)


class _State:
    """What an interrupted training needs to go on: weights, best weights, moments of the optimizer, history."""

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
        tensors = {}
        for name, part in self._parts().items():
            tensors.update({f"{name}/{key}": value for key, value in part.items()})
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{index}/{key}": value for key, value in moments.items()})
        tensor_files.write(path, tensors, {"history": self.history, "best_epoch": self.best_epoch})

    def read(self, path: Path, device: torch.device) -> None:
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


def _fingerprint(
    samples: Sequence[Sample],
    targets: torch.Tensor,
    weights: torch.Tensor,
    validation: np.ndarray,
    network: nn.Module,
    loss: str,
    options: TrainingOptions,
) -> str:
    """Return 16 hex digits of everything that decides a run, so that no run resumes from another one's checkpoint."""
    digest = hashlib.blake2b(json.dumps([loss, asdict(options), repr(network)]).encode(), digest_size=8)
    for array in (targets.cpu().numpy(), weights.cpu().numpy(), validation, *(p.cpu().numpy() for p in network.state_dict().values())):
        digest.update(np.ascontiguousarray(array).tobytes())
    for i in range(len(samples)):
        sample = samples[i]
        basis = sample.lattice if isinstance(sample, PointCloud) else sample.voxel_basis
        shape = sample.grid_shape if isinstance(sample, SparseTensor) else None
        digest.update(f"{sample.channels}{shape}{basis.tolist()}".encode())
        digest.update(np.ascontiguousarray(sample.coords).tobytes())
        digest.update(np.ascontiguousarray(sample.feats).tobytes())
    return digest.hexdigest()
