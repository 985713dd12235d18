"""Densities in JSON: the Materials Project's Chgcar (``chgcars/<id>.json.gz``) and our own ``Density.as_dict``.

Nothing that the JSON names is imported: the known keys are read. The grids, which are nearly all of the text, are cut out first, wherever
they stand, and read by the parser of numbers (:mod:`matminer_ed3d.readers.streams`); what is left is small and goes to ``json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d.density import UNITS, Density, Quantity
from matminer_ed3d.readers.errors import DensityFileError, file_error
from matminer_ed3d.readers.streams import TextStream, parse_numbers
from matminer_ed3d.readers.structures import structure_from_record
from matminer_ed3d.readers.units import Unit
from matminer_ed3d.readers.vasp import kept_channels, quantity_of

__all__ = ["read_chgcar_json", "read_density_json"]

LONGEST_JSON = 1 << 28  # bytes of text; the text and the grids in it are in memory together
LONGEST_REST = 1 << 24  # bytes of text without its grids; ``json`` takes many times as much memory
PIECE = 1 << 20  # bytes of a grid read at a time, and to the end of the plane
GRID_MARK = "a grid that was cut out"
# A string (skipped, whatever is in it, also without its end), or the beginning of a three-dimensional array.
STRING_OR_GRID = re.compile(rb'"(?:[^"\\]|\\.)*+"?|\[\s*\[\s*\[')
GRID_END = re.compile(rb"\]\s*\]\s*\]|[\"{}]")
WORD = re.compile(rb"[^\s,\[\]]+")
JSON_NUMBER = re.compile(rb"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
OF_NUMBERS = b"0123456789.eE+- "
BLANKED = bytes.maketrans(b"[],", b"   ")
CHANNELS = ("total", "diff", "diff_x", "diff_y", "diff_z")
QUANTITIES: dict[str | None, Quantity] = {"Chgcar": "electron_density", "Locpot": "potential", "Elfcar": "elf"}
SPINS = {"total": "up", "diff": "down"}  # what pymatgen's two sets of a Locpot or Elfcar are


class _Text:
    """The text of a file without its grids."""

    def __init__(self, stream: TextStream) -> None:
        self.stream = stream
        self.text = stream.read_bytes(LONGEST_JSON)
        self.places: list[tuple[int, int]] = []
        kept, at = [], 0
        # `finditer` cannot jump over a grid, so the search starts anew behind each.
        while (match := STRING_OR_GRID.search(self.text, at)) is not None:
            start, end = match.span()
            if self.text[start] == ord("["):
                closing = self._grid_end(end)
                if closing > 0:
                    end = closing
                    kept += [self.text[at:start], f'{{"{GRID_MARK}": {len(self.places)}}}'.encode()]
                    self.places.append((start, end))
                    at = end
                    continue
                end = -closing  # and no grid begins before
            kept.append(self.text[at:end])
            at = end
        kept.append(self.text[at:])
        n_bytes = sum(map(len, kept))
        if n_bytes > LONGEST_REST:
            raise file_error(stream.path, f"{n_bytes} bytes of JSON besides complete grids", f"at most {LONGEST_REST}; is it complete?")
        try:
            self.record = json.loads(b"".join(kept))
        except (ValueError, RecursionError) as error:
            raise file_error(stream.path, f"text that is not JSON ({error})", "a complete file; fetch it again") from error

    def _grid_end(self, at: int) -> int:
        """Return where a grid ends that began before `at`; if it is none, minus where the next string or object begins."""
        after = min(i if i >= 0 else len(self.text) for i in (self.text.find(mark, at) for mark in (b'"', b"{", b"}")))
        end = self.text.rfind(b"]]]", at, after)  # most grids are followed by the end of their object
        if end > 0:
            return end + 3
        match = GRID_END.search(self.text, at)
        if match is None:
            return -len(self.text)
        return match.end() if match[0].startswith(b"]") else -match.start()

    def error(self, found: str, expected: str, at: int) -> DensityFileError:
        """Make an error at a byte of the text; JSON is often one line, so the byte is named too."""
        return file_error(self.stream.path, f"{found} at byte {at}", expected, self.text.count(b"\n", 0, at) + 1)

    def grid(self, value: Any, name: str) -> Float[np.ndarray, "nx ny nz"]:
        """Read the grid that stands at a place of the record: nested lists, or what MontyEncoder makes of an array."""
        if isinstance(value, dict) and GRID_MARK not in value:
            value = value.get("data")
        number = value.get(GRID_MARK) if isinstance(value, dict) else None
        if not isinstance(number, int) or not 0 <= number < len(self.places):
            raise file_error(self.stream.path, f"no grid for channel {name!r}", "numbers in three nested lists")
        start, end = self.places[number]
        values = _regular_grid(self.text, start, end)
        return self._nested_lists(start, end, name) if values is None else values

    def _nested_lists(self, start: int, end: int, name: str) -> Float[np.ndarray, "nx ny nz"]:
        """Read a grid of unusual white space by ``json``, and say what is wrong with any other."""
        for word in WORD.finditer(self.text, start, end):
            if not JSON_NUMBER.fullmatch(word[0]) or not np.isfinite(float(word[0])):
                found = word[0][:40].decode("latin-1")
                raise self.error(repr(found), f"a finite number of channel {name!r}", word.start())
        try:
            values = np.array(json.loads(self.text[start:end]), dtype=float)
        except (ValueError, RecursionError) as error:
            raise self.error(f"a grid for channel {name!r} that is none ({error})", "lists of equal length", start) from error
        if values.ndim != 3 or 0 in values.shape:
            raise self.error(f"numbers of shape {values.shape} for channel {name!r}", "three nested lists (nx, ny, nz)", start)
        return values


def _regular_grid(text: bytes, start: int, end: int) -> Float[np.ndarray, "nx ny nz"] | None:
    """Read the grid in ``text[start:end]``, if it is written without white space but a blank after a comma; else None."""
    if text[start : start + 3] != b"[[[" or text[end - 3 : end] != b"]]]":
        return None
    row_end, plane_end = text.find(b"]", start), text.find(b"]]", start)
    n_z = text.count(b",", start, row_end) + 1
    n_y = text.count(b"]", start, plane_end) + 1
    pieces = []
    at, stop = start + 1, end - 1  # planes and what is between them
    while at < stop:
        piece_end = text.find(b"]]", min(at + PIECE, stop - 2), stop) + 2
        values = _planes(text[at:piece_end], n_y, n_z)
        if values is None:
            return None
        pieces.append(values)
        at = piece_end
        if at < stop:  # a comma, perhaps a blank, and the next plane
            if text[at : at + 1] != b",":
                return None
            at += 2 if text[at + 1 : at + 2] == b" " else 1
    return np.concatenate(pieces)


def _planes(piece: bytes, n_y: int, n_z: int) -> Float[np.ndarray, "planes n_y n_z"] | None:
    """Read whole planes ``[[...],[...]],[[...]]``; None unless every row has `n_z` numbers and every plane `n_y` rows.

    Without the letters of numbers only brackets and commas are left, which must be those of such planes. Blanks stand after commas
    only, so no cell holds two words; and the parser must find as many numbers as there are cells, to the end.
    """
    row = b"[" + b"," * (n_z - 1) + b"]"
    plane = b"[" + b",".join([row] * n_y) + b"]"
    skeleton = piece.translate(None, OF_NUMBERS)
    n_planes = (len(skeleton) + 1) // (len(plane) + 1)
    if skeleton != b",".join([plane] * n_planes):
        return None
    letters = np.frombuffer(piece, np.uint8)
    if ((letters[1:] == ord(" ")) & (letters[:-1] != ord(","))).any():
        return None
    values = np.empty(n_planes * n_y * n_z)
    if not parse_numbers(piece.translate(BLANKED), values):
        return None
    return values.reshape(n_planes, n_y, n_z)


def _refuse_unit(unit: Unit | None) -> None:
    if unit is not None:
        raise ValueError(f"`unit` must be left out for JSON, whose unit is known, got {unit!r}")


def _finite_lattice(path: str, value: Any) -> Float[np.ndarray, "3 3"]:
    try:
        lattice = np.array(value, dtype=float)
    except (TypeError, ValueError):
        lattice = np.empty(0)
    if lattice.shape != (3, 3) or not np.isfinite(lattice).all() or abs(np.linalg.det(lattice)) < 1e-6:
        raise file_error(path, "no lattice", "three finite rows in Å that span a cell")
    return lattice


def _one_shape(path: str, grids: dict[str, Float[np.ndarray, "nx ny nz"]]) -> None:
    shapes = {name: values.shape for name, values in grids.items()}
    if len(set(shapes.values())) != 1:
        raise file_error(path, f"channels of different shapes {shapes}", "one grid for all")


def read_chgcar_json(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read a pymatgen Chgcar, Locpot or Elfcar from its JSON, as the Materials Project has it, also within ``{"data": {...}}``.

    Parameters
    ----------
    stream : TextStream
        At the beginning of the file.
    channels : sequence of str, optional
        Read these alone; the grids of the others are not looked at.
    quantity : str, optional
        What the numbers are; by default what the class says, and else what :func:`matminer_ed3d.readers.vasp.quantity_of` finds.
    unit : str, optional
        Must be left out.

    Returns
    -------
    Density
        An electron density in e/Å³ (the numbers, divided by the volume once), with the structure; of a non-collinear one without the
        ``diff`` that pymatgen derives. A Locpot or Elfcar with two sets has the channels ``up`` and ``down``.

    Raises
    ------
    DensityFileError
        If the text is not JSON, is cut short, or of something else; if a grid is ragged, of another shape than the first, or holds
        anything but finite numbers; names the line and the byte.
    """
    _refuse_unit(unit)
    text = _Text(stream)
    record = text.record
    if isinstance(record, dict) and "poscar" not in record and isinstance(record.get("data"), dict) and "poscar" in record["data"]:
        record = record["data"]
    data = record.get("data") if isinstance(record, dict) else None
    poscar = record.get("poscar") if isinstance(record, dict) else None
    if not isinstance(data, dict) or not isinstance(poscar, dict) or "total" not in data:
        raise file_error(stream.path, "JSON of something else", "that of a pymatgen Chgcar, with `poscar` and `data` of `total`")
    structure = structure_from_record(poscar.get("structure"), stream)
    names = [name for name in CHANNELS if name in data and data[name] is not None and not (name == "diff" and "diff_x" in data)]
    kind = record.get("@class")
    what = quantity or QUANTITIES.get(kind) or quantity_of(text.grid(data["total"], "total"), stream.path)
    titles = {name: SPINS.get(name, name) if what in ("potential", "elf") and names == ["total", "diff"] else name for name in names}
    wanted = kept_channels(stream.path, list(titles.values()), channels, what)
    grids = {title: text.grid(data[name], name) for name, title in titles.items() if title in wanted}
    _one_shape(stream.path, grids)
    if what == "electron_density":
        volume = float(structure.volume)
        for values in grids.values():
            values /= volume
    return Density(lattice=structure.lattice.matrix, channels=grids, structure=structure, quantity=what)


