"""Train the default model on prepared samples: python benchmarks/default_model/train.py mp.parquet FOLDER OUT.safetensors.

FOLDER holds the parts that prepare.py wrote. Rows of the splits ``train`` and ``validation`` are used, and nothing else; a quarter
of them gets white noise, so that the tolerances of the symmetry features are learned for noisy densities too. Interrupted, it goes on
from the last epoch when called again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from matminer_ed3d.datasets import save_train_ids
from matminer_ed3d.estimators import SparseCNNClassifier
from matminer_ed3d.representations import SparseTensor

CITATION = "Jain et al., APL Mater. 1, 011002 (2013); structures of the Materials Project, CC BY 4.0"
NOISE = (0.005, 0.3)  # rms relative to the rms of the density, log-uniform


def load(path: Path, rng: np.random.Generator) -> tuple[list[SparseTensor], np.ndarray]:
    """Samples of one part that may be trained on, and their rows in the table."""
    part = np.load(path, allow_pickle=False)
    shapes, bases, feats = part["grid_shape"], part["voxel_basis"], part["feats"]
    ends = shapes.prod(axis=1).cumsum()
    samples, rows = [], []
    for i in np.flatnonzero(np.isin(part["split"], ["train", "validation"])):
        shape = tuple(int(n) for n in shapes[i])
        n_voxels = int(np.prod(shape))
        coords = np.stack(np.unravel_index(np.arange(n_voxels), shape), axis=1).astype(np.int32)
        values = feats[ends[i] - n_voxels : ends[i]]
        if rng.random() < 0.25:
            level = np.exp(rng.uniform(*np.log(NOISE)))
            values = values + (level * rng.normal(size=values.shape)).astype(np.float32)
        samples.append(SparseTensor(coords, values, ("total",), bases[i], shape))  # type: ignore[arg-type]
        rows.append(int(part["row"][i]))
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
    rng = np.random.default_rng(3)
    loaded = [load(path, rng) for path in sorted(args.folder.glob("part_*.npz"))[: args.parts]]
    samples = [sample for part, _ in loaded for sample in part]
    rows = np.concatenate([part_rows for _, part_rows in loaded])
    numbers = table["sg_symprec_01"].to_numpy()[rows].astype(int)
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
        validation_fraction=0.04,
        early_stopping=None,
        precision="bf16",
        ema_decay=0.999,
        random_state=0,
        checkpoint_dir=args.out.parent / "checkpoints",
        verbose=1,
    )
    classifier.fit(samples, numbers)
    for entry in classifier.history_:
        print(entry)
    classifier.save(
        args.out,
        target="space_group_number",
        data={"source": "Materials Project 2025-02-12", "n_samples": len(samples), "labels": "spglib, symprec 0.1"},
        protocol={"cell": "any: reduced from the density", "split": "random 80/10/10, prototype groups held out"},
        metrics={"validation": min(classifier.history_, key=lambda entry: entry["val_loss"])},
        citation=CITATION,
        dtype="float16",
    )
    save_train_ids(args.out.with_suffix("").with_suffix(".train_ids.npz"), [table["id"][int(i)].as_py() for i in rows])


if __name__ == "__main__":
    main()
