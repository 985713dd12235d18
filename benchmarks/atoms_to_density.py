"""Structures to densities beside gemmi: python benchmarks/atoms_to_density.py [STRUCTURES.parquet] [--case point|mean|growth].

point   values on a 0.06 Å grid, 20 structures of 2 to 400 atoms of all seven crystal systems, against gemmi's DensityCalculatorX (P1,
        cutoff 1e-5, the same grid), both on one thread; errors against direct float64 sums over all images at random points and at nuclei
mean    exact voxel means at 0.25 Å of random structures, against gemmi's point values on that grid
growth  the cost as c1 * voxels * log2(voxels) + c2 * atoms, fitted to supercells, and what different displacements add

Prints one JSON line per case. The table of structures is parquet with the columns id, lattice, numbers, frac, n_sites, as for
sparse_tensors.py; without one, supercells and moved atoms of a few prototypes stand in. Set OMP_NUM_THREADS=1 before timing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gemmi
import numpy as np
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from scipy.optimize import nnls

from matminer_ed3d import grids
from matminer_ed3d.datasets import random_rows, read_structures
from matminer_ed3d.promolecule import DEFAULT_B_ISO, density_from_structure
from matminer_ed3d.superposition import Method

SIZES = (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 100, 120, 160, 400)
PROTOTYPES: dict[str, tuple[tuple[float, ...], list[str]]] = {  # one primitive cell of each system; its atoms are spread over the cell
    "triclinic": ((5.1, 5.6, 6.3, 75, 103, 112), ["Al", "Si", "O", "O", "O"]),
    "monoclinic": ((5.1, 5.2, 5.3, 90, 99, 90), ["Zr", "O", "O", "Zr", "O", "O"]),
    "orthorhombic": ((4.8, 10.2, 6.0, 90, 90, 90), ["Mg", "Si", "O", "O", "Mg", "Fe", "O", "O"]),
    "tetragonal": ((4.6, 4.6, 2.96, 90, 90, 90), ["Ti", "O", "O"]),
    "trigonal": ((5.13, 5.13, 5.13, 55.3, 55.3, 55.3), ["Al", "Al", "O", "O", "O"]),
    "hexagonal": ((3.25, 3.25, 5.2, 90, 90, 120), ["Zn", "O", "Zn", "O"]),
    "cubic": ((3.99, 3.99, 3.99, 60, 60, 60), ["Na", "Cl"]),
}


def prototype(system: str, n_sites: int) -> Structure:
    """Make a crystal of about `n_sites` atoms in the cell of a prototype, its atoms moved at random."""
    parameters, species = PROTOTYPES[system]
    rng = np.random.default_rng(n_sites)
    repeats = [1, 1, 1]
    while len(species) * np.prod(repeats) < n_sites:
        repeats[int(np.argmin(repeats))] += 1
    lattice = Lattice.from_parameters(*parameters)
    structure = Structure(lattice, species, rng.random((len(species), 3))) * tuple(repeats)
    structure.perturb(0.05)
    return structure


def chosen(path: Path | None, sizes: tuple[int, ...], seed: int) -> list[Structure]:
    """Take one structure of each size, the seven crystal systems in turn; supercells where the table has none so large."""
    systems = list(PROTOTYPES)
    if path is None:
        return [prototype(systems[i % 7], n) for i, n in enumerate(sizes)]
    table = read_structures(path, columns=["id", "n_sites", "lattice", "numbers", "frac", "sg_symprec_01"])
    n_sites = np.array(table.values("n_sites"))
    numbers = np.array([n or 0 for n in table.values("sg_symprec_01")])
    system_of = np.searchsorted([1, 3, 16, 75, 143, 168, 195], numbers, side="right") - 1
    structures = []
    for i, n in enumerate(sizes):
        wanted, repeat = n, 1
        while True:
            rows = np.flatnonzero((n_sites == wanted) & (system_of == i % 7))
            if len(rows):
                break
            wanted, repeat = (wanted // 2, repeat * 2) if wanted > n_sites.max() else (wanted - 1, repeat)
            if wanted < 1:
                raise SystemExit(f"{path} has no {systems[i % 7]} structure of up to {n} sites")
        row = int(random_rows(rows, 1, seed)[0])
        structures.append(table.take([row]).structure(0) * (repeat, 1, 1))
    return structures


def gemmi_structure(structure: Structure, b_iso: float) -> gemmi.Structure:
    """Copy a structure into gemmi's own kind of model, P1."""
    copy = gemmi.Structure()
    copy.cell = gemmi.UnitCell(*structure.lattice.parameters)
    copy.spacegroup_hm = "P 1"
    residue = gemmi.Residue()
    residue.name, residue.seqid = "X", gemmi.SeqId("1")
    for site in structure:
        atom = gemmi.Atom()
        atom.name, atom.element = site.specie.symbol, gemmi.Element(site.specie.symbol)
        atom.pos = copy.cell.orthogonalize(gemmi.Fractional(*site.frac_coords))
        atom.b_iso = b_iso
        residue.add_atom(atom)
    chain, model = gemmi.Chain("A"), gemmi.Model(1)
    chain.add_residue(residue)
    model.add_chain(chain)
    copy.add_model(model)
    copy.setup_cell_images()
    return copy


