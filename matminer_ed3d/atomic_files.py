"""Files that are written all or nothing: a reader, at any time, finds the old file or the whole new one."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BufferedWriter]:
    """Open a new binary file that takes the place of `path` when the block ends well.

    The bytes go to a file of a name of its own in the same folder, so two writers cannot meet; they are on the disk before
    the name changes hands, and the name changes hands in one step. After an exception the new file is gone and the old one stays.

    Parameters
    ----------
    path : str or PathLike
        A folder that is missing is made. A file that is there keeps its permissions. A link is followed:
        the file that it names is replaced, the link stays.

    Yields
    ------
    binary file
        To write to; do not close it.

    Raises
    ------
    OSError
        If the folder cannot be written to, the disk is full, or `path` is there and read-only or no regular file.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with replacing(folder / "note.txt") as file:
    ...     _ = file.write(b"all of it")
    >>> [found.name for found in folder.iterdir()]
    ['note.txt']
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(f"`path` must be a regular file or none yet, found something else at {path}")
    if path.exists() and not os.access(path, os.W_OK):  # a name can be replaced where the file itself may not be written
        raise PermissionError(f"`path` must be a file that you may write, found a read-only one at {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not longer than the name of the target may be: 255 bytes on most systems.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            if path.exists():
                shutil.copymode(path, temporary)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk, where the system can open a folder (Windows cannot)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):  # some network file systems refuse; the content is safe already
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
