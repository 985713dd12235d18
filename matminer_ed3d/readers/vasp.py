"""VASP's volumetric files: CHGCAR, CHG, PARCHG, AECCAR0-2, LOCPOT, ELFCAR and the POSCAR at their head, of VASP 4, 5 and 6.

Such a file is a POSCAR, a blank line, then one, two or four times: the counts nx ny nz, nx*ny*nz numbers (x fastest, density times
the cell's volume, hence electrons), and, in a CHGCAR, the augmentation occupancies of every atom, which have no place in a density.
One set is the total; two are total and spin up minus down; four are total and the magnetisation along x, y, z.

A LOCPOT (eV), an ELFCAR (from 0 to 1) and others look the same, but are not multiplied by the volume, and two sets in them are spin up
and spin down. No word in a file says which it is, so its numbers have to (:func:`quantity_of`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d.density import Density, Quantity
from matminer_ed3d.readers import headers
from matminer_ed3d.readers.errors import file_error
from matminer_ed3d.readers.streams import TextStream
from matminer_ed3d.readers.units import Unit

__all__ = ["Poscar", "has_grid", "kept_channels", "quantity_of", "read_poscar", "read_volumetric", "structure_of"]

CHANNELS = {1: ("total",), 2: ("total", "diff"), 4: ("total", "diff_x", "diff_y", "diff_z")}
OF_EACH_SPIN: dict[str, tuple[str, ...]] = {"potential": ("up", "down"), "elf": ("up", "down")}  # what two sets of these are
MOST_NEGATIVE = 0.02  # share of |values| that a density may have below 0; real CHGCARs have less than 1e-3 ...
MOST_RIPPLES, PEAK = 0.25, 20.0  # ... but a sharp AECCAR on a coarse grid 0.17, and there the peaks are 20 times as high as it is deep
LEAST_ELF_MAXIMUM = 0.3  # an ELF comes near to 1 in every shell and bond
LEAST_NEGATIVE_POTENTIAL = 0.3  # share of |values| that a local potential has below 0 at the least, around the nuclei
DENSITY_NAME = re.compile(r"CHG(?!.*(?:DIFF|DELTA))|AECCAR|RHO", re.IGNORECASE)
OTHER_NAMES: tuple[tuple[str, Quantity], ...] = (("LOCPOT", "potential"), ("ELFCAR", "elf"), ("TAUCAR", "unknown"))
MOST_ROWS = 100_000  # of moments, or of the occupancies of one atom
MOST_DIGITS = 18  # of a count; no file holds as many points or atoms
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


SCALE_EXPECTED = (
    "the scale factor (one number or three); the text is taken for a POSCAR or CHGCAR, because it is no other known format"
    " (CIF, JSON, YAML, cube, XSF, CCP4 or MRC map, VESTA's .grd, vasprun.xml, CSSR, .res, ...)"
)


def _numbers(stream: TextStream, expected: str, least: int, most: int | None = None) -> list[float]:
    """Read the numbers at the start of the next line: at least `least`, and nothing after `most`."""
    line = stream.next_line()
    if line is None:
        raise stream.error("the end of the file", expected)
    words = line.split()
    numbers = []
    for word in words[: most or least]:
        if not headers.REAL.fullmatch(word):
            break
        numbers.append(headers.real(word))
    if len(numbers) < least or not np.isfinite(numbers).all():
        raise stream.error(_show(line), expected)
    return numbers


def _show(line: bytes) -> str:
    text = line.decode("latin-1")
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _read_lattice(stream: TextStream) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Read the scale and the lattice; return the lattice in Å and what Cartesian coordinates are to be multiplied by."""
    given = _numbers(stream, SCALE_EXPECTED, 1, 3)
    line = stream.line
    if len(given) == 2 or 0.0 in given or (len(given) == 3 and min(given) < 0):
        raise stream.error(f"scale {given}", "one number that is not 0 (negative: the volume), or three positive ones")
    lattice = np.array([_numbers(stream, f"lattice vector {name} (three numbers, Å)", 3) for name in "abc"])
    if np.abs(lattice).max() > 1e100:
        raise stream.error(f"a vector of {np.abs(lattice).max():.3g}", "a lattice in Å")  # its volume would overflow
    volume = abs(float(np.linalg.det(lattice)))
    if volume <= 1e-9 * float(np.prod(np.linalg.norm(lattice, axis=1))):
        raise stream.error(f"a cell of volume {volume:.3g}", "three lattice vectors that span a cell")
    if given[0] < 0:  # the volume
        given = [(-given[0] / volume) ** (1 / 3)]
    scale = np.array(given) if len(given) == 3 else np.full(3, given[0])  # of the Cartesian components x, y, z, as VASP has it
    if np.abs(scale).max() > 1e100:
        raise stream.error(f"scale {scale.tolist()}", f"a cell of 1e-6 to {headers.LARGEST_VOLUME:.0e} Å³", line)
    lattice = lattice * scale
    if not 1e-6 <= abs(np.linalg.det(lattice)) <= headers.LARGEST_VOLUME:
        raise stream.error(
            f"scale {scale.tolist()} on a cell of volume {volume:.3g}", f"a cell of 1e-6 to {headers.LARGEST_VOLUME:.0e} Å³", line
        )
    return lattice, scale


