"""A folder of many small files through ``ed3d featurize``: python benchmarks/batch.py [--n 10000] [--n-jobs 2].

Writes CIF, POSCAR and CHGCAR files (plain and .gz), 1 % of them damaged, featurizes a tenth and then all of them in a process that is
watched from outside, kills (SIGKILL) a third run at about half, lets a fourth complete it, and checks that nothing is lost, doubled or
different and that every failure is listed. One JSON line for each run. Memory is the largest sum over the process and its workers of
what is resident in each (pages that they share count twice); Linux only.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from matminer_ed3d.table_features import iter_samples

DAMAGED = 100  # every so many files one is
KINDS = ("cif", "poscar", "chgcar", "chgcar.gz")


def cif(a: float, x: float) -> str:
    """Rutile with its own cell and coordinate, all sites written out."""
    sites = [("Ti", 0, 0, 0), ("Ti", 0.5, 0.5, 0.5), ("O", x, x, 0), ("O", 1 - x, 1 - x, 0), ("O", 0.5 + x, 0.5 - x, 0.5)]
    sites.append(("O", 0.5 - x, 0.5 + x, 0.5))
    cell = "\n".join(f"_cell_length_{axis} {length:.5f}" for axis, length in zip("abc", (a, a, 0.644 * a), strict=True))
    angles = "\n".join(f"_cell_angle_{name} 90" for name in ("alpha", "beta", "gamma"))
    names = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "U_iso_or_equiv")
    loop = "loop_\n" + "\n".join(f"_atom_site_{name}" for name in names)
    rows = "\n".join(f"{symbol}{i} {symbol} {u:.5f} {v:.5f} {w:.5f} 0.006" for i, (symbol, u, v, w) in enumerate(sites))
    return f"data_rutile\n{cell}\n{angles}\n_symmetry_space_group_name_H-M 'P 1'\n{loop}\n{rows}\n"


def poscar(a: float, x: float) -> str:
    return f"halite\n1.0\n{a:.5f} 0 0\n0 {a:.5f} 0\n0 0 {a:.5f}\nNa Cl\n1 1\nDirect\n{x:.5f} 0 0\n0.5 0.5 0.5\n"


def chgcar(a: float, x: float) -> str:
    n = 12
    axis = np.arange(n) / n
    wave = np.cos(2 * np.pi * (axis[:, None, None] - x)) + np.cos(2 * np.pi * axis[:, None]) + np.cos(2 * np.pi * axis)
    values = (8 * np.exp(wave)).ravel(order="F")
    lines = "\n".join(" ".join(f"{value:.11E}" for value in values[i : i + 5]) for i in range(0, len(values), 5))
    return f"{poscar(a, x)}\n{n} {n} {n}\n{lines}\n"


def write_files(folder: Path, n: int, rng: np.random.Generator) -> set[str]:
    """Write the files; return the names of those that are damaged."""
    damaged = set()
    for i in range(n):
        kind = KINDS[i % len(KINDS)]
        path = folder / f"{i // 1000:03d}" / f"{i:06d}.{kind}"
        path.parent.mkdir(exist_ok=True)
        make = {"cif": cif, "poscar": poscar}.get(kind, chgcar)
        content = make(rng.uniform(3.5, 5.0), rng.uniform(0.2, 0.4)).encode()
        if kind.endswith(".gz"):
            content = gzip.compress(content, 1)
        if i % DAMAGED == DAMAGED // 2 + (i // DAMAGED) % len(KINDS):  # every kind in turn
            content = content[: len(content) // 3]
            damaged.add(str(path))
        path.write_bytes(content)
    return damaged


def resident(pid: int) -> int:
    """Memory in KiB of a process and all below it."""
    total = 0
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        total = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return total
    return total + sum(resident(int(child)) for child in children)


def featurize(inputs: list[str], out: Path, args: argparse.Namespace, kill_after: int | None = None) -> dict[str, Any]:
    """Run the command and watch it; kill it once `kill_after` files are in its parts, and its workers with it."""
    command = [sys.executable, "-m", "matminer_ed3d", "featurize", *inputs, "--featurizer", args.featurizer, "--out", str(out)]
    if args.featurizer == "voxels":
        command += ["--voxel-size", "0.5"]
    started, peak = time.perf_counter(), 0
    with subprocess.Popen([*command, "--n-jobs", str(args.n_jobs)], stderr=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            if kill_after is not None and len(list(out.glob("part_*"))) * 1000 >= kill_after:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.05)
        printed = process.stdout.read().decode().strip() if process.stdout else ""
    wall = time.perf_counter() - started
    return {"status": process.returncode, "wall_s": round(wall, 1), "peak_memory_mib": round(peak / 1024), "printed": printed}


def rows_of(out: Path, featurizer: str) -> dict[str, bytes]:
    """Bytes of every row by its name; complains of names that come twice."""
    rows: dict[str, bytes] = {}
    if featurizer == "voxels":
        pairs = ((name, sample.coords.tobytes() + sample.feats.tobytes()) for name, sample in iter_samples(out))
    else:
        import pandas as pd

        table = pd.read_parquet([str(path) for path in sorted(out.glob("part_*.parquet"))]).set_index("name")
        pairs = ((str(name), row.tobytes()) for name, row in zip(table.index, table.to_numpy(), strict=True))
    for name, content in pairs:
        if name in rows:
            raise SystemExit(f"{name} is there twice")
        rows[name] = content
    return rows


def failures_of(out: Path) -> dict[str, str]:
    with (out / "failures.csv").open(newline="") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


def main() -> None:
    """Run the benchmark and print its lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="files (default: %(default)s)")
    parser.add_argument("--n-jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--featurizer", choices=("voxels", "statistics"), default="voxels", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the cells (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        damaged = write_files(folder / "files", args.n, np.random.default_rng(args.seed))
        tenth = folder / "tenth.txt"
        files = sorted(str(path) for path in (folder / "files").rglob("*.*"))
        tenth.write_text("\n".join(files[: args.n // 10]))
        shared = {"featurizer": args.featurizer, "n_jobs": args.n_jobs}

        small = featurize(["--files-from", str(tenth)], folder / "small", args)
        print(json.dumps({"run": "a tenth", "n": args.n // 10, **shared, **small}), flush=True)
        large = featurize([str(folder / "files")], folder / "large", args)
        whole, failed = rows_of(folder / "large", args.featurizer), failures_of(folder / "large")
        report = {"run": "all", "n": args.n, **shared, **large, "files_per_s": round(args.n / large["wall_s"], 1)}
        report["memory_ratio"] = round(large["peak_memory_mib"] / small["peak_memory_mib"], 3)
        report["n_rows"], report["n_failed"] = len(whole), len(failed)
        report["failures_are_the_damaged"] = set(failed) == damaged and all(failed.values())
        report["every_file_accounted_for"] = set(whole) | set(failed) == set(files) and not set(whole) & set(failed)
        print(json.dumps(report), flush=True)

        killed = featurize([str(folder / "files")], folder / "killed", args, kill_after=args.n // 2)
        n_kept = len(rows_of(folder / "killed", args.featurizer))
        print(json.dumps({"run": "killed", "n": args.n, **shared, **killed, "n_rows_kept": n_kept}), flush=True)
        resumed = featurize([str(folder / "files")], folder / "killed", args)
        completed = rows_of(folder / "killed", args.featurizer)
        report = {"run": "resumed", "n": args.n, **shared, **resumed, "n_rows": len(completed)}
        report["n_rows_lost_or_new"] = len(set(completed) ^ set(whole))
        report["n_rows_that_differ"] = sum(completed[name] != whole[name] for name in set(completed) & set(whole))
        report["same_failures_as_in_one_run"] = failures_of(folder / "killed") == failures_of(folder / "large")
        started = time.perf_counter()
        again = featurize([str(folder / "files")], folder / "large", args)
        report["nothing_to_do_s"] = round(time.perf_counter() - started, 1)
        report["nothing_to_do_says"] = again["printed"]
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
