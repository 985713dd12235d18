"""The time of find_symmetry beside its peers: python benchmarks/symmetry.py STRUCTURES.parquet [--n 100] [--cctbx PYTHON].

Random structures of at most 40 sites in the `blind` cell, their density cut at 1.0 Å on a grid of 0.25 Å. Prints one JSON line: the median
processor time of `find_symmetry` and of spglib on the atoms (symprec 0.01), and how many of each name the label. With --cctbx, an
interpreter that has cctbx-base (which crashes beside gemmi), also that of `cctbx.symmetry_search` on the same structure factors.

A second line fits the time to n_operations * N * log2(N), with N the points of the correlation maps. Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SPGLIB_WARNING", "OFF")

import numpy as np

from matminer_ed3d import protocols
from matminer_ed3d._spglib import call_spglib
from matminer_ed3d.datasets import cell_of_row, random_rows, read_structures, space_group_labels, structure_of_cell
from matminer_ed3d.promolecule import density_from_structure
from matminer_ed3d.symmetry import find_symmetry
from matminer_ed3d.symmetry.operations import lattice_operations
from matminer_ed3d.symmetry.spectrum import spectrum_of

MOST_SITES = 40
SYMPREC = 0.01
D_MIN = 1.0

# Runs in the interpreter that has cctbx-base: structure factors in, space group numbers and times out.
CCTBX = """
import json, sys, time, numpy as np
from cctbx import crystal, miller, uctbx, symmetry_search
from cctbx.array_family import flex
out = []
for line in open(sys.argv[1]):
    case = json.loads(line)
    symmetry = crystal.symmetry(unit_cell=uctbx.unit_cell(case["cell"]), space_group_symbol="P1")
    indices = flex.miller_index([tuple(h) for h in case["h"]])
    data = flex.complex_double([complex(*f) for f in case["f"]])
    array = miller.array(miller.set(symmetry, indices, anomalous_flag=False), data)
    started = time.process_time()
    try:
        found = symmetry_search.structure_factor_symmetry(array)
        number = found.space_group_info.type().number()
    except Exception as error:
        number = repr(error)
    out.append((number, time.process_time() - started))
print(json.dumps(out))
"""


def timed(function, *arguments, **options):
    started = time.process_time()
    result = function(*arguments, **options)
    return result, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", help="a parquet table of structures")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--cctbx", help="a Python interpreter that has cctbx-base")
    options = parser.parse_args()
    table = read_structures(options.structures)
    labels = space_group_labels(table, SYMPREC)
    sizes = np.array(table.values("n_sites"))
    rng = np.random.default_rng(options.seed)
    rows = []
    for index in random_rows(np.flatnonzero(sizes <= MOST_SITES), options.n, options.seed):
        cell = protocols.blind_cell(cell_of_row(table.row(int(index))), rng, SYMPREC)
        density = density_from_structure(structure_of_cell(cell), method="band_limited", d_min=D_MIN)
        found, ours = timed(find_symmetry, density, symprec=SYMPREC)
        dataset, atoms = timed(call_spglib, "get_symmetry_dataset", cell, symprec=SYMPREC)
        spectrum = spectrum_of(density)
        n_operations = len(lattice_operations(found.lattice, SYMPREC))
        n_points = float(np.prod(spectrum.map_shape)) * abs(np.linalg.det(found.basis))
        rows.append((labels[int(index)], found.space_group_number, ours, dataset.number, atoms, n_operations, n_points, spectrum))
    truth, numbers, seconds, spglib_numbers, spglib_seconds, n_operations, n_points, spectra = zip(*rows, strict=True)
    line = {
        "case": "find_symmetry",
        "n": len(rows),
        "median_ms": round(1e3 * float(np.median(seconds)), 1),
        "mean_ms": round(1e3 * float(np.mean(seconds)), 1),
        "right": sum(a == b for a, b in zip(numbers, truth, strict=True)),
        "spglib_on_atoms_median_ms": round(1e3 * float(np.median(spglib_seconds)), 2),
        "spglib_on_atoms_right": sum(a == b for a, b in zip(spglib_numbers, truth, strict=True)),
    }
    if options.cctbx:
        line |= cctbx(options.cctbx, spectra, truth, float(np.median(seconds)))
    print(json.dumps(line), flush=True)
    work = np.array(n_operations) * np.array(n_points) * np.log2(n_points)
    slope, offset = np.polyfit(work, seconds, 1)
    largest = work >= np.quantile(work, 0.9)
    ratio = float(np.median(np.array(seconds)[largest] / (offset + slope * work[largest])))
    print(json.dumps({"case": "growth", "ns_per_operation_point_log2": slope * 1e9, "ms": offset * 1e3, "largest_tenth_over_fit": ratio}))


def cctbx(python: str, spectra, truth, ours: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        cases, script = Path(folder, "cases.jsonl"), Path(folder, "search.py")
        script.write_text(CCTBX, encoding="utf-8")
        with cases.open("w", encoding="utf-8") as file:
            for spectrum in spectra:
                half = np.flatnonzero([next((x for x in row if x), 0) > 0 for row in spectrum.h.tolist()])
                lengths = np.linalg.norm(spectrum.lattice, axis=1)
                cosines = (spectrum.lattice @ spectrum.lattice.T) / np.outer(lengths, lengths)
                angles = np.degrees(np.arccos([cosines[1, 2], cosines[0, 2], cosines[0, 1]]))
                f = spectrum.coefficients[half] * abs(np.linalg.det(spectrum.lattice))  # structure factors, in electrons
                case = {"cell": [*lengths, *angles], "h": spectrum.h[half].tolist(), "f": np.stack([f.real, f.imag], 1).tolist()}
                file.write(json.dumps(case) + "\n")
        result = subprocess.run([python, str(script), str(cases)], capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.strip().splitlines()[-1])
    median = float(np.median([seconds for _, seconds in found]))
    right = sum(number == wanted for (number, _), wanted in zip(found, truth, strict=True))
    failed = sum(isinstance(number, str) for number, _ in found)
    return {
        "cctbx_median_ms": round(1e3 * median, 1),
        "cctbx_right": right,
        "cctbx_failed": failed,
        "times_faster_than_cctbx": round(median / ours, 1),
    }


if __name__ == "__main__":
    main()
