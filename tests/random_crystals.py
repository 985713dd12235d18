"""Random crystals of a given space group, the same for the same seed: generic cells, atoms on general and on special positions."""

from __future__ import annotations

import gemmi
import numpy as np
import spglib
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

ELEMENTS = ["Ba", "Ti", "Sr", "Fe", "Ca", "Si", "Zn", "Cl", "Zr", "K", "Al", "Ge"]
VOLUME_PER_ATOM = 20.0  # Å³
LEAST_DISTANCE = 1.3  # Å
SYMPREC = 0.01  # Å


def operations_of(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (n, 3, 3) and translations (n, 3) of the conventional cell of gemmi's reference setting."""
    operations = gemmi.find_spacegroup_by_number(number).operations()
    seitz = np.array([op.float_seitz() for op in operations])
    return np.round(seitz[:, :3, :3]).astype(int), seitz[:, :3, 3]


def random_lattice(number: int, rng: np.random.Generator) -> Lattice:
    """A cell of the right system whose ratios and angles are nothing special; its volume is settled later."""
    a, b, c = 1.0, rng.uniform(1.12, 1.45), rng.uniform(0.62, 0.88)
    if number <= 2:
        return Lattice.from_parameters(a, b, c, *rng.uniform(76, 84, 1), *rng.uniform(96, 104, 1), *rng.uniform(106, 113, 1))
    if number <= 15:
        return Lattice.from_parameters(a, b, c, 90, rng.uniform(97, 112), 90)
    if number <= 74:
        return Lattice.orthorhombic(a, b, c)
    c = rng.choice([rng.uniform(0.64, 0.78), rng.uniform(1.25, 1.4)])
    if number <= 142:
        return Lattice.tetragonal(a, c)
    return Lattice.hexagonal(a, rng.choice([c, 2 * c])) if number <= 194 else Lattice.cubic(a)


def special_position(rotations: np.ndarray, translations: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A point that one or two random operations leave where it is; None where they leave none."""
    chosen = rng.integers(1, len(rotations), rng.integers(1, 3))
    matrix = np.concatenate([np.eye(3) - rotations[i] for i in chosen])
    vector = np.concatenate([translations[i] + rng.integers(-1, 2, 3) for i in chosen])
    start = rng.random(3)
    point = start + np.linalg.lstsq(matrix, vector - matrix @ start, rcond=None)[0]
    return point % 1.0 if np.abs(matrix @ point - vector).max() < 1e-9 else None


def orbit(point: np.ndarray, rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """Images of a point in one cell, each once."""
    images = (rotations @ point + translations) % 1.0
    kept: list[np.ndarray] = []
    for image in images:
        if all(np.abs((image - other + 0.5) % 1.0 - 0.5).max() > 1e-6 for other in kept):
            kept.append(image)
    return np.array(kept)


def random_crystal(number: int, rng: np.random.Generator, n_special: int = 2) -> Structure:
    """Draw crystals until spglib gives one the wanted space group, at 0.01 and at 0.1 Å, and its atoms keep apart."""
    rotations, translations = operations_of(number)
    in_primitive = len(rotations) // max(1, sum((w == np.eye(3)).all() for w in rotations))
    for attempt in range(2000):
        points = [rng.random(3) for _ in range(1 + 5 // in_primitive)]
        if len(rotations) > 1:
            special = [special_position(rotations, translations, rng) for _ in range(n_special)]
            points += [point for point in special if point is not None]
        orbits = [orbit(point, rotations, translations) for point in points]
        species = [ELEMENTS[i] for i in rng.permutation(len(ELEMENTS))[: len(orbits)]]
        n_atoms = sum(len(images) for images in orbits)
        lattice = random_lattice(number, rng).scale(VOLUME_PER_ATOM * n_atoms * (1 + attempt / 200))
        if min(lattice.abc) < 2.5:
            continue
        kinds = np.repeat(np.arange(1, len(orbits) + 1), [len(images) for images in orbits])
        positions = np.concatenate(orbits)
        structure = Structure(lattice, [species[k - 1] for k in kinds], positions)
        distances = structure.distance_matrix + 1e3 * np.eye(len(structure))
        if distances.min() < LEAST_DISTANCE:
            continue
        cell = (lattice.matrix, positions, kinds)
        found = [spglib.get_symmetry_dataset(cell, symprec=symprec) for symprec in (SYMPREC, 10 * SYMPREC)]
        if all(dataset is not None and dataset.number == number for dataset in found):
            return structure
    raise RuntimeError(f"no crystal of space group {number} in 2000 draws")
