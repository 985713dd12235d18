"""Forward-only reading of text files full of numbers, plain or compressed, line by line and block by block.

The numbers go to pymatgen's compiled parser, which is fast and bit-exact but takes ``0.1-100`` for two numbers and stops without
a word at what it does not know. So every piece is checked: as many numbers as there are words, the last word read to its end, and
all finite; a piece that fails is read word by word, which mends what Fortran may write and names the line of what it may not.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d.readers.errors import DensityFileError, file_error

__all__ = ["TextStream", "open_stream"]

PIECE = 1 << 20  # bytes read at a time
LONGEST_LINE = 1 << 16  # of what is read as a line: headers, augmentation occupancies
LONGEST_TEXT = 1 << 28  # of what is read as a whole: CIF and JSON
MAX_BLANK_LINES = 10_000  # in a row
BYTES_PER_VALUE = 256  # a block of n values may not take more than this many bytes a value, blanks included

# First bytes, how to open, and the most bytes of text that a byte of the file can hold (deflate: 1032; the others are set).
COMPRESSIONS: tuple[tuple[bytes, Callable[[Any], Any], int], ...] = (
    (b"\x1f\x8b", lambda raw: gzip.GzipFile(fileobj=raw), 1_100),
    (b"BZh", bz2.BZ2File, 50_000),
    (b"\xfd7zXZ\x00", lzma.LZMAFile, 10_000),
)

NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
BARE_EXPONENT = re.compile(rb"(?<=[\d.])([+-]\d{3})(?![^\s])")  # Fortran drops the E when the exponent has three digits
D_EXPONENT = re.compile(rb"(?<=[\d.])[dD](?=[+-]?\d)")


class TextStream:
    """A text file read once, from its beginning to its end.

    Parameters
    ----------
    path : str or PathLike
        Named in errors.
    file : binary file
        Gives the text, already inflated.
    max_bytes : int
        More text than this cannot be in the file; a block of values that needs more is refused before memory is taken.
    """

    def __init__(self, path: str | os.PathLike[str], file: io.BufferedIOBase, max_bytes: int) -> None:
        self.path = os.fspath(path)
        self.max_bytes = max_bytes
        self.line = 0  # lines consumed so far; the number of the last one read
        self._file = file
        self._buffer = b""
        self._at = 0  # how much of the buffer is consumed
        self._bare_returns = False  # lines end in CR alone, as on the first Macintosh
        self._fill()
        self._buffer = self._buffer.removeprefix(b"\xef\xbb\xbf")
        if b"\r" in self._buffer and b"\n" not in self._buffer:
            self._bare_returns = True
            self._buffer = self._buffer.replace(b"\r", b"\n")

    def error(self, found: str, expected: str, line: int | None = None) -> DensityFileError:
        """Make an error at the last line read, or at `line`."""
        return file_error(self.path, found, expected, line or self.line or None)

    def head(self, n_bytes: int) -> bytes:
        """Return what comes next without consuming it; up to the piece that is in memory."""
        return self._buffer[self._at : self._at + n_bytes]

    def read_line(self) -> bytes | None:
        """Return the next line without the white space at its ends, or None at the end of the file."""
        while (end := self._buffer.find(b"\n", self._at)) < 0:
            if len(self._buffer) - self._at > LONGEST_LINE:
                raise self.error(f"a line of more than {LONGEST_LINE} bytes", "lines of text; is this the right file?", self.line + 1)
            if not self._fill():
                if self._at == len(self._buffer):
                    return None
                end = len(self._buffer)
                break
        line = self._buffer[self._at : end]
        self._at = min(end + 1, len(self._buffer))
        self.line += 1
        return line.strip()

    def next_line(self) -> bytes | None:
        """Return the next line that is not blank, or None at the end of the file."""
        for _ in range(MAX_BLANK_LINES):
            line = self.read_line()
            if line != b"":
                return line
        raise self.error(f"{MAX_BLANK_LINES} blank lines", "a density file; is it damaged?")

    def read_rest(self) -> str:
        """Return all that is left, as text: UTF-8, or Latin-1 where it is not; at most `LONGEST_TEXT` bytes."""
        while self._fill():
            if len(self._buffer) > LONGEST_TEXT:
                raise self.error(f"more than {LONGEST_TEXT} bytes", "the text of a structure")
        rest, self._at = self._buffer[self._at :].replace(b"\r\n", b"\n"), len(self._buffer)
        try:
            return rest.decode()
        except UnicodeDecodeError:
            return rest.decode("latin-1")

    def read_values(self, n_values: int, what: str) -> Float[np.ndarray, " n_values"]:
        """Read exactly `n_values` numbers, which must end at the end of a line.

        Parameters
        ----------
        n_values : int
            How many.
        what : str
            Their name in errors.

        Raises
        ------
        DensityFileError
            If the file cannot hold that many, ends early, or holds more or something else.
        """
        if 2 * n_values > self.max_bytes:
            raise self.error(f"{n_values} values announced", f"no more than the {self.max_bytes // 2} that a file of this size can hold")
        out = np.empty(n_values)
        done, n_bytes = 0, 0
        while done < n_values:
            piece = self._piece()
            if not piece:
                raise self.error(f"the end of the file after {done} of {n_values} {what}", "all of them; is the file complete?")
            n_bytes += len(piece)
            if n_bytes > BYTES_PER_VALUE * n_values + PIECE:
                raise self.error(f"{done} numbers in {n_bytes} bytes", f"{n_values} {what}; is the file damaged?")
            piece, n_words = self._cut(piece, n_values - done)
            self._parse(piece, out[done : done + n_words], f"number {{}} of {n_values} {what}", done)
            self.line += piece.count(b"\n")
            done += n_words
        rest = self.read_line()
        if rest:
            raise self.error(f"{_show(rest.split()[0])} after the last of the {n_values} {what}", "the end of the line")
        return out

    def _fill(self) -> bool:
        """Append a piece of the file to the buffer; False at its end."""
        try:
            piece = self._file.read(PIECE)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            raise file_error(self.path, f"damaged data after line {self.line} ({error})", "a complete file; fetch it again") from error
        if self._bare_returns:
            piece = piece.replace(b"\r", b"\n")
        self._buffer = self._buffer[self._at :] + piece
        self._at = 0
        return bool(piece)

    def _piece(self) -> bytes:
        """Take what is in memory up to the end of its last whole line (or word); empty at the end of the file."""
        ended = False
        if len(self._buffer) - self._at < PIECE // 2:
            ended = not self._fill()
        end = len(self._buffer)
        if not ended:
            newline = self._buffer.rfind(b"\n", self._at)
            end = 1 + (newline if newline >= 0 else max(self._buffer.rfind(b" ", self._at), self._buffer.rfind(b"\t", self._at)))
            if end <= self._at:  # no white space: a last word, or no text at all
                if len(self._buffer) - self._at > LONGEST_LINE:
                    raise self.error(f"{_show(self.head(40))} ... without white space", "numbers", self.line + 1)
                if self._fill():
                    return self._piece()
                end = len(self._buffer)
        piece = self._buffer[self._at : end]
        self._at = end
        return piece

    def _cut(self, piece: bytes, max_words: int) -> tuple[bytes, int]:
        """Cut a piece after `max_words` words and hand the rest back; return it with its number of words."""
        dark = np.frombuffer(piece, np.uint8) > 32
        n_words = int(np.count_nonzero(dark[1:] & ~dark[:-1])) + int(dark[0])
        if n_words < max_words:
            return piece, n_words
        ends = np.flatnonzero(dark & ~np.append(dark[1:], False))
        end = int(ends[max_words - 1]) + 1
        self._at -= len(piece) - end  # the piece ends where the consumed part of the buffer does
        return piece[:end], max_words

    def _parse(self, piece: bytes, out: Float[np.ndarray, " n_words"], what: str, done: int) -> None:
        """Read all words of a piece into `out`."""
        if _parse_fast(piece, out):
            return
        mended = BARE_EXPONENT.sub(rb"E\1", D_EXPONENT.sub(b"E", piece))
        if _parse_fast(mended, out):
            return
        at = 0
        for n, line in enumerate(mended.split(b"\n")):
            for word in line.split():
                place = f"a number ({what.format(done + at + 1)})"
                if not NUMBER.fullmatch(word):
                    raise self.error(_show(word), place, self.line + 1 + n)
                out[at] = float(word)
                if not np.isfinite(out[at]):
                    raise self.error(_show(word), f"a number that a double can hold ({what.format(done + at + 1)})", self.line + 1 + n)
                at += 1


def _parse_fast(piece: bytes, out: Float[np.ndarray, " n_words"]) -> bool:
    """Read `out.size` numbers with the compiled parser; False if that is not all of the piece, or one is not finite."""
    from pymatgen.optimization.fast_parser import parse_n_doubles

    if out.size == 0:
        return True
    file = io.BytesIO(piece)
    n_read = parse_n_doubles(file, out, out.size)
    return bool(n_read == out.size and not file.read().strip() and np.isfinite(out).all())


def _show(word: bytes) -> str:
    text = word.decode("latin-1")
    return repr(text if len(text) <= 40 else text[:40] + "…")


@contextmanager
def open_stream(path: str | os.PathLike[str]) -> Iterator[TextStream]:
    """Open a text file, plain or compressed by gzip, bzip2 or xz, whatever its suffix, for a ``with`` statement.

    Raises
    ------
    DensityFileError
        If there is no such file, it is a directory or a device, it is empty, or it cannot be read.
    """
    place = Path(path)
    try:
        status = place.stat()
        if stat.S_ISDIR(status.st_mode):
            raise file_error(path, "a directory", "a file; name the CHGCAR or CIF inside it")
        if not stat.S_ISREG(status.st_mode):
            raise file_error(path, "a device, socket or pipe", "a regular file; write the data to one first")
        raw = place.open("rb")
    except FileNotFoundError as error:
        raise file_error(path, "no such file", "the path of an existing file") from error
    except DensityFileError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise file_error(path, f"an unreadable file ({error})", "a file that you may read") from error
    with raw:
        start = raw.read(8)
        raw.seek(0)
        opener, ratio = next(((o, r) for magic, o, r in COMPRESSIONS if start.startswith(magic)), (nullcontext, 1))
        with opener(raw) as file:
            stream = TextStream(path, file, status.st_size * ratio)
            if not stream.head(PIECE).strip():
                raise file_error(path, "an empty or blank file", "a density or a structure; was it written to the end?")
            yield stream
