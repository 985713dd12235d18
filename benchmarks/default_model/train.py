"""Train the default model on prepared samples: python benchmarks/default_model/train.py mp.parquet FOLDER OUT.safetensors.

FOLDER holds the parts that prepare.py wrote. Rows of the splits ``train`` and ``validation`` are used, and nothing else; some get white
noise and some are cut at a resolution, so that the tolerances of the symmetry features are learned for such densities too. Interrupted,
it goes on from the last epoch when called again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from matminer_ed3d.datasets import save_train_ids
from matminer_ed3d.estimators import SparseCNNClassifier
from matminer_ed3d.invariant_sampling import BLUR
from matminer_ed3d.representations import SparseTensor

CITATION = "Jain et al., APL Mater. 1, 011002 (2013); structures of the Materials Project, CC BY 4.0"
NOISE = (0.003, 0.6)  # rms of white noise relative to the rms of the density, log-uniform
RESOLUTIONS = (1.0, 2.6)  # Å
SHARES = 0.3, 0.1  # of the samples that get noise, that are cut at a resolution


def damaged(values: np.ndarray, shape: tuple[int, int, int], basis: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values of all voxels with noise, or cut at a resolution, or as they are; noise goes through the filter of the sampling."""
    chance = rng.random()
    if chance >= sum(SHARES):
        return values
    lattice = basis * np.array(shape)[:, None]
    h = np.stack(np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in shape], indexing="ij"), axis=-1)
    q_squared = ((h @ np.linalg.inv(lattice).T) ** 2).sum(axis=-1)
    coefficients = np.fft.fftn(values.reshape(shape))
    if chance < SHARES[0]:
        resolution = 2 * np.linalg.norm(basis, axis=1).max()
        inside = np.exp(-0.25 * BLUR * resolution**2 * q_squared) * (q_squared <= resolution**-2)
        level = np.exp(rng.uniform(*np.log(NOISE)))
        coefficients += inside * np.fft.fftn(level * rng.normal(size=shape))
    else:
        coefficients *= q_squared <= rng.uniform(*RESOLUTIONS) ** -2
    changed = np.fft.ifftn(coefficients).real
    changed -= changed.mean()
    rms = np.sqrt((changed**2).mean())
    return values if rms < 1e-6 else (changed / rms).astype(np.float32).reshape(values.shape)


def load(path: Path) -> tuple[list[SparseTensor], np.ndarray]:
    """Samples of one part that may be trained on, some of them a second time, damaged; and their rows in the table."""
    part = np.load(path, allow_pickle=False)
    shapes, bases, feats = part["grid_shape"], part["voxel_basis"], part["feats"]
    ends = shapes.prod(axis=1).cumsum()
    samples, rows = [], []
    for i in np.flatnonzero(np.isin(part["split"], ["train", "validation", "random"])):
        shape = tuple(int(n) for n in shapes[i])
        n_voxels = int(np.prod(shape))
        coords = np.stack(np.unravel_index(np.arange(n_voxels), shape), axis=1).astype(np.int32)
        values, row = feats[ends[i] - n_voxels : ends[i]], int(part["row"][i])
        other = damaged(values, shape, bases[i], np.random.default_rng([3, row] if row >= 0 else [3, int(i), -row]))
        for version in (values,) if other is values else (values, other):
            samples.append(SparseTensor(coords, version, ("total",), bases[i], shape))  # type: ignore[arg-type]
            rows.append(row)
    return samples, np.array(rows)


def main() -> None:
    """Load, fit, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structures", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-epochs", type=int, default=8)
    parser.add_argument("--parts", type=int, default=None, help="take only the first so many parts")
    args = parser.parse_args()
    table = pq.read_table(args.structures, columns=["id", "sg_symprec_01"])
    loaded = [load(path) for path in sorted(args.folder.glob("part_*.npz"))[: args.parts]]
    samples = [sample for part, _ in loaded for sample in part]
    rows = np.concatenate([part_rows for _, part_rows in loaded])
    numbers = np.where(rows < 0, -rows, table["sg_symprec_01"].to_numpy()[rows].astype(int))  # minus the group: a random crystal
    classifier = SparseCNNClassifier(
        architecture="crystal",
        cell="reduced",
        d_min=1.0,
        voxel_size=0.5,
        max_voxels=2048,
        threshold=-100.0,
        standardize=True,
        max_epochs=args.max_epochs,
        batch_size=128,
        learning_rate=2e-3,
        validation_fraction=0.0,
        precision="bf16",
        ema_decay=0.999,
        random_state=0,
        checkpoint_dir=args.out.parent / "checkpoints",
        verbose=1,
        hierarchical=True,
    )
    classifier.fit(samples, numbers)
    for entry in classifier.history_:
        print(entry)
    seen = [table["id"][int(i)].as_py() for i in np.unique(rows[rows >= 0])]
    classifier.save(
        args.out,
        target="space_group_number",
        data={
            "source": "Materials Project 2025-02-12, and random crystals of every space group",
            "n_samples": len(seen),
            "n_random": int((rows < 0).sum()),
            "n_with_damaged": len(samples),
            "labels": "spglib, symprec 0.1",
        },
        protocol={"cell": "any: reduced from the density", "split": "random 80/10/10, prototype groups held out"},
        metrics={"last_epoch": classifier.history_[-1]},
        citation=CITATION,
        dtype="float16",
    )
    save_train_ids(args.out.with_suffix("").with_suffix(".train_ids.npz"), seen)


if __name__ == "__main__":
    main()
