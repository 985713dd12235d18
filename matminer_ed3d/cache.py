"""A cache on disk that can be trusted, and downloads under the same rules.

An entry is written to a file of its own, which takes its name in one step when it is whole and on the disk; it carries a checksum,
which every reading verifies; its name is a hash of what it stands for. So neither two processes at once nor one that is killed can
leave a wrong entry. Locks only save work that would be done twice: they are the operating system's and die with their process.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from matminer_ed3d.atomic_files import replacing

__all__ = ["DiskCache", "download", "sha256_of_file"]

MAGIC = b"matminer_ed3d cache 1"
HEADER_BYTES = len(MAGIC) + 2 * 65 + 1  # the magic, the entry's name and the checksum of what follows, then a new line
LOCK_TIMEOUT = 600.0  # s to wait for the process that makes the same entry; then it is made here as well, which is safe
STALE = 86_400.0  # s: a temporary file as old as this belongs to a process that is no more
PIECE = 1 << 20  # bytes of a download in memory
MAX_DOWNLOAD = 1 << 34  # bytes
TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
CHECKSUM = re.compile(r"[0-9a-f]{64}")


class DiskCache:
    """A folder of entries, each some named arrays under a key.

    Parameters
    ----------
    folder : path
        Made when the first entry is written. Several processes may share it; on a network file system without locks they may do
        the same work twice.

    Notes
    -----
    A file is ``<folder>/ab/<62 hexadecimal digits>.entry``: one line of text with a magic word, the name again and the SHA-256 of
    the rest, which is a safetensors file. Nothing in it is ever executed. To drop an entry, or all of them, delete files at any time.

    Examples
    --------
    >>> import tempfile
    >>> cache = DiskCache(tempfile.mkdtemp())
    >>> key = {"what": "squares", "n": 3}
    >>> cache.get(key) is None
    True
    >>> cache.get_or_make(key, lambda: {"values": np.arange(3) ** 2})
    {'values': array([0, 1, 4])}
    >>> cache.get(key)
    {'values': array([0, 1, 4])}
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path_of(self, key: Mapping[str, Any]) -> Path:
        """Return where the entry of a key is, or would be; the name is the SHA-256 of the key as canonical JSON.

        Raises
        ------
        TypeError, ValueError
            If `key` is no JSON: plain values, lists and dicts, no NaN. Numpy scalars and tuples are taken for what they hold.
        """
        text = json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_plain)
        name = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.entry"

    def get(self, key: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """Return the arrays of an entry, or None where there is none; never writes.

        A damaged entry counts as none, with a RuntimeWarning that names its file.
        """
        path = self.path_of(key)
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        header, payload = content[:HEADER_BYTES], content[HEADER_BYTES:]
        if header != _header(path, payload):
            warnings.warn(f"{path}: the cache entry is damaged and will be made anew", RuntimeWarning, stacklevel=2)
            return None
        try:
            return safetensors_numpy.load(payload)
        except SafetensorError as error:  # the checksum is right: another program wrote it so
            raise ValueError(f"{path}: found no safetensors file after the checksum ({error}); delete it") from error

    def put(self, key: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write an entry, in place of an older one.

        Raises
        ------
        TypeError
            If an array holds anything but numbers and truth values.
        OSError
            If the folder cannot be written to or the disk is full; an older entry is then still there.
        """
        path = self.path_of(key)
        wrong = {name: str(array.dtype) for name, array in arrays.items() if array.dtype.kind not in "biuf"}
        if wrong:
            raise TypeError(f"`arrays` must hold numbers, got {wrong}")
        payload = safetensors_numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        with self._writing(path):
            with replacing(path) as file:
                file.write(_header(path, payload))
                file.write(payload)
            self._clean_daily()

    def get_or_make(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the arrays of an entry; where there is none, make and write it, while others who ask for it wait.

        Parameters
        ----------
        key : mapping
            As in :meth:`path_of`.
        make : callable
            Gives the arrays. What it raises passes through, and nothing is written.
        """
        found = self.get(key)
        if found is not None:
            return found
        with self._only_one(self.path_of(key)) as had_to_wait:
            if had_to_wait:
                found = self.get(key)
                if found is not None:
                    return found
            made = dict(make())
            self.put(key, made)
            return made

    def clean(self, max_age: float = STALE) -> int:
        """Delete what killed processes left: temporary files, and locks that nobody holds, older than `max_age` seconds.

        Returns
        -------
        int
            Number of files deleted.
        """
        return _delete_old(self.folder.glob("*/.*.tmp"), max_age) + _delete_old(self.folder.glob("*/*.lock"), max_age)

    def _clean_daily(self) -> None:
        """Clean once a day, whichever process comes first; a file in the folder tells when it was done last."""
        mark = self.folder / "cleaned"
        with suppress(FileNotFoundError):
            if mark.stat().st_mtime > time.time() - STALE:
                return
        mark.touch()
        self.clean()

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                error.errno, f"cannot write to the cache {self.folder}: {reason}; make room, or choose another folder or none", str(path)
            ) from error

    @contextmanager
    def _only_one(self, path: Path) -> Iterator[bool]:
        """Hold the lock of an entry; tell whether somebody else held it before."""
        lock = FileLock(path.with_suffix(".lock"))
        with self._writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
                had_to_wait = path.exists()  # written since we looked
            except Timeout:
                had_to_wait = True
                with suppress(Timeout):
                    lock.acquire(timeout=LOCK_TIMEOUT)
        try:
            yield had_to_wait
        finally:
            if lock.is_locked:
                # Whoever still waits for the file that goes finds the entry when it gets it, or makes it once more.
                with suppress(OSError):  # Windows keeps what is open
                    path.with_suffix(".lock").unlink()
                lock.release()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a key must hold plain values, got {type(value).__name__}")


def _header(path: Path, payload: bytes) -> bytes:
    name = path.parent.name + path.stem
    return b"%s %s %s\n" % (MAGIC, name.encode(), hashlib.sha256(payload).hexdigest().encode())


def _delete_old(paths: Iterable[Path], max_age: float) -> int:
    n_deleted, oldest = 0, time.time() - max_age
    for path in paths:
        with suppress(OSError):  # gone already, or another user's
            if path.stat().st_mtime < oldest and (path.suffix != ".lock" or not _is_held(path)):
                path.unlink()
                n_deleted += 1
    return n_deleted


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Downloads


def download(
    url: str,
    folder: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    max_bytes: int = MAX_DOWNLOAD,
    timeout: float = 60.0,
    n_attempts: int = 4,
    backoff: float = 1.0,
) -> Path:
    """Fetch a file once, whole or not at all; archives are left packed.

    Parameters
    ----------
    url : str
        http or https.
    folder : path
        The file is named there by a hash of the URL and the URL's last part, letters, digits, ``.``, ``_`` and ``-`` only.
    sha256 : str, optional
        What the file must be. A file that is there already is fetched again if it is not this one. Without it the checksum of the
        first download, kept beside the file in ``<name>.sha256``, has to fit.
    max_bytes : int
        Refuse more.
    timeout : float
        Seconds without an answer.
    n_attempts : int
        How often to try where the connection breaks or the server says that it is busy (408, 429, 500, 502, 503, 504); other errors
        are final.
    backoff : float
        Seconds before the second attempt, doubled each time.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If the URL is none of http or https, or the file is too large, another than `sha256`, or an HTML page.
    OSError
        If it cannot be fetched or written.
    """
    if sha256 is not None and not CHECKSUM.fullmatch(sha256 := sha256.lower()):
        raise ValueError(f"`sha256` must be 64 hexadecimal digits, got {sha256!r}")
    if n_attempts < 1:
        raise ValueError(f"`n_attempts` must be at least 1, got {n_attempts}")
    path = Path(folder) / _file_name(url)
    record = path.with_name(path.name + ".sha256")
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_old(path.parent.glob(".*.tmp"), STALE)
    with FileLock(path.with_name(path.name + ".lock")):
        with suppress(FileNotFoundError):
            if sha256_of_file(path) == (sha256 or record.read_text(encoding="ascii")):
                return path
        for attempt in range(n_attempts):
            if attempt:
                time.sleep(backoff * 2 ** (attempt - 1))
            try:
                _fetch(url, path, record, sha256, max_bytes, timeout)
            except _TransientError as error:
                failure = error
            else:
                return path
    raise OSError(f"{url}: {failure}, in {n_attempts} attempts; try again later")


class _TransientError(OSError):
    """It may go better next time."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow the server, but not from https to anything else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        _check_url(newurl)
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise ValueError(f"{req.full_url}: the server points to {newurl}, without encryption; expected https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError(f"`url` must begin with http:// or https:// and a host, and hold no blanks, got {url!r}")


def _file_name(url: str) -> str:
    """Name that no other URL has, on file systems that ignore case too."""
    _check_url(url)
    last = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{re.sub(r'[^A-Za-z0-9._-]+', '_', last)[-100:] or 'file'}"


def _fetch(url: str, path: Path, record: Path, sha256: str | None, max_bytes: int, timeout: float) -> None:
    """Make one attempt."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "matminer_ed3d"})
    opener = urllib.request.build_opener(_Redirects)
    try:
        with opener.open(request, timeout=timeout) as response, replacing(path) as file:
            announced = response.headers.get("Content-Length")
            if response.headers.get_content_type() == "text/html":
                raise ValueError(f"{url}: found an HTML page, expected a file; does the server ask for a login?")
            if announced and int(announced) > max_bytes:
                raise ValueError(f"{url}: found {announced} bytes, expected at most {max_bytes}; raise `max_bytes`")
            digest, n_bytes = hashlib.sha256(), 0
            while piece := response.read(PIECE):
                n_bytes += len(piece)
                if n_bytes > max_bytes:
                    raise ValueError(f"{url}: found more than {max_bytes} bytes, expected at most these; raise `max_bytes`")
                digest.update(piece)
                file.write(piece)
            if announced and n_bytes != int(announced):
                raise _TransientError(f"the connection ended after {n_bytes} of {announced} bytes")
            if sha256 is not None and digest.hexdigest() != sha256:
                raise ValueError(f"{url}: found a file with SHA-256 {digest.hexdigest()}, expected {sha256}")
            # A process that is killed between the two leaves a record that fits nothing, and the next call fetches again.
            with replacing(record) as text:
                text.write(digest.hexdigest().encode())
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in TRANSIENT_STATUS:
            raise _TransientError(f"the server answered {error.code} {error.reason}") from error
        raise OSError(f"{url}: the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError | ConnectionError):
            raise _TransientError(f"no connection ({error.reason})") from error
        raise OSError(f"{url}: no connection ({error.reason})") from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _TransientError(f"the connection broke ({type(error).__name__}: {error})") from error
