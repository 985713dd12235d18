"""Learning curves: python benchmarks/learning_curves.py mp.parquet FOLDER OUT.json [--only NAME ...] [--figure docs/learning_curves.svg].

FOLDER holds the prepared samples of default_model/prepare.py. Rows of the table's split ``train`` teach, rows of the split ``validation``
are asked; the test split is not touched. Several curves, each in its own time, written to OUT.json as they come (those that are there
are not made again):

size      the default network against the number of training crystals
epochs    the default network against epochs
parts     the default network without one of its parts
points    PointNet, crystal system, against the number of points of a cloud
sampling  PointNet, crystal system: a random grid point of a voxel against its mean
boundary  sparse residual network, crystal system: periodic voxels against the same voxels in open space

The last three are run on conventional cells, as in the paper, at the size of two CPU cores: they compare, and are no one's best.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from matminer_ed3d import labels
from matminer_ed3d.datasets import structure_of_cell
from matminer_ed3d.networks.batching import VoxelBatch
from matminer_ed3d.networks.crystal_net import FEATURE_RANGE, CrystalNet
from matminer_ed3d.networks.hierarchical_head import HierarchicalHead
from matminer_ed3d.networks.operation_features import N_OPERATION_FEATURES
from matminer_ed3d.networks.registry import build_network
from matminer_ed3d.networks.symmetry_features import LOW_REACH
from matminer_ed3d.protocols import apply_protocol, assign_split
from matminer_ed3d.representations import Sample, SparseTensor
from matminer_ed3d.samples import SampleOptions, make_sample
from matminer_ed3d.training import TrainingOptions, seeded_network, train

SIZES = (500, 2000, 8000)
POINTS = (64, 128, 256)
N_VALIDATION = 1500
N_OF_PARTS = 2000  # training crystals of the curve "parts"
N_TRAIN, N_HELD_OUT = 1000, 500  # structures of the small networks
N_LOW_AMPLITUDES = ((2 * LOW_REACH + 1) ** 3 - 1) // 2  # the last of the symmetry features; the counted operations stand before them
POINT_OPTIONS = SampleOptions(kind="points", voxel_size=0.5, reduction="mean", max_points=256)
VOXEL_OPTIONS = SampleOptions(kind="voxels", voxel_size=0.5, reduction="mean", voxel_basis="lattice", multiple_of=8)
OPTIONS = TrainingOptions(
    max_epochs=6, batch_size=64, learning_rate=2e-3, early_stopping=None, ema_decay=0.995, precision="bf16", validation_fraction=0.0
)


class WithoutOperations(CrystalNet):
    """The default network that does not see the counted operations."""

    def constants(self, batch: VoxelBatch) -> torch.Tensor:
        """Symmetry features, those of operations set to zero."""
        features = super().constants(batch)
        features[:, -N_LOW_AMPLITUDES - N_OPERATION_FEATURES : -N_LOW_AMPLITUDES] = 0
        return features


class WithoutConvolution(CrystalNet):
    """The default network whose head sees zeros in place of what the convolutions say."""

    def forward(self, batch: VoxelBatch, constants: torch.Tensor | None = None) -> torch.Tensor:
        """Logits."""
        symmetry = self.scale(self.constants(batch) if constants is None else constants).clamp(-FEATURE_RANGE, FEATURE_RANGE)
        n_pooled = self.pool_norm.num_features
        return self.head(torch.cat([symmetry, symmetry.new_zeros(len(symmetry), n_pooled)], 1)).float()


def fitted(
    samples: list[Sample], targets: np.ndarray, n_train: int, family: str, architecture: str, **changes: Any
) -> list[dict[str, Any]]:
    """Train on the first `n_train` samples, ask the others after every epoch; return the history."""
    classes, codes = np.unique(targets, return_inverse=True)
    numbers = classes.tolist() if architecture == "crystal" else None
    network = seeded_network(lambda: build_network(family, architecture, 1, len(classes), numbers), 0)
    return history_of(network, samples, codes, n_train, **changes)


def history_of(network: torch.nn.Module, samples: list[Sample], codes: np.ndarray, n_train: int, **changes: Any) -> list[dict[str, Any]]:
    """Train a network on the first `n_train` samples, ask the others after every epoch."""
    return train(
        network,
        samples,
        codes.astype(np.int64),
        options=replace(OPTIONS, **changes),
        validation=np.arange(n_train, len(samples)),
        verbose=1,
    )


def summary(name: str, history: list[dict[str, Any]]) -> dict[str, Any]:
    """The last epoch's accuracy in per cent, of every epoch too."""
    scores = [round(100 * entry["val_score"], 1) for entry in history]
    return {"shown": name, "accuracy": scores[-1], "by_epoch": scores, "seconds": round(sum(entry["seconds"] for entry in history))}


