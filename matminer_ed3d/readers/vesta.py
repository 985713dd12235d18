"""VESTA's grids: .grd, a text that GSAS and GSAS-II write, and .pgrid and .ggrid, binary.

.grd: a title; lengths and angles of the cell; three counts; the values, last axis fastest, without end points
(``ExportMapASCII`` in https://github.com/AdvancedPhotonSource/GSAS-II, exports/G2export_map.py).

.pgrid (periodic, without end points) and .ggrid (general, with them), of RIETAN, Dysnomia, ERIS and VESTA
(https://jp-minerals.org/eris/en/doc/ERISch8.html; the fields are those of https://github.com/peterspackman/occ, src/io/periodic_grid.cpp):

====================  ==========================================================================================================
int32[4], char[80]    version; title
int32[4]              0 .ggrid, 1 .pgrid; 0 all values, 1 those of an asymmetric unit; values a point; dimensions (3)
int32[3], int32       counts along a, b, c; values that follow
float32[6]            lengths in Å, angles in degrees
====================  ==========================================================================================================

then float32 values, first axis fastest; or, of an asymmetric unit, int32 n_operations, centrosymmetric, n_centrings; for each operation
a matrix int32[9] and a translation int32[3] in steps of the grid; for each centring int32[3]; then pairs of int32 index and float32.
"""

from __future__ import annotations

import itertools
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from matminer_ed3d.density import Density, Quantity
from matminer_ed3d.readers import headers
from matminer_ed3d.readers.binary import MOST_BYTES, chosen_channels, density_unit, plain_file
from matminer_ed3d.readers.kinds import PGRID_HEADER, pgrid_byte_order
from matminer_ed3d.readers.streams import TextStream
from matminer_ed3d.readers.units import Unit, settle_quantity, unit_named

__all__ = ["read_grd", "read_pgrid"]

MOST_OPERATIONS = 192


def _make_density(
    stream: TextStream,
    title: str,
    lattice: Float[np.ndarray, "3 3"],
    values: np.ndarray,
    channels: Sequence[str] | None,
    quantity: Quantity | None,
    unit: Unit | None,
) -> Density:
    chosen_channels(stream, ("total",), channels)
    quantity = settle_quantity(stream.path, values, title, quantity)
    factor = density_unit(unit_named(title) or "e/A^3", unit, quantity) if quantity == "electron_density" or unit is not None else 1.0
    return Density(lattice=lattice, channels={"total": np.ascontiguousarray(values) * factor}, quantity=quantity)


