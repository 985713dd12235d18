"""Samples for the curves of the small networks: python benchmarks/learning_curves/prepare.py mp.parquet FOLDER.

Random structures of at most 40 sites, those of the table's split ``train`` to teach and those of ``validation`` to ask, each in the
cell of a protocol and sampled in several ways:

points_random, points_mean   clouds of voxels of 0.5 Å, one random grid point of each or its centre with the mean; the 1,024 densest
voxels_mean, voxels_random   voxels of 0.5 Å along the lattice, counts divisible by 8

One npz file for each protocol and kind: ``prepare.read`` gives the samples back.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from pymatgen.core.structure import Structure
from tqdm import tqdm

from matminer_ed3d.datasets import assigned_sides, read_structures
from matminer_ed3d.protocols import apply_protocol
from matminer_ed3d.representations import PointCloud, Sample, SparseTensor
from matminer_ed3d.samples import SampleOptions, make_sample

N_TAUGHT = {  # crystals to teach, of each protocol and kind
    "conventional_points_random": 16_000,
    "conventional_points_mean": 16_000,
    "conventional_voxels_random": 16_000,
    "conventional_voxels_mean": 64_000,
    "primitive_voxels_mean": 16_000,
}
N_ASKED = 5_000
MAX_SITES = 40
KINDS = {
    f"{kind}_{reduction}": SampleOptions(kind=kind, voxel_size=0.5, reduction=reduction, **options)  # type: ignore[arg-type]
    for kind, options in {"points": {"max_points": 1024}, "voxels": {"voxel_basis": "lattice", "multiple_of": 8}}.items()
    for reduction in ("random", "mean")
}


def sample_of(structure: Structure, row: int, protocol: str, options: SampleOptions) -> Sample | None:
    """Show a structure in the cell of a protocol, and sample it; None where that fails."""
    try:
        shown = apply_protocol(structure, protocol, np.random.default_rng([1, row]), symprec=0.1)
        return make_sample(shown, options, np.random.default_rng([5, row]))
    except ValueError:
        return None


def packed(samples: list[Sample]) -> dict[str, np.ndarray]:
    """Arrays of all samples, one after another."""
    arrays: dict[str, Any] = {
        "n": [sample.n_points for sample in samples],
        "coords": np.concatenate([sample.coords for sample in samples]),
        "feats": np.concatenate([sample.feats for sample in samples]),
    }
    if isinstance(samples[0], PointCloud):
        return arrays | {"lattice": np.array([sample.lattice for sample in samples])}  # type: ignore[union-attr]
    arrays["coords"] = arrays["coords"].astype(np.int16)
    return arrays | {name: np.array([getattr(sample, name) for sample in samples]) for name in ("voxel_basis", "grid_shape")}


def read(path: Path, n_train: int) -> tuple[list[Sample], np.ndarray, int]:
    """Return samples, those to train on first; their rows in the table; how many are to train on."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    ends = arrays["n"].cumsum()
    n_taught = int(arrays["n_taught"])
    if arrays["counts"][0] < n_train:
        raise SystemExit(f"{path} was made of {arrays['counts'][0]} crystals to teach, {n_train} are asked for; make it with more --counts")
    n_kept = min(n_train, n_taught)
    kept = [*range(n_kept), *range(n_taught, len(ends))]
    samples: list[Sample] = []
    for i in kept:
        rows = slice(ends[i] - arrays["n"][i], ends[i])
        coords, feats = arrays["coords"][rows], arrays["feats"][rows]
        if "lattice" in arrays:
            samples.append(PointCloud(coords, feats, ("total",), arrays["lattice"][i]))
        else:
            shape = tuple(int(n) for n in arrays["grid_shape"][i])
            samples.append(SparseTensor(coords.astype(np.int32), feats, ("total",), arrays["voxel_basis"][i], shape))  # type: ignore[arg-type]
    return samples, arrays["row"][kept], n_kept


def main() -> None:
    """Choose the rows, make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=N_TAUGHT, default=list(N_TAUGHT))
    parser.add_argument("--counts", type=int, nargs=2, help=f"crystals to teach and to ask (default: those of {N_TAUGHT}, and {N_ASKED})")
    parser.add_argument("--n-jobs", type=int, default=2)
    args = parser.parse_args()
    table = read_structures(args.structures)
    side, small = assigned_sides(table), np.array(table.values("n_sites")) <= MAX_SITES
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(np.flatnonzero((side == name) & small)) for name in ("train", "validation")]
    args.folder.mkdir(parents=True, exist_ok=True)
    parallel = Parallel(n_jobs=args.n_jobs, return_as="generator", batch_size=16)
    for name in args.only:
        protocol, kind = name.split("_", 1)
        path = args.folder / f"{name}.npz"
        counts = args.counts or [N_TAUGHT[name], N_ASKED]
        if path.exists():
            if np.load(path)["counts"].tolist() != counts:
                raise SystemExit(f"{path} was made with other --counts; remove it, or take another folder")
            continue
        kept: list[tuple[Sample, int]] = []
        n_taught = 0
        for side_rows in (rows[:n] for rows, n in zip(shuffled, counts, strict=True)):
            n_taught = n_taught or len(kept)
            calls = (delayed(sample_of)(table.structure(int(row)), int(row), protocol, KINDS[kind]) for row in side_rows)
            made = tqdm(parallel(calls), total=len(side_rows), desc=name, mininterval=30)
            kept += [(sample, int(row)) for sample, row in zip(made, side_rows, strict=True) if sample is not None]
        samples, kept_rows = zip(*kept, strict=True)
        np.savez(path, row=np.array(kept_rows), n_taught=n_taught, counts=counts, **packed(list(samples)))
        print(f"{name}: {len(samples)} samples, {np.mean([s.n_points for s in samples]):.0f} points each", flush=True)


if __name__ == "__main__":
    main()