def prepared(folder: Path, numbers: np.ndarray) -> tuple[list[Sample], np.ndarray, int]:
    """Samples of the default network, those to train on first; their space groups; how many those are."""
    taught: list[tuple[Sample, int]] = []
    asked: list[tuple[Sample, int]] = []
    for path in sorted(folder.glob("part_0*.npz")):
        part = np.load(path, allow_pickle=False)
        shapes, bases, feats, split = part["grid_shape"], part["voxel_basis"], part["feats"], part["split"]
        ends = shapes.prod(axis=1).cumsum()
        for i in np.flatnonzero(np.isin(split, ["train", "validation"])):
            kept, limit = (taught, max(SIZES)) if split[i] == "train" else (asked, N_VALIDATION)
            if len(kept) < limit:
                shape = tuple(int(n) for n in shapes[i])
                coords = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1).astype(np.int32)
                sample = SparseTensor(coords, feats[ends[i] - len(coords) : ends[i]], ("total",), bases[i], shape)  # type: ignore[arg-type]
                kept.append((sample, int(numbers[part["row"][i]])))
    samples, targets = zip(*taught, *asked, strict=True)
    return list(samples), np.array(targets), len(taught)


def size_and_epochs(folder: Path, numbers: np.ndarray) -> Iterator[dict[str, Any]]:
    """The default network at every size; its largest run gives the curve against epochs."""
    samples, targets, n_taught = prepared(folder, numbers)
    for n in SIZES:
        chosen = [*range(n), *range(n_taught, len(samples))]
        history = fitted([samples[i] for i in chosen], targets[chosen], n, "sparse_cnn", "crystal")
        yield summary(f"{n} crystals", history)


def without_parts(folder: Path, numbers: np.ndarray) -> Iterator[dict[str, Any]]:
    """The default network and what is left of it."""
    samples, targets, n_taught = prepared(folder, numbers)
    chosen = [*range(N_OF_PARTS), *range(n_taught, len(samples))]
    classes, codes = np.unique(targets[chosen], return_inverse=True)
    samples = [samples[i] for i in chosen]
    for name, network, head in (
        ("all", CrystalNet, True),
        ("no operations", WithoutOperations, True),
        ("no convolution", WithoutConvolution, True),
        ("no hierarchy", CrystalNet, False),
    ):
        built = seeded_network(lambda network=network: network(1, len(classes)), 0)  # type: ignore[misc]
        if head:
            built.head[-1] = HierarchicalHead(built.head[-1].in_features, classes.tolist())  # type: ignore[index, operator, union-attr]
        yield summary(name, history_of(built, samples, codes, N_OF_PARTS))