def read_density_json(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read what ``json.dumps(density.as_dict())`` wrote.

    Parameters
    ----------
    stream : TextStream
        At the beginning of the file.
    channels : sequence of str, optional
        Read these alone.
    quantity : str, optional
        Overrides the file's.
    unit : str, optional
        Must be left out.

    Returns
    -------
    Density
        Equal to the one that was written, bit by bit.

    Raises
    ------
    DensityFileError
        As :func:`read_chgcar_json`.
    """
    _refuse_unit(unit)
    text = _Text(stream)
    record = text.record
    present = record.get("channels") if isinstance(record, dict) else None
    if not isinstance(present, dict) or not present or "lattice" not in record:
        raise file_error(stream.path, "JSON of something else", "that of a Density, with `lattice` and `channels`")
    lattice = record["lattice"]
    lattice = _finite_lattice(stream.path, lattice.get("data") if isinstance(lattice, dict) else lattice)
    what, is_voxel_mean = record.get("quantity", "electron_density"), record.get("is_voxel_mean", False)
    if what not in UNITS or not isinstance(is_voxel_mean, bool):
        raise file_error(stream.path, f"quantity {what!r}, is_voxel_mean {is_voxel_mean!r}", f"one of {', '.join(UNITS)}; true or false")
    kept = kept_channels(stream.path, list(present), channels, quantity or what)
    grids = {name: text.grid(present[name], name) for name in kept}
    _one_shape(stream.path, grids)
    structure = record.get("structure")
    structure = None if structure is None else structure_from_record(structure, stream)
    try:
        return Density(lattice, grids, structure, is_voxel_mean, quantity or what)
    except ValueError as error:  # channels that the quantity does not have
        raise file_error(stream.path, f"no density ({error})", "what `Density.as_dict` wrote") from error