def _element(stream: TextStream, word: str) -> str:
    from pymatgen.core.periodic_table import Element

    match = SYMBOL.fullmatch(word)
    if not match or not Element.is_valid_symbol(match[1]):
        raise stream.error(f"species {_show(word.encode('latin-1'))}", "an element's symbol, such as Fe, Fe_pv or Fe/0123abcd")
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
        if all(_is_count(word) for word in words):
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


def _is_count(word: bytes) -> bool:
    return word.isdigit() and len(word) <= MOST_DIGITS


def _grid_shape(line: bytes) -> tuple[int, int, int] | None:
    words = line.split()
    if len(words) != 3 or not all(_is_count(word) for word in words):
        return None
    return int(words[0]), int(words[1]), int(words[2])


def _read_set(stream: TextStream, shape: tuple[int, int, int], name: str) -> Float[np.ndarray, " n"]:
    """Read one set as it stands in the file, x fastest."""
    if 0 in shape:
        raise stream.error(f"a grid of {shape} points", "three counts of at least 1")
    n_points = shape[0] * shape[1] * shape[2]
    return stream.read_values(n_points, f"values of channel {name!r} on a grid of {shape[0]} x {shape[1]} x {shape[2]}")


def _skip_augmentation(stream: TextStream, title: bytes) -> bool:
    """Pass over the occupancies of one atom; their number ends the title, unless Fortran had no room for it: then return False."""
    last = title.split()[-1]
    n_left, n_lines = int(last) if _is_count(last) else 0, 0
    while n_left > 0:
        line = stream.next_line()
        n_lines += 1
        if line is None or line.startswith(b"augmentation") or _grid_shape(line) is not None:
            start = stream.line - n_lines + (line is None)
            raise stream.error(f"{n_left} of {int(last)} augmentation occupancies missing", "all of them; is the file complete?", start)
        if n_lines > MOST_ROWS:
            raise stream.error(f"{int(last)} augmentation occupancies", f"no more than stand in {MOST_ROWS} lines")
        n_left -= len(line.split())
    return _is_count(last)