def gemmi_density(structure: Structure, shape: grids.GridShape, b_iso: float = DEFAULT_B_ISO) -> np.ndarray:
    """Point values by gemmi's calculator, cutoff 1e-5."""
    model = gemmi_structure(structure, b_iso)
    calculator = gemmi.DensityCalculatorX()
    calculator.cutoff = 1e-5
    calculator.d_min, calculator.rate = 0.12, 1.0
    calculator.set_grid_cell_and_spacegroup(model)
    calculator.grid.set_size(*shape)
    calculator.add_model_density_to_grid(model[0])
    return np.asarray(calculator.grid.array)


def direct_sum(structure: Structure, frac: np.ndarray, b_iso: float = DEFAULT_B_ISO) -> np.ndarray:
    """Add every Gaussian of every image within 12 Å, in float64, at some points."""
    lattice = structure.lattice.matrix
    counts = np.ceil(12.0 * np.linalg.norm(np.linalg.inv(lattice), axis=0)).astype(int) + 1
    images = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in counts], indexing="ij"), axis=-1).reshape(-1, 3) @ lattice
    rho = np.zeros(len(frac))
    for site in structure:
        row = gemmi.Element(site.specie.symbol).it92
        near = frac - site.frac_coords
        near -= np.round(near)
        for i, step in enumerate(near @ lattice):
            r_squared = ((step + images) ** 2).sum(axis=1)
            r_squared = r_squared[r_squared < 144.0]
            for a, b in zip([*row.a, row.c], [*row.b, 0.0], strict=True):
                width = b + b_iso
                rho[i] += a * (4 * np.pi / width) ** 1.5 * np.exp(-4 * np.pi**2 * r_squared / width).sum()
    return rho


def timed(function: Callable[[], np.ndarray], repeats: int) -> tuple[float, np.ndarray]:
    """Least processor time of a few runs, and what the last one returned."""
    seconds, out = [], np.zeros(0)
    for _ in range(repeats):
        started = time.process_time()
        out = function()
        seconds.append(time.process_time() - started)
    return min(seconds), out


def case_point(path: Path | None, n_points: int, seed: int) -> dict[str, Any]:
    """Values at points, 0.06 Å."""
    rng = np.random.default_rng(seed)
    ours, theirs, our_errors, their_errors = [], [], [], []
    for structure in chosen(path, SIZES, seed):
        shape = grids.fine_grid_shape(structure.lattice.matrix, 0.06)
        repeats = 3 if len(structure) < 100 else 2
        seconds, rho = timed(lambda s=structure, g=shape: density_from_structure(s, grid_shape=g, method="point").channel("total"), repeats)
        gemmi_seconds, gemmi_rho = timed(lambda s=structure, g=shape: gemmi_density(s, g), 1)
        at_nuclei = np.round(structure.frac_coords * shape).astype(int)[:n_points] + rng.integers(-2, 3, (min(n_points, len(structure)), 3))
        index = np.vstack([at_nuclei, rng.integers(0, shape, (n_points, 3))]) % np.array(shape)
        expected = direct_sum(structure, index / np.array(shape))
        ours.append(seconds)
        theirs.append(gemmi_seconds)
        our_errors.append(np.abs(rho[tuple(index.T)] - expected).max())
        their_errors.append(np.abs(gemmi_rho[tuple(index.T)] - expected).max())
    ratios = np.array(theirs) / np.array(ours)
    return {
        "case": "point",
        "n": len(ours),
        "structures_per_s": round(len(ours) / sum(ours), 3),
        "gemmi_structures_per_s": round(len(theirs) / sum(theirs), 3),
        "times_faster_in_all": round(sum(theirs) / sum(ours), 2),
        "times_faster_mean": round(float(ratios.mean()), 2),
        "times_faster_least": round(float(ratios.min()), 2),
        "largest_error": float(max(our_errors)),
        "gemmi_largest_error": float(max(their_errors)),
        "errors_ratio": round(float(max(their_errors) / max(our_errors)), 1),
    }


