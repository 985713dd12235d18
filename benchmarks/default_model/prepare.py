"""Prepare the samples of the default model: python benchmarks/default_model/prepare.py mp.parquet FOLDER [--part I/N | --random N].

Each part is one npz file of the values of all voxels, one sample after another. A quarter of the training rows are drawn with
element-wise scaled scattering power and a random B, so that the network does not lean on all-electron peak heights, which a file of
valence electrons does not have. With --random, N random crystals of each of the 230 space groups (tests/random_crystals.py) take the
place of the table's rows, and make one more part: a third of the groups have fewer than thirty crystals in the table, six have none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from matminer_ed3d import grids
from matminer_ed3d.density import Density
from matminer_ed3d.invariant_sampling import sample_reduced_voxels
from matminer_ed3d.promolecule import Atoms, density_from_atoms
from matminer_ed3d.protocols import assign_split

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
SEED_OF_RANDOM_CRYSTALS = 11  # no test draws from it

OPTIONS = {"d_min": 1.0, "voxel_size": 0.5, "max_voxels": 2048, "threshold": -100.0, "standardize": True}


def scaled(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Atoms whose elements scatter more or less than they should, with another B."""
    factor = np.exp(rng.normal(0.0, 0.5, 100))[atoms.numbers]
    return replace(atoms, occupancies=atoms.occupancies * factor, u_frac=atoms.u_frac * rng.uniform(0.5, 8.0))


Row = tuple[int, str, Atoms]  # row of the table, or minus the space group number of a random crystal; split; atoms


def rows_of_table(path: Path, part: int, n_parts: int) -> Iterator[Row]:
    """Every `n_parts`-th row of a random order of the table."""
    table = pq.read_table(path)
    split = assign_split(table["id"].to_pylist(), table["formula"].to_pylist(), table["sg_symprec_01"].to_numpy())
    order = np.random.default_rng(0).permutation(len(split))[part::n_parts]
    rows = table.take(order)
    lattices = np.array(rows["lattice"].to_pylist()).reshape(-1, 3, 3)
    for k, index in enumerate(order):
        rng = np.random.default_rng([7, int(index)])
        atoms = Atoms.isotropic(lattices[k], np.array(rows["frac"][k].as_py()), np.array(rows["numbers"][k].as_py()))
        if split[index] == "train" and rng.random() < 0.25:
            atoms = scaled(atoms, rng)
        yield int(index), str(split[index]), atoms


def random_rows(per_group: int) -> Iterator[Row]:
    """Random crystals of every space group, as many of each."""
    from random_crystals import random_crystal

    for number in range(1, 231):
        for k in range(per_group):
            rng = np.random.default_rng([SEED_OF_RANDOM_CRYSTALS, number, k])
            crystal = random_crystal(number, rng, n_special=int(rng.integers(2, 4))).get_primitive_structure()
            numbers = np.array([site.specie.Z for site in crystal])
            yield -number, "random", Atoms.isotropic(crystal.lattice.matrix, crystal.frac_coords, numbers)


def main() -> None:
    """Read the table, write one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structures", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="N random crystals of each space group instead")
    args = parser.parse_args()
    part, n_parts = (int(x) for x in args.part.split("/"))
    source = random_rows(args.random) if args.random else rows_of_table(args.structures, part, n_parts)
    feats, bases, shapes, kept, splits, failed = [], [], [], [], [], 0
    for row, split, atoms in tqdm(source, mininterval=30):
        shape = grids.fine_grid_shape(atoms.lattice, 0.5 * OPTIONS["d_min"])
        try:
            rho = density_from_atoms(atoms, shape, "band_limited", OPTIONS["d_min"])
            sample = sample_reduced_voxels(Density(lattice=atoms.lattice, channels={"total": rho}), **OPTIONS)
        except ValueError:
            failed += 1
            continue
        feats.append(sample.feats)
        bases.append(sample.voxel_basis)
        shapes.append(sample.grid_shape)
        kept.append(row)
        splits.append(split)
    args.folder.mkdir(parents=True, exist_ok=True)
    name = "random" if args.random else f"{part:03d}"
    np.savez(
        args.folder / f"part_{name}.npz",
        feats=np.concatenate(feats),
        voxel_basis=np.array(bases),
        grid_shape=np.array(shapes),
        row=np.array(kept),
        split=np.array(splits),
    )
    print(f"part {name}: {len(kept)} samples, {failed} failed, {np.prod(shapes, axis=1).mean():.0f} voxels each")


if __name__ == "__main__":
    main()
