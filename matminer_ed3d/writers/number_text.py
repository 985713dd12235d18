"""Numbers to text by the block, and text to gzip."""

from __future__ import annotations

from contextlib import AbstractContextManager
from io import BufferedIOBase
from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = ["gzipped", "write_values"]

BLOCK = 10_000  # numbers formatted at a time, or a little more


def write_values(file: BufferedIOBase, values: Float[np.ndarray, " n_values"], per_line: int = 5, factor: float = 1.0) -> None:
    """Write numbers, times `factor`, with 12 digits, `per_line` a line, which ends after the last of them.

    A blank stands before each, whatever its exponent: ``-1.00000000000E-120`` never touches its neighbour.
    """
    number = b" %17.11E"
    line = number * per_line + b"\n"
    n_lines = BLOCK // per_line
    block = line * n_lines
    step = n_lines * per_line
    for start in range(0, len(values), step):
        numbers = (factor * values[start : start + step]).tolist()
        if len(numbers) == step:
            file.write(block % tuple(numbers))
        else:
            whole, rest = divmod(len(numbers), per_line)
            text = line * whole + number * rest + b"\n" * bool(rest)
            file.write(text % tuple(numbers))


def gzipped(file: BufferedIOBase) -> AbstractContextManager[Any]:
    """Compress what is written; the same content makes the same bytes, for no name and no time is stored."""
    from isal.igzip import IGzipFile

    compressed: AbstractContextManager[Any] = IGzipFile(filename="", mode="wb", fileobj=file, compresslevel=2, mtime=0)  # type: ignore[no-untyped-call]
    return compressed
