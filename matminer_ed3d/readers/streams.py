"""Forward-only reading of text files full of numbers, plain or compressed, line by line and block by block.

The numbers go to pymatgen's compiled parser, which is fast and bit-exact but takes ``0.1-100`` for two numbers and stops without
a word at what it does not know. So every piece is checked: as many numbers as there are words, the last word read to its end, and
all finite; a piece that fails is read word by word, which mends what Fortran may write and names the line of what it may not.

What takes time in a good file is the parser (1.2 GB/s), the count of words (7 GB/s) and reading (15 GB/s), so nothing else looks at
every byte: a piece is asked for in whole lines, which saves the copies at its ends, and the lines of numbers are counted only when
somebody wants to know where he is, by reading the file once more.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip, isal_zlib
from jaxtyping import Float

from matminer_ed3d.readers.errors import DensityFileError, file_error

__all__ = ["COMPRESSIONS", "DAMAGED", "TextStream", "check_regular_file", "count_words", "open_stream", "parse_numbers"]

PIECE = 1 << 18  # bytes read at a time; a piece and what is made of it stay in the cache
LONGEST_LINE = 1 << 16  # of what is read as a line: headers, augmentation occupancies
LONGEST_TEXT = 1 << 25  # of what is read as a whole, such as a CIF; what parses it takes many times as much memory
MAX_BLANK_LINES = 10_000  # in a row
BYTES_PER_VALUE = 256  # a block of n values may not take more than this many bytes a value, blanks included

# First bytes, how to open, and the most bytes of text that a byte of the file can hold (deflate: 1032; the others are set).
COMPRESSIONS: tuple[tuple[bytes, Callable[[Any], Any], int], ...] = (
    (b"\x1f\x8b", lambda raw: igzip.IGzipFile(fileobj=raw), 1_100),  # type: ignore[no-untyped-call]
    (b"BZh", bz2.BZ2File, 50_000),
    (b"\xfd7zXZ\x00", lzma.LZMAFile, 10_000),
)

DAMAGED: tuple[type[Exception], ...] = (EOFError, zlib.error, isal_zlib.error, lzma.LZMAError, OSError)  # type: ignore[assignment]
"""What the openers of :data:`COMPRESSIONS` raise on data that are cut short, of a wrong checksum, or followed by something else."""

NUMBER = re.compile(rb"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
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
    reopen : callable
        Opens the same text again, for a ``with`` statement; errors want it, to count the lines of the numbers that were read.
    """

    def __init__(self, path: str | os.PathLike[str], file: Any, max_bytes: int, reopen: Callable[[], AbstractContextManager[Any]]) -> None:
        self.path = os.fspath(path)
        self.max_bytes = max_bytes
        self._file = file
        self._reopen = reopen
        self._buffer = b""
        self._at = 0  # how much of the buffer is consumed
        self._start = 0  # bytes of text before the buffer
        self._line = 0  # lines consumed, without those of the numbers between the bytes `_uncounted`
        self._uncounted: list[tuple[int, int]] = []
        self._line_length = 1  # of the last line of numbers
        self._bare_returns = False  # lines end in CR alone, as on the first Macintosh
        self._fill(PIECE)
        if self._buffer.startswith(b"\xef\xbb\xbf"):
            self._at = 3
        if b"\r" in self._buffer and b"\n" not in self._buffer:
            self._bare_returns = True
            self._buffer = self._buffer.replace(b"\r", b"\n")

    @property
    def line(self) -> int:
        """Lines consumed so far, which is the number of the last one read; after numbers it costs another reading of the file."""
        if self._uncounted:
            newline, position = b"\r" if self._bare_returns else b"\n", 0
            with self._reopen() as file, suppress(*DAMAGED):  # it was read before, perhaps in pieces of other sizes
                for start, end in self._uncounted:
                    while position < end and (piece := file.read(min(PIECE, end - position))):
                        self._line += piece[max(start - position, 0) :].count(newline)
                        position += len(piece)
            self._uncounted = []
        return self._line

    def mark(self) -> int:
        """Return where :meth:`line_at` later finds the line that was read last; no numbers may be read in between."""
        return self._line

    def line_at(self, mark: int) -> int:
        """Number of the line that was the last one when :meth:`mark` was called."""
        behind = self._line - mark  # before the numbers are counted
        return self.line - behind

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
            if not self._fill(PIECE):
                if self._at == len(self._buffer):
                    return None
                end = len(self._buffer)
                break
        line = self._buffer[self._at : end]
        self._at = min(end + 1, len(self._buffer))
        self._line += 1
        return line.strip()

    def next_line(self) -> bytes | None:
        """Return the next line that is not blank, or None at the end of the file."""
        for _ in range(MAX_BLANK_LINES):
            line = self.read_line()
            if line != b"":
                return line
        raise self.error(f"{MAX_BLANK_LINES} blank lines", "a density file; is it damaged?")

    def read_bytes(self, most: int = LONGEST_TEXT) -> bytes:
        """Return all that is left; an error if it is more than `most` bytes."""
        pieces, n_bytes = [], 0
        while True:
            pieces.append(self._buffer[self._at :])
            self._at = len(self._buffer)
            n_bytes += len(pieces[-1])
            if n_bytes > most:
                raise self.error(f"more than {most} bytes", "a file of less text")
            if not self._fill(PIECE):
                return b"".join(pieces)

    def read_rest(self) -> str:
        """Return all that is left, as text: UTF-8, or Latin-1 where it is not; at most `LONGEST_TEXT` bytes."""
        rest = self.read_bytes().replace(b"\r\n", b"\n")
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
        try:
            out = np.empty(n_values)
        except MemoryError as error:  # a small archive may announce more than it holds
            raise self.error(f"{n_values} values announced", "no more than memory holds") from error
        done, n_bytes = 0, 0
        while done < n_values:
            piece = self._piece()
            if not piece:
                raise self.error(f"the end of the file after {done} of {n_values} {what}", "all of them; is the file complete?")
            n_bytes += len(piece)
            if n_bytes > BYTES_PER_VALUE * n_values + PIECE:
                raise self.error(f"{done} numbers in {n_bytes} bytes", f"{n_values} {what}; is the file damaged?")
            piece, n_words = self._cut(piece, n_values - done)
            self._parse(piece, out[done : done + n_words], f"of {n_values} {what}", done)
            end = self._start + self._at
            self._uncounted.append((end - len(piece), end))
            done += n_words
        rest = self.read_line()
        if rest:
            raise self.error(f"{_show(rest.split()[0])} after the last of the {n_values} {what}", "the end of the line")
        return out

    def _fill(self, n_bytes: int) -> bool:
        """Append a piece of the file to the buffer; False at its end."""
        try:
            piece = self._file.read(n_bytes)
        except DAMAGED as error:
            raise file_error(self.path, f"damaged data after line {self.line} ({error})", "a complete file; fetch it again") from error
        if self._bare_returns:
            piece = piece.replace(b"\r", b"\n")
        self._start += self._at
        self._buffer = self._buffer[self._at :] + piece
        self._at = 0
        return bool(piece)

    def _piece(self) -> bytes:
        """Take what is in memory up to the end of its last whole line (or word); empty at the end of the file."""
        ended = False
        while True:
            left = len(self._buffer) - self._at
            if (
                not ended and left < PIECE // 2
            ):  # ask for whole lines, if they go on as long as the last: the rest of one would have to be copied
                n_bytes = PIECE // self._line_length * self._line_length - left
                ended = not self._fill(n_bytes if n_bytes > 0 else PIECE)
            newline = self._buffer.rfind(b"\n", self._at)
            if ended:
                end = len(self._buffer)
            elif newline >= 0:
                end = newline + 1
                self._line_length = newline - max(self._buffer.rfind(b"\n", self._at, newline), self._at - 1)
            else:
                end = 1 + max(self._buffer.rfind(b" ", self._at), self._buffer.rfind(b"\t", self._at))
            if end > self._at or ended:
                break
            if len(self._buffer) - self._at > LONGEST_LINE:  # no white space: a last word, or no text at all
                raise self.error(f"{_show(self.head(40))} ... without white space", "numbers", self.line + 1)
            ended = not self._fill(PIECE)
        piece = self._buffer[self._at : end]
        self._at = end
        return piece

    def _cut(self, piece: bytes, max_words: int) -> tuple[bytes, int]:
        """Cut a piece after `max_words` words and hand the rest back; return it with its number of words."""
        n_words = count_words(piece)
        if n_words < max_words:
            return piece, n_words
        dark = np.frombuffer(piece, np.uint8) > 32
        ends = np.flatnonzero(dark & ~np.append(dark[1:], False))
        end = int(ends[max_words - 1]) + 1
        self._at -= len(piece) - end  # the piece ends where the consumed part of the buffer does
        return piece[:end], max_words

    def _parse(self, piece: bytes, out: Float[np.ndarray, " n_words"], what: str, done: int) -> None:
        """Read all words of a piece into `out`."""
        if parse_numbers(piece, out):
            return
        mended = BARE_EXPONENT.sub(rb"E\1", D_EXPONENT.sub(b"E", piece))
        if parse_numbers(mended, out):
            return
        at = 0
        for n, line in enumerate(mended.split(b"\n")):
            for word in line.split():
                place = f"(number {done + at + 1} {what})"
                if not NUMBER.fullmatch(word):
                    raise self.error(_show(word), f"a number {place}", self.line + 1 + n)
                out[at] = float(word)
                if not np.isfinite(out[at]):
                    raise self.error(_show(word), f"a number that a double can hold {place}", self.line + 1 + n)
                at += 1


