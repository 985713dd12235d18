"""Tables of structures in parquet, and the lists of ids that a model has seen in training.

Columns of a table, one row a structure: ``id`` (text), ``formula`` (text), ``lattice`` (9 floats, rows a, b, c in Å),
``numbers`` (atomic numbers), ``frac`` (3 n_sites floats); optional ``sg_symprec_001`` and ``sg_symprec_01`` (space group numbers
by spglib at symprec 0.01 and 0.1 Å) and any others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from matminer_ed3d import protocols

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

__all__ = [
    "LABEL_COLUMNS",
    "StructureTable",
    "assigned_sides",
    "cell_of_row",
    "load_train_ids",
    "random_rows",
    "read_structures",
    "save_train_ids",
    "seen_in_training",
    "space_group_labels",
    "structure_of_cell",
]

REQUIRED_COLUMNS = ("id", "lattice", "numbers", "frac")
LABEL_COLUMNS = {0.1: "sg_symprec_01", 0.01: "sg_symprec_001"}
_MP_ID = re.compile(r"mp-(0|[1-9][0-9]{0,8})")


def cell_of_row(row: dict[str, Any]) -> protocols.Cell:
    """Return lattice, fractional coordinates and atomic numbers of one row of a table.

    Raises
    ------
    ValueError
        If a value is missing, of a wrong length, not finite or no atomic number.
    """
    missing = [name for name in ("lattice", "numbers", "frac") if row.get(name) is None]
    if missing:
        raise ValueError(f"a row needs lattice, numbers and frac, got no {', '.join(missing)}")
    lattice, frac = np.ravel(np.asarray(row["lattice"], dtype=float)), np.ravel(np.asarray(row["frac"], dtype=float))
    numbers = np.asarray(row["numbers"], dtype=float)
    if lattice.shape != (9,):
        raise ValueError(f"`lattice` must hold 9 numbers (rows a, b, c in Å), got {lattice.size}")
    if numbers.ndim != 1 or len(numbers) == 0 or frac.size != 3 * len(numbers):
        raise ValueError(f"`frac` must hold 3 numbers for each of the {numbers.size} atomic numbers (at least one), got {frac.size}")
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
        raise ValueError("`lattice` and `frac` must be finite, got NaN or infinity")
    if not ((numbers >= 1) & (numbers <= 118) & (numbers == np.round(numbers))).all():
        raise ValueError(f"`numbers` must be atomic numbers from 1 to 118, got {sorted(set(numbers.tolist()))}")
    if abs(np.linalg.det(lattice.reshape(3, 3))) < 1e-3:
        raise ValueError(f"`lattice` must have a volume, got the rows {lattice.reshape(3, 3).tolist()}")
    return lattice.reshape(3, 3), frac.reshape(-1, 3), numbers.astype(np.int64)


@dataclass(frozen=True, eq=False)
class StructureTable:
    """Rows of structures as they stand in a parquet file; a row becomes a structure only when asked for.

    Parameters
    ----------
    table : pyarrow Table
        With the columns that the head of this module names.
    path : str
        Where it came from, for messages.
    """

    table: Any
    path: str

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.table.num_rows)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.table.column_names)

    def values(self, column: str) -> list[Any]:
        """Return one whole column as Python values.

        Raises
        ------
        ValueError
            If there is no such column.
        """
        if column not in self.table.column_names:
            raise ValueError(f"{self.path}: column {column!r} is missing, got {self.columns}")
        return self.table.column(column).to_pylist()

    def row(self, index: int) -> dict[str, Any]:
        """Return one row as Python values, by column name."""
        return self.table.slice(index, 1).to_pylist()[0]

    def structure(self, index: int) -> Structure:
        """Build the pymatgen Structure of one row.

        Raises
        ------
        ValueError
            As :func:`cell_of_row`.
        """
        return structure_of_cell(cell_of_row(self.row(index)))

    def take(self, indices: Sequence[int] | np.ndarray) -> StructureTable:
        """Return the table of some rows, in the order given."""
        return StructureTable(self.table.take(np.asarray(indices, dtype=np.int64)), self.path)


def structure_of_cell(cell: protocols.Cell) -> Structure:
    """Build a pymatgen Structure from lattice, fractional coordinates and atomic numbers."""
    from pymatgen.core.periodic_table import Element
    from pymatgen.core.structure import Structure

    lattice, frac_coords, numbers = cell
    return Structure(lattice, [Element.from_Z(int(z)) for z in numbers], frac_coords)


def read_structures(path: str | os.PathLike[str], limit: int | None = None, columns: Sequence[str] | None = None) -> StructureTable:
    """Read a parquet file of structures.

    Parameters
    ----------
    path : path
        The file.
    limit : int, optional
        Read at most this many of its first rows.
    columns : sequence of str, optional
        Other columns to keep; default all.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no parquet file, or a column is missing.
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: expected a parquet file of structures, got something else ({error})") from error
    with file:
        names = file.schema_arrow.names
        missing = [name for name in (*REQUIRED_COLUMNS, *(columns or ())) if name not in names]
        if missing:
            raise ValueError(f"{path}: column(s) {', '.join(missing)} missing, got {names}; a table needs {', '.join(REQUIRED_COLUMNS)}")
        wanted = None if columns is None else list(dict.fromkeys((*REQUIRED_COLUMNS, *columns)))
        table = file.read(columns=wanted)
    if limit is not None:
        table = table.slice(0, limit)
    return StructureTable(table, str(path))


