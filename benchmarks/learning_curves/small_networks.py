"""Learning curves of networks that see a density only: python benchmarks/learning_curves/small_networks.py mp.parquet FOLDER OUT.json.

FOLDER holds the samples of prepare.py. Every network learns space groups through a hierarchical head, so that each run gives all three
targets. Of the rows of the split ``validation`` a fifth is asked after every epoch, and the others once, at the end: those are the numbers.
The test split is not touched. Curves, each point written to OUT.json as it comes (what is there is not made again):

networks   PointNet, PointNet++, residual and ConvNeXt-like sparse networks on the same crystals
size       PointNet and the residual network against the number of training crystals
points     PointNet against the number of points of a cloud, the densest ones
sampling   a random grid point of a voxel against its mean, for PointNet and the residual network
boundary   the residual network with neighbours across the faces of the cell, and the same voxels in open space, in two protocols
metric     the control that sees no density: trees on the lengths and angles of the same cells
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pointnet2 import PointNet2
from prepare import read
from runs import TARGETS, Curves, make_missing, result

from matminer_ed3d import labels
from matminer_ed3d.controls import fit_predict, metric_features
from matminer_ed3d.datasets import read_structures
from matminer_ed3d.networks.registry import build_network
from matminer_ed3d.representations import PointCloud, SparseTensor
from matminer_ed3d.training import TrainingOptions, network_outputs, seeded_network, train

OPTIONS = TrainingOptions(
    learning_rate=2e-3, batch_size=32, early_stopping=None, ema_decay=0.995, precision="bf16", validation_fraction=0.0
)
EPOCHS = {"pointnet": 20, "sparse_cnn": 10}
POINTNET, RESNET, METRIC = ("pointnet", "small"), ("sparse_cnn", "small"), ("control", "metric")
SIZES = {POINTNET: (1000, 4000, 8000, 16000), RESNET: (1000, 4000, 8000, 16000, 64000)}
N_TRAIN = 8000  # of the other curves


def curves() -> Curves:
    """Name every point of every curve."""
    points, voxels = ({"kind": f"{kind}_mean", "n_train": N_TRAIN} for kind in ("points", "voxels"))
    return {
        "networks": [
            ("PointNet, 3 layers", {"network": POINTNET, **points}),
            ("PointNet++", {"network": ("pointnet", "pointnet2"), **points}),
            ("residual sparse CNN", {"network": RESNET, **voxels}),
            ("ConvNeXt-like sparse CNN", {"network": ("sparse_cnn", "convnext"), **voxels}),
            ("PointNet of the paper", {"network": ("pointnet", "paper"), **points, "epochs": 10}),
        ],
        "size": [
            (f"{name}, {n} crystals", {"network": network, **kind, "n_train": n})
            for name, network, kind in (("PointNet", POINTNET, points), ("residual sparse CNN", RESNET, voxels))
            for n in SIZES[network]
        ],
        "points": [(f"{n} points", {"network": POINTNET, **points, "max_points": n}) for n in (64, 256)]
        + [("1024 points", {"network": POINTNET, **points})],
        "sampling": [
            (f"{name}, {reduction}", {"network": network, "kind": f"{kind}_{reduction}", "n_train": N_TRAIN})
            for name, network, kind in (("PointNet", POINTNET, "points"), ("residual sparse CNN", RESNET, "voxels"))
            for reduction in ("random", "mean")
        ],
        "boundary": [
            (f"{protocol}, {boundary}", {"network": RESNET, **voxels, **shown, **space})
            for protocol, shown in (("conventional", {}), ("primitive", {"protocol": "primitive"}))
            for boundary, space in (("periodic", {}), ("open", {"open_space": True}))
        ],
        "metric": [(f"conventional, {n} crystals", {"network": METRIC, **voxels, "n_train": n}) for n in SIZES[RESNET]]
        + [(f"primitive, {N_TRAIN} crystals", {"network": METRIC, **voxels, "protocol": "primitive"})],
    }


def densest(cloud: PointCloud, n: int) -> PointCloud:
    """Keep the densest points up to `n`, equal ones together, as ``max_points`` does."""
    values = cloud.feats[:, 0]
    if len(values) <= n:
        return cloud
    kept = values > np.sort(values)[-n - 1]
    kept = kept if kept.any() else values == values.max()
    return replace(cloud, coords=cloud.coords[kept], feats=cloud.feats[kept])


def network_of(family: str, architecture: str, space_group_numbers: list[int]) -> torch.nn.Module:
    """One of the package's networks, or one that is here to compare."""
    if architecture == "pointnet2":
        return PointNet2(1, space_group_numbers)
    return build_network(family, architecture, 1, len(space_group_numbers), space_group_numbers)


def metric_control(samples: list[SparseTensor], space_groups: np.ndarray, n_taught: int, first_asked: int) -> dict[str, Any]:
    """Score trees that see the lattice of each cell only."""
    metric = np.stack([metric_features(sample.lattice) for sample in samples])
    right = {}
    for target in TARGETS:
        y = np.array(labels.target_of(space_groups, target))
        right[target] = (fit_predict(metric[:n_taught], y[:n_taught], metric[first_asked:], target) == y[first_asked:]).mean()
    accuracy = {target: round(100 * float(share), 2) for target, share in right.items()}
    return {"n_train": n_taught, "accuracy": accuracy, "n_asked": len(samples) - first_asked, "n_weights": 0}


def result_of(
    folder: Path,
    numbers: np.ndarray,
    *,
    network: tuple[str, str],
    kind: str,
    n_train: int,
    protocol: str = "conventional",
    max_points: int | None = None,
    open_space: bool = False,
    epochs: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train one network, or fit the control, and ask it."""
    samples, rows, n_taught = read(folder / f"{protocol}_{kind}.npz", n_train)
    if max_points:
        samples = [densest(sample, max_points) for sample in samples]  # type: ignore[arg-type]
    if open_space:
        samples = [replace(sample, grid_shape=None) for sample in samples]  # type: ignore[call-arg]
    first_asked = n_taught + (len(samples) - n_taught) // 5
    if network == METRIC:
        return metric_control(samples, numbers[rows], n_taught, first_asked)  # type: ignore[arg-type]
    classes, codes = np.unique(numbers[rows], return_inverse=True)
    built = seeded_network(lambda: network_of(*network, classes.tolist()), seed)
    history = train(
        built,
        samples[:first_asked],
        codes[:first_asked].astype(np.int64),
        options=replace(OPTIONS, max_epochs=epochs or EPOCHS[network[0]], seed=seed),
        validation=np.arange(n_taught, first_asked),
        verbose=1,
    )
    proba = np.exp(network_outputs(built, samples[first_asked:], batch_size=32))
    return {"n_train": n_taught, **result(proba, classes, numbers[rows[first_asked:]], built, history)}


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=curves(), default=list(curves()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="of all networks (default: 20 of point networks, 10 of sparse ones)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    numbers = np.array(read_structures(args.structures).values("sg_symprec_01")).astype(int)
    shared = {"seed": args.seed} | ({"epochs": args.epochs} if args.epochs else {})
    make_missing(result_of, (args.folder, numbers), {name: curves()[name] for name in args.only}, args.out, **shared)


if __name__ == "__main__":
    main()
