"""Structures to lattice-aligned sparse tensors: python benchmarks/sparse_tensors.py STRUCTURES.parquet [--n 10000] [--n-jobs 2].

Takes random rows of a table of structures, makes each a Structure, a Density and a SparseTensor, checks the electrons against the
table of scattering factors, forgets the tensor, and prints one JSON line. Peak memory is that of this process and of every worker, added.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from matminer_ed3d.datasets import StructureTable, random_rows, read_structures
from matminer_ed3d.promolecule import form_factor_table
from matminer_ed3d.representations import SparseTensor
from matminer_ed3d.samples import SampleOptions, make_sample

ROWS_PER_TASK = 25


def peak_memory() -> float:
    """Largest memory of this process so far, MiB; macOS counts bytes, Linux KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(table: StructureTable, options: SampleOptions) -> dict[str, Any]:
    """Make the samples of a few rows; return what the report needs."""
    started = time.process_time()
    electrons_of = form_factor_table()[0].sum(axis=1)
    worst, n_voxels, failures = 0.0, 0, []
    for index in range(table.n_rows):
        try:
            structure = table.structure(index)
            sample = make_sample(structure, options)
            assert isinstance(sample, SparseTensor)
        except ValueError as error:
            failures.append(f"{table.row(index)['id']}: {error}")
            continue
        expected = electrons_of[list(structure.atomic_numbers)].sum()
        electrons = sample.feats[:, 0].sum(dtype=np.float64) * abs(np.linalg.det(sample.voxel_basis))
        worst = max(worst, abs(electrons / expected - 1))
        n_voxels += sample.n_points
    return {
        "worst": worst,
        "n_voxels": n_voxels,
        "failures": failures,
        "cpu_s": time.process_time() - started,
        "process": os.getpid(),
        "peak_mib": peak_memory(),
    }


def main() -> None:
    """Run the benchmark and print its line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structures", type=Path, help="parquet file with the columns id, lattice, numbers, frac, n_sites")
    parser.add_argument("--n", type=int, default=10_000, help="structures (default: %(default)s)")
    parser.add_argument("--n-jobs", type=int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument("--max-sites", type=int, default=40, help="largest structure (default: %(default)s sites)")
    parser.add_argument("--voxel-size", type=float, default=0.25, help="edge of a voxel in Å (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of rows (default: %(default)s)")
    args = parser.parse_args()

    table = read_structures(args.structures, columns=["id", "n_sites", "lattice", "numbers", "frac"])
    small = np.flatnonzero(np.array(table.values("n_sites")) <= args.max_sites)
    rows = random_rows(small, args.n, args.seed)
    options = SampleOptions(kind="voxels", voxel_size=args.voxel_size, reduction="mean")

    started = time.perf_counter()
    tasks = [rows[i : i + ROWS_PER_TASK] for i in range(0, len(rows), ROWS_PER_TASK)]
    with parallel_config(backend="loky", n_jobs=args.n_jobs, inner_max_num_threads=1):
        results = Parallel(return_as="generator_unordered")(delayed(measure)(table.take(task), options) for task in tasks)
        done = list(tqdm(results, total=len(tasks), unit="task", mininterval=5))
    wall = time.perf_counter() - started

    peaks = {os.getpid(): peak_memory()}
    for result in done:
        peaks[result["process"]] = max(result["peak_mib"], peaks.get(result["process"], 0.0))
    failures = [line for result in done for line in result["failures"]]
    for line in failures[:10]:
        print(line, file=sys.stderr)
    report = {
        "n": len(rows),
        "n_failed": len(failures),
        "n_jobs": args.n_jobs,
        "voxel_size": args.voxel_size,
        "voxels_per_structure": round(sum(result["n_voxels"] for result in done) / max(1, len(rows) - len(failures)), 1),
        "wall_s": round(wall, 2),
        "structures_per_s": round(len(rows) / wall, 2),
        "cpu_ms_per_structure": round(1000 * sum(result["cpu_s"] for result in done) / len(rows), 2),
        "peak_memory_mib": round(sum(peaks.values()), 1),
        "largest_relative_electron_error": max(result["worst"] for result in done),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
