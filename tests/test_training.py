from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from matminer_ed3d import tensor_files, training
from matminer_ed3d.networks.pointnet import PointNet
from matminer_ed3d.representations import PointCloud, Sample
from matminer_ed3d.training import TrainingOptions, train

OPTIONS = TrainingOptions(
    seed=3, max_epochs=6, batch_size=8, learning_rate=3e-3, early_stopping=None, validation_fraction=0.25, device="cpu"
)


def clouds(n_samples: int = 24, n_points: int = 20) -> tuple[list[Sample], np.ndarray]:
    """Spheres of radius 1 (class 0) and 2 (class 1): shape tells them apart."""
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    for i in range(n_samples):
        directions = rng.standard_normal((n_points, 3))
        coords = (1 + i % 2) * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        samples.append(PointCloud(coords.astype(np.float32), np.ones((n_points, 1), np.float32), ("total",), 5 * np.eye(3)))
    return samples, np.arange(n_samples, dtype=np.int64) % 2


def network(dropout: float = 0.0) -> nn.Module:
    def build() -> nn.Module:
        point_net = PointNet(1, 2, widths=(16, 32), n_groups=4, head_widths=(16,))
        return WithDropout(point_net, dropout) if dropout else point_net

    return training.seeded_network(build, 5)


class WithDropout(nn.Module):
    def __init__(self, inner: nn.Module, rate: float) -> None:
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(rate)

    def forward(self, batch: Any) -> torch.Tensor:
        return self.dropout(self.inner(batch))


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if "second" not in k} for entry in history]