def save_train_ids(path: str | os.PathLike[str], ids: Iterable[str]) -> None:
    """Store the ids that a model has seen in training or validation: ``mp-<n>`` as numbers, all others as text."""
    numbers, others = [], []
    for text in map(str, ids):
        found = _MP_ID.fullmatch(text)
        if found:
            numbers.append(int(found[1]))
        else:
            others.append(text)
    with Path(path).open("wb") as file:
        np.savez_compressed(file, mp=np.unique(np.array(numbers, dtype=np.uint32)), other=np.array(sorted(set(others)), dtype=np.str_))


def load_train_ids(path: str | os.PathLike[str]) -> frozenset[str]:
    """Load what :func:`save_train_ids` stored.

    Raises
    ------
    ValueError
        If the file is none of ours.
    """
    with np.load(path, allow_pickle=False) as file:
        if not {"mp", "other"} <= set(file.files):
            raise ValueError(f"{path}: expected the arrays 'mp' and 'other' of a list of training ids, got {file.files}")
        return frozenset(f"mp-{n}" for n in file["mp"].tolist()) | frozenset(file["other"].tolist())


def seen_in_training(ids: Sequence[str], train_ids: frozenset[str]) -> Bool[np.ndarray, " n_rows"]:
    """Say of each id whether it is in a list of training ids."""
    return np.array([str(i) in train_ids for i in ids], dtype=bool)


def space_group_labels(table: StructureTable, symprec: float) -> list[int | None]:
    """Return the space group numbers of a table's label column at `symprec`; None where the table does not know.

    Raises
    ------
    ValueError
        If `symprec` is none that tables have labels for.
    """
    if symprec not in LABEL_COLUMNS:
        raise ValueError(f"`symprec` must be one of {sorted(LABEL_COLUMNS)}, got {symprec}")
    column = LABEL_COLUMNS[symprec]
    if column not in table.columns:
        return [None] * table.n_rows
    return [int(n) if n is not None and 1 <= n <= 230 else None for n in table.values(column)]


def random_rows(eligible: Int[np.ndarray, " n"], limit: int | None, seed: int) -> Int[np.ndarray, " m"]:
    """Return at most `limit` of some row numbers, drawn by `seed`, in ascending order."""
    if limit is None or limit >= len(eligible):
        return eligible
    return np.sort(np.random.default_rng(seed).choice(eligible, size=limit, replace=False))


def assigned_sides(table: StructureTable) -> np.ndarray:
    """Return the side of every row as :func:`~matminer_ed3d.protocols.assign_split` gives it.

    Raises
    ------
    ValueError
        If the table has no formulas or no labels at symprec 0.1.
    """
    missing = [name for name in ("formula", LABEL_COLUMNS[0.1]) if name not in table.columns]
    if missing:
        raise ValueError(f"{table.path}: a split by prototypes needs the column(s) {', '.join(missing)}; add them, or use the split 'all'")
    numbers = [number or 0 for number in space_group_labels(table, 0.1)]
    return protocols.assign_split(table.values("id"), [formula or "X" for formula in table.values("formula")], numbers)
