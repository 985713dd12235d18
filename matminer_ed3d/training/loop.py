"""The loop itself: epochs of batches, one optimizer, validation after each epoch."""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import nn
from tqdm import tqdm

from matminer_ed3d import augmentation, tensor_files
from matminer_ed3d.networks.batching import collate
from matminer_ed3d.representations import Sample
from matminer_ed3d.training.batches import draw_epoch, pack, share, split_validation
from matminer_ed3d.training.losses import LOSSES
from matminer_ed3d.training.options import TrainingOptions
from matminer_ed3d.training.processes import Processes, launch
from matminer_ed3d.training.state import TrainingState, fingerprint

__all__ = ["learning_rate_factor", "network_outputs", "resolve_device", "seeded_network", "train"]

Outputs = Float[torch.Tensor, "n_samples n_outputs"]


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


def learning_rate_factor(step: int | float, n_steps: int, options: TrainingOptions) -> float:
    """Return the learning rate of a step (from 0) as a part of ``options.learning_rate``."""
    n_warmup = math.ceil(options.warmup_fraction * n_steps)
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    if options.lr_schedule == "constant":
        return 1.0
    progress = (step - n_warmup) / max(1, n_steps - n_warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def network_outputs(
    network: nn.Module,
    samples: Sequence[Sample],
    *,
    batch_size: int = 32,
    max_points_per_batch: int | None = None,
    device: str = "auto",
    precision: str = "float32",
    constants: torch.Tensor | None = None,
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
    max_points_per_batch, device, precision
        As in :class:`TrainingOptions`.
    constants : (n_samples, ...) tensor, optional
        What the network's method ``constants`` gives of the samples, where it is known.

    Returns
    -------
    (n_samples, n_outputs) float32
    """
    where = resolve_device(device)
    network.to(where).eval()

    def outputs_of(batch: slice) -> Outputs:
        part = [samples[i] for i in range(len(samples))[batch]]
        return _forward(network, part, where, precision, None if constants is None else constants[batch]).cpu()

    with torch.inference_mode():
        return torch.cat([outputs_of(batch) for batch in pack(_sizes(samples), batch_size, max_points_per_batch)]).numpy()


def _forward(
    network: nn.Module, samples: Sequence[Sample], device: torch.device, precision: str, constants: torch.Tensor | None = None
) -> Outputs:
    batch = collate(list(samples)).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        outputs = network(batch) if constants is None else network(batch, constants)
    return outputs.float()


def _sizes(samples: Sequence[Sample]) -> Int[np.ndarray, " n_samples"]:
    return np.array([samples[i].n_points for i in range(len(samples))], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Task:
    """What is learned from what, and how; `training` and `validation` are rows of the samples."""

    samples: Sequence[Sample]
    targets: np.ndarray
    weights: np.ndarray
    training: np.ndarray
    validation: np.ndarray
    loss: str
    options: TrainingOptions


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
        Called with the entry of `history` when an epoch, its checkpoint included, is done; in the first of several processes,
        for which it must be picklable.
    verbose : int
        1 shows a progress bar.

    Returns
    -------
    list of dict
        One per epoch: ``epoch``, ``train_loss``, ``val_loss``, ``val_score`` (accuracy or R²; None without a validation part),
        ``learning_rate``, ``seconds``, and of the training part without the validation ``samples_per_second`` and ``points_per_second``.

    Raises
    ------
    FloatingPointError
        If the loss is no longer finite.
    ImportError
        If ``options.devices`` is above 1 and Lightning Fabric is not installed.
    ValueError
        If there is no such device, or `class_balance` or `label_smoothing` are asked for without classes.

    Notes
    -----
    The loss of a batch is the sum of its samples' losses over the *mean* number of samples in a batch of the epoch. Every sample then
    counts the same whatever the size of its batch; a plain mean would let the samples of small batches, which large crystals make,
    count more.

    With several devices each process takes a part of every batch with about equally many points, and the gradients are those of the
    whole batch. Batch normalisation takes mean and variance of a process's own part, as is usual without ``SyncBatchNorm`` (which
    works on GPUs only); the running statistics are those of the first process, which also writes the checkpoints. The processes
    are spawned: a script that trains on several devices needs the guard ``if __name__ == "__main__":``.
    """
    options = options or TrainingOptions()
    device = resolve_device(options.device)
    targets = np.asarray(targets)
    if loss != "cross_entropy" and (options.class_balance or options.label_smoothing):
        raise ValueError(f"`class_balance` and `label_smoothing` need classes, got the loss {loss!r}; leave both 0")
    if validation is None:
        parts = split_validation(targets, options.validation_fraction, np.random.default_rng([options.seed, 0]))
    else:
        parts = np.setdiff1d(np.arange(len(samples)), validation), np.asarray(validation)
    float_weights = np.ones(len(samples), np.float32) if weights is None else np.asarray(weights, np.float32)
    task = _Task(samples, targets, float_weights, *parts, loss, options)
    checkpoint = None
    if checkpoint_dir is not None:
        name = fingerprint(samples, (targets, float_weights, task.validation), network, loss, options)
        checkpoint = Path(checkpoint_dir) / f"training-{name}.safetensors"

    if options.devices == 1:
        network.to(device)
        state = _fit(Processes(), device, network, task, checkpoint, on_epoch, verbose)
        history, best = state.history, state.best
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.safetensors"
            launch(_fit_to_file, options.devices, device, network.cpu(), task, checkpoint, on_epoch, verbose, result)
            header, best = tensor_files.read(result)
        if header["diverged"]:
            raise FloatingPointError(header["diverged"])
        history = header["history"]
        network.to(device)
    network.load_state_dict(best)
    network.eval()
    return history


def _fit_to_file(processes: Processes, device: torch.device, network: nn.Module, task: _Task, *arguments: Any) -> None:
    """Train in one of several processes; the first leaves the result in the file that is the last argument."""
    *others, result = arguments
    try:
        own = copy.deepcopy(network).to(device)  # on the CPU the one that comes in is in memory that all processes share
        state = _fit(processes, device, own, task, *others)
        header: dict[str, Any] = {"history": state.history, "diverged": None}
        best = state.best
    except FloatingPointError as error:  # in all processes alike
        header, best = {"history": [], "diverged": str(error)}, {}
    if processes.rank == 0:
        tensor_files.write(result, best, header)


def _fit(
    processes: Processes,
    device: torch.device,
    network: nn.Module,
    task: _Task,
    checkpoint: Path | None,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    verbose: int,
) -> TrainingState:
    """Train `network`, which is on `device`, and return the state after the last epoch."""
    options, samples = task.options, task.samples
    loss_function, score_function = LOSSES[task.loss]
    training_loss = partial(loss_function, label_smoothing=options.label_smoothing) if options.label_smoothing else loss_function
    targets, weights = torch.as_tensor(task.targets, device=device), torch.as_tensor(task.weights, device=device)
    sizes = _sizes(samples)

    averaged = copy.deepcopy(network) if options.ema_decay else network
    groups = _parameter_groups(network, options.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)  # a sixth of the time on a CPU
    state = TrainingState(network, averaged, optimizer)
    if checkpoint is not None and checkpoint.exists():
        state.read(checkpoint, device)
    wrapped = processes.wrap(network)
    constants = None if options.augmentations else _constants(processes, network, samples, sizes, options, device)

    def batches_of(epoch: int) -> tuple[int, np.ndarray, list[slice]]:
        rng = np.random.default_rng([options.seed, 1, epoch])
        torch_seed = int(rng.integers(2**63))
        rows = draw_epoch(task.training, task.targets, options.class_balance, rng)
        return torch_seed, rows, pack(sizes[rows], options.batch_size, options.max_points_per_batch)

    # Packed epochs differ a little in their number of batches: the schedule counts each epoch as one like the first.
    n_batches = len(batches_of(0)[2])
    n_steps = options.max_epochs * n_batches
    n_train = len(task.training)
    hidden = not verbose or processes.rank > 0
    progress = tqdm(total=options.max_epochs * n_train, initial=len(state.history) * n_train, unit="sample", disable=hidden)
    with _own_torch_generators(device) as seed_torch, progress:
        while len(state.history) < options.max_epochs and not state.stalled(options.early_stopping):
            epoch, start = len(state.history), time.perf_counter()
            torch_seed, rows, batches = batches_of(epoch)
            seed_torch((torch_seed + processes.rank) % 2**63)
            network.train()
            total_loss, mean_size = 0.0, len(rows) / len(batches)
            for i, batch in enumerate(batches):
                step = (epoch + i / len(batches)) * n_batches
                learning_rate = options.learning_rate * learning_rate_factor(step, n_steps, options)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                mine = np.arange(batch.start, batch.stop)[share(sizes[rows[batch]], processes.number)[processes.rank]]
                counted = float(len(mine) > 0)
                mine = mine if counted else np.array([batch.start])  # a process without a sample runs along with one that does not count
                augmented = [_augmented(samples[rows[k]], options, epoch, int(k)) for k in mine]
                known = None if constants is None else constants[rows[mine]]
                losses = training_loss(_forward(wrapped, augmented, device, options.precision, known), targets[rows[mine]])
                my_loss = (losses * weights[rows[mine]]).sum() * (counted / mean_size)
                batch_loss = processes.sum(my_loss.detach()).item()
                _check_finite(batch_loss, "training", epoch, options)
                optimizer.zero_grad(set_to_none=True)
                # the mean of the processes' gradients is then that of the whole batch
                (my_loss * processes.number).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(network.parameters(), options.gradient_norm)
                optimizer.step()
                if options.ema_decay:
                    _average(averaged, network, min(options.ema_decay, (1 + step) / (10 + step)))
                total_loss += batch_loss * mean_size
                progress.update(batch.stop - batch.start)
            processes.take_buffers_of_first(averaged)
            trained = time.perf_counter()

            val_loss = val_score = None
            if len(task.validation):
                outputs = _validation_outputs(processes, averaged, task, device, constants)
                expected, weight = targets[task.validation].cpu(), weights[task.validation].cpu()
                val_loss = float((loss_function(outputs, expected) * weight).sum() / weight.sum())
                val_score = score_function(outputs, expected, weight)
                _check_finite(val_loss, "validation", epoch, options)
            entry = {
                "epoch": epoch,
                "train_loss": total_loss / float(task.weights[rows].sum(dtype=np.float64)),
                "val_loss": val_loss,
                "val_score": val_score,
                "learning_rate": learning_rate,
                "seconds": time.perf_counter() - start,
                "samples_per_second": len(rows) / (trained - start),
                "points_per_second": int(sizes[rows].sum()) / (trained - start),
            }
            state.add(entry)
            if processes.rank == 0:
                if checkpoint is not None:
                    state.write(checkpoint)
                shown = ("train_loss", "val_loss", "val_score")
                progress.set_postfix({k: v for k, v in entry.items() if k in shown and v is not None})
                if on_epoch is not None:
                    on_epoch(entry)
    return state


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases, scales and shifts, which have one axis, do not: they hold the level of a signal, not a pattern."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _augmented(sample: Sample, options: TrainingOptions, epoch: int, position: int) -> Sample:
    """Move a sample at random; the draw depends on its place in the epoch alone, not on the batch or process it is in."""
    if not options.augmentations:
        return sample
    rng = np.random.default_rng([options.seed, 3, epoch, position])
    return augmentation.augment(sample, options.augmentations, rng, options.noise_level)


def _validation_outputs(
    processes: Processes, network: nn.Module, task: _Task, device: torch.device, constants: torch.Tensor | None
) -> Outputs:
    """Outputs of the validation part, on the CPU; each process runs a part of it."""
    options = task.options

    def outputs_of(numbers: np.ndarray) -> torch.Tensor:
        held_out = [task.samples[k] for k in task.validation[numbers]]
        values = network_outputs(
            network,
            held_out,
            batch_size=options.batch_size,
            max_points_per_batch=options.max_points_per_batch,
            device=str(device),
            precision=options.precision,
            constants=None if constants is None else constants[task.validation[numbers]],
        )
        return torch.from_numpy(values)

    return processes.rows(len(task.validation), outputs_of)


def _constants(
    processes: Processes, network: nn.Module, samples: Sequence[Sample], sizes: np.ndarray, options: TrainingOptions, device: torch.device
) -> torch.Tensor | None:
    """What a network computes of each sample without any weight (its method ``constants``), made once; None if it has no such method."""
    compute: Callable[..., torch.Tensor] | None = getattr(network, "constants", None)
    if compute is None:
        return None

    def constants_of(rows: np.ndarray) -> torch.Tensor:
        batches = pack(sizes[rows], options.batch_size, options.max_points_per_batch)
        return torch.cat([compute(collate([samples[i] for i in rows[batch]]).to(device)) for batch in batches])

    return processes.rows(len(samples), constants_of)


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
