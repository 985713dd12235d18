"""CCP4 and MRC maps, of crystals and of boxes.

The layout is that of MRC-2014 (Cheng et al., J. Struct. Biol. 192, 146 (2015); https://www.ccpem.ac.uk/mrc_format/mrc2014.php) and of
CCP4 (https://www.ccp4.ac.uk/html/maplib.html): a header of 256 words of four bytes, records of symmetry, and the values, columns first.
The words below are counted from 1, as there. A map may hold the asymmetric unit alone, in any order of axes, from any point on; here
it fills the whole cell. The symmetry is gemmi's; the values are read here, since gemmi 0.7 swaps the bytes of big-endian integers wrongly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d.density import Density, Quantity
from matminer_ed3d.readers.binary import MOST_BYTES, chosen_channels, density_unit, plain_file
from matminer_ed3d.readers.headers import LARGEST_VOLUME
from matminer_ed3d.readers.streams import TextStream
from matminer_ed3d.readers.units import Unit

__all__ = ["read_ccp4"]

HEADER = 1024  # bytes
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
OTHER_MODES = {3: "complex 16-bit integers", 4: "complex numbers, a Fourier transform", 101: "4-bit integers"}
SAME_VALUE = 1e-3  # of the range of all values: mates that differ by more are not the same point
COVER = "the whole cell or an asymmetric unit; cut the map to the cell where it was made"
NO_MEAN = 1e-2  # of the standard deviation: a mean below is none


@dataclass(frozen=True, eq=False)
class Header:
    """The header of a map, axes still in the file's order.

    Parameters
    ----------
    shape : (int, int, int)
        Columns, rows, sections.
    start : (int, int, int)
        First column, row, section, in steps of the grid from the origin of the cell.
    sampling : (int, int, int)
        Points of the whole cell along a, b, c.
    axes : (int, int, int)
        0, 1 or 2 for a, b or c: what columns, rows and sections run along.
    cell : tuple of six float
        Å and degrees.
    space_group : int
        Number of CCP4, which also tells settings apart; 0 and 1 are P1.
    origin : (float, float, float)
        Origin of MRC-2014, Å.
    dtype : str
        Of the values, with the order of bytes.
    data_start : int
        Where they begin, in bytes.
    symmetry : tuple of str
        Operations such as ``-x,y+1/2,-z``, if the file lists them.
    """

    shape: tuple[int, int, int]
    start: tuple[int, int, int]
    sampling: tuple[int, int, int]
    axes: tuple[int, int, int]
    cell: tuple[float, ...]
    space_group: int
    origin: tuple[float, float, float]
    dtype: str
    data_start: int
    symmetry: tuple[str, ...]


def _read_header(path: Path, stream: TextStream) -> Header:
    """Read the header and hold it against the size of the file, before any memory is taken."""
    size = path.stat().st_size
    with path.open("rb") as file:
        raw = file.read(HEADER)
        if len(raw) < HEADER:
            raise stream.error(f"a header of {len(raw)} bytes", f"{HEADER} bytes; is the file complete?")
        # The machine stamp is known to be wrong in files; the axes are 1, 2, 3 in one order of bytes only.
        order = next((o for o in "<>" if sorted(np.frombuffer(raw, f"{o}i4", 3, 64)) == [1, 2, 3]), None)
        if order is None:
            raise stream.error("axes (MAPC, MAPR, MAPS) that are not 1, 2 and 3 in any order", "a CCP4 or MRC map; is it damaged?")
        ints = [int(n) for n in np.frombuffer(raw, f"{order}i4")]
        floats = [float(x) for x in np.frombuffer(raw, f"{order}f4")]
        shape, mode, start, sampling = _three(ints[0:3]), ints[3], _three(ints[4:7]), _three(ints[7:10])
        n_extra = ints[23]
        if mode not in MODES:
            raise stream.error(f"a map of mode {mode} ({OTHER_MODES.get(mode, 'unknown')})", f"a mode of {sorted(MODES)}, real numbers")
        if min(shape) < 1 or min(sampling) < 1:
            raise stream.error(f"a grid of {shape} points in a cell of {sampling}", "at least one along each axis")
        if n_extra < 0 or HEADER + n_extra > size:
            raise stream.error(f"{n_extra} bytes of symmetry records in a file of {size}", "no more than the file holds")
        dtype = np.dtype(order + MODES[mode])
        expected = HEADER + n_extra + math.prod(shape) * dtype.itemsize
        if expected != size:
            state = "is it complete?" if size < expected else "what is the rest?"
            raise stream.error(
                f"{size} bytes", f"{expected} for {shape[0]} x {shape[1]} x {shape[2]} values of mode {mode} ({dtype.name}); {state}"
            )
        records = file.read(n_extra)
    cell = tuple(round(x, 5) for x in floats[10:16])  # as gemmi: 5.6 in four bytes is 5.599999905
    axes = _three([axis - 1 for axis in ints[16:19]])
    symmetry = _operations(records)
    return Header(shape, start, sampling, axes, cell, ints[22], (floats[49], floats[50], floats[51]), dtype.str, HEADER + n_extra, symmetry)


def _three(words: list[int]) -> tuple[int, int, int]:
    return words[0], words[1], words[2]


def _operations(records: bytes) -> tuple[str, ...]:
    """Return the operations in records of 80 characters; none if the records are something else."""
    lines = [records[at : at + 80].decode("latin-1").strip("\0 ") for at in range(0, len(records), 80)]
    lines = [line for line in lines if line]
    return tuple(lines) if all(line.count(",") == 2 and line.upper().strip(" XYZ,+-*/.0123456789") == "" for line in lines) else ()


def _lattice(header: Header, stream: TextStream) -> Float[np.ndarray, "3 3"]:
    import gemmi

    lattice = np.zeros((3, 3))
    with suppress(RuntimeError):  # gemmi's, for an angle that is none
        lattice = np.array(gemmi.UnitCell(*header.cell).orth.mat.tolist()).T
    if not (min(header.cell) > 0 and np.isfinite(lattice).all() and 1e-6 < abs(np.linalg.det(lattice)) <= LARGEST_VOLUME):
        raise stream.error(f"a cell of {header.cell}", "three lengths in Å and three angles in degrees that span a cell")
    return lattice


def _first_points(header: Header, stream: TextStream) -> list[int]:
    """Return where the map begins, in steps of the grid along a, b, c."""
    along = {axis: start for axis, start in zip(header.axes, header.start, strict=True)}
    first = [along[axis] for axis in range(3)]
    origin = np.array(header.origin)
    if any(first) or not np.isfinite(origin).all() or not origin.any():
        return first
    steps = origin @ np.linalg.inv(_lattice(header, stream)) * header.sampling
    if np.abs(steps).max() < 1e6 and np.abs(steps - np.round(steps)).max() < 0.01:
        return [int(n) for n in np.round(steps)]
    message = f"{stream.path}: the map's origin {header.origin} Å is on no point of its grid and is left out; the map begins at 0 0 0"
    warnings.warn(message, UserWarning, stacklevel=4)
    return first


def _space_group(header: Header, stream: TextStream) -> Any:
    """Return gemmi's space group: that of the number, which the operations, if any, must agree with."""
    import gemmi

    numbered: Any = gemmi.find_spacegroup_by_number(header.space_group)
    listed: Any = numbered
    if header.symmetry:
        try:
            listed = gemmi.find_spacegroup_by_ops(gemmi.GroupOps([gemmi.Op(text.lower()) for text in header.symmetry]))
        except RuntimeError:
            listed = None
    if listed is None or (header.space_group > 1 and numbered is not None and numbered.number != listed.number):
        found = f"{len(header.symmetry)} symmetry operations that are no known group, or another than number {header.space_group}"
        raise stream.error(found if header.symmetry else f"space group {header.space_group}", "a space group; it has to fill the cell")
    return listed


