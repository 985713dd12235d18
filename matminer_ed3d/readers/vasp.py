"""VASP's volumetric files: CHGCAR, CHG, PARCHG, AECCAR0-2 and the POSCAR at their head, of VASP 4, 5 and 6.

Such a file is a POSCAR, a blank line, then one, two or four times: the counts nx ny nz, nx*ny*nz numbers (x fastest, density times
the cell's volume, hence electrons), and, in a CHGCAR, the augmentation occupancies of every atom, which have no place in a density.
One set is the total; two are total and spin up minus down; four are total and the magnetisation along x, y, z.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d.density import Density, Quantity
from matminer_ed3d.readers.streams import TextStream
from matminer_ed3d.readers.units import Unit

__all__ = ["Poscar", "has_grid", "read_poscar", "read_volumetric", "structure_of"]

CHANNELS = {1: ("total",), 2: ("total", "diff"), 4: ("total", "diff_x", "diff_y", "diff_z")}
FORTRAN_REAL = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?")
SYMBOL = re.compile(r"([A-Z][a-z]?)(?:[_./\d].*)?")  # an element, perhaps with what VASP hangs on it: Fe_pv, O_s/a0b1c2, H.5


@dataclass(frozen=True, eq=False)
class Poscar:
    """The cell and the atoms of a POSCAR.

    Parameters
    ----------
    lattice : (3, 3) float
        Rows in Å, scaled.
    symbols : tuple of str or None
        Element of each atom; None where the file (of VASP 4) names none.
    frac_coords : (n_atoms, 3) float
        Fractional coordinates.
    """

    lattice: Float[np.ndarray, "3 3"]
    symbols: tuple[str, ...] | None
    frac_coords: Float[np.ndarray, "n_atoms 3"]


def _numbers(stream: TextStream, expected: str, least: int, most: int | None = None) -> list[float]:
    """Read the numbers at the start of the next line: at least `least`, and nothing after `most`."""
    line = stream.next_line()
    if line is None:
        raise stream.error("the end of the file", expected)
    words = line.split()
    numbers = []
    for word in words[: most or least]:
        if not FORTRAN_REAL.fullmatch(word):
            break
        numbers.append(float(word.lower().replace(b"d", b"e")))
    if len(numbers) < least or not np.isfinite(numbers).all():
        raise stream.error(_show(line), expected)
    return numbers


def _show(line: bytes) -> str:
    text = line.decode("latin-1")
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _read_lattice(stream: TextStream) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Read the scale and the lattice; return the lattice in Å and what Cartesian coordinates are to be multiplied by."""
    given = _numbers(stream, "the scale factor (one number or three)", 1, 3)
    line = stream.line
    if len(given) == 2 or 0.0 in given or (len(given) == 3 and min(given) < 0):
        raise stream.error(f"scale {given}", "one number that is not 0 (negative: the volume), or three positive ones")
    lattice = np.array([_numbers(stream, f"lattice vector {name} (three numbers, Å)", 3) for name in "abc"])
    volume = abs(float(np.linalg.det(lattice)))
    if volume <= 1e-9 * float(np.prod(np.linalg.norm(lattice, axis=1))):
        raise stream.error(f"a cell of volume {volume:.3g}", "three lattice vectors that span a cell")
    if given[0] < 0:  # the volume
        given = [(-given[0] / volume) ** (1 / 3)]
    scale = np.array(given) if len(given) == 3 else np.full(3, given[0])  # of the Cartesian components x, y, z, as VASP has it
    lattice = lattice * scale
    if not np.isfinite(lattice).all() or abs(np.linalg.det(lattice)) < 1e-6:
        raise stream.error(f"scale {scale.tolist()} on a cell of volume {volume:.3g}", "a cell of at least 1e-6 Å³", line)
    return lattice, scale


