"""What the readers of binary files share: a real file to open, options that fit the format, and HDF5 read with its size in view."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from matminer_ed3d.density import Quantity
from matminer_ed3d.readers.errors import DensityFileError, file_error
from matminer_ed3d.readers.streams import COMPRESSIONS, DAMAGED, TextStream, check_regular_file
from matminer_ed3d.readers.units import BOHR, Unit

__all__ = ["chosen_channels", "density_unit", "find_object", "open_hdf5", "plain_file", "read_dataset", "structure_or_none"]

MOST_BYTES = 1 << 32  # of a file, and of one array in it
PIECE = 1 << 20
FILTER_RATIO = 1_100  # the most that a filter of HDF5 can squeeze: deflate, as in gzip


@contextmanager
def plain_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the path of an uncompressed file, for a library that opens its files itself; for a ``with`` statement.

    Parameters
    ----------
    path : str or PathLike
        A file, plain or compressed by gzip, bzip2 or xz (the content decides).

    Yields
    ------
    Path
        `path` itself if the file is plain, else a temporary file with its text, which is removed at the end.

    Raises
    ------
    DensityFileError
        If it is no regular file, is damaged, or holds more than 4 GiB or than its compression can hold.
    """
    place, status = Path(path), check_regular_file(path)
    try:
        with place.open("rb") as raw:
            start = raw.read(8)
    except OSError as error:
        raise file_error(path, f"an unreadable file ({error})", "a file that you may read") from error
    opener, ratio = next(((o, r) for magic, o, r in COMPRESSIONS if start.startswith(magic)), (None, 1))
    most = min(MOST_BYTES, status.st_size * ratio)
    if opener is None:
        if status.st_size > MOST_BYTES:
            raise file_error(path, f"{status.st_size} bytes", f"at most {MOST_BYTES}")
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="matminer_ed3d_") as folder:
        inflated = Path(folder) / "inflated"
        with place.open("rb") as raw, inflated.open("wb") as out:
            try:
                with opener(raw) as file:
                    n_bytes = 0
                    while piece := file.read(PIECE):
                        n_bytes += len(piece)
                        if n_bytes > most:
                            raise file_error(path, f"more than {most} bytes in {status.st_size} compressed ones", "no more; is it damaged?")
                        out.write(piece)
            except DAMAGED as error:
                raise file_error(path, f"damaged data ({error})", "a complete file; fetch it again") from error
        yield inflated