def same_weights(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


class StopHere(RuntimeError):
    pass


def stop_after(epoch: int) -> Any:
    def on_epoch(entry: dict[str, Any]) -> None:
        if entry["epoch"] == epoch:
            raise StopHere

    return on_epoch


def test_overfits_eight_samples() -> None:
    samples, targets = clouds(8)
    module = network()
    history = train(module, samples, targets, options=replace(OPTIONS, max_epochs=60, validation_fraction=0.0, learning_rate=1e-2))
    assert history[-1]["train_loss"] < 0.1 * history[0]["train_loss"]
    assert (training.network_outputs(module, samples, device="cpu").argmax(axis=1) == targets).all()


def test_regression_learns_the_radius() -> None:
    samples, targets = clouds(16)
    module = training.seeded_network(lambda: PointNet(1, 1, widths=(16, 32), n_groups=4, head_widths=(16,)), 0)
    history = train(module, samples, targets.astype(np.float32), None, "squared_error", replace(OPTIONS, max_epochs=80, learning_rate=1e-2))
    assert history[-1]["val_score"] > 0.8  # R^2


@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, augmentations=("rotation", "noise"), ema_decay=0.9)])
def test_a_seed_repeats_the_training_and_touches_nothing_global(options: TrainingOptions) -> None:
    samples, targets = clouds()
    torch.manual_seed(11)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002  the global state is what must not change
    one, two, other = network(0.2), network(0.2), network(0.2)
    histories = [train(module, samples, targets, options=options) for module in (one, two)]
    assert without_seconds(histories[0]) == without_seconds(histories[1])
    assert same_weights(one, two)
    assert torch.equal(torch.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert without_seconds(train(other, samples, targets, options=replace(options, seed=4))) != without_seconds(histories[0])


def test_torch_generator_is_put_back_after_an_error() -> None:
    samples, targets = clouds(8)
    state = torch.get_rng_state()
    with pytest.raises(StopHere):
        train(network(0.5), samples, targets, options=OPTIONS, on_epoch=stop_after(0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("stop", [0, 3, 5])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_resume_equals_an_uninterrupted_run(tmp_path: Path, stop: int, ema_decay: float | None) -> None:
    samples, targets = clouds()
    weights = np.linspace(0.5, 1.5, len(samples))
    options = replace(OPTIONS, augmentations=("rotation",), ema_decay=ema_decay)
    whole = network(0.2)
    history = train(whole, samples, targets, weights, options=options)
    with pytest.raises(StopHere):
        train(network(0.2), samples, targets, weights, options=options, checkpoint_dir=tmp_path, on_epoch=stop_after(stop))
    resumed = network(0.2)
    done: list[int] = []
    resumed_history = train(
        resumed, samples, targets, weights, options=options, checkpoint_dir=tmp_path, on_epoch=lambda entry: done.append(entry["epoch"])
    )
    assert done == list(range(stop + 1, 6))  # it did go on, and did not start again
    assert without_seconds(resumed_history) == without_seconds(history)
    assert same_weights(resumed, whole)


def test_another_run_does_not_resume_from_a_checkpoint(tmp_path: Path) -> None:
    samples, targets = clouds()
    train(network(), samples, targets, options=OPTIONS, checkpoint_dir=tmp_path)
    changes: list[dict[str, Any]] = [
        {"options": replace(OPTIONS, learning_rate=1e-4)},
        {"options": replace(OPTIONS, seed=9)},
        {"targets": targets[::-1].copy()},
        {"samples": samples[::-1], "targets": targets},
        {"weights": np.linspace(1, 2, len(samples))},
    ]
    for number, change in enumerate(changes):
        done: list[int] = []
        arguments = {"samples": samples, "targets": targets, "options": OPTIONS, **change}
        train(network(), **arguments, checkpoint_dir=tmp_path, on_epoch=lambda entry, done=done: done.append(entry["epoch"]))
        assert len(done) == 6
        assert len(list(tmp_path.glob("*.safetensors"))) == number + 2


def test_best_weights_are_those_of_the_best_validation_loss() -> None:
    samples, targets = clouds()
    kept: list[dict[str, torch.Tensor]] = []
    module = network()
    options = replace(OPTIONS, learning_rate=0.1, max_epochs=8)  # a rate that overshoots, so the last epoch is seldom the best

    def keep(entry: dict[str, Any]) -> None:
        kept.append({k: v.clone() for k, v in module.state_dict().items()})

    history = train(module, samples, targets, options=options, on_epoch=keep)
    best = int(np.argmin([entry["val_loss"] for entry in history]))
    assert all(torch.equal(value, kept[best][name]) for name, value in module.state_dict().items())
    rng = np.random.default_rng([options.seed, 0])
    held_out = training.split_validation(targets, options.validation_fraction, rng)[1]
    outputs = training.network_outputs(module, [samples[i] for i in held_out], device="cpu")
    loss = nn.functional.cross_entropy(torch.from_numpy(outputs), torch.from_numpy(targets[held_out])).item()
    assert loss == pytest.approx(history[best]["val_loss"], rel=1e-5)


def test_early_stopping_waits_for_its_patience() -> None:
    samples, targets = clouds()
    noise = np.random.default_rng(1).permutation(targets)  # nothing to learn, so the validation loss soon rises
    history = train(network(), samples, noise, options=replace(OPTIONS, max_epochs=200, learning_rate=1e-2, early_stopping=3))
    losses = [entry["val_loss"] for entry in history]
    assert len(history) < 200
    assert len(losses) - 1 - int(np.argmin(losses)) == 3


def test_without_a_validation_part_the_last_epoch_counts() -> None:
    samples, targets = clouds(8)
    history = train(network(), samples, targets, options=replace(OPTIONS, validation_fraction=0.0, early_stopping=1))
    assert len(history) == 6
    assert history[-1]["val_loss"] is None
    assert history[-1]["val_score"] is None


def test_an_explicit_validation_part_is_not_trained_on() -> None:
    samples, targets = clouds()
    held_out = np.array([0, 1, 2, 3])
    changed = targets.copy()
    changed[held_out] = 1 - changed[held_out]
    one, two = network(), network()
    options = replace(OPTIONS, max_epochs=2)
    for module, labels in ((one, targets), (two, changed)):
        train(module, samples, labels, options=options, validation=held_out)
    losses = [entry["train_loss"] for entry in train(network(), samples, targets, options=options, validation=held_out)]
    assert losses == [entry["train_loss"] for entry in train(network(), samples, changed, options=options, validation=held_out)]


def test_sample_weights_decide() -> None:
    samples, targets = clouds(16)
    opposite = 1 - targets
    both, labels = samples + samples, np.concatenate([targets, opposite])
    weights = np.concatenate([np.full(16, 1.0), np.full(16, 0.01)])
    module = network()
    train(module, both, labels, weights, options=replace(OPTIONS, max_epochs=40, validation_fraction=0.0))
    assert (training.network_outputs(module, samples, device="cpu").argmax(axis=1) == targets).mean() == 1.0


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_the_split_keeps_the_mixture(fraction: float) -> None:
    targets = np.repeat([0, 1, 2, 3], [100, 40, 20, 1])
    train_part, validation = training.split_validation(targets, fraction, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(np.concatenate([train_part, validation])), np.arange(161))
    for label, count in enumerate([100, 40, 20]):
        assert abs((targets[validation] == label).sum() - fraction * count) <= 1
    assert 160 not in validation  # the only sample of its class
    values = np.random.default_rng(1).standard_normal(400)
    held_out = training.split_validation(values, fraction, np.random.default_rng(0))[1]
    np.testing.assert_allclose(np.quantile(values[held_out], [0.2, 0.5, 0.8]), np.quantile(values, [0.2, 0.5, 0.8]), atol=0.1)


def test_the_split_of_nearly_nothing_leaves_something_to_train_on() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert len(training.split_validation(np.zeros(1, int), 0.5, rng)[1]) == 0
        assert len(training.split_validation(np.zeros(1), 0.5, rng)[1]) == 0
        assert len(training.split_validation(np.array([0, 0, 1, 1]), 0.5, rng)[0]) == 2


def test_learning_rate_warms_up_and_falls() -> None:
    factors = np.array([training.learning_rate_factor(step, 200, OPTIONS) for step in range(200)])
    assert (np.diff(factors[:10]) > 0).all()
    assert factors.max() == pytest.approx(1.0)
    assert (np.diff(factors[10:]) < 0).all()
    assert factors[-1] == pytest.approx(0.01, abs=1e-3)
    constant = replace(OPTIONS, lr_schedule="constant", warmup_fraction=0.0)
    assert {training.learning_rate_factor(step, 200, constant) for step in range(200)} == {1.0}


def test_divergence_says_what_to_do() -> None:
    samples, targets = clouds(8)
    module = network()
    with torch.no_grad():
        next(module.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="lower `learning_rate`"):
        train(module, samples, targets, options=OPTIONS)


def test_bf16_learns_too() -> None:
    samples, targets = clouds(8)
    module = network()
    train(module, samples, targets, options=replace(OPTIONS, max_epochs=40, validation_fraction=0.0, precision="bf16"))
    outputs = training.network_outputs(module, samples, device="cpu", precision="bf16")
    assert outputs.dtype == np.float32
    assert (outputs.argmax(axis=1) == targets).all()


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    "change",
    [
        {"max_epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"lr_schedule": "step"},
        {"validation_fraction": 0.7},
        {"early_stopping": 0},
        {"precision": "fp16"},
        {"ema_decay": 1.0},
        {"augmentations": ("flip",)},
    ],
)
def test_options_refuse_what_has_no_meaning(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(change))}` must be"):
        TrainingOptions(**change)


def test_a_device_that_is_not_there_is_refused() -> None:
    assert training.resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="`device` must be"):
        training.resolve_device("abacus")
    if not torch.cuda.is_available():
        assert training.resolve_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="finds no CUDA"):
            training.resolve_device("cuda")


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_training import ENDLESS, clouds, network, train
samples, targets = clouds()
train(network(), samples, targets, options=ENDLESS, checkpoint_dir={checkpoints!r})
"""
ENDLESS = replace(OPTIONS, max_epochs=100_000)


def test_a_kill_leaves_a_valid_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    script = SCRIPT.format(folder=str(Path(__file__).parent), checkpoints=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 50
    n_seen = 0
    while n_seen < 20 and time.monotonic() < deadline:  # whatever is there while the other process writes can be read
        for path in tmp_path.glob("*.safetensors"):
            n_seen = len(tensor_files.read_header(path)["history"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path,) = tmp_path.glob("*.safetensors")
    header, tensors = tensor_files.read(path)
    assert len(header["history"]) >= n_seen >= 20
    assert all(torch.isfinite(value).all() for value in tensors.values())
    samples, targets = clouds()
    done: list[int] = []

    def stop(entry: dict[str, Any]) -> None:
        done.append(entry["epoch"])
        raise StopHere

    with pytest.raises(StopHere):
        train(network(), samples, targets, options=ENDLESS, checkpoint_dir=tmp_path, on_epoch=stop)
    assert done == [len(header["history"])]


def test_a_history_is_json() -> None:
    samples, targets = clouds(8)
    history = train(network(), samples, targets, options=replace(OPTIONS, max_epochs=2), verbose=1)
    assert json.loads(json.dumps(history)) == history
    times = {"seconds", "samples_per_second", "points_per_second"}
    assert set(history[0]) == {"epoch", "train_loss", "val_loss", "val_score", "learning_rate"} | times
