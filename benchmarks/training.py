"""Samples/s of a training step: python benchmarks/training.py STRUCTURES.parquet [--threads 2] [--device cpu] [--network crystal].

Takes random structures of a table, makes their samples as the estimators do, and times forward, loss, backward and optimizer on one batch:
of `crystal` (64 samples of the shipped preprocessing), of `paper`, the sparse network of the paper (8 samples of its sampling, cut to their
8,000 densest voxels), and of `pointnet`, the paper's other network (16 such samples). One JSON line each, in float32 and bf16: median and
best time of a step, samples/s, points/s, the shares of collation and optimizer, and the arithmetic beside the machine's largest measured
matrix product. Arithmetic is counted from the kernel maps, 2 * pairs * c_in * c_out for a convolution and 2 * rows * c_in * c_out for a
linear layer, times 3 for forward and backward; all other work is free.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads that spin slow a shared machine down twentyfold

import numpy as np
import torch
from torch import nn

from matminer_ed3d import training
from matminer_ed3d.datasets import random_rows, read_structures
from matminer_ed3d.estimators import PointNetClassifier, SparseCNNClassifier
from matminer_ed3d.networks.batching import PointBatch, VoxelBatch, collate
from matminer_ed3d.networks.registry import build_network
from matminer_ed3d.representations import Sample
from matminer_ed3d.samples import make_sample
from matminer_ed3d.sparse.convolution import SparseConv3d
from matminer_ed3d.sparse.matrix_product import matrix_product
from matminer_ed3d.sparse.voxels import Voxels, kernel_map
from matminer_ed3d.table_training import CRYSTAL_SAMPLES

N_OUTPUTS = 230
PAPER_POINTS = 8000
NETWORKS = {  # family, architecture, samples of a batch
    "crystal": ("sparse_cnn", "crystal", 64),
    "paper": ("sparse_cnn", "paper", 8),
    "pointnet": ("pointnet", "paper", 16),
}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def timed(call: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])


def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Most FLOP/s of matrix products of several shapes."""
    shapes = ((1024, 864, 32), (1024, 1728, 128), (1024, 1024, 1024), (2048, 3456, 256))
    if device.type == "cuda":
        shapes = ((8192, 8192, 8192),)
    best = 0.0
    for m, k, n in shapes:
        a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
        best = max(best, 2 * m * k * n / timed(lambda a=a, b=b: matrix_product(a, b), device, 20)[0])
    return best


def count_flops(network: nn.Module, run: Callable[[], Any]) -> int:
    """FLOPs of the convolutions and linear layers of one forward pass."""
    total = 0

    def convolution(layer: SparseConv3d, arguments: tuple[torch.Tensor, Voxels], _: Any) -> None:
        nonlocal total
        neighbours, n_in = (kmap := kernel_map(arguments[1], layer.kernel_size, layer.stride, layer.dilation)[0]).neighbours, kmap.n_in
        total += 2 * int((neighbours < n_in).sum()) * layer.weight.shape[1] * layer.weight.shape[2]

    def linear(layer: nn.Linear, arguments: tuple[torch.Tensor], _: Any) -> None:
        nonlocal total
        total += 2 * arguments[0][..., 0].numel() * layer.in_features * layer.out_features

    hooks = [layer.register_forward_hook(convolution) for layer in network.modules() if isinstance(layer, SparseConv3d)]
    hooks += [layer.register_forward_hook(linear) for layer in network.modules() if isinstance(layer, nn.Linear)]
    run()
    for hook in hooks:
        hook.remove()
    return total


def densest(sample: Sample, n: int) -> Sample:
    """Keep the densest points."""
    kept = np.sort(np.argsort(-sample.feats[:, 0], kind="stable")[:n])
    return replace(sample, coords=sample.coords[kept], feats=sample.feats[kept])


def make_batch(table: Path, family: str, architecture: str, n_samples: int, seed: int) -> list[Sample]:
    """Make samples of random structures through the estimator's own sampling; the paper's are of 8,000 points each."""
    is_paper = architecture == "paper"
    classifier = SparseCNNClassifier if family == "sparse_cnn" else PointNetClassifier
    options = classifier(architecture=architecture, **({"max_points": None} if is_paper else CRYSTAL_SAMPLES))._sample_options()
    rows = read_structures(table, columns=["id", "n_sites", "lattice", "numbers", "frac"])
    n_sites = np.array(rows.values("n_sites"))
    eligible = np.flatnonzero(n_sites <= (24 if is_paper else 40))
    samples: list[Sample] = []
    for index in random_rows(eligible, 40 * n_samples, seed):
        sample = make_sample(rows.structure(int(index)), options, seed)
        if is_paper and sample.n_points < PAPER_POINTS:
            continue
        samples.append(densest(sample, PAPER_POINTS) if is_paper else sample)
        if len(samples) == n_samples:
            break
    return samples


def measure(name: str, samples: list[Sample], precision: str, device: torch.device, repeats: int) -> dict[str, Any]:
    """Time a step of a network on a batch."""
    network = training.seeded_network(lambda: build_network(*NETWORKS[name][:2], 1, N_OUTPUTS), 0).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    targets = torch.arange(len(samples), device=device) % N_OUTPUTS
    batch = collate(samples).to(device)
    constants: tuple[torch.Tensor, ...] = ()
    if hasattr(network, "constants"):
        constants = (network.constants(batch),)  # training makes them once for each sample

    def forward(given: PointBatch | VoxelBatch) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            outputs: torch.Tensor = network(given, *constants)
        return outputs

    def step() -> None:
        loss = nn.functional.cross_entropy(forward(collate(samples).to(device)).float(), targets)  # new voxels: maps are made anew
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    flops = 3 * count_flops(network, lambda: forward(batch))
    times = timed(step, device, repeats)
    peak = gemm_peak(device, DTYPES[precision])
    collation = timed(lambda: collate(samples).to(device), device, repeats)[repeats // 2]
    update = timed(optimizer.step, device, repeats)[repeats // 2]
    median, n_points = times[len(times) // 2], sum(sample.n_points for sample in samples)
    return {
        "network": name,
        "precision": precision,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "n_samples": len(samples),
        "n_points": n_points,
        "n_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "step_ms": round(1e3 * median, 1),
        "best_step_ms": round(1e3 * times[0], 1),
        "collation_share": round(collation / median, 4),
        "optimizer_share": round(update / median, 4),
        "samples_per_s": round(len(samples) / median, 2),
        "points_per_s": round(n_points / median),
        "gflop_per_step": round(flops / 1e9, 2),
        "gflop_per_s": round(flops / median / 1e9, 1),
        "gemm_peak_gflop_per_s": round(peak / 1e9, 1),
        "fraction_of_gemm_peak": round(flops / median / peak, 3),
    }


def main() -> None:
    """Run the benchmark and print its lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structures", type=Path, help="parquet file with the columns id, lattice, numbers, frac, n_sites")
    parser.add_argument("--network", choices=NETWORKS, help="default: all")
    parser.add_argument("--n-samples", type=int, help="of a batch (default: crystal 64, paper 8, pointnet 16)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of rows (default: %(default)s)")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    device = training.resolve_device(args.device)
    for name in [args.network] if args.network else NETWORKS:
        family, architecture, n_samples = NETWORKS[name]
        samples = make_batch(args.structures, family, architecture, args.n_samples or n_samples, args.seed)
        for precision in DTYPES:
            print(json.dumps(measure(name, samples, precision, device, args.repeats)), flush=True)


if __name__ == "__main__":
    main()
