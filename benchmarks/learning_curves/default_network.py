"""Learning curves of the default network: python benchmarks/learning_curves/default_network.py mp.parquet FOLDER OUT.json.

FOLDER holds the samples of default_model/prepare.py. Crystals of the split ``train`` teach. Of 5,000 of the split ``validation`` a fifth is
asked after every epoch, and the others once, at the end: those are the numbers. The test split is not touched. Curves, each point written
to OUT.json as it comes (what is there is not made again):

size      the default network against the number of training crystals
parts     the default network without one of its parts
blocks    other blocks, widths and depths of its convolution
alone     the same convolutions without the symmetry features, which then learn from the density alone

The symmetry features have no weights: they are made once, and kept in FOLDER/constants.npy.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from runs import Curves, make_missing, result

from matminer_ed3d.networks.batching import VoxelBatch, collate
from matminer_ed3d.networks.crystal_net import CrystalNet
from matminer_ed3d.networks.hierarchical_head import HierarchicalHead
from matminer_ed3d.networks.operation_features import N_OPERATION_FEATURES
from matminer_ed3d.networks.symmetry_features import LOW_REACH, N_SYMMETRY_FEATURES, symmetry_features
from matminer_ed3d.representations import Sample, SparseTensor
from matminer_ed3d.training import TrainingOptions, network_outputs, seeded_network, train

SIZES = (500, 2000, 8000, 32000)
N_PARTS = 8000  # training crystals of the other curves
N_ASKED = 5000
N_LOW_AMPLITUDES = ((2 * LOW_REACH + 1) ** 3 - 1) // 2  # the last of the symmetry features; the counted operations stand before them
OPERATIONS = slice(N_SYMMETRY_FEATURES - N_LOW_AMPLITUDES - N_OPERATION_FEATURES, N_SYMMETRY_FEATURES - N_LOW_AMPLITUDES)
OPTIONS = TrainingOptions(
    max_epochs=8, batch_size=64, learning_rate=2e-3, early_stopping=None, ema_decay=0.995, precision="bf16", validation_fraction=0.0
)
BLOCKS: dict[str, dict[str, Any]] = {
    "residual, 16 channels, 2 blocks": {},
    "residual, 32 channels, 2 blocks": {"width": 32},
    "residual, 32 channels, 4 blocks": {"width": 32, "dilations": (1, 2, 1, 2)},
    "ConvNeXt-like, 16 channels, 2 blocks": {"block": "convnext"},
    "ConvNeXt-like, 32 channels, 4 blocks": {"block": "convnext", "width": 32, "dilations": (1, 2, 1, 2)},
    "the same with stochastic depth": {"block": "convnext", "width": 32, "dilations": (1, 2, 1, 2), "drop_path": 0.1},
}


def curves() -> Curves:
    """Name every point of every curve."""
    return {
        "size": [(f"{n} crystals", {"n_train": n}) for n in SIZES],
        "parts": [
            ("all", {}),
            ("no operations", {"hidden": "operations"}),
            ("no convolution", {"hidden": "convolution"}),
            ("no hierarchy", {"hierarchical": False}),
        ],
        "blocks": [(name, {"network": options} if options else {}) for name, options in BLOCKS.items()],
        "alone": [(name, {"hidden": "symmetry"} | ({"network": options} if options else {})) for name, options in BLOCKS.items()],
    }


class Blinded(CrystalNet):
    """The default network whose head sees zeros in place of one of its parts."""

    hidden = ""

    def forward(self, batch: VoxelBatch, constants: torch.Tensor | None = None) -> torch.Tensor:
        """Logits."""
        known = (self.constants(batch) if constants is None else constants).clone()
        if self.hidden == "symmetry":
            known[:] = 0
        elif self.hidden == "operations":
            known[:, OPERATIONS] = 0
        return super().forward(batch, known)


def silence_convolution(module: torch.nn.Module, _: Any, pooled: torch.Tensor) -> torch.Tensor:
    """Forward hook of the pooled features' normalisation."""
    return torch.zeros_like(pooled)