def read_grd(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read a .grd.

    Parameters
    ----------
    stream : TextStream
        At the beginning of the file.
    channels : sequence of str, optional
        A .grd has ``total`` alone.
    quantity : str, optional
        By default what the title says; an electron density where it says nothing and the values are positive.
    unit : {"e/A^3", "e/bohr^3"}, optional
        e/Å³ by default.

    Returns
    -------
    Density
        With a along x and b in the xy plane, and without atoms.

    Raises
    ------
    DensityFileError
        If the file is anything else, or is cut short; names the line.

    Warns
    -----
    UserWarning
        If the last plane along each axis repeats the first: these are end points, and are left out. Or if the values are negative.
    """
    title = (stream.read_line() or b"").decode("latin-1")
    words: list[bytes] = []
    while len(words) < 9:  # Fortran may fold them
        expected = "lengths and angles of the cell, and three counts"
        line = headers.required_line(stream, expected)
        words += line.split()
        if len(words) > 9:
            raise stream.error(headers.show(line), f"{expected}, nine numbers")
        headers.reals(stream, words[:6], expected)
    lattice = headers.cell_of_parameters(stream, headers.reals(stream, words[:6], "lengths and angles of the cell"))
    shape = headers.whole_numbers(stream, words[6:], "three counts")
    if min(shape) < 1:
        raise stream.error(f"a grid of {headers.grid_text(shape)} points", "three counts of at least 1")
    values = stream.read_values(shape[0] * shape[1] * shape[2], f"values on a grid of {headers.grid_text(shape)}").reshape(shape)
    after = stream.next_line()
    if after is not None:
        raise stream.error(headers.show(after), f"the end of the file after {values.size} values")
    if min(shape) > 2:
        inner, difference, tolerance = headers.without_end_points(values)
        if difference <= tolerance and np.ptp(values) > 0:
            message = f"{stream.path}: the last plane of points along each axis repeats the first; these end points are left out"
            warnings.warn(message, UserWarning, stacklevel=3)
            values = inner
    return _make_density(stream, title, lattice, values, channels, quantity, unit)


# --- .pgrid and .ggrid ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """The fields at the beginning of a .pgrid or .ggrid."""

    order: str
    title: str
    has_end_points: bool
    is_asymmetric_unit: bool
    shape: tuple[int, int, int]
    n_stored: int
    cell: tuple[float, ...]


def _read_header(stream: TextStream, raw: bytes) -> Header:
    order = pgrid_byte_order(raw)
    if order is None:
        raise stream.error("no header of a .pgrid", "its 152 bytes: version, title, kinds, counts and cell; is the file damaged?")
    fields = struct.unpack(order + PGRID_HEADER, raw[: struct.calcsize(order + PGRID_HEADER)])
    title = fields[4].split(b"\0")[0].decode("latin-1")
    grid_kind, data_kind, n_values, _, *shape = fields[5:12]
    if n_values != 1:
        raise stream.error(f"{n_values} values at each point", "one; a complex or a second grid is not understood")
    if min(shape) < 1 + (grid_kind == 0) or 8 * shape[0] * shape[1] * shape[2] > MOST_BYTES:
        raise stream.error(f"a grid of {headers.grid_text(shape)} points", f"three counts of at least 1, at most {MOST_BYTES // 8} points")
    cell = tuple(round(x, 5) for x in fields[13:19])  # 5.6 in four bytes is 5.599999905
    if not np.isfinite(cell).all():
        raise stream.error(f"a cell of {cell}", "six finite numbers")
    return Header(order, title, grid_kind == 0, data_kind == 1, (shape[0], shape[1], shape[2]), fields[12], cell)


def _check_size(stream: TextStream, size: int, expected: int, what: str) -> None:
    if size != expected:
        state = "is it complete?" if size < expected else "what is the rest?"
        raise stream.error(f"{size} bytes", f"{expected} for {what}; {state}")


def _transversal(
    points: Int[np.ndarray, "n_stored 3"],
    values: Float[np.ndarray, " n_stored"],
    operations: Sequence[tuple[np.ndarray, np.ndarray]],
    shape: tuple[int, int, int],
) -> Float[np.ndarray, "nx ny nz"] | None:
    """Fill the cell by symmetry; None unless every point is reached, and each from one of the stored values alone."""
    counts = np.array(shape)
    owner = np.full(shape, -1)
    numbers = np.arange(len(points))
    for matrix, shift in operations:
        scaled = points @ (matrix * counts[:, None]).T if (counts == counts[0]).all() else None
        moved = scaled / counts[0] if scaled is not None else np.einsum("ij,nj->ni", matrix * counts[:, None] / counts[None, :], points)
        images = np.round(moved).astype(np.int64)
        if np.abs(moved - images).max() > 1e-6:
            return None
        i, j, k = ((images + shift) % counts).T
        before = owner[i, j, k]
        if ((before >= 0) & (before != numbers)).any():
            return None
        owner[i, j, k] = numbers
        if (owner[i, j, k] != numbers).any():
            return None
    return None if (owner < 0).any() else values[owner]


def _complete(stream: TextStream, raw: bytes, header: Header) -> Float[np.ndarray, "nx ny nz"]:
    """Make the whole cell of an asymmetric unit.

    The description leaves open whether the nine numbers of a matrix go by rows or by columns. The one is taken that makes every point of
    the cell the image of exactly one stored value.
    """
    start = struct.calcsize(header.order + PGRID_HEADER)
    if len(raw) < start + 12:
        raise stream.error(f"{len(raw)} bytes", "the numbers of symmetry operations; is the file complete?")
    n_operations, is_centric, n_centrings = struct.unpack_from(header.order + "3i", raw, start)
    if not (1 <= n_operations <= MOST_OPERATIONS and 0 <= n_centrings <= 4 and is_centric in (0, 1)):
        raise stream.error(f"{n_operations} symmetry operations, {n_centrings} centrings", f"1 to {MOST_OPERATIONS}, and 0 to 4")
    n_points = header.shape[0] * header.shape[1] * header.shape[2]
    if not 1 <= header.n_stored <= n_points:
        raise stream.error(f"{header.n_stored} values in an asymmetric unit", f"1 to {n_points}, the points of the cell")
    values_start = start + 12 + 48 * n_operations + 12 * n_centrings
    what = f"{n_operations} symmetry operations and {header.n_stored} values of an asymmetric unit"
    _check_size(stream, len(raw), values_start + 8 * header.n_stored, what)
    table = np.frombuffer(raw, f"{header.order}i4", 12 * n_operations, start + 12).reshape(-1, 12).astype(np.int64)
    centrings = np.frombuffer(raw, f"{header.order}i4", 3 * n_centrings, start + 12 + 48 * n_operations).reshape(-1, 3).astype(np.int64)
    records = np.frombuffer(raw, np.dtype([("at", f"{header.order}i4"), ("value", f"{header.order}f4")]), header.n_stored, values_start)
    at = records["at"].astype(np.int64)
    if at.min() < 0 or at.max() >= n_points or np.abs(table[:, :9]).max() > 1:
        raise stream.error("points or operations outside the cell", f"points from 0 to {n_points - 1}, matrices of -1, 0 and 1")
    points = np.stack(np.unravel_index(at, header.shape, order="F"), axis=1)
    values = records["value"].astype(float)
    centrings = np.concatenate([np.zeros((1, 3), np.int64), centrings])
    fitting = []
    for transpose in (False, True):
        operations = []
        for row, sign, shift in itertools.product(table, (1, -1)[: 1 + is_centric], centrings):
            matrix = row[:9].reshape(3, 3)
            operations.append((sign * (matrix.T if transpose else matrix), sign * row[9:] + shift))
        grid = _transversal(points, values, operations, header.shape)
        if grid is not None:
            fitting.append(grid)
    if not fitting or (len(fitting) == 2 and not np.array_equal(fitting[0], fitting[1])):
        raise stream.error(
            f"{n_operations} symmetry operations that do not fill the cell in one way",
            "each point of the cell from one value; write the whole cell instead (VESTA: Edit, Space group P1, then export)",
        )
    return fitting[0]


def _read_values(stream: TextStream, path: Path) -> tuple[Header, np.ndarray]:
    n_bytes = struct.calcsize("<" + PGRID_HEADER)
    with path.open("rb") as file:
        head = file.read(n_bytes)
    header = _read_header(stream, head)
    size = path.stat().st_size
    if header.is_asymmetric_unit:
        if header.has_end_points:
            raise stream.error("a .ggrid of an asymmetric unit", "a .pgrid, or all values; this combination is not documented")
        if size > n_bytes + 12 + 48 * MOST_OPERATIONS + 48 + 8 * header.shape[0] * header.shape[1] * header.shape[2]:
            raise stream.error(f"{size} bytes", "no more than the points of the cell need")
        return header, _complete(stream, path.read_bytes(), header)
    n_points = header.shape[0] * header.shape[1] * header.shape[2]
    _check_size(stream, size, n_bytes + 4 * n_points, f"a grid of {headers.grid_text(header.shape)} values of four bytes")
    values = np.fromfile(path, f"{header.order}f4", n_points, offset=n_bytes).astype(float)
    return header, values.reshape(header.shape, order="F")


def read_pgrid(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read a .pgrid or .ggrid, of the whole cell or of an asymmetric unit.

    Parameters
    ----------
    stream : TextStream
        Of the file; its path is opened again.
    channels : sequence of str, optional
        The format has ``total`` alone.
    quantity : str, optional
        By default what the title says; an electron density where it says nothing and the values are positive.
    unit : {"e/A^3", "e/bohr^3"}, optional
        e/Å³ by default.

    Returns
    -------
    Density
        With a along x and b in the xy plane, and without atoms.

    Raises
    ------
    DensityFileError
        If the file is cut short or longer than its header says, holds two values a point, or its symmetry does not fill the cell.
    """
    with plain_file(stream.path) as path:
        header, values = _read_values(stream, path)
    if not np.isfinite(values).all():
        raise stream.error(f"{np.count_nonzero(~np.isfinite(values))} of {values.size} values that are not finite", "finite values")
    lattice = headers.cell_of_parameters(stream, header.cell)
    if header.has_end_points:
        inner, difference, tolerance = headers.without_end_points(values)
        if difference > tolerance:
            raise stream.error(
                f"a general grid whose last planes differ from the first by {difference:.3g}", "one with the period of the cell"
            )
        values = inner
    return _make_density(stream, header.title, lattice, values, channels, quantity, unit)