def chosen_channels(stream: TextStream, present: Sequence[str], channels: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names to read, in the order of the file; all that are `present` if `channels` is None.

    Raises
    ------
    DensityFileError
        If a channel is not in the file.
    """
    missing = [name for name in channels or () if name not in present]
    if missing:
        raise stream.error(f"the channels {', '.join(present)}", f"also {', '.join(missing)}, which `channels` asks for")
    return tuple(name for name in present if channels is None or name in channels)


def density_unit(own: Unit, unit: Unit | None, quantity: Quantity) -> float:
    """Return what the file's values are to be multiplied by for e/Å³, where `own` is the unit of the format.

    Raises
    ------
    ValueError
        If `unit` is unknown, or is given for something that is no electron density.
    """
    if unit is None:
        return 1.0 if own == "e/A^3" else BOHR**-3
    if quantity != "electron_density":
        raise ValueError(f"`unit` belongs to an electron density, got {unit!r} for the quantity {quantity!r}; leave it out")
    if unit not in ("e/A^3", "e/bohr^3"):
        raise ValueError(f"`unit` must be 'e/A^3' or 'e/bohr^3', got {unit!r}")
    return 1.0 if unit == "e/A^3" else BOHR**-3


def structure_or_none(stream: TextStream, lattice: np.ndarray, symbols: Sequence[str], coords: np.ndarray, cartesian: bool = False) -> Any:
    """Make a pymatgen Structure of the atoms of a file; None where it names none.

    Parameters
    ----------
    lattice : (3, 3) float
        Rows in Å.
    symbols : sequence of str
        Element of each atom.
    coords : (n_atoms, 3) float
        Fractional, or in Å if `cartesian`.

    Raises
    ------
    DensityFileError
        If a symbol is no element, or there are not as many coordinates as symbols, or one is not finite.
    """
    from pymatgen.core.periodic_table import Element
    from pymatgen.core.structure import Structure

    if len(symbols) == 0:
        return None
    unknown = [symbol for symbol in symbols if not Element.is_valid_symbol(symbol)]
    if unknown:
        raise stream.error(f"species {unknown[0]!r}", "an element of the periodic table")
    if coords.shape != (len(symbols), 3) or not np.isfinite(coords).all():
        raise stream.error(f"coordinates of shape {coords.shape}", f"three finite numbers for each of {len(symbols)} atoms")
    return Structure(lattice, list(symbols), coords, coords_are_cartesian=cartesian)


# --- HDF5 --------------------------------------------------------------------------------------------------------------------------

HDF5_ERRORS = (OSError, KeyError, RuntimeError, TypeError, ValueError, OverflowError, MemoryError)  # what h5py raises on damaged files


@contextmanager
def open_hdf5(path: Path, stream: TextStream) -> Iterator[Any]:
    """Open an HDF5 file for reading; for a ``with`` statement.

    Raises
    ------
    ImportError
        If h5py is not installed.
    DensityFileError
        If the file is damaged.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 and netCDF-4 files need h5py; pip install 'matminer_ed3d[hdf5]'") from error
    try:
        file = h5py.File(path, "r", locking=False)
    except HDF5_ERRORS as error:
        raise stream.error(f"damaged HDF5 ({error})", "a complete file; fetch it again") from error
    with file:
        yield file


def find_object(file: Any, name: str, stream: TextStream) -> Any:
    """Return a group or dataset of an HDF5 file, following hard links only; None if there is none.

    Raises
    ------
    DensityFileError
        If a link leads to another place, in this file or another, or the file is damaged.
    """
    import h5py

    here = file
    try:
        for part in name.split("/"):
            link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise stream.error(f"a link to another place at {name}", "data inside the file; links are not followed")
            here = here.get(part)
    except DensityFileError:
        raise
    except HDF5_ERRORS as error:
        raise stream.error(f"{name} that cannot be read ({error})", "a complete file; fetch it again") from error
    return here


def read_dataset(file: Any, name: str, stream: TextStream, selection: Any = ()) -> np.ndarray | None:
    """Read a dataset of an HDF5 file once its size is known to fit the file.

    Parameters
    ----------
    file : h5py.File
        Of :func:`open_hdf5`.
    name : str
        Names of groups and of the dataset, joined by ``/``.
    selection : index, optional
        What of it to read; all of it by default.

    Returns
    -------
    array or None
        Numbers, or bytes of a fixed length; None if there is no such dataset.

    Raises
    ------
    DensityFileError
        If data lie outside the file, are neither numbers nor text, are not all there, or are more than the file can hold.
    """
    import h5py

    try:
        dataset = find_object(file, name, stream)
        if dataset is None:
            return None
        if not isinstance(dataset, h5py.Dataset):
            raise stream.error(f"a group at {name}", "a dataset")
        if dataset.is_virtual or dataset.external:
            raise stream.error(f"data in other files at {name}", "data inside the file; other files are not opened")
        if dataset.shape is None or dataset.dtype.kind not in "fiuS":
            raise stream.error(f"{name} of type {dataset.dtype}", "numbers or text of fixed length")
        n_bytes, stored = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
        filtered = dataset.id.get_create_plist().get_nfilters() > 0
        file_size = Path(file.filename).stat().st_size
        if n_bytes > min(MOST_BYTES, stored * (FILTER_RATIO if filtered else 1)) or stored > file_size:
            raise stream.error(
                f"{name} of shape {dataset.shape} ({n_bytes} bytes) in {stored} stored bytes of a file of {file_size}",
                "values that are all stored in the file; is it complete?",
            )
        return np.asarray(dataset[selection])
    except DensityFileError:
        raise
    except HDF5_ERRORS as error:
        raise stream.error(f"{name} that cannot be read ({error})", "a complete file; fetch it again") from error
