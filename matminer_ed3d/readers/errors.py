"""The one error of all readers: which file, which line, what was found, what was expected."""

from __future__ import annotations

import os

__all__ = ["DensityFileError", "file_error"]


class DensityFileError(ValueError):
    """A file that does not hold what it should; the message names the file and, in a text file, the line.

    It takes one argument, the message: matminer makes a failed featurization's error anew from its text.
    """


def file_error(path: str | os.PathLike[str], found: str, expected: str, line: int | None = None) -> DensityFileError:
    """Make the error ``path:line: found ..., expected ...``.

    Parameters
    ----------
    path : str or PathLike
        The file as the caller named it.
    found, expected : str
        What is there, and what should be there or what to do about it.
    line : int, optional
        Line number, counted from 1.
    """
    place = os.fspath(path) if line is None else f"{os.fspath(path)}:{line}"
    return DensityFileError(f"{place}: found {found}, expected {expected}")
