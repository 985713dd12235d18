"""Every space group from a density alone: python benchmarks/all_space_groups.py [--per-group 2] [--noise 0] [--seed 0].

Random crystals of all 230 space groups (tests/random_crystals.py: generic cells, atoms on general and special positions; spglib gives
them their group at symprec 0.01 and 0.1), each in a random basis, origin and orientation, as a density of independent atoms limited to
1 Å on a grid of 0.25 Å.

Prints one JSON line: how many there are, how many are right, the wrong ones (expected, found, number of the crystal, operations
expected and found), and the time of `find_symmetry` in seconds (median, largest, all).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from random_crystals import random_crystal

from matminer_ed3d.density import Density
from matminer_ed3d.promolecule import density_from_structure
from matminer_ed3d.protocols import apply_protocol
from matminer_ed3d.symmetry import find_symmetry


def with_noise(density: Density, relative: float, rng: np.random.Generator) -> Density:
    """Add white noise, its rms relative to that of the density without its mean."""
    rho = density.channel("total")
    return Density(density.lattice, {"total": rho + relative * rho.std() * rng.normal(size=rho.shape)})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--per-group", type=int, default=2, help="crystals of each space group (default 2)")
    parser.add_argument("--noise", type=float, default=0.0, help="rms of white noise over that of the density (default 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", type=int, nargs="*", default=range(1, 231), help="space groups (default all)")
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # of spglib, at every call
    wrong, times = [], []
    for number in options.groups:
        for repeat in range(options.per_group):
            rng = np.random.default_rng([options.seed, number, repeat])
            crystal = random_crystal(number, rng)
            blind = apply_protocol(crystal, "blind", rng, symprec=0.01)
            density = density_from_structure(blind, grid_spacing=0.25, method="band_limited", d_min=1.0)
            if options.noise:
                density = with_noise(density, options.noise, rng)
            start = time.perf_counter()
            try:
                found, n_found = (symmetry := find_symmetry(density)).space_group_number, len(symmetry.operations)
            except ValueError as error:
                found, n_found = str(error), 0
            times.append(time.perf_counter() - start)
            if found != number:
                wrong.append({"expected": number, "found": found, "repeat": repeat, "n_atoms": len(blind), "n_operations": n_found})
                print(wrong[-1], file=sys.stderr, flush=True)
    result = {
        "n": len(times),
        "right": len(times) - len(wrong),
        "noise": options.noise,
        "wrong": wrong,
        "median_s": round(float(np.median(times)), 4),
        "largest_s": round(max(times), 2),
        "all_s": round(sum(times), 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