def _complete(values: np.ndarray, given: tuple[np.ndarray, ...], header: Header, stream: TextStream) -> np.ndarray:
    """Fill the cell by symmetry; `values` are what the file gives, at the points `given` (``np.ix_``)."""
    import gemmi

    group = _space_group(header, stream)
    n_cell = math.prod(header.sampling)
    n_given = math.prod(index.size for index in (np.unique(g) for g in given))
    n_most = n_given * len(group.operations())
    if n_most < n_cell:
        raise stream.error(f"a map of {n_given / n_cell:.1%} of the cell, in space group {group.xhm()}", COVER)
    grid = gemmi.FloatGrid(*header.sampling)
    grid.spacegroup = group
    found = []
    for symmetrize, empty in (("symmetrize_max", -np.inf), ("symmetrize_min", np.inf)):
        grid.fill(empty)
        grid.array[given] = values
        try:
            getattr(grid, symmetrize)()
        except RuntimeError as error:
            raise stream.error(f"{header.sampling} points in the cell", f"a grid that fits space group {group.xhm()} ({error})") from error
        found.append(np.array(grid.array, dtype=float))
    most, least = found
    missing = ~np.isfinite(most)
    if missing.any():
        raise stream.error(f"a map of {1 - missing.mean():.1%} of the cell, space group {group.xhm()} included", COVER)
    if (most - least).max() > SAME_VALUE * float(np.ptp(values)):
        raise stream.error(
            f"values that differ by {(most - least).max():.3g} between mates of space group {group.xhm()}", "a map with its own symmetry"
        )
    most[given] = values
    return most