def prepared(folder: Path, numbers: np.ndarray) -> tuple[list[Sample], np.ndarray, int]:
    """Samples, those to train on first; their space groups; how many those are."""
    taught: list[tuple[Sample, int]] = []
    asked: list[tuple[Sample, int]] = []
    for path in sorted(folder.glob("part_0*.npz")):
        part = np.load(path, allow_pickle=False)
        shapes, bases, feats, split = part["grid_shape"], part["voxel_basis"], part["feats"], part["split"]
        ends = shapes.prod(axis=1).cumsum()
        for i in np.flatnonzero(np.isin(split, ["train", "validation"])):
            kept, limit = (taught, max(SIZES)) if split[i] == "train" else (asked, N_ASKED)
            if len(kept) < limit:
                shape = tuple(int(n) for n in shapes[i])
                coords = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1).astype(np.int32)
                sample = SparseTensor(coords, feats[ends[i] - len(coords) : ends[i]], ("total",), bases[i], shape)  # type: ignore[arg-type]
                kept.append((sample, int(numbers[part["row"][i]])))
    samples, targets = zip(*taught, *asked, strict=True)
    return list(samples), np.array(targets), len(taught)


def constants_of(samples: list[Sample], path: Path) -> torch.Tensor:
    """Symmetry features of all samples."""
    if not path.exists():
        batches = [symmetry_features(collate(samples[i : i + 64])) for i in range(0, len(samples), 64)]  # type: ignore[arg-type]
        np.save(path, torch.cat(batches).numpy())
    table = torch.from_numpy(np.load(path))
    if table.shape != (len(samples), N_SYMMETRY_FEATURES):
        raise SystemExit(f"{path} holds {tuple(table.shape)} numbers, not those of these {len(samples)} samples; remove it")
    return table


class Made:
    """Gives the rows of a table one batch after another: the training loop asks for all samples once, in their order."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table, self.start = table, 0

    def __call__(self, batch: VoxelBatch) -> torch.Tensor:
        """Return the rows of the next samples."""
        self.start += batch.n_samples
        return self.table[self.start - batch.n_samples : self.start]


def result_of(
    data: tuple[list[Sample], np.ndarray, int],
    constants: torch.Tensor,
    *,
    n_train: int = N_PARTS,
    network: dict[str, Any] | None = None,
    hidden: str = "",
    hierarchical: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Train one network, ask it."""
    samples, numbers, n_taught = data
    n_curve = (len(samples) - n_taught) // 5
    fitted, asked = [*range(n_train), *range(n_taught, n_taught + n_curve)], np.arange(n_taught + n_curve, len(samples))
    classes, codes = np.unique(numbers, return_inverse=True)
    built = seeded_network(lambda: Blinded(1, len(classes), **(network or {})), seed)
    built.hidden = hidden  # type: ignore[assignment]
    if hidden == "convolution":
        built.pool_norm.register_forward_hook(silence_convolution)  # type: ignore[union-attr]
    if hierarchical:
        built.head[-1] = seeded_network(lambda: HierarchicalHead(built.head[-1].in_features, classes.tolist()), seed)  # type: ignore[index, operator, union-attr]
    built.constants = Made(constants[fitted])  # type: ignore[assignment, method-assign]
    history = train(
        built,
        [samples[i] for i in fitted],
        codes[fitted].astype(np.int64),
        options=replace(OPTIONS, seed=seed),
        validation=np.arange(n_train, len(fitted)),
        verbose=1,
    )
    outputs = network_outputs(built, [samples[i] for i in asked], batch_size=64, constants=constants[asked])
    proba = torch.from_numpy(outputs).softmax(1).numpy()
    return {"n_train": n_train, **result(proba, classes, numbers[asked], built, history)}


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=curves(), default=list(curves()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    numbers = pq.read_table(args.structures, columns=["sg_symprec_01"])["sg_symprec_01"].to_numpy().astype(int)
    data = prepared(args.folder, numbers)
    constants = constants_of(data[0], args.folder / "constants.npy")
    for seed in args.seeds:
        make_missing(result_of, (data, constants), {name: curves()[name] for name in args.only}, args.out, seed=seed)


if __name__ == "__main__":
    main()