def _next_grid(stream: TextStream) -> tuple[int, int, int] | None:
    """Find the counts of the next set, past augmentation occupancies and moments; None at the end of the file.

    Rows of moments stand before the counts of a set; rows of occupancies may also follow a title that does not tell their number.
    Others are values too many.
    """
    is_counted, first, n_rows = True, b"", 0  # `first` is the first row that may be one of moments
    while (line := stream.next_line()) is not None:
        is_title = line.startswith(b"augmentation")
        if (shape := _grid_shape(line)) is not None:
            return shape
        if not is_title and not all(headers.REAL.fullmatch(word) or set(word) == {ord("*")} for word in line.split()):
            raise stream.error(_show(line), "another grid, augmentation occupancies or the end; are there two files in this one?")
        if is_title and first and is_counted:
            break
        if is_title:
            is_counted, first, n_rows = _skip_augmentation(stream, line), b"", 0
            continue
        if not first:
            first, mark = line, stream.mark()
        n_rows += 1
        if n_rows > MOST_ROWS:
            break
    if first and (is_counted or n_rows > MOST_ROWS):
        place = stream.line_at(mark)
        raise stream.error(f"{_show(first)} after the last value of a grid", "another grid, augmentation occupancies or the end", place)
    return None


def quantity_of(total: Float[np.ndarray, "*grid"], path: str) -> Quantity:
    """Tell what the numbers of the first set of a file are, as they stand in the file, by themselves.

    An electron density times the volume of its cell has its number of electrons for a mean and is positive, but for the ripples of its
    Fourier series. Hence:

    - all in [0, 1], with a maximum above 0.3, is an electron localisation function;
    - more than 2 % of the sum of magnitudes below zero is no density, unless that is below 25 % and the peaks are 20 times as high as
      the holes are deep (the ripples of sharp cores on a coarse grid). It is a potential if 30 % or more are below zero (a potential is
      deep around nuclei, whatever its zero) and the deepest hole is deeper than the highest peak; else, as any difference of two
      densities, ``unknown``;
    - the rest is an electron density.

    The numbers leave three things open, and there the name decides. What lies in [0, 1] is an electron density if the name has CHG or
    AECCAR in it (a PARCHG of one band, a molecule of few electrons). What lies above zero is no electron density if the name has
    LOCPOT, ELFCAR or TAUCAR in it. What is negative is no potential if the name has CHG in it.

    Parameters
    ----------
    total : array of float
        The numbers of the first set, in any order.
    path : str
        Of the file; the last part is its name.
    """
    name = Path(path).name
    named = next((quantity for part, quantity in OTHER_NAMES if part in name.upper()), None)
    is_density_by_name = named is None and DENSITY_NAME.search(name) is not None
    of_charge = is_density_by_name or "CHG" in name.upper()
    lowest, highest = float(total.min()), float(total.max())
    if highest <= 0.0 or lowest < 0.0:
        n_below = -float(np.minimum(total, 0.0).sum())
        share = n_below / max(float(total.sum()) + 2 * n_below, np.finfo(float).tiny)
        if highest <= 0.0 or share > (MOST_RIPPLES if highest > -PEAK * lowest else MOST_NEGATIVE):
            is_deep = lowest < 0.0 and share >= LEAST_NEGATIVE_POTENTIAL and -lowest > highest
            return "potential" if named == "potential" or (named is None and is_deep and not of_charge) else "unknown"
    elif highest <= 1.0 and not is_density_by_name:
        return "elf" if named in (None, "elf") and highest > LEAST_ELF_MAXIMUM else "unknown"
    if named == "elf":  # values outside [0, 1]
        return "unknown"
    return named or "electron_density"


def kept_channels(path: str, present: Sequence[str], channels: Sequence[str] | None, quantity: Quantity) -> tuple[str, ...]:
    """Return the names of `channels`, in the order of the file; all that are `present` if it is None.

    Raises
    ------
    DensityFileError
        If the file does not have one of them.
    ValueError
        If `channels` are no names, or leave out the ``total`` that an electron density must have.
    """
    if channels is None:
        return tuple(present)
    if isinstance(channels, str) or not channels:
        raise ValueError(f"`channels` must be a sequence of names, such as ('total',), got {channels!r}")
    missing = [name for name in channels if name not in present]
    if missing:
        raise file_error(path, f"no channel {missing[0]!r}", f"one of {', '.join(present)}, which this {quantity.replace('_', ' ')} has")
    if quantity == "electron_density" and "total" not in channels:
        raise ValueError(f"`channels` of an electron density must hold 'total', got {list(channels)}; add it")
    return tuple(name for name in present if name in channels)