def read_ccp4(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read a CCP4 or MRC map: modes 0, 1, 2, 6 and 12, either order of bytes, any order of axes and any first point.

    A map of an asymmetric unit is filled up by the space group of its header. A map of the whole cell is taken as it is. Crystallographic
    maps often lack F(000), or are in units of their standard deviation: the mean is then about 0. Their symmetry is all there, so they are
    read as electron densities, with a warning that their electrons do not count.

    Parameters
    ----------
    stream : TextStream
        Of the file; its path is opened again.
    channels : sequence of str, optional
        A map has ``total`` alone.
    quantity : str, optional
        The format does not name what it holds; ``electron_density`` by default.
    unit : {"e/A^3", "e/bohr^3"}, optional
        e/Å³ by default.

    Returns
    -------
    Density
        Along a, b, c of the cell, with a along x and b in the xy plane; without atoms, which a map does not have. The origin is the
        cell's; where NXSTART is 0 the ORIGIN of MRC-2014 counts. A skew matrix does not.

    Raises
    ------
    DensityFileError
        If the file is cut short or longer than its header says, its values are complex or not finite, or it does not cover the cell.

    Warns
    -----
    UserWarning
        If the mean of an electron density is about 0 or negative, or ORIGIN lies on no grid point.
    """
    chosen_channels(stream, ("total",), channels)
    kind = quantity or "electron_density"
    factor = density_unit("e/A^3", unit, kind)
    with plain_file(stream.path) as path:
        header = _read_header(path, stream)
        lattice = _lattice(header, stream)
        if 8 * math.prod(header.sampling) > MOST_BYTES:
            raise stream.error(f"{header.sampling} points in the cell", f"at most {MOST_BYTES // 8}")
        raw = np.fromfile(path, header.dtype, math.prod(header.shape), offset=header.data_start)
    finite = np.isfinite(raw)
    if not finite.all():
        raise stream.error(f"{raw.size - np.count_nonzero(finite)} of {raw.size} values that are not finite", "finite values")
    # sections, rows, columns -> a, b, c
    values = raw.reshape(header.shape[::-1]).transpose([2 - header.axes.index(axis) for axis in range(3)])
    first = _first_points(header, stream)
    given = np.ix_(*((f + np.arange(n)) % m for f, n, m in zip(first, values.shape, header.sampling, strict=True)))
    if all(n >= m for n, m in zip(values.shape, header.sampling, strict=True)):
        total = np.empty(header.sampling)
        total[given] = values
    elif header.space_group <= 1 and len(header.symmetry) <= 1:
        covered = math.prod(min(n, m) / m for n, m in zip(values.shape, header.sampling, strict=True))
        raise stream.error(f"a map of {covered:.1%} of the cell, in space group P 1", COVER)
    else:
        total = _complete(values, given, header, stream)
    if values.size > total.size or any(n > m for n, m in zip(values.shape, header.sampling, strict=True)):
        difference = float(np.abs(total[given] - values).max())
        if difference > SAME_VALUE * float(np.ptp(total)):
            raise stream.error(f"values that differ by {difference:.3g} from those a cell further", "a map with the period of its cell")
    if kind == "electron_density" and total.mean() <= NO_MEAN * total.std():
        message = (
            f"{stream.path}: the mean of the map is {total.mean():.3g}, of values from {total.min():.3g} to {total.max():.3g}: F(000) is"
            " missing, or they are on another scale; its number of electrons does not count"
        )
        warnings.warn(message, UserWarning, stacklevel=3)
    return Density(lattice=lattice, channels={"total": total * factor}, quantity=kind)