def count_words(text: bytes) -> int:
    """Count what white space (bytes up to 32) separates."""
    if not text:
        return 0
    dark = np.frombuffer(text, np.uint8) > 32
    n_edges = int(np.count_nonzero(dark[1:] != dark[:-1])) + int(dark[0]) + int(dark[-1])
    return n_edges // 2


def parse_numbers(piece: bytes, out: Float[np.ndarray, " n_words"]) -> bool:
    """Read `out.size` numbers with the compiled parser; False if that is not all of the piece, or one is not finite."""
    from pymatgen.optimization.fast_parser import parse_n_doubles

    if out.size == 0:
        return True
    file = io.BytesIO(piece)
    n_read = parse_n_doubles(file, out, out.size)
    if n_read != out.size or file.read().strip():
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(out.sum()))  # no array is made; a sum that overflows sends good numbers the slow way


def _show(word: bytes) -> str:
    text = word.decode("latin-1")
    return repr(text if len(text) <= 40 else text[:40] + "…")


def check_regular_file(path: str | os.PathLike[str]) -> os.stat_result:
    """Return the status of a file that may be opened and read.

    Raises
    ------
    DensityFileError
        If there is no such file, or it is a directory, a device, a socket or a pipe.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise file_error(path, "no such file", "the path of an existing file") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise file_error(path, f"an unreadable file ({error})", "a file that you may read") from error
    if stat.S_ISDIR(status.st_mode):
        raise file_error(path, "a directory", "a file; name the CHGCAR or CIF inside it")
    if not stat.S_ISREG(status.st_mode):
        raise file_error(path, "a device, socket or pipe", "a regular file; write the data to one first")
    return status


@contextmanager
def open_stream(path: str | os.PathLike[str]) -> Iterator[TextStream]:
    """Open a text file, plain or compressed by gzip, bzip2 or xz, whatever its suffix, for a ``with`` statement.

    Raises
    ------
    DensityFileError
        If there is no such file, it is a directory or a device, it is empty, or it cannot be read.
    """
    status = check_regular_file(path)
    place = Path(path)
    try:
        raw = place.open("rb", buffering=0)
    except OSError as error:
        raise file_error(path, f"an unreadable file ({error})", "a file that you may read") from error
    with raw:
        start = raw.read(8)
        raw.seek(0)
        opener, ratio = next(((o, r) for magic, o, r in COMPRESSIONS if start.startswith(magic)), (nullcontext, 1))

        @contextmanager
        def reopen() -> Iterator[Any]:
            with place.open("rb", buffering=0) as again, opener(again) as file:
                yield file

        with opener(raw) as file:
            stream = TextStream(path, file, status.st_size * ratio, reopen)
            if not stream.head(PIECE).strip():
                raise file_error(path, "an empty or blank file", "a density or a structure; was it written to the end?")
            yield stream
