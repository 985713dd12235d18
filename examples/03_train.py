"""Train a classifier of one's own, save it, load it again; seconds on one core."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from matminer_ed3d import SparseCNNClassifier

# Two structure types in many sizes: rock salt and caesium chloride.
ROCK_SALT = [("Na", "Cl", 5.641), ("K", "Cl", 6.293), ("Li", "F", 4.017), ("Na", "F", 4.620), ("K", "Br", 6.600), ("Mg", "O", 4.212)]
CAESIUM_CHLORIDE = [
    ("Cs", "Cl", 4.123),
    ("Cs", "Br", 4.286),
    ("Cs", "I", 4.567),
    ("Tl", "Cl", 3.834),
    ("Tl", "Br", 3.970),
    ("Ni", "Al", 2.887),
]

X = [
    Structure.from_spacegroup(symbol, Lattice.cubic(a), [first, second], [[0, 0, 0], [0.5, 0.5, 0.5]])
    for symbol, rows in (("Fm-3m", ROCK_SALT), ("Pm-3m", CAESIUM_CHLORIDE))
    for first, second, a in rows
]
y = ["rock salt"] * len(ROCK_SALT) + ["caesium chloride"] * len(CAESIUM_CHLORIDE)

classifier = SparseCNNClassifier(voxel_size=0.5, max_epochs=5, batch_size=4, validation_fraction=0.0, random_state=0)
classifier.fit(X, y)
for record in classifier.history_:
    print({name: round(value, 5) if isinstance(value, float) else value for name, value in record.items()})

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "types.safetensors"
    classifier.save(path)
    again = SparseCNNClassifier.load(path)
print(again.predict(X))
print("accuracy on the training set:", again.score(X, y))
