"""Write matminer_ed3d/data/extinction_groups.json: the 230 space groups by crystal system and systematic absences.

Two space groups are in one extinction group if they are of one crystal system and the same reflections with abs(h), abs(k), abs(l)
<= 8 are absent, in their standard settings; in the orthorhombic system, where the names of the axes are a choice, up to a
permutation of the axes. Groups are numbered in the order of their first member. Absences: gemmi.

    python tests/data/gen_extinction_groups.py
"""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

H_MAX = 8
SYSTEMS = {2: "triclinic", 15: "monoclinic", 74: "orthorhombic", 142: "tetragonal", 167: "trigonal", 194: "hexagonal", 230: "cubic"}

SINCE_2002 = {39: "Aem2", 41: "Aea2", 64: "Cmce", 67: "Cmme", 68: "Ccce"}  # International Tables A, fifth edition; gemmi has the older ones


def crystal_system(number: int) -> str:
    """Crystal system by the last space group of each."""
    return next(name for last, name in SYSTEMS.items() if number <= last)


def absences(number: int) -> np.ndarray:
    """Absent reflections of the standard setting, as a (17, 17, 17) bool cube over h, k, l from -8 to 8."""
    axis = np.arange(-H_MAX, H_MAX + 1, dtype=np.int32)
    h = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    operations = gemmi.find_spacegroup_by_number(number).operations()
    return operations.systematic_absences(h.reshape(-1, 3)).reshape(h.shape[:3])


def key(number: int) -> tuple[str, bytes]:
    """Equal for two space groups if and only if they are in one extinction group."""
    cube = absences(number)
    axes = permutations(range(3)) if crystal_system(number) == "orthorhombic" else [(0, 1, 2)]
    return crystal_system(number), min(np.packbits(cube.transpose(order)).tobytes() for order in axes)


def groups() -> list[list[int]]:
    """Members of each extinction group, in the order of their first."""
    found: dict[tuple[str, bytes], list[int]] = {}
    for number in range(1, 231):
        found.setdefault(key(number), []).append(number)
    return list(found.values())


def symbol(number: int) -> str:
    """Short Hermann-Mauguin symbol of the standard setting, without blanks and underscores."""
    return SINCE_2002.get(number, gemmi.find_spacegroup_by_number(number).short_name().replace("H", "R"))


def table() -> dict[str, Any]:
    """Return the content of the file."""
    return {
        "about": f"Space groups by crystal system and absences to |hkl| = {H_MAX}, orthorhombic axes permuted; gen_extinction_groups.py",
        "symbols": [symbol(number) for number in range(1, 231)],
        "groups": [{"crystal_system": crystal_system(members[0]), "members": members} for members in groups()],
    }


def text() -> str:
    """Return the table as JSON, one group a line."""
    content = table()
    rows = ",\n  ".join(json.dumps(row) for row in content["groups"])
    return f'{{\n "about": {json.dumps(content["about"])},\n "symbols": {json.dumps(content["symbols"])},\n "groups": [\n  {rows}\n ]\n}}'


if __name__ == "__main__":
    path = Path(__file__).parents[2] / "matminer_ed3d" / "data" / "extinction_groups.json"
    path.write_text(text() + "\n", encoding="utf-8")
