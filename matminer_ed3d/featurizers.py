"""matminer's side: four featurizers of a column of structures, Chgcars, densities or paths.

Each is a direct subclass of matminer's ``BaseFeaturizer``, which is how programs find featurizers, and a full scikit-learn
transformer. The classes hold parameters and one call; how rows are run, in one process or several, is in :class:`RowFeaturizer`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, effective_n_jobs
from matminer.featurizers.base import BaseFeaturizer
from monty.json import MontyEncoder
from sklearn.base import TransformerMixin
from sklearn.utils import Tags, TransformerTags
from tqdm.auto import tqdm

from matminer_ed3d import labels, statistics
from matminer_ed3d.cache import DiskCache, sha256_of_file
from matminer_ed3d.density import Density
from matminer_ed3d.readers.errors import file_error
from matminer_ed3d.representations import PointCloud, Sample, SparseTensor
from matminer_ed3d.samples import SampleOptions, make_sample
from matminer_ed3d.sampling import check_channels
from matminer_ed3d.sources import as_density, as_list
from matminer_ed3d.symmetry import DensitySymmetry, Operation, find_symmetry

__all__ = [
    "DensityPointCloud",
    "DensitySparseTensor",
    "DensityStatistics",
    "DensitySymmetryFeaturizer",
    "RowFailure",
    "RowFeaturizer",
    "attempt",
]

NAN = float("nan")
CACHE_VERSION = 1  # of what the cache holds; a new number where the same source and options give other features

OPERATION_CLASSES = {"-1": -1, "2": 2, "m": -2, "3": 3, "-3": -3, "4": 4, "-4": -4, "6": 6, "-6": -6}  # the identity always holds
STRUCTURE_D_MIN = 1.0  # Å; at it a structure's density is made to look for its symmetry
STRUCTURE_SPACING = 0.25  # Å; coarsest grid of it
NOT_TRIED = 1.0  # residual, and Å, of operations that the lattice does not allow; nothing is given a larger value
LARGEST_MARGIN = 100.0  # of evidence, nats

CITATION = (
    "@article{kim2024electrondensity, author = {Kim and others}, journal = {npj Computational Materials}, volume = {10}, "
    "year = {2024}, doi = {10.1038/s41524-024-01402-7}}"
)


@dataclass(frozen=True, eq=False)
class RowFailure:
    """A row without features."""

    error: Exception | None  # what to raise; dropped where nobody will, since its traceback keeps the row's arrays alive
    reason: str
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> RowFailure:
        """Keep what an exception says."""
        return cls(error, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the exception where it survives the way between processes, else one that says the same."""
        try:
            survives = type(pickle.loads(pickle.dumps(self.error))) is type(self.error)
        except (pickle.PicklingError, TypeError, AttributeError, ValueError):
            survives = False
        return RowFailure, (self.error if survives else RuntimeError(self.reason), self.reason, self.traceback)


def attempt(featurizer: Any, entry: tuple[Any, ...] | RowFailure) -> list[Any] | RowFailure:
    """Return the features of one row, or its failure; Ctrl-C and the like pass through."""
    if isinstance(entry, RowFailure):
        return entry
    try:
        return list(featurizer.featurize(*entry))
    except Exception as error:
        return RowFailure.of(error)


def _as_is(row: Any) -> tuple[Any, ...]:
    return (row,)


def _to_send(row: Any) -> tuple[Any, ...] | RowFailure:
    """Make of a row what another process can read: a Chgcar cannot be unpickled (pymatgen-core 2026.10), so it goes as its Density."""
    if not hasattr(row, "data_aug"):
        return (row,)
    try:
        return (as_density(row),)
    except Exception as error:
        return RowFailure.of(error)


