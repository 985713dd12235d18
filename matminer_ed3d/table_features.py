"""Features of many files or table rows at once, however many: memory for a few, work that survives a kill, failures by name.

Results go to parts, files in a folder that appear whole or not at all, and each part says from which sources it was made. So what is
done is known at any time from the parts alone; a run that begins where another was cut makes the rest. An ``out`` that is a folder
keeps its parts; one that is a single file is put together from parts beside it when all is done.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from matminer_ed3d import datasets
from matminer_ed3d.atomic_files import replacing
from matminer_ed3d.conditions import ROW_ERRORS
from matminer_ed3d.representations import PointCloud, Sample, SparseTensor

__all__ = [
    "BatchReport",
    "NamedSource",
    "input_paths",
    "iter_samples",
    "load_samples",
    "named_sources",
    "read_path_list",
    "save_samples",
    "save_statistics",
]

OnError = Callable[[str, BaseException], None]

PARTS_FORMAT = 1
PART_BYTES = 64 << 20  # of arrays in memory before they become a part
PART_SECONDS = 60.0  # so that a killed run loses at most a minute of work
PART_ROWS = 1000
IN_FLIGHT = 4  # sources for each process that are under way or wait
OPTIONS_FILE = "options.json"
FAILURE_COLUMNS = ("name", "reason")
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class NamedSource:
    """One source and what it is called.

    Parameters
    ----------
    name : str
        Of its row or sample: the path as it was given, or the id in a table.
    source : Any
        A path, anything else that a featurizer takes, a dict with the columns of a table's row, or the error that is in its place.
    key : str
        No other source of a run has it.
    fingerprint : str
        Size and time of change of its file; empty where they are not known, and then the source is always made anew.
    """

    name: str
    source: Any
    key: str
    fingerprint: str = ""


@dataclass(frozen=True)
class BatchReport:
    """How many sources are done, how many of them by an earlier run, and how many failed."""

    n_done: int
    n_earlier: int
    n_failed: int


# Sources


def read_path_list(path: str | os.PathLike[str]) -> list[str]:
    """Read paths from a text file, one a line, blank lines left out; ``-`` is the standard input."""
    text = sys.stdin.read() if os.fspath(path) == "-" else Path(path).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def input_paths(paths: Iterable[str | os.PathLike[str]], without: Sequence[str | os.PathLike[str]] = ()) -> list[str]:
    """Replace each folder by the files in it and below, sorted by their paths; names that begin with a dot are left out.

    Parameters
    ----------
    paths : paths
        Files stand for themselves, there or not; links to folders inside a folder are not followed.
    without : paths
        Files and folders to leave out of folders, such as the output.
    """
    left_out = {os.path.realpath(path) for path in without}

    def files_in(folder: str) -> Iterator[str]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            yield folder  # the reader will say why
            return
        for entry in found:
            if entry.name.startswith(".") or os.path.realpath(entry.path) in left_out:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from files_in(entry.path)
            elif not entry.is_dir():
                yield entry.path

    out: list[str] = []
    for path in (os.fspath(path) for path in paths):
        out.extend(files_in(path) if Path(path).is_dir() else [path])
    return out


def named_sources(paths: Iterable[str | os.PathLike[str]]) -> Iterator[NamedSource]:
    """Yield every file, and every row of a parquet file; a table that cannot be read yields its error."""
    for path in map(str, paths):
        fingerprint = _fingerprint(path)
        if not path.endswith(".parquet"):
            yield NamedSource(path, path, path, fingerprint)
            continue
        try:
            table = datasets.read_structures(path)
        except ROW_ERRORS as error:
            yield NamedSource(path, error, path)
            continue
        for index, name in enumerate(table.values("id")):
            yield NamedSource(str(name), table.row(index), f"{path}:{index}", fingerprint)


def _fingerprint(path: str) -> str:
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return ""  # the reader will say why
    return f"{found.st_size}:{found.st_mtime_ns}"


# Parts: what a part is made of differs between samples and numbers, the rest does not


class _SampleParts:
    """Samples, one after another, in npz files of plain arrays."""

    suffix = ".npz"

    def size(self, result: list[Sample]) -> int:
        """Bytes of one result."""
        return int(result[0].coords.nbytes + result[0].feats.nbytes)

    def write(self, file: BinaryIO, rows: Sequence[tuple[NamedSource, list[Sample]]]) -> None:
        """Write a part."""
        samples = [result[0] for _, result in rows]
        arrays: dict[str, Any] = {
            "names": np.array([source.name for source, _ in rows], dtype=np.str_),
            "keys": np.array([source.key for source, _ in rows], dtype=np.str_),
            "fingerprints": np.array([source.fingerprint for source, _ in rows], dtype=np.str_),
            "channels": np.array(samples[0].channels, dtype=np.str_),
            "offsets": np.cumsum([0, *(sample.n_points for sample in samples)]),
            "coords": np.concatenate([sample.coords for sample in samples]),
            "feats": np.concatenate([sample.feats for sample in samples]),
        }
        if isinstance(samples[0], PointCloud):
            arrays["lattices"] = np.stack([sample.lattice for sample in samples if isinstance(sample, PointCloud)])
        else:
            voxels = [sample for sample in samples if isinstance(sample, SparseTensor)]
            arrays["voxel_bases"] = np.stack([sample.voxel_basis for sample in voxels])
            arrays["grid_shapes"] = np.array([sample.grid_shape or (0, 0, 0) for sample in voxels])  # 0: open space
        np.savez_compressed(file, **arrays)

    def index(self, path: Path) -> list[tuple[str, str, str]]:
        """Name, key and fingerprint of every row of a part."""
        with _open_npz(path) as part:
            return list(zip(*(part[name].tolist() for name in ("names", "keys", "fingerprints")), strict=True))

    def without(self, path: Path, drop: np.ndarray, file: BinaryIO) -> None:
        """Write a part again without some of its rows."""
        with _open_npz(path) as part:
            arrays = dict(part)
        counts = np.diff(arrays["offsets"])
        for name, array in arrays.items():
            if name in ("coords", "feats"):
                arrays[name] = array[np.repeat(~drop, counts)]
            elif name not in ("channels", "offsets"):
                arrays[name] = array[~drop]
        arrays["offsets"] = np.cumsum([0, *counts[~drop]])
        np.savez_compressed(file, **arrays)

    def together(self, paths: Sequence[Path], file: BinaryIO, suffix: str) -> None:
        """Write one file of all parts, with one of them in memory at a time."""
        small: dict[str, list[np.ndarray]] = {}
        n_points = 0
        for path in paths:
            with _open_npz(path) as part:
                for name in part.files:
                    if name not in ("coords", "feats"):
                        small.setdefault(name, []).append(part[name])
            offsets = small["offsets"].pop()
            small["offsets"].append(offsets[1:] + n_points)
            n_points += int(offsets[-1])
        arrays = {name: values[0] if name == "channels" else np.concatenate(values) for name, values in small.items()}
        arrays["offsets"] = np.concatenate([[0], arrays["offsets"]])
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                with _member(archive, name) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name in ("coords", "feats"):
                with _member(archive, name) as member:
                    for number, path in enumerate(paths):
                        with _open_npz(path) as part:
                            array = part[name]
                        if number == 0:
                            header = np.lib.format.header_data_from_array_1_0(array)
                            np.lib.format.write_array_header_1_0(member, {**header, "shape": (n_points, array.shape[1])})
                        member.write(np.ascontiguousarray(array).data)


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    info = zipfile.ZipInfo(f"{name}.npy")  # of 1980, so that equal samples give equal files
    info.compress_type = zipfile.ZIP_DEFLATED
    return archive.open(info, "w", force_zip64=True)


@contextmanager
def _open_npz(path: str | os.PathLike[str]) -> Iterator[Any]:
    try:
        # Opened here: numpy leaves a damaged file open.
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            yield file
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ValueError(f"{os.fspath(path)}: found no samples, or damaged ones ({error}); delete it and run again") from error


class _TableParts:
    """Numbers in parquet files, one row a source."""

    suffix = ".parquet"
    metadata_key = b"matminer_ed3d"

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)

    def size(self, result: list[float]) -> int:
        """Bytes of one result."""
        return 8 * len(result)

    def write(self, file: BinaryIO, rows: Sequence[tuple[NamedSource, list[float]]]) -> None:
        """Write a part."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        values = np.array([result for _, result in rows], dtype=float)
        columns = {"name": pa.array([source.name for source, _ in rows], pa.string())}
        columns |= {label: pa.array(values[:, i]) for i, label in enumerate(self.labels)}
        origins = [[source.key, source.fingerprint] for source, _ in rows]
        pq.write_table(pa.table(columns).replace_schema_metadata({self.metadata_key: json.dumps(origins)}), file)

    def index(self, path: Path) -> list[tuple[str, str, str]]:
        """Name, key and fingerprint of every row of a part."""
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as part:
                names = part.read(columns=["name"]).column("name").to_pylist()
                origins = json.loads(part.schema_arrow.metadata[self.metadata_key])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: found no statistics, or damaged ones ({error}); delete it and run again") from error
        return [(name, key, fingerprint) for name, (key, fingerprint) in zip(names, origins, strict=True)]

    def without(self, path: Path, drop: np.ndarray, file: BinaryIO) -> None:
        """Write a part again without some of its rows."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as part:
            table = part.read().filter(~drop)
        origins = [origin[1:] for origin, gone in zip(self.index(path), drop, strict=True) if not gone]
        pq.write_table(table.replace_schema_metadata({self.metadata_key: json.dumps(origins)}), file)

    def together(self, paths: Sequence[Path], file: BinaryIO, suffix: str) -> None:
        """Write one file of all parts, with one of them in memory at a time."""
        import pyarrow.parquet as pq

        writer = None
        for number, path in enumerate(paths):
            with pq.ParquetFile(path) as part:
                table = part.read().replace_schema_metadata(None)
            if suffix == ".csv":
                file.write(table.to_pandas().to_csv(index=False, header=number == 0).encode())
            else:
                writer = writer or pq.ParquetWriter(file, table.schema)
                writer.write_table(table)
        if writer is not None:
            writer.close()


# The run


def save_samples(
    sources: Iterable[NamedSource],
    featurizer: Any,
    out: str | os.PathLike[str],
    on_error: OnError,
    *,
    n_jobs: int = 1,
    resume: bool = True,
    part_bytes: int = PART_BYTES,
    failures: str | os.PathLike[str] | None = None,
    n_sources: int | None = None,
) -> BatchReport:
    """Sample every source; see :func:`iter_samples` for what comes of it.

    Parameters
    ----------
    sources : iterable of NamedSource
        See :func:`named_sources`; taken one by one.
    featurizer : DensityPointCloud or DensitySparseTensor
        With an int as `random_state`, every source draws from its own generator of this seed, so that a sample depends on its source only.
    out : path
        A folder, which keeps ``part_00000.npz`` and so on, ``index.csv`` and ``failures.csv``; or a file that ends in ``.npz``, put
        together from ``<out>.parts`` at the end. A run with a folder as `out` makes what is not there yet, and makes anew what has
        another size or time of change; a file is made as a whole, unless a run that was cut left its parts. What failed is tried again.
    on_error : callable
        Takes the name and the error of a source that cannot be sampled; it is left out.
    n_jobs : int
        Number of processes; -1 is one per core. One that is killed for its memory costs its source only.
    resume : bool
        False throws away what `out` holds from earlier runs.
    part_bytes : int
        Size of the arrays of a part. The memory of a run is a few times this, besides some hundred bytes a source for the names.
    failures : path, optional
        Table of what failed, csv with the columns ``name`` and ``reason``; by default ``failures.csv`` in the folder, or
        ``<out>.failures.csv``. Where nothing failed, there is none.
    n_sources : int, optional
        For the progress bar.

    Returns
    -------
    BatchReport

    Raises
    ------
    ValueError
        If `out` has another ending, parameters contradict each other, `out` holds what other parameters made, another run is writing
        there, or no source could be sampled.
    """
    run = _Run(_SampleParts(), (".npz",), "samples", Path(out), featurizer, on_error, n_jobs, resume, part_bytes, failures, n_sources)
    return run(sources)


def save_statistics(
    sources: Iterable[NamedSource],
    featurizer: Any,
    out: str | os.PathLike[str],
    on_error: OnError,
    *,
    n_jobs: int = 1,
    resume: bool = True,
    part_bytes: int = PART_BYTES,
    failures: str | os.PathLike[str] | None = None,
    n_sources: int | None = None,
) -> BatchReport:
    """Featurize every source and write one row each, with the source's name in the column ``name``.

    Parameters
    ----------
    sources : iterable of NamedSource
        See :func:`named_sources`.
    featurizer : matminer featurizer
        Numbers only.
    out : path
        A folder of parquet files, ``part_00000.parquet`` and so on; or a file that ends in ``.csv`` or ``.parquet``.
    on_error, n_jobs, resume, part_bytes, failures, n_sources
        As in :func:`save_samples`.

    Returns
    -------
    BatchReport

    Raises
    ------
    ValueError
        As :func:`save_samples`.
    """
    parts, endings = _TableParts(featurizer.feature_labels()), (".csv", ".parquet")
    run = _Run(parts, endings, "statistics", Path(out), featurizer, on_error, n_jobs, resume, part_bytes, failures, n_sources)
    return run(sources)


@dataclass(frozen=True, eq=False)
class _Run:
    """One run over sources; the fields are what :func:`save_samples` says."""

    parts: _SampleParts | _TableParts
    endings: tuple[str, ...]
    what: str
    out: Path
    featurizer: Any
    on_error: OnError
    n_jobs: int
    resume: bool
    part_bytes: int
    failures: str | os.PathLike[str] | None
    n_sources: int | None

    def __call__(self, sources: Iterable[NamedSource]) -> BatchReport:
        one_file = self.out.suffix in self.endings and not self.out.is_dir()
        if self.out.suffix and not one_file and not self.out.is_dir():
            endings = " or ".join(self.endings)
            raise ValueError(f"`out` must end in {endings} for {self.what}, or be a folder (one without a dot, or there), got {self.out}")
        self.featurizer.check()
        folder = self.out.with_name(self.out.name + ".parts") if one_file else self.out
        default = self.out.with_name(self.out.name + ".failures.csv") if one_file else self.out / "failures.csv"
        failures = Path(self.failures) if self.failures is not None else default
        with _locked(folder):
            self._prepare(folder)
            report = self._make(sources, folder, failures, keep_others=not one_file)
            if not report.n_done:
                if one_file:
                    _discard(folder)
                raise ValueError(f"no source could be featurized, nothing is written to {self.out}")
            if one_file:
                with replacing(self.out) as file:
                    self.parts.together(self._part_paths(folder), file, self.out.suffix)
                _discard(folder)
            else:
                self._write_index(folder)
        return report

    def _part_paths(self, folder: Path) -> list[Path]:
        return sorted(folder.glob(f"part_*{self.parts.suffix}"))

    def _prepare(self, folder: Path) -> None:
        """Refuse a folder that holds something else, and note what this run makes."""
        parameters = {k: v for k, v in self.featurizer.get_params(deep=False).items() if k not in ("cache", "n_jobs", "on_error")}
        options = {
            "format": PARTS_FORMAT,
            "version": version("matminer_ed3d"),
            "featurizer": type(self.featurizer).__name__,
            **json.loads(json.dumps(parameters)),
        }
        path = folder / OPTIONS_FILE
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if not self.resume:
                _delete_parts(folder)
            elif found != options:
                names = [name for name in {**found, **options} if found.get(name) != options.get(name)]
                said = ", ".join(f"{name} {found.get(name)!r} there, {options.get(name)!r} now" for name in names)
                raise ValueError(
                    f"{folder} holds what other options made ({said}); choose another `out`, or throw it away by resume=False (--no-resume)"
                )
        elif any(entry.name != ".lock" for entry in folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no {OPTIONS_FILE} of an earlier run; choose another `out`")
        with replacing(path) as file:
            file.write(json.dumps(options, indent=2).encode())

    def _make(self, sources: Iterable[NamedSource], folder: Path, failures: Path, keep_others: bool) -> BatchReport:
        """Make the parts that are missing; a folder keeps what earlier runs made of other sources, a file holds these alone."""
        from tqdm import tqdm

        done: dict[str, str] = {}
        for path in self._part_paths(folder):
            done |= {key: fingerprint for _, key, fingerprint in self.parts.index(path)}
        n_part = 1 + max((int(path.stem.removeprefix("part_")) for path in self._part_paths(folder)), default=-1)
        seen: set[str] = set()
        stale: set[str] = set()
        counts = {"earlier": 0, "made": 0}
        failed: list[tuple[str, str]] = []
        waiting: list[tuple[NamedSource, Any]] = []
        n_bytes, started = 0, time.monotonic()

        bar = tqdm(total=self.n_sources, desc=self.what, unit="source", file=sys.stderr, disable=None, mininterval=1)

        def to_do() -> Iterator[NamedSource]:
            for source in sources:
                if source.key in seen:
                    continue  # the same path given twice
                seen.add(source.key)
                if source.key in done:
                    if source.fingerprint and source.fingerprint == done[source.key]:
                        counts["earlier"] += 1
                        bar.update()
                        continue
                    stale.add(source.key)
                yield source

        def commit() -> None:
            nonlocal n_part, n_bytes, started
            if stale:  # before their like is written again
                self._drop(folder, stale)
                stale.clear()
            if waiting:
                with replacing(folder / f"part_{n_part:05d}{self.parts.suffix}") as file:
                    self.parts.write(file, waiting)
                n_part += 1
                counts["made"] += len(waiting)
                waiting.clear()
            _write_failures(failures, failed)
            n_bytes, started = 0, time.monotonic()

        with bar:
            for source, result in _results(self.featurizer, to_do(), self.n_jobs):
                bar.update()
                if isinstance(result, list):
                    waiting.append((source, result))
                    n_bytes += self.parts.size(result)
                else:
                    failed.append((source.name, " ".join(result.reason.split())))
                    with bar.external_write_mode(file=sys.stderr):
                        self.on_error(source.name, result.error or RuntimeError(result.reason))
                if n_bytes >= self.part_bytes or len(waiting) >= PART_ROWS or time.monotonic() - started > PART_SECONDS:
                    commit()
            if not keep_others:
                stale |= done.keys() - seen
            commit()
        return BatchReport(counts["earlier"] + counts["made"], counts["earlier"], len(failed))

    def _drop(self, folder: Path, keys: set[str]) -> None:
        """Take rows out of the parts that hold them."""
        for path in self._part_paths(folder):
            drop = np.array([key in keys for _, key, _ in self.parts.index(path)])
            if drop.all():
                path.unlink()
            elif drop.any():
                with replacing(path) as file:
                    self.parts.without(path, drop, file)

    def _write_index(self, folder: Path) -> None:
        with replacing(folder / "index.csv") as file:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(("name", "part", "row"))
            for path in self._part_paths(folder):
                writer.writerows((name, path.name, row) for row, (name, _, _) in enumerate(self.parts.index(path)))
                file.write(text.getvalue().encode())
                text.seek(0)
                text.truncate()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder; the lock dies with the process."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another run is writing to {folder}; wait for it, or choose another `out`") from error
    try:
        yield
    finally:
        if not (folder / OPTIONS_FILE).exists():  # nothing is left to guard
            with suppress(OSError):
                (folder / ".lock").unlink()
                folder.rmdir()
        lock.release()


def _delete_parts(folder: Path) -> None:
    """Delete what runs wrote, and nothing else."""
    for pattern in ("part_*.npz", "part_*.parquet", ".*.tmp", "index.csv", "failures.csv"):
        for path in folder.glob(pattern):
            path.unlink()


def _discard(folder: Path) -> None:
    _delete_parts(folder)
    (folder / OPTIONS_FILE).unlink()


def _write_failures(path: Path, failed: Sequence[tuple[str, str]]) -> None:
    """Write the table of failures, or delete that of an earlier run."""
    if failed:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([FAILURE_COLUMNS, *failed])
        with replacing(path) as file:
            file.write(text.getvalue().encode())
    elif path.is_file():
        with path.open("rb") as file:
            is_ours = file.readline().decode(errors="replace").strip() == ",".join(FAILURE_COLUMNS)
        if is_ours:
            path.unlink()


def _featurize_one(featurizer: Any, source: Any) -> Any:
    """Featurize in this process or another; a row of a table becomes a structure here."""
    from matminer_ed3d.featurizers import RowFailure, attempt

    if isinstance(source, Exception):
        return RowFailure.of(source)
    if isinstance(source, dict):
        try:
            source = datasets.structure_of_cell(datasets.cell_of_row(source))
        except ROW_ERRORS as error:
            return RowFailure.of(error)
    return attempt(featurizer, (source,))


def _results(featurizer: Any, sources: Iterable[NamedSource], n_jobs: int) -> Iterator[tuple[NamedSource, Any]]:
    """Yield each source with its features or its failure, in order, with few under way at a time."""
    from joblib import effective_n_jobs

    n_jobs = effective_n_jobs(n_jobs)
    if n_jobs == 1:
        for source in sources:
            yield source, _featurize_one(featurizer, source.source)
        return
    from joblib.externals.loky import ProcessPoolExecutor, get_reusable_executor

    # As joblib does: the processes share the cores, unless the user has said how many threads there shall be.
    threads = str(max(1, (os.cpu_count() or 1) // n_jobs))
    environment = {name: os.environ.get(name, threads) for name in THREAD_SETTINGS}

    def submit(source: NamedSource) -> Any:
        executor = get_reusable_executor(max_workers=n_jobs, kill_workers=True, env=environment)
        return executor.submit(_featurize_one, featurizer, source.source)

    def alone(source: NamedSource) -> Any:
        """Featurize in a process of its own, to see whether it is this source that kills processes."""
        from matminer_ed3d.featurizers import RowFailure

        executor = ProcessPoolExecutor(1, env=environment)  # its own: to resize one that is broken may wait for ever
        try:
            return executor.submit(_featurize_one, featurizer, source.source).result()
        except BrokenProcessPool:
            return RowFailure.of(RuntimeError("the process that featurized it was killed; was the memory too small?"))
        finally:
            executor.shutdown(kill_workers=True)

    under_way: deque[tuple[NamedSource, Any]] = deque()
    coming = iter(sources)
    while True:
        while len(under_way) < IN_FLIGHT * n_jobs and (following := next(coming, None)) is not None:
            try:
                under_way.append((following, submit(following)))
            except BrokenProcessPool:
                under_way.append((following, None))
        if not under_way:
            break
        source, future = under_way.popleft()
        try:
            result = future.result() if future is not None else alone(source)
        except BrokenProcessPool:  # nobody knows by whom: this and all that were under way are tried one at a time
            yield source, alone(source)
            while under_way:
                source, future = under_way.popleft()
                finished = future is not None and future.done() and future.exception() is None
                yield source, future.result() if finished else alone(source)
        else:
            yield source, result


# Reading


def load_samples(path: str | os.PathLike[str]) -> tuple[list[str], list[Sample]]:
    """Load all that :func:`save_samples` wrote at once; see :func:`iter_samples`.

    Returns
    -------
    names : list of str
    samples : list of PointCloud or SparseTensor
    """
    pairs = list(iter_samples(path))
    return [name for name, _ in pairs], [sample for _, sample in pairs]


def iter_samples(path: str | os.PathLike[str]) -> Iterator[tuple[str, Sample]]:
    """Yield name and sample of all that :func:`save_samples` wrote, with one file in memory at a time.

    Parameters
    ----------
    path : path
        An npz file, or a folder of them. A file holds the arrays ``names`` (n,), ``channels`` (C,), ``offsets`` (n + 1,), ``coords`` and
        ``feats`` of all samples one after another (sample i has the rows offsets[i] to offsets[i + 1]), and ``lattices`` (n, 3, 3) of
        point clouds, or ``voxel_bases`` (n, 3, 3) and ``grid_shapes`` (n, 3; zeros in open space) of voxels; ``keys`` and
        ``fingerprints`` (n,) say from which file and which state of it a sample was made.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no samples in the folder.
    ValueError
        If a file is damaged or something else.
    """
    path = Path(path)
    files = sorted(path.glob("part_*.npz")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path}: found no part_00000.npz or other, expected a folder that `save_samples` wrote")
    for file in files:
        with _open_npz(file) as opened:
            arrays = {name: opened[name] for name in opened.files}
        yield from _samples_of(arrays)


def _samples_of(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, Sample]]:
    channels = tuple(str(name) for name in arrays["channels"])
    offsets = arrays["offsets"].tolist()
    for i, name in enumerate(arrays["names"].tolist()):
        # Copies: a sample that is kept must not keep the whole file.
        coords, feats = (arrays[of][offsets[i] : offsets[i + 1]].copy() for of in ("coords", "feats"))
        if "lattices" in arrays:
            yield name, PointCloud(coords, feats, channels, arrays["lattices"][i])
        else:
            nx, ny, nz = (int(n) for n in arrays["grid_shapes"][i])
            yield name, SparseTensor(coords, feats, channels, arrays["voxel_bases"][i], (nx, ny, nz) if nx else None)
