from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from test_training import OPTIONS, clouds, network, same_weights, train
from torch import nn

from matminer_ed3d import training
from matminer_ed3d.representations import PointCloud, Sample
from matminer_ed3d.training.batches import draw_epoch, pack, share
from matminer_ed3d.training.losses import LOSSES


def uneven_clouds() -> tuple[list[Sample], np.ndarray]:
    """The two spheres, of 4 to 60 points."""
    rng = np.random.default_rng(1)
    samples: list[Sample] = []
    for i in range(24):
        directions = rng.standard_normal((int(rng.integers(4, 60)), 3))
        coords = (1 + i % 2) * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        samples.append(PointCloud(coords.astype(np.float32), np.ones((len(coords), 1), np.float32), ("total",), 5 * np.eye(3)))
    return samples, np.arange(24, dtype=np.int64) % 2


class Recorder(nn.Module):
    """Remembers the batches that it has seen in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.seen: list[Any] = []

    def forward(self, batch: Any) -> torch.Tensor:
        if self.training:
            self.seen.append(batch)
        return self.inner(batch)


@pytest.mark.parametrize("max_points", [1, 50, 200, 10**9])
def test_batches_are_packed_up_to_their_points(max_points: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 100, size=500)
    batches = pack(sizes, 32, max_points)
    np.testing.assert_array_equal(np.concatenate([np.arange(500)[batch] for batch in batches]), np.arange(500))
    for batch in batches:
        n = batch.stop - batch.start
        assert 1 <= n <= 32
        assert n == 1 or sizes[batch].sum() <= max_points
    for one, two in pairwise(batches):  # none was closed early
        assert one.stop - one.start == 32 or sizes[one].sum() + sizes[two][0] > max_points


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100])
def test_batches_without_a_limit_are_of_equal_size(n: int) -> None:
    lengths = [batch.stop - batch.start for batch in pack(np.ones(n, int), 8, None)]
    assert sum(lengths) == n
    assert len(lengths) == -(-n // 8)
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_a_batch_is_shared_by_points(n_processes: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 100, size=40)
    parts = share(sizes, n_processes)
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(40))
    loads = [sizes[part].sum() for part in parts]
    assert max(loads) - min(loads) <= 2 * sizes.max()
    assert sorted(len(part) for part in share(np.array([5]), 2)) == [0, 1]


def test_an_epoch_takes_every_sample_once() -> None:
    rows, targets = np.arange(3, 90, 2), np.arange(90) % 7
    epochs = [draw_epoch(rows, targets, 0.0, np.random.default_rng([0, epoch])) for epoch in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), rows)
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(epochs[1], draw_epoch(rows, targets, 0.0, np.random.default_rng([0, 1])))


@pytest.mark.parametrize("balance", [0.3, 0.5, 1.0])
def test_class_balance_draws_by_the_power_of_the_class_size(balance: float) -> None:
    targets = np.repeat([0, 1, 3], [900, 90, 10])  # class 2 has no sample
    rows = np.random.default_rng(2).permutation(1000)
    sizes = np.array([900.0, 90, 0, 10])
    expected = np.where(sizes > 0, sizes.clip(1) ** (1 - balance), 0)
    expected *= 1000 / expected.sum()
    for epoch in range(5):
        drawn = draw_epoch(rows, targets, balance, np.random.default_rng(epoch))
        assert len(drawn) == 1000
        assert (np.abs(np.bincount(targets[drawn], minlength=4) - expected) < 1).all()
        copies = np.bincount(drawn, minlength=1000)
        assert all(np.ptp(copies[targets == label]) <= 1 for label in (0, 1, 3))
    np.testing.assert_array_equal(np.sort(draw_epoch(rows, targets, 1e-12, np.random.default_rng(0))), np.arange(1000))


def test_packed_training_shows_each_sample_once_an_epoch_and_respects_the_limit() -> None:
    samples, targets = uneven_clouds()
    module = Recorder()
    options = replace(OPTIONS, max_epochs=2, max_points_per_batch=100, validation_fraction=0.0)
    history = train(module, samples, targets, options=options)
    sizes = [len(batch.feats) for batch in module.seen]
    assert sum(sizes) == 2 * sum(sample.n_points for sample in samples)
    assert all(size <= 100 or batch.n_samples == 1 for size, batch in zip(sizes, module.seen, strict=True))
    assert all(entry["points_per_second"] > entry["samples_per_second"] > 0 for entry in history)


def test_outputs_do_not_depend_on_the_packing() -> None:
    samples, _ = uneven_clouds()
    module = network()
    packed = training.network_outputs(module, samples, max_points_per_batch=70, device="cpu")
    np.testing.assert_allclose(packed, training.network_outputs(module, samples, device="cpu"), atol=1e-6)


def test_unequal_batches_weigh_all_samples_alike() -> None:
    """The gradients of one epoch, at fixed weights, add up to the gradient of the mean loss times the number of batches."""
    samples, targets = uneven_clouds()
    weights = np.linspace(0.5, 1.5, 24).astype(np.float32)

    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.total = [torch.zeros_like(p) for p in self.inner.parameters()]
            self.n_batches = 0
            for total, parameter in zip(self.total, self.inner.parameters(), strict=True):
                parameter.register_hook(total.add_)

        def forward(self, batch: Any) -> torch.Tensor:
            self.n_batches += self.training
            return self.inner(batch)

    module = Summing()
    options = replace(OPTIONS, max_epochs=1, max_points_per_batch=100, validation_fraction=0.0, learning_rate=1e-30, weight_decay=0.0)
    train(module, samples, targets, weights, options=options)
    whole = network()
    from matminer_ed3d.networks.batching import collate

    losses = nn.functional.cross_entropy(whole(collate(samples)), torch.from_numpy(targets), reduction="none")
    (losses * torch.from_numpy(weights)).mean().backward()
    assert module.n_batches > 3
    for total, parameter in zip(module.total, whole.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(total / module.n_batches, parameter.grad, atol=1e-6, rtol=1e-4)


def test_class_balance_learns_a_rare_class() -> None:
    samples, _ = clouds(40)
    rows = np.concatenate([np.arange(0, 40, 2), [1]])  # 20 of one class, 1 of the other
    chosen, targets = [samples[i] for i in rows], rows % 2
    module = Recorder()
    train(module, chosen, targets, options=replace(OPTIONS, max_epochs=1, class_balance=1.0, validation_fraction=0.0))
    radii = torch.cat([batch.coords.view(-1, 20, 3)[:, 0].norm(dim=1) for batch in module.seen])
    assert 9 <= int((radii > 1.5).sum()) <= 12


def test_label_smoothing_is_that_of_torch_and_stays_out_of_the_validation() -> None:
    outputs, targets = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    smoothed = LOSSES["cross_entropy"][0](outputs, targets, label_smoothing=0.1)
    by_hand = -(0.9 * nn.functional.one_hot(targets, 4) + 0.025) * outputs.log_softmax(1)
    torch.testing.assert_close(smoothed, by_hand.sum(1))
    samples, labels = clouds()
    one, two = network(), network()
    options = replace(OPTIONS, max_epochs=1, learning_rate=1e-30)
    plain = train(one, samples, labels, options=options)[0]
    smooth = train(two, samples, labels, options=replace(options, label_smoothing=0.3))[0]
    assert smooth["val_loss"] == plain["val_loss"]
    assert smooth["train_loss"] != plain["train_loss"]


@pytest.mark.parametrize("change", [{"class_balance": 0.5}, {"label_smoothing": 0.1}])
def test_what_needs_classes_is_refused_without(change: dict[str, float]) -> None:
    samples, targets = clouds(8)
    with pytest.raises(ValueError, match="need classes"):
        train(network(), samples, targets.astype(np.float32), None, "squared_error", replace(OPTIONS, **change))


def test_biases_and_norms_do_not_decay() -> None:
    samples, targets = clouds(8)
    module = network()
    options = replace(OPTIONS, max_epochs=1, validation_fraction=0.0, learning_rate=1e-3, weight_decay=900.0, lr_schedule="constant")
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    train(module, samples, targets, options=replace(options, warmup_fraction=0.0))
    for name, parameter in module.named_parameters():
        shrunk = parameter.abs().sum() < 0.5 * before[name].abs().sum()
        assert bool(shrunk) == (parameter.ndim > 1), name


def test_augmentations_do_not_depend_on_the_batch() -> None:
    samples, targets = clouds()
    seen = []
    for batch_size in (3, 24):
        module = Recorder()
        options = replace(OPTIONS, max_epochs=1, batch_size=batch_size, augmentations=("rotation",), validation_fraction=0.0)
        train(module, samples, targets, options=options)
        seen.append(torch.cat([batch.coords for batch in module.seen]))
    torch.testing.assert_close(seen[0], seen[1], atol=0.0, rtol=0.0)


def test_a_seed_repeats_a_packed_balanced_training() -> None:
    samples, targets = uneven_clouds()
    options = replace(OPTIONS, max_points_per_batch=100, class_balance=0.5, label_smoothing=0.1, augmentations=("rotation",))
    one, two = network(), network()
    for module in (one, two):
        train(module, samples, targets, options=options)
    assert same_weights(one, two)