class RowFeaturizer(TransformerMixin):
    """What the featurizers share: rows in parallel, errors by row, and scikit-learn's transformer.

    Differences from matminer's own ``BaseFeaturizer``, all of them where that hangs, hides or forgets something:

    - Parallel rows run in joblib's processes; matminer's forking pool hangs once torch has run in the parent.
    - `n_jobs` is a parameter, 1 by default, so that ``clone`` and grid searches keep it; ``set_n_jobs`` still sets it.
    - ``ignore_errors`` catches errors of a row, never Ctrl-C. Without it the row's own exception is raised, with a note that says
      which row it was.
    - The progress bar counts rows that are done.
    - ``transform`` raises where a row fails, unless ``on_error="nan"``; it returns a two-dimensional array.
    """

    on_error: str
    cache: str | os.PathLike[str] | None
    _n_jobs: int | None = 1
    _dtype: type = object  # of the array that `transform` returns

    @property
    def n_jobs(self) -> int | None:
        """Number of processes; -1 is one per core."""
        return self._n_jobs

    @n_jobs.setter
    def n_jobs(self, n_jobs: int | None) -> None:
        self._n_jobs = n_jobs

    # What a featurizer is

    def feature_labels(self) -> list[str]:
        """Name of each feature."""
        raise NotImplementedError

    def citations(self) -> list[str]:
        """BibTeX of what to cite."""
        return [CITATION]

    def implementors(self) -> list[str]:
        """Who wrote it."""
        return ["matminer_ed3d developers"]

    def check(self) -> None:
        """Refuse parameters that have no meaning, with a ValueError that names them."""
        if self.on_error not in ("raise", "nan"):
            raise ValueError(f"`on_error` must be 'raise' or 'nan', got {self.on_error!r}")

    # matminer's way

    def featurize_many(
        self, entries: Any, ignore_errors: bool = False, return_errors: bool = False, pbar: bool | dict[str, Any] = True
    ) -> list[list[Any]]:
        """Featurize a list of entries.

        Parameters
        ----------
        entries : list, tuple, array, Series or one-column DataFrame
            Structures, Chgcars, Densities or paths.
        ignore_errors : bool
            A row that fails gives NaN for every feature.
        return_errors : bool
            Add one more column, with the traceback of a row that failed and NaN for the others; needs `ignore_errors`.
        pbar : bool or dict
            Show a progress bar; a dict holds arguments of tqdm.

        Returns
        -------
        list of list
            One list per row.

        Raises
        ------
        Exception
            That of the first row that fails, unless `ignore_errors`.
        """
        if return_errors and not ignore_errors:
            raise ValueError("`return_errors` needs ignore_errors=True; without it the first error is raised")
        results = self._run(entries, stop=not ignore_errors, pbar=pbar)
        return [self._row(result, return_errors) for result in results]

    def featurize_wrapper(self, x: Any, return_errors: bool = False, ignore_errors: bool = False) -> list[Any]:
        """Featurize one tuple of inputs as :meth:`featurize_many` does; matminer's ``MultipleFeaturizer`` calls it."""
        self.check()
        result = attempt(self, tuple(x))
        if isinstance(result, RowFailure) and result.error is not None and not ignore_errors:
            raise result.error
        return self._row(result, return_errors)

    def _row(self, result: list[Any] | RowFailure, return_errors: bool) -> list[Any]:
        if isinstance(result, RowFailure):
            return [NAN] * len(self.feature_labels()) + [result.traceback] * return_errors
        return result + [NAN] * return_errors

    def _run(self, entries: Any, stop: bool, pbar: bool | dict[str, Any]) -> list[list[Any] | RowFailure]:
        """Result of every row, in order; `stop` raises the first failure."""
        if isinstance(entries, np.ndarray | list | tuple | pd.Series | pd.DataFrame) and len(entries) == 0:
            return []
        rows = as_list(entries.astype(object) if isinstance(entries, np.ndarray) else entries)
        self.check()
        error: Exception | None = None

        def entries_of(as_entry: Any) -> Iterator[Any]:
            for row in rows:
                if error is not None:  # start no more rows; those under way are waited for
                    return
                yield as_entry(row)

        n_jobs = min(effective_n_jobs(self.n_jobs), len(rows))
        running: Any
        if n_jobs == 1:
            running = (attempt(self, entry) for entry in entries_of(_as_is))
        else:
            calls = (delayed(attempt)(self, entry) for entry in entries_of(_to_send))
            running = Parallel(n_jobs=n_jobs, backend="loky", return_as="generator")(calls)
        settings = {"total": len(rows), "desc": type(self).__name__, "disable": pbar is False}
        results: list[list[Any] | RowFailure] = []
        with tqdm(**settings | (pbar if isinstance(pbar, dict) else {})) as bar:
            for result in running:
                if isinstance(result, RowFailure):
                    if stop and error is None and result.error is not None:
                        error = result.error
                        if error.__traceback__ is None:  # it comes from another process
                            error.add_note(result.traceback)
                        error.add_note(f"Row {len(results)} of {len(rows)}, counted from 0. To skip such rows, set ignore_errors=True.")
                    result = replace(result, error=None)
                results.append(result)
                bar.update()
        if error is not None:
            raise error
        return results

    # scikit-learn's way

    def fit(self, X: Any, y: Any = None) -> Any:
        """Check the parameters; there is nothing to learn."""
        self.check()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Featurize.

        Parameters
        ----------
        X : list, tuple, array, Series or one-column DataFrame
            Structures, Chgcars, Densities or paths.

        Returns
        -------
        (n_rows, n_features) array
            Of float, or of objects.

        Raises
        ------
        Exception
            That of the first row that fails, where ``on_error="raise"``. With ``"nan"`` such rows are NaN and a warning says
            which they are and why.
        """
        rows = as_list(X)
        results = self._run(rows, stop=self.on_error != "nan", pbar=False)
        failed = {number: result.reason for number, result in enumerate(results) if isinstance(result, RowFailure)}
        if failed:
            first = next(iter(failed))
            shown = ", ".join(map(str, list(failed)[:10])) + (", …" if len(failed) > 10 else "")
            warnings.warn(
                f"{len(failed)} of {len(rows)} rows failed and are NaN, counted from 0: {shown}; row {first}: {failed[first]}",
                RuntimeWarning,
                stacklevel=3,
            )
        out: np.ndarray = np.empty((len(rows), len(self.feature_labels())), dtype=self._dtype)
        for number, result in enumerate(results):
            for column, value in enumerate(self._row(result, return_errors=False)):
                out[number, column] = value
        return out

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of :meth:`transform`; the name of the input column plays no part."""
        return np.asarray(self.feature_labels(), dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags = TransformerTags(preserves_dtype=[])
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        tags.requires_fit = False
        return tags


class DensityPointCloud(RowFeaturizer, BaseFeaturizer):
    """Point cloud of the electron density: one :class:`PointCloud` object per row.

    Features: ``density point cloud``, an object with ``coords`` (Cartesian, Å) and ``feats`` (e/Å³, one column per channel).

    Parameters
    ----------
    channels : tuple of str
        Channels of the density; the paper's four are ``("total", "diff", "up", "down")``.
    voxel_size : float
        Edge of a voxel in Å; each gives one point. The paper's 0.25 by default.
    reduction : {"random", "mean"}
        A grid point of the voxel at random, or its centre with the mean density.
    threshold : float
        Points with less total density (e/Å³) are left out.
    max_points : int, "paper" or None
        Keep the densest points up to this many; ``"paper"`` is 5,000 to 30,000 by the size of the cell.
    cell : {"as_given", "reduced"}
        The cell of the source, or the density's own primitive Niggli cell.
    random_state : int or None
        With an int every row draws from its own generator of this seed, so its cloud depends on the row alone: not on the other
        rows, their order or `n_jobs`. None draws afresh each time.
    on_error : {"raise", "nan"}
        What ``transform`` does with a row that fails; the ``featurize_`` methods have ``ignore_errors``.
    n_jobs : int
        Number of processes; -1 is one per core.
    cache : path or None
        A folder (:class:`matminer_ed3d.cache.DiskCache`) where the features of every row are kept and looked up first, by the content
        of the source and the parameters, so that a run that was cut goes on where it was. With `reduction` random it needs a
        `random_state`.
    """

    def __init__(
        self,
        channels: Sequence[str] = ("total",),
        voxel_size: float = 0.25,
        reduction: str = "random",
        threshold: float = 0.0,
        max_points: int | str | None = "paper",
        cell: str = "as_given",
        random_state: int | None = None,
        on_error: str = "raise",
        n_jobs: int | None = 1,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.channels = channels
        self.voxel_size = voxel_size
        self.reduction = reduction
        self.threshold = threshold
        self.max_points = max_points
        self.cell = cell
        self.random_state = random_state
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.cache = cache

    def check(self) -> None:
        """Refuse parameters that have no meaning."""
        super().check()
        _sample_options(self, "points").check()
        _check_repeatable(self)

    def featurize(self, x: Any) -> list[Any]:
        """Make the PointCloud of one Structure, Chgcar, Density or path."""
        return [_sample(self, x, _sample_options(self, "points"))]

    def feature_labels(self) -> list[str]:
        """One label."""
        return ["density point cloud"]


class DensitySparseTensor(RowFeaturizer, BaseFeaturizer):
    """Occupied voxels of the electron density: one :class:`SparseTensor` object per row.

    Features: ``density sparse tensor``, an object with integer ``coords``, ``feats`` (e/Å³, one column per channel) and the
    ``voxel_basis`` (Å); where the voxels are aligned with the lattice, ``grid_shape`` says how many fill the cell.

    Parameters
    ----------
    channels : tuple of str
        Channels of the density; the paper's four are ``("total", "diff", "up", "down")``.
    voxel_size : float
        Edge in Å, adjusted where the voxels are aligned with the lattice. The paper's 0.25 by default.
    voxel_basis : {"lattice", "cartesian"}
        Voxels along the cell's own axes, whose neighbours wrap round its faces, or the paper's cubes in Cartesian space.
    reduction : {"mean", "random"}
        Mean density of each voxel, or the value of one of its grid points at random (the paper's default).
    threshold : float
        Voxels with less total density (e/Å³) are left out.
    max_points : int, "paper" or None
        Keep the densest voxels up to this many.
    multiple_of : int
        Make lattice-aligned counts multiples of this.
    cell : {"as_given", "reduced"}
        The cell of the source, or the density's own primitive Niggli cell.
    d_min : float or None
        Resolution in Å of the voxels of the reduced cell; goes with ``cell="reduced"``.
    max_voxels : int or None
        With `d_min`: enlarge the voxels until no more than this many fill the cell.
    standardize : bool
        With `d_min`: give (rho - mean) / rms in place of rho.
    random_state : int or None
        With an int every row draws from its own generator of this seed, so its voxels depend on the row alone: not on the other
        rows, their order or `n_jobs`. None draws afresh each time.
    on_error : {"raise", "nan"}
        What ``transform`` does with a row that fails; the ``featurize_`` methods have ``ignore_errors``.
    n_jobs : int
        Number of processes; -1 is one per core.
    cache : path or None
        A folder (:class:`matminer_ed3d.cache.DiskCache`) where the features of every row are kept and looked up first, by the content
        of the source and the parameters, so that a run that was cut goes on where it was. With `reduction` random it needs a
        `random_state`.
    """

    def __init__(
        self,
        channels: Sequence[str] = ("total",),
        voxel_size: float = 0.25,
        voxel_basis: str = "lattice",
        reduction: str = "mean",
        threshold: float = 0.0,
        max_points: int | str | None = None,
        multiple_of: int = 1,
        cell: str = "as_given",
        d_min: float | None = None,
        max_voxels: int | None = None,
        standardize: bool = False,
        random_state: int | None = None,
        on_error: str = "raise",
        n_jobs: int | None = 1,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.channels = channels
        self.voxel_size = voxel_size
        self.voxel_basis = voxel_basis
        self.reduction = reduction
        self.threshold = threshold
        self.max_points = max_points
        self.multiple_of = multiple_of
        self.cell = cell
        self.d_min = d_min
        self.max_voxels = max_voxels
        self.standardize = standardize
        self.random_state = random_state
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.cache = cache

    def check(self) -> None:
        """Refuse parameters that have no meaning."""
        super().check()
        _sample_options(self, "voxels").check()
        _check_repeatable(self)

    def featurize(self, x: Any) -> list[Any]:
        """Make the SparseTensor of one Structure, Chgcar, Density or path."""
        return [_sample(self, x, _sample_options(self, "voxels"))]

    def feature_labels(self) -> list[str]:
        """One label."""
        return ["density sparse tensor"]


def _sample_options(featurizer: Any, kind: Literal["points", "voxels"]) -> SampleOptions:
    """Those parameters of a featurizer that describe its sample."""
    given = {name: value for name, value in featurizer.get_params(deep=False).items() if name in SampleOptions.__dataclass_fields__}
    check_channels(given["channels"])  # before a string becomes a tuple of letters
    return SampleOptions(kind=kind, **{**given, "channels": tuple(given["channels"])})


def _check_repeatable(featurizer: Any) -> None:
    if featurizer.cache is not None and featurizer.reduction == "random" and featurizer.random_state is None:
        raise ValueError("`cache` keeps one draw of random points for good; set `random_state`, or reduction='mean'")


def _sample(featurizer: Any, x: Any, options: SampleOptions) -> Sample:
    """Make one sample, or take it from the cache."""
    if featurizer.cache is None or isinstance(x, PointCloud | SparseTensor):
        return make_sample(x, options, featurizer.random_state)
    _check_repeatable(featurizer)
    seed = featurizer.random_state if options.reduction == "random" else None
    key_options = {**options.as_dict(), "random_state": seed}
    arrays = _from_cache(featurizer, x, key_options, lambda x: _arrays_of(make_sample(x, options, seed)))
    coords, feats, channels = arrays["coords"], arrays["feats"], tuple(options.channels)
    if options.kind == "points":
        return PointCloud(coords, feats, channels, arrays["lattice"])
    nx, ny, nz = arrays["grid_shape"].tolist()
    return SparseTensor(coords, feats, channels, arrays["voxel_basis"], (nx, ny, nz) if nx else None)


def _arrays_of(sample: Sample) -> dict[str, np.ndarray]:
    arrays = {"coords": sample.coords, "feats": sample.feats}
    if isinstance(sample, PointCloud):
        return {**arrays, "lattice": sample.lattice}
    return {**arrays, "voxel_basis": sample.voxel_basis, "grid_shape": np.array(sample.grid_shape or (0, 0, 0))}  # 0: open space


def _from_cache(
    featurizer: RowFeaturizer, x: Any, options: Mapping[str, Any], make: Callable[[Any], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Look up what `make` makes of a source, by the content of the source; make it where it is not there."""
    assert featurizer.cache is not None
    if hasattr(x, "data_aug"):  # a Chgcar
        x = as_density(x)
    before = _state(x)
    digest = _digest(x)
    if digest is None:
        return make(x)  # which says what is wrong with it
    key = {
        "what": type(featurizer).__name__,
        "version": [version("matminer_ed3d"), CACHE_VERSION],
        "options": options,
        "source": digest,
    }

    def make_unchanged() -> dict[str, np.ndarray]:
        arrays = make(x)
        if _state(x) != before:
            raise file_error(x, "another content than at the beginning", "a file that nobody writes to while it is read; run again")
        return arrays

    return DiskCache(featurizer.cache).get_or_make(key, make_unchanged)


def _state(x: Any) -> tuple[int, ...]:
    """What changes when somebody writes to a file; nothing of what is no file."""
    if not isinstance(x, str | os.PathLike) or not Path(x).is_file():
        return ()
    found = Path(x).stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _digest(x: Any) -> str | None:
    """Hash of all that the features of a source can depend on; None for what is no source.

    Of a file these are its bytes and its name without the folder; of a structure all that pymatgen writes of it.
    """
    if isinstance(x, str | os.PathLike):
        return f"file {Path(x).name} {sha256_of_file(x)}" if Path(x).is_file() else None
    digest = hashlib.sha256()
    if isinstance(x, Density):
        for name in ("lattice", *sorted(x.channels)):
            array = np.ascontiguousarray(x.lattice if name == "lattice" else x.channels[name], dtype="<f8")
            digest.update(f"{name} {array.shape} ".encode())
            digest.update(array.data)
        digest.update(f"{x.is_voxel_mean} {x.quantity} ".encode())
        x = x.structure
    elif not hasattr(x, "as_dict"):
        return None
    if x is not None:
        digest.update(json.dumps(x.as_dict(), sort_keys=True, cls=MontyEncoder).encode())
    return f"object {digest.hexdigest()}"


class DensityStatistics(RowFeaturizer, BaseFeaturizer):
    """Numbers that describe the electron density, the same for every cell, origin and orientation of a crystal.

    Features: moments and quantiles of the density, its gradient and its Laplacian, volume shares above thresholds, the reduced
    gradient, the autocorrelation by distance and the power spectrum by wave number. :func:`matminer_ed3d.statistics.density_statistics`
    says what each name means and its unit. A Structure has no spin, so its ``diff`` is zero.

    Parameters
    ----------
    d_min : float
        Resolution in Å at which the density is seen.
    channels : tuple of str
        Of ``total``, ``diff``, ``up``, ``down``.
    quantiles : tuple of float
        Shares of the volume (or of the electrons) below a quantile.
    thresholds : tuple of float
        Densities (e/Å³) above which the share of the volume is taken.
    max_distance, distance_step : float
        Å: shells of the autocorrelation.
    q_step : float
        1/Å: step between the shells of the power spectrum.
    on_error : {"raise", "nan"}
        What ``transform`` does with a row that fails; the ``featurize_`` methods have ``ignore_errors``.
    n_jobs : int
        Number of processes; -1 is one per core.
    cache : path or None
        A folder (:class:`matminer_ed3d.cache.DiskCache`) where the features of every row are kept and looked up first, by the content
        of the source and the parameters, so that a run that was cut goes on where it was.
    """

    _dtype = float

    def __init__(
        self,
        d_min: float = 1.0,
        channels: Sequence[str] = ("total",),
        quantiles: Sequence[float] = statistics.QUANTILES,
        thresholds: Sequence[float] = statistics.THRESHOLDS,
        max_distance: float = 8.0,
        distance_step: float = 0.5,
        q_step: float = 0.1,
        on_error: str = "raise",
        n_jobs: int | None = 1,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.d_min = d_min
        self.channels = channels
        self.quantiles = quantiles
        self.thresholds = thresholds
        self.max_distance = max_distance
        self.distance_step = distance_step
        self.q_step = q_step
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.cache = cache

    def check(self) -> None:
        """Refuse parameters that have no meaning."""
        super().check()
        self.feature_labels()

    def featurize(self, x: Any) -> list[float]:
        """Describe one Structure, Chgcar, Density or path."""
        if self.cache is None:
            return self._describe(x)
        options = self._options()
        return _from_cache(self, x, options, lambda x: {"values": np.array(self._describe(x))})["values"].tolist()

    def _describe(self, x: Any) -> list[float]:
        # A structure gives its exact coefficients, so no grid plays a part.
        density = as_density(x, method="band_limited", grid_spacing=0.5 * self.d_min, d_min=self.d_min)
        return list(statistics.density_statistics(density, **self._options()).values())

    def feature_labels(self) -> list[str]:
        """Names of the statistics, in order."""
        return list(statistics.statistic_names(**self._options()))

    def _options(self) -> dict[str, Any]:
        given = {name: value for name, value in self.get_params(deep=False).items() if name not in ("on_error", "n_jobs", "cache")}
        if not isinstance(self.channels, str):
            given["channels"] = tuple(self.channels)
        return given


class DensitySymmetryFeaturizer(RowFeaturizer, BaseFeaturizer):
    """Numbers that say which symmetry a density has, and how well it holds; the same for every cell, origin and orientation of a crystal.

    Features, all finite, from :func:`matminer_ed3d.symmetry.find_symmetry`:

    - ``symmetry n_operations``, and for each class of operation (-1, 2, m, 3, -3, 4, -4, 6, -6; with screws and glides)
      ``symmetry n_operations C``: how many hold, in the primitive cell.
    - ``symmetry residual C``: the smallest residual of that class, of operations that hold or do not (0: exact; 1: nothing agrees).
    - ``symmetry displacement C``: the smallest displacement (Å) that the operations' difference can be read as. Both are 1.0 where
      the lattice allows no such operation, or none came near; larger values are cut there.
    - ``symmetry probability S`` of each of the 7 crystal systems.
    - ``symmetry margin subgroup`` and ``symmetry margin supergroup``: the log evidence (nats) for the group found against the best
      of its maximal subgroups and minimal supergroups, cut at 100 either way; 100 where there is none.
    - ``symmetry probability`` of the group found; ``symmetry noise``, its share of the power.

    A space group's number is no quantity, so it is not among them; :class:`matminer_ed3d.symmetry_estimators.SymmetryEvidenceClassifier`
    gives it.

    Parameters
    ----------
    symprec : float
        Largest displacement in Å that counts as symmetry.
    d_min : float, optional
        Resolution in Å at which the density is seen; by default what the search needs, and 1.0 for structures.
    channel : str
        Whose symmetry is asked for.
    on_error : {"raise", "nan"}
        What ``transform`` does with a row that fails; the ``featurize_`` methods have ``ignore_errors``.
    n_jobs : int
        Number of processes; -1 is one per core.
    cache : path or None
        A folder (:class:`matminer_ed3d.cache.DiskCache`) where the features of every row are kept and looked up first, by the content
        of the source and the parameters, so that a run that was cut goes on where it was.
    """

    _dtype = float

    def __init__(
        self,
        symprec: float = 0.01,
        d_min: float | None = None,
        channel: str = "total",
        on_error: str = "raise",
        n_jobs: int | None = 1,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.symprec = symprec
        self.d_min = d_min
        self.channel = channel
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.cache = cache

    def check(self) -> None:
        """Refuse parameters that have no meaning."""
        super().check()
        if not (np.isfinite(self.symprec) and self.symprec > 0):
            raise ValueError(f"`symprec` must be a positive distance in Å, got {self.symprec}")
        if self.d_min is not None and not self.d_min > 0:
            raise ValueError(f"`d_min` must be a positive resolution in Å, got {self.d_min}")
        check_channels((self.channel,))

    def featurize(self, x: Any) -> list[float]:
        """Describe the symmetry of one Structure, Chgcar, Density or path."""
        if self.cache is None:
            return self._describe(x)
        options = {"symprec": self.symprec, "d_min": self.d_min, "channel": self.channel}
        return _from_cache(self, x, options, lambda x: {"values": np.array(self._describe(x))})["values"].tolist()

    def _describe(self, x: Any) -> list[float]:
        d_min = self.d_min or STRUCTURE_D_MIN
        density = as_density(x, method="band_limited", d_min=d_min, grid_spacing=min(STRUCTURE_SPACING, d_min / 2))
        return list(_symmetry_numbers(find_symmetry(density, symprec=self.symprec, channel=self.channel, d_min=self.d_min)).values())

    def feature_labels(self) -> list[str]:
        """Names of the numbers, in order."""
        return [
            "symmetry n_operations",
            *(f"symmetry {what} {name}" for name in OPERATION_CLASSES for what in ("n_operations", "residual", "displacement")),
            *(f"symmetry probability {system}" for system in labels.CRYSTAL_SYSTEMS),
            "symmetry margin subgroup",
            "symmetry margin supergroup",
            "symmetry probability",
            "symmetry noise",
        ]


def _symmetry_numbers(symmetry: DensitySymmetry) -> dict[str, float]:
    """Numbers of :class:`DensitySymmetryFeaturizer`, by name."""
    values = {"symmetry n_operations": float(len(symmetry.operations))}
    orders = [labels.rotation_order(operation.rotation) for operation in symmetry.operations]
    tried: dict[int, list[Operation]] = {}
    for operation in (*symmetry.operations, *symmetry.rejected):
        tried.setdefault(labels.rotation_order(operation.rotation), []).append(operation)
    for name, order in OPERATION_CLASSES.items():
        found = tried.get(order, [])
        values[f"symmetry n_operations {name}"] = float(orders.count(order))
        values[f"symmetry residual {name}"] = min([NOT_TRIED, *(float(operation.residual) for operation in found)])
        values[f"symmetry displacement {name}"] = min([NOT_TRIED, *(float(operation.displacement) for operation in found)])
    proba, systems = labels.coarsen_proba(symmetry.space_group_proba()[None], np.arange(1, 231), "crystal_system")
    by_system = dict(zip(systems.tolist(), proba[0].tolist(), strict=True))
    values |= {f"symmetry probability {system}": by_system[system] for system in labels.CRYSTAL_SYSTEMS}
    for relation in ("subgroup", "supergroup"):
        margins = [candidate.log_evidence for candidate in symmetry.candidates if candidate.relation == relation]
        values[f"symmetry margin {relation}"] = float(np.clip(min(margins, default=LARGEST_MARGIN), -LARGEST_MARGIN, LARGEST_MARGIN))
    return values | {"symmetry probability": float(symmetry.probability), "symmetry noise": float(symmetry.noise)}
