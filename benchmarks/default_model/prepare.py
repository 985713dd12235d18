"""Prepare the samples of the default model: python benchmarks/default_model/prepare.py mp.parquet FOLDER [--part I/N].

Each part is one npz file of the values of all voxels, one sample after another. A quarter of the training rows are drawn with
element-wise scaled scattering power and a random B, so that the network does not lean on all-electron peak heights, which a file of
valence electrons does not have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from matminer_ed3d import grids
from matminer_ed3d.density import Density
from matminer_ed3d.invariant_sampling import sample_reduced_voxels
from matminer_ed3d.promolecule import Atoms, density_from_atoms
from matminer_ed3d.protocols import assign_split

OPTIONS = {"d_min": 1.0, "voxel_size": 0.5, "max_voxels": 2048, "threshold": -100.0, "standardize": True}


def scaled(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Atoms whose elements scatter more or less than they should, with another B."""
    from dataclasses import replace

    factor = np.exp(rng.normal(0.0, 0.5, 100))[atoms.numbers]
    return replace(atoms, occupancies=atoms.occupancies * factor, u_frac=atoms.u_frac * rng.uniform(0.5, 8.0))


def main() -> None:
    """Read the table, write one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structures", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default="0/1")
    args = parser.parse_args()
    part, n_parts = (int(x) for x in args.part.split("/"))
    table = pq.read_table(args.structures)
    split = assign_split(table["id"].to_pylist(), table["formula"].to_pylist(), table["sg_symprec_01"].to_numpy())
    order = np.random.default_rng(0).permutation(len(split))[part::n_parts]
    rows = table.take(order)
    lattices = np.array(rows["lattice"].to_pylist()).reshape(-1, 3, 3)
    numbers, frac = rows["numbers"], rows["frac"]
    feats, bases, shapes, kept, failed = [], [], [], [], 0
    for k, index in enumerate(tqdm(order, mininterval=30)):
        rng = np.random.default_rng([7, int(index)])
        atoms = Atoms.isotropic(lattices[k], np.array(frac[k].as_py()), np.array(numbers[k].as_py()))
        if split[index] == "train" and rng.random() < 0.25:
            atoms = scaled(atoms, rng)
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
        kept.append(index)
    args.folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        args.folder / f"part_{part:03d}.npz",
        feats=np.concatenate(feats),
        voxel_basis=np.array(bases),
        grid_shape=np.array(shapes),
        row=np.array(kept),
        split=np.array(split)[kept].astype(str),
    )
    print(f"part {args.part}: {len(kept)} samples, {failed} failed, {np.prod(shapes, axis=1).mean():.0f} voxels each")


if __name__ == "__main__":
    main()