def _element(stream: TextStream, word: str) -> str:
    from pymatgen.core.periodic_table import Element

    match = SYMBOL.fullmatch(word)
    if not match or not Element.is_valid_symbol(match[1]):
        raise stream.error(f"species {word!r}", "an element's symbol, such as Fe, Fe_pv or Fe/0123abcd")
    return match[1]


def _comment_symbols(comment: bytes, n_species: int) -> list[str] | None:
    """Elements that the comment of a VASP 4 file names, if it is nothing but as many elements as there are counts."""
    from pymatgen.core.periodic_table import Element

    words = comment.decode("latin-1").split()
    return words if len(words) == n_species and all(Element.is_valid_symbol(w) for w in words) else None


def _read_species(stream: TextStream, comment: bytes, quiet: bool) -> tuple[list[str] | None, list[int]]:
    """Read the lines of symbols, if any, and of counts; both may be folded over several lines."""
    symbols: list[str] = []
    counts: list[int] = []
    while True:
        line = stream.next_line()
        if line is None:
            raise stream.error("the end of the file", "the numbers of atoms of each species")
        words = line.split()
        if all(word.isdigit() for word in words):
            counts += [int(word) for word in words]
            if not symbols or len(counts) >= len(symbols):
                break
        elif counts:
            raise stream.error(f"{len(counts)} numbers of atoms for {len(symbols)} species", "one for each species")
        else:
            symbols += [_element(stream, word.decode("latin-1")) for word in words]
    if symbols and len(counts) != len(symbols):
        raise stream.error(f"{len(counts)} numbers of atoms for {len(symbols)} species", "one for each species")
    if sum(counts) == 0:
        raise stream.error("no atoms", "at least one")
    if symbols:
        return symbols, counts
    named = _comment_symbols(comment, len(counts))
    if named is None:
        outcome = "its atoms are not read; put a line of symbols before the numbers of atoms"
    else:
        outcome = f"its comment does, and is taken at its word: {' '.join(named)}"
    if not quiet:
        warnings.warn(f"{stream.path}:{stream.line}: no line of element symbols (VASP 4); {outcome}", UserWarning, stacklevel=5)
    return named, counts


def read_poscar(stream: TextStream, quiet: bool = False) -> Poscar:
    """Read a POSCAR up to its last atom.

    Scale factors (one, three, or a negative volume), selective dynamics, Cartesian coordinates, POTCAR suffixes and hashes are
    understood. A file without symbols is read with a warning; its atoms get the elements of the comment line if that is a list
    of as many elements as there are species, else none.

    Raises
    ------
    DensityFileError
        If the text is not a POSCAR; names the line.
    """
    comment = stream.read_line() or b""
    lattice, scale = _read_lattice(stream)
    symbols, counts = _read_species(stream, comment, quiet)
    mode = stream.next_line() or b""
    if mode[:1] in b"sS" and mode:
        mode = stream.next_line() or b""
    if not mode or mode[:1] not in b"dDcCkK":
        raise stream.error(_show(mode), "'Direct' or 'Cartesian'")
    n_atoms = sum(counts)
    rows = []
    for n in range(n_atoms):
        rows.append(_numbers(stream, f"three coordinates of atom {n + 1} of {n_atoms}", 3))
    coords = np.array(rows)
    if mode[:1] not in b"dD":
        coords = (coords * scale) @ np.linalg.inv(lattice)
    names = None if symbols is None else tuple(symbol for symbol, n in zip(symbols, counts, strict=True) for _ in range(n))
    return Poscar(lattice, names, coords)


def structure_of(poscar: Poscar) -> Any:
    """Make a pymatgen Structure; None where the elements are not known."""
    if poscar.symbols is None:
        return None
    from pymatgen.core.structure import Structure

    return Structure(poscar.lattice, list(poscar.symbols), poscar.frac_coords)


def _grid_shape(line: bytes) -> tuple[int, int, int] | None:
    words = line.split()
    if len(words) != 3 or not all(word.isdigit() for word in words):
        return None
    return int(words[0]), int(words[1]), int(words[2])