def conventional(table: Any, numbers: np.ndarray, split: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Random structures of at most 40 sites in conventional cells, those to train on first, and their crystal systems."""
    rng = np.random.default_rng(0)
    small = table["n_sites"].to_numpy() <= 40
    rows = [rng.permutation(np.flatnonzero((split == name) & small))[:n] for name, n in (("train", N_TRAIN), ("validation", N_HELD_OUT))]
    structures = []
    for row in np.concatenate(rows):
        lattice, frac, atoms = (np.array(table[name][int(row)].as_py()) for name in ("lattice", "frac", "numbers"))
        structure = structure_of_cell((lattice.reshape(3, 3), frac.reshape(-1, 3), atoms))
        structures.append(apply_protocol(structure, "conventional", rng, symprec=0.1))
    return structures, np.array([labels.crystal_system(int(numbers[row])) for row in np.concatenate(rows)])


def of_clouds(structures: list[Any], targets: np.ndarray, options: dict[str, SampleOptions]) -> Iterator[dict[str, Any]]:
    """PointNet on clouds made in several ways."""
    for name, chosen in options.items():
        samples = [make_sample(structure, chosen, np.random.default_rng([5, i])) for i, structure in enumerate(structures)]
        changes = {"max_epochs": 10, "batch_size": 32, "augmentations": ("rotation", "origin_shift"), "precision": "float32"}
        yield summary(name, fitted(samples, targets, N_TRAIN, "pointnet", "small", **changes))


def of_boundaries(structures: list[Any], targets: np.ndarray) -> Iterator[dict[str, Any]]:
    """The small sparse network on the same voxels, with and without neighbours across the faces of the cell."""
    periodic = [make_sample(structure, VOXEL_OPTIONS) for structure in structures]
    for name in ("periodic", "open"):
        samples = [sample if name == "periodic" else replace(sample, grid_shape=None) for sample in periodic]  # type: ignore[call-arg]
        yield summary(name, fitted(samples, targets, N_TRAIN, "sparse_cnn", "small", max_epochs=5, batch_size=32))


def draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One row of panels."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    panels = {
        "size": ("training crystals", [int(p["shown"].split()[0]) for p in curves.get("size", [])]),
        "points": ("points of a cloud", [int(p["shown"].split()[0]) for p in curves.get("points", [])]),
    }
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for axis, (name, (label, at)) in zip(axes[::2], panels.items(), strict=True):
        axis.semilogx(at, [point["accuracy"] for point in curves.get(name, [])], "o-", color="#3366aa")
        axis.set_xticks(at, [f"{n:,}" for n in at])
        axis.minorticks_off()
        axis.set_ylim(0, 100)
        axis.set_xlabel(label)
    axes[0].set_ylabel("space group right, %")
    axes[2].set_ylabel("crystal system right, %")
    for point in curves.get("size", []):
        axes[1].plot(range(1, len(point["by_epoch"]) + 1), point["by_epoch"], "o-", label=point["shown"], markersize=3)
    axes[1].set_xlabel("epoch")
    axes[1].set_ylabel("space group right, %")
    axes[1].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Make what is missing, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", default=("size", "parts", "points", "sampling", "boundary"))
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    curves: dict[str, list[dict[str, Any]]] = json.loads(args.out.read_text()) if args.out.exists() else {}
    table = pq.read_table(args.structures)
    numbers = table["sg_symprec_01"].to_numpy().astype(int)
    wanted = [name for name in args.only if name not in curves]
    structures: list[Any] = []
    targets = np.array([])
    if set(wanted) - {"size", "parts"}:
        split = np.array(assign_split(table["id"].to_pylist(), table["formula"].to_pylist(), numbers))
        structures, targets = conventional(table, numbers, split)
    reductions: dict[str, SampleOptions] = {name: replace(POINT_OPTIONS, reduction=name) for name in ("random", "mean")}  # type: ignore[arg-type]
    made: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "size": lambda: size_and_epochs(args.folder, numbers),
        "parts": lambda: without_parts(args.folder, numbers),
        "points": lambda: of_clouds(structures, targets, {f"{n} points": replace(POINT_OPTIONS, max_points=n) for n in POINTS}),
        "sampling": lambda: of_clouds(structures, targets, reductions),
        "boundary": lambda: of_boundaries(structures, targets),
    }
    for name in wanted:
        start = time.perf_counter()
        curves[name] = list(made[name]())
        args.out.write_text(json.dumps(curves, indent=1))
        print(name, round(time.perf_counter() - start), "s", curves[name], file=sys.stderr)
    if args.figure:
        draw(curves, args.figure)


if __name__ == "__main__":
    main()