def read_volumetric(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read a CHGCAR, CHG, PARCHG, AECCAR, LOCPOT or ELFCAR.

    Parameters
    ----------
    stream : TextStream
        At the beginning of the file.
    channels : sequence of str, optional
        Read these alone. ``("total",)`` stops after the first set: what comes after it is then neither read nor checked, so that a
        file cut short later, of an impossible number of sets, or of a bad checksum passes. ``total`` is also the name of the first
        of two sets of a potential, if it is all that is asked for. Any other choice reads the file to its end.
    quantity : str, optional
        What the numbers are; by default what :func:`quantity_of` finds. Only an electron density is divided by the volume.
    unit : str, optional
        Must be left out: VASP writes densities times the volume.

    Returns
    -------
    Density
        e/Å³: the file's numbers, divided by the volume of the cell; with the structure, unless the file names no elements. A
        potential (eV, as it stands in the file) and an ELF of two sets have the channels ``up`` and ``down``; all else is named as in
        an electron density: ``total``; ``total, diff``; ``total, diff_x, diff_y, diff_z``.

    Raises
    ------
    DensityFileError
        If the file is anything else, is cut short, or does not have one of `channels`; names the line.
    ValueError
        If `unit` is given, or `channels` are no names or leave out the ``total`` of an electron density.
    """
    total_only = channels is not None and not isinstance(channels, str) and set(channels) == {"total"}
    poscar = read_poscar(stream)
    volume = abs(float(np.linalg.det(poscar.lattice)))
    line = stream.next_line()
    shape = None if line is None else _grid_shape(line)
    if shape is None:
        found = "the end of the file" if line is None else _show(line)
        raise stream.error(found, "the grid's three counts nx ny nz after the atoms; a POSCAR alone holds no density")
    if unit is not None:
        raise ValueError(f"`unit` must be left out for a file of VASP, whose densities are multiplied by the volume, got {unit!r}")
    sets: list[np.ndarray] = []
    titles = ("total", "second", "third", "fourth")
    following: tuple[int, int, int] | None = shape
    while following is not None:
        if following != shape:
            raise stream.error(f"a set on a grid of {following} points", f"the grid of the first set, {shape}")
        if len(sets) == len(titles):
            raise stream.error("a fifth set of values", "one (total), two (total, diff) or four (non-collinear)")
        values = _read_set(stream, shape, titles[len(sets)])
        if quantity is None:
            quantity = quantity_of(values, stream.path)
        if quantity == "electron_density":
            values /= volume
        sets.append(values.reshape(shape, order="F"))  # as it stands in the file: C order would cost a copy
        following = None if total_only and quantity == "electron_density" else _next_grid(stream)
    if len(sets) not in CHANNELS:
        raise stream.error(f"{len(sets)} sets of values", "one (total), two (total, diff) or four (non-collinear); is the file complete?")
    assert quantity is not None  # there was a first set
    names = OF_EACH_SPIN.get(quantity, CHANNELS[2]) if len(sets) == 2 else CHANNELS[len(sets)]
    wanted = kept_channels(stream.path, names, channels, quantity)
    kept = {name: values for name, values in zip(names, sets, strict=True) if name in wanted}
    return Density(lattice=poscar.lattice, channels=kept, structure=structure_of(poscar), quantity=quantity)


def has_grid(stream: TextStream) -> bool:
    """Tell whether the counts of a grid follow the POSCAR that was just read."""
    line = stream.next_line()
    shape = None if line is None else _grid_shape(line)
    return shape is not None and 0 not in shape  # velocities of 0 may stand there too