def _read_set(stream: TextStream, shape: tuple[int, int, int], name: str, volume: float) -> Float[np.ndarray, "nx ny nz"]:
    if 0 in shape:
        raise stream.error(f"a grid of {shape} points", "three counts of at least 1")
    n_points = shape[0] * shape[1] * shape[2]
    values = stream.read_values(n_points, f"values of channel {name!r} on a grid of {shape[0]} x {shape[1]} x {shape[2]}")
    rho = np.ascontiguousarray(values.reshape(shape, order="F"))
    rho /= volume
    return rho


def _skip_augmentation(stream: TextStream, title: bytes) -> None:
    """Pass over the occupancies of one atom; their number ends the title, unless Fortran had no room for it."""
    last = title.split()[-1]
    start = stream.line
    n_left = int(last) if last.isdigit() else 0
    while n_left > 0:
        line = stream.next_line()
        if line is None or line.startswith(b"augmentation") or _grid_shape(line) is not None:
            raise stream.error(f"{n_left} of {int(last)} augmentation occupancies missing", "all of them; is the file complete?", start)
        n_left -= len(line.split())


def _next_grid(stream: TextStream) -> tuple[int, int, int] | None:
    """Find the counts of the next set, past augmentation occupancies and moments; None at the end of the file."""
    while (line := stream.next_line()) is not None:
        if line.startswith(b"augmentation"):
            _skip_augmentation(stream, line)
        elif (shape := _grid_shape(line)) is not None:
            return shape
        elif not all(FORTRAN_REAL.fullmatch(word) or set(word) == {ord("*")} for word in line.split()):
            raise stream.error(_show(line), "another grid, augmentation occupancies or the end; are there two files in this one?")
    return None


def read_volumetric(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read a CHGCAR, CHG, PARCHG or AECCAR.

    Parameters
    ----------
    stream : TextStream
        At the beginning of the file.

    Returns
    -------
    Density
        e/Å³: the file's numbers, divided by the volume of the cell; with the structure, unless the file names no elements.

    Raises
    ------
    DensityFileError
        If the file is anything else, is cut short, or holds no charge; names the line.
    """
    poscar = read_poscar(stream)
    volume = abs(float(np.linalg.det(poscar.lattice)))
    line = stream.next_line()
    shape = None if line is None else _grid_shape(line)
    if shape is None:
        found = "the end of the file" if line is None else _show(line)
        raise stream.error(found, "the grid's three counts nx ny nz after the atoms; a POSCAR alone holds no density")
    sets: list[np.ndarray] = []
    names = ("total", "second", "third", "fourth")
    following: tuple[int, int, int] | None = shape
    while following is not None:
        if following != shape:
            raise stream.error(f"a set on a grid of {following} points", f"the grid of the first set, {shape}")
        if len(sets) == len(names):
            raise stream.error("a fifth set of values", "one (total), two (total, diff) or four (non-collinear)")
        sets.append(_read_set(stream, shape, names[len(sets)], volume))
        following = _next_grid(stream)
    if len(sets) not in CHANNELS:
        raise stream.error(f"{len(sets)} sets of values", "one (total), two (total, diff) or four (non-collinear); is the file complete?")
    n_electrons = float(sets[0].mean()) * volume
    if n_electrons <= 0:
        raise stream.error(
            f"{n_electrons:.4g} electrons in all", "a charge density, whose sum is positive; a potential (LOCPOT) or a difference is none"
        )
    return Density(lattice=poscar.lattice, channels=dict(zip(CHANNELS[len(sets)], sets, strict=True)), structure=structure_of(poscar))


def has_grid(stream: TextStream) -> bool:
    """Tell whether the counts of a grid follow the POSCAR that was just read."""
    line = stream.next_line()
    shape = None if line is None else _grid_shape(line)
    return shape is not None and 0 not in shape  # velocities of 0 may stand there too