def case_mean(path: Path | None, n: int, max_sites: int, seed: int) -> dict[str, Any]:
    """Voxel means, 0.25 Å."""
    if path is None:
        structures = [prototype(list(PROTOTYPES)[i % 7], 4 + 4 * (i % 10)) for i in range(n)]
    else:
        table = read_structures(path, columns=["id", "n_sites", "lattice", "numbers", "frac"])
        rows = random_rows(np.flatnonzero(np.array(table.values("n_sites")) <= max_sites), n, seed)
        taken = table.take(rows)
        structures = [taken.structure(i) for i in range(taken.n_rows)]
    ours, theirs, electrons = [], [], []
    for structure in structures:
        shape = grids.fine_grid_shape(structure.lattice.matrix, 0.25)
        seconds, rho = timed(lambda s=structure: density_from_structure(s).channel("total"), 3)
        gemmi_seconds, _ = timed(lambda s=structure, g=shape: gemmi_density(s, g), 2)
        rows92 = [gemmi.Element(site.specie.symbol).it92 for site in structure]
        expected = sum(sum(row.a) + row.c for row in rows92)
        ours.append(seconds)
        theirs.append(gemmi_seconds)
        electrons.append(abs(rho.mean() * structure.volume / expected - 1))
    return {
        "case": "mean",
        "n": len(structures),
        "median_sites": float(np.median([len(s) for s in structures])),
        "mean_sites": round(float(np.mean([len(s) for s in structures])), 1),
        "structures_per_s": round(len(ours) / sum(ours), 1),
        "gemmi_points_structures_per_s": round(len(theirs) / sum(theirs), 1),
        "times_faster_in_all": round(sum(theirs) / sum(ours), 2),
        "largest_relative_electron_error": float(max(electrons)),
    }


def case_growth(spacing: float, method: Method) -> dict[str, Any]:
    """Cost against voxels and atoms, and of displacements that all differ."""
    rows, seconds = [], []
    for step in (spacing, 1.4 * spacing):  # else voxels and atoms grow alike, and no fit can tell them apart
        for system in ("cubic", "monoclinic", "triclinic"):
            for n_sites in (8, 27, 64, 125, 216, 400):
                structure = prototype(system, n_sites)
                took, rho = timed(lambda s=structure, h=step: density_from_structure(s, grid_spacing=h, method=method).channel("total"), 2)
                rows.append([rho.size * np.log2(rho.size), len(structure)])
                seconds.append(took)
    matrix, target = np.array(rows), np.array(seconds)
    # Relative residuals count: small structures matter as much as large ones.
    fitted, _ = nnls(matrix / target[:, None], np.ones(len(target)))
    large = prototype("triclinic", 400)
    alike, _ = timed(lambda: density_from_structure(large, grid_spacing=spacing, method=method).channel("total"), 2)
    large.add_site_property("b_iso", list(np.random.default_rng(0).uniform(0.3, 2.0, len(large))))
    different, _ = timed(lambda: density_from_structure(large, grid_spacing=spacing, method=method).channel("total"), 2)
    per_work = target / (matrix @ fitted)
    return {
        "case": f"growth of {method} at {spacing} Å",
        "ns_per_voxel_log2_voxels": round(1e9 * float(fitted[0]), 3),
        "us_per_atom": round(1e6 * float(fitted[1]), 1),
        "measured_over_fitted_largest": round(float(per_work.max()), 2),
        "measured_over_fitted_at_400_atoms": round(float(per_work[5::6].mean()), 2),
        "seconds_400_atoms": round(alike, 3),
        "times_slower_with_400_displacements": round(different / alike, 2),
    }


def main() -> None:
    """Run the benchmark and print its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", type=Path, nargs="?", help="parquet file with the columns id, lattice, numbers, frac, n_sites")
    parser.add_argument("--case", choices=["point", "mean", "growth"], help="only this case")
    parser.add_argument("--n", type=int, default=300, help="structures of the case mean (default: %(default)s)")
    parser.add_argument("--max-sites", type=int, default=40, help="largest structure of the case mean (default: %(default)s sites)")
    parser.add_argument("--n-points", type=int, default=40, help="random points where errors are measured (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of rows (default: %(default)s)")
    args = parser.parse_args()
    if args.case in (None, "mean"):
        print(json.dumps(case_mean(args.structures, args.n, args.max_sites, args.seed)), flush=True)
    if args.case in (None, "growth"):
        print(json.dumps(case_growth(0.25, "mean")), flush=True)
        print(json.dumps(case_growth(0.1, "point")), flush=True)
    if args.case in (None, "point"):
        print(json.dumps(case_point(args.structures, args.n_points, args.seed)), flush=True)


if __name__ == "__main__":
    main()
