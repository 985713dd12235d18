"""What the readers of text grids share: numbers of header lines, cells, atoms, and grids that repeat their first points at the end."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d.readers.streams import TextStream

__all__ = [
    "LARGEST_VOLUME",
    "MOST_ATOMS",
    "REAL",
    "as_protons",
    "cell_of_parameters",
    "check_cell",
    "grid_text",
    "make_structure",
    "real",
    "reals",
    "required_line",
    "show",
    "whole_numbers",
    "without_end_points",
]

MOST_ATOMS = 1_000_000
LARGEST_VOLUME = 1e15  # Å³; a cell of 10 µm
REAL = re.compile(rb"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eEdD][+-]?\d+|[+-]\d{3})?")
WHOLE_NUMBER = re.compile(rb"[+-]?\d{1,9}")
SAME_PLANE = (1e-4, 1e-6)  # of the largest value of the end planes, and of the grid: rounding in the text


def show(line: bytes) -> str:
    """Quote the beginning of a line, for an error."""
    text = line.decode("latin-1")
    return repr(text if len(text) <= 60 else text[:60] + "…")


def required_line(stream: TextStream, expected: str) -> bytes:
    """Return the next line that is not blank; an error at the end of the file."""
    line = stream.next_line()
    if line is None:
        raise stream.error("the end of the file", expected)
    return line


def real(word: bytes) -> float:
    """Read a word that `REAL` matches."""
    text = word.lower().replace(b"d", b"e")
    sign = max(text.rfind(b"+"), text.rfind(b"-"))
    return float(text if b"e" in text or sign < 1 else text[:sign] + b"e" + text[sign:])


def reals(stream: TextStream, words: Sequence[bytes], expected: str) -> list[float]:
    """Read real numbers as Fortran writes them (D exponents, exponents without a letter); an error at the last line read if one is none."""
    numbers = []
    for word in words:
        if len(word) > 64 or not REAL.fullmatch(word):
            raise stream.error(show(word), expected)
        numbers.append(real(word))
    if not np.isfinite(numbers).all():
        raise stream.error(show(b" ".join(words)), f"{expected}, finite")
    return numbers


def whole_numbers(stream: TextStream, words: Sequence[bytes], expected: str) -> list[int]:
    """Read whole numbers of up to nine digits; an error at the last line read if one is none."""
    for word in words:
        if not WHOLE_NUMBER.fullmatch(word):
            raise stream.error(show(word), expected)
    return [int(word) for word in words]


def grid_text(shape: Sequence[int]) -> str:
    """Write counts as ``2 x 3 x 4``."""
    return " x ".join(str(n) for n in shape)


def check_cell(stream: TextStream, lattice: Float[np.ndarray, "3 3"]) -> None:
    """Raise an error if three vectors, rows in Å, span no cell."""
    if np.abs(lattice).max() > 1e100:  # its volume would overflow
        raise stream.error(f"a vector of {np.abs(lattice).max():.3g} Å", "three that span a cell")
    lengths = np.linalg.norm(lattice, axis=1)
    volume = abs(float(np.linalg.det(lattice)))
    if not 1e-6 <= volume <= LARGEST_VOLUME or volume <= 1e-9 * float(np.prod(lengths)):
        raise stream.error(f"vectors that span a cell of {volume:.3g} Å³", "three that span a cell")


def cell_of_parameters(stream: TextStream, parameters: Sequence[float]) -> Float[np.ndarray, "3 3"]:
    """Return the rows of a cell given by lengths (Å) and angles (degrees): a along x, b in the xy plane, c up.

    That is gemmi's convention and ``Lattice.from_parameters(..., vesta=True)`` in pymatgen. Raises an error if there is no such cell.
    """
    a, b, c, *angles = parameters
    cos_alpha, cos_beta, cos_gamma = (0.0 if angle == 90 else float(np.cos(np.radians(angle))) for angle in angles)
    if min(a, b, c) <= 0 or not all(0 < angle < 180 for angle in angles) or cos_gamma**2 > 1 - 1e-9:
        raise stream.error(f"a cell of {tuple(parameters)}", "three lengths above 0 in Å and three angles between 0 and 180°")
    sin_gamma = float(np.sqrt(1 - cos_gamma**2))
    y = (cos_alpha - cos_beta * cos_gamma) / sin_gamma
    z_squared = 1 - cos_beta**2 - y**2
    if z_squared < 1e-9:
        raise stream.error(f"a cell of {tuple(parameters)}", "angles that close a cell")
    lattice = np.array([[a, 0, 0], [b * cos_gamma, b * sin_gamma, 0], [c * cos_beta, c * y, c * np.sqrt(z_squared)]])
    check_cell(stream, lattice)
    return lattice


def as_protons(stream: TextStream, word: bytes, expected: str) -> int:
    """Return the atomic number that a word gives, as a number or as an element's symbol; 0 is a dummy. `expected` is for the error."""
    from pymatgen.core.periodic_table import Element

    if WHOLE_NUMBER.fullmatch(word):
        number = int(word)
        if not 0 <= number <= 118:
            raise stream.error(f"atomic number {number}", f"{expected}; 1 to 118, or 0 for a dummy")
        return number
    symbol = word.decode("latin-1").capitalize()
    if symbol in ("X", "Bq"):
        return 0
    if not Element.is_valid_symbol(symbol):
        raise stream.error(f"species {show(word)}", expected)
    return int(Element(symbol).Z)


def make_structure(
    path: str, lattice: Float[np.ndarray, "3 3"], protons: Sequence[int], cart_coords: Float[np.ndarray, "n_atoms 3"]
) -> Any:
    """Make a pymatgen Structure of atoms in Å; None without atoms, and, with a warning, where there is a dummy among them."""
    from pymatgen.core.periodic_table import Element
    from pymatgen.core.structure import Structure

    if len(protons) == 0:
        return None
    if 0 in protons:
        n_dummies = list(protons).count(0)
        message = f"{path}: {n_dummies} of {len(protons)} atoms are dummies (atomic number 0); the density is read, the atoms are left out"
        warnings.warn(message, UserWarning, stacklevel=4)
        return None
    return Structure(lattice, [Element.from_Z(z) for z in protons], cart_coords, coords_are_cartesian=True)


def without_end_points(values: Float[np.ndarray, "mx my mz"]) -> tuple[Float[np.ndarray, "nx ny nz"], float, float]:
    """Leave out the last plane along each axis, which repeats the first.

    Returns
    -------
    values : (mx - 1, my - 1, mz - 1) float
        A view.
    difference, tolerance : float
        Largest difference of a last plane from the first one, and the largest that rounding in the text explains. A difference above
        it means that the end points are not there, or that the grid is not periodic.
    """
    difference = end_value = 0.0
    for axis in range(3):
        first, last = values.take(0, axis), values.take(-1, axis)
        difference = max(difference, float(np.abs(last - first).max()))
        end_value = max(end_value, float(np.abs(first).max()), float(np.abs(last).max()))
    tolerance = SAME_PLANE[0] * end_value + SAME_PLANE[1] * max(float(values.max()), -float(values.min()))
    return values[:-1, :-1, :-1], difference, tolerance
