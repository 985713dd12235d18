"""Which samples are held out, which an epoch shows, and which of them share a batch or a process: indices only."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int, Shaped

__all__ = ["draw_epoch", "pack", "share", "split_validation"]


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


def draw_epoch(
    rows: Int[np.ndarray, " n_train"], targets: Shaped[np.ndarray, " n_samples"], class_balance: float, rng: np.random.Generator
) -> Int[np.ndarray, " n_train"]:
    """Draw the samples of one epoch, in random order.

    Parameters
    ----------
    rows : (n_train,) int
        The training part.
    targets : (n_samples,) int or float
        Class of every sample; not looked at where `class_balance` is 0.
    class_balance : float
        A sample of class c is drawn with a probability proportional to n_c ** (1 - `class_balance`) / n_c.
    rng : numpy Generator
        Where all draws come from.

    Returns
    -------
    (n_train,) int
        With `class_balance` 0 each of `rows` once; else so that the copies of a sample, and of the samples of a class, are what is
        expected of them to less than one (systematic sampling over a random order within each class).
    """
    if class_balance:
        labels = targets[rows]
        counts = np.bincount(labels)
        share = np.where(counts > 0, counts.clip(1) ** (1.0 - class_balance), 0.0)
        copies = (len(rows) * share / share.sum() / counts.clip(1))[labels]  # expected of each sample
        mixed = rng.permutation(len(rows))
        mixed = mixed[np.argsort(labels[mixed], kind="stable")]
        ends = np.floor(np.cumsum(copies[mixed]) + rng.random())
        ends[-1] = len(rows)  # what rounding may have taken from the last
        rows = np.repeat(rows[mixed], np.diff(ends, prepend=0).astype(int))
    return rng.permutation(rows)


def pack(n_points: Int[np.ndarray, " n"], batch_size: int, max_points: int | None) -> list[slice]:
    """Cut a sequence of samples into batches.

    Parameters
    ----------
    n_points : (n,) int
        Points or voxels of each sample, in the order of the epoch.
    batch_size : int
        Samples in a batch, at most.
    max_points : int or None
        Points in a batch of more than one sample, at most; None makes batches of equal numbers of samples, to one.

    Returns
    -------
    list of slice
        Of the sequence, one after the other; none is empty.
    """
    n = len(n_points)
    if max_points is None:
        n_batches = math.ceil(n / batch_size)
        sizes = np.full(n_batches, n // max(n_batches, 1))
        sizes[: n - int(sizes.sum())] += 1
        stops = np.cumsum(sizes).tolist()
        return [slice(stop - size, stop) for stop, size in zip(stops, sizes.tolist(), strict=True)]
    ends = np.concatenate([[0], np.cumsum(n_points)])
    batches, start = [], 0
    while start < n:
        fitting = int(np.searchsorted(ends, ends[start] + max_points, side="right")) - 1
        stop = min(max(fitting, start + 1), start + batch_size, n)
        batches.append(slice(start, stop))
        start = stop
    return batches


def share(n_points: Int[np.ndarray, " n"], n_processes: int) -> list[Int[np.ndarray, " m"]]:
    """Share the samples of a batch among processes, so that each has about the same number of points; some may get no sample.

    Returns
    -------
    list of (m,) int
        For each process the positions of its samples in the batch: each sample goes where its middle point falls.
    """
    middles = np.cumsum(n_points) - 0.5 * n_points
    owner = (middles * n_processes / n_points.sum()).astype(int)
    return [np.flatnonzero(owner == process) for process in range(n_processes)]
