"""Features of many files or table rows at once: a table of statistics, or one npz file of samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matminer_ed3d import datasets
from matminer_ed3d.conditions import ROW_ERRORS
from matminer_ed3d.representations import PointCloud, Sample, SparseTensor
from matminer_ed3d.samples import SampleOptions, make_sample

__all__ = ["load_samples", "named_sources", "save_samples", "save_statistics"]

Named = Iterable[tuple[str, Any]]
OnError = Callable[[str, BaseException], None]


def named_sources(paths: Sequence[str | os.PathLike[str]], on_error: OnError) -> Iterator[tuple[str, Any]]:
    """Yield a name and a source for every file, and for every row of a parquet file; what cannot be read goes to `on_error`."""
    for path in map(str, paths):
        if not path.endswith(".parquet"):
            yield path, path
            continue
        try:
            table = datasets.read_structures(path)
        except ROW_ERRORS as error:
            on_error(path, error)
            continue
        for index, name in enumerate(table.values("id")):
            try:
                yield str(name), table.structure(index)
            except ROW_ERRORS as error:
                on_error(f"{path} row {name}", error)


def save_samples(sources: Named, options: SampleOptions, out: str | os.PathLike[str], on_error: OnError, seed: int = 0) -> int:
    """Sample every source and write one npz file of plain arrays; see :func:`load_samples`.

    Parameters
    ----------
    sources : pairs of name and source
        See :func:`named_sources`.
    options : SampleOptions
        What to make.
    out : path
        Ends in ``.npz``.
    on_error : callable
        Takes the name and the error of a source that cannot be sampled; it is left out.
    seed : int
        Of random points; every source draws from the same, so that a sample depends on its source only.

    Returns
    -------
    int
        Number of samples written.

    Raises
    ------
    ValueError
        If `out` does not end in ``.npz``, the options contradict each other, or no source could be sampled.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise ValueError(f"`out` must end in .npz for samples, got {out}")
    options.check()
    names, samples = [], []
    for name, source in sources:
        try:
            samples.append(make_sample(source, options, seed))
        except ROW_ERRORS as error:
            on_error(name, error)
        else:
            names.append(name)
    if not samples:
        raise ValueError(f"no source could be sampled, nothing is written to {out}")
    arrays: dict[str, Any] = {
        "names": np.array(names, dtype=np.str_),
        "channels": np.array(options.channels, dtype=np.str_),
        "offsets": np.cumsum([0, *(sample.n_points for sample in samples)]),
        "coords": np.concatenate([sample.coords for sample in samples]),
        "feats": np.concatenate([sample.feats for sample in samples]),
    }
    if options.kind == "points":
        arrays["lattices"] = np.stack([sample.lattice for sample in samples if isinstance(sample, PointCloud)])
    else:
        voxels = [sample for sample in samples if isinstance(sample, SparseTensor)]
        arrays["voxel_bases"] = np.stack([sample.voxel_basis for sample in voxels])
        arrays["grid_shapes"] = np.array([sample.grid_shape or (0, 0, 0) for sample in voxels])  # 0: open space
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return len(samples)


def load_samples(path: str | os.PathLike[str]) -> tuple[list[str], list[Sample]]:
    """Load what :func:`save_samples` wrote.

    Parameters
    ----------
    path : path
        Arrays ``names`` (n,), ``channels`` (C,), ``offsets`` (n + 1,), ``coords`` and ``feats`` of all samples one after another
        (sample i has the rows offsets[i] to offsets[i + 1]), and ``lattices`` (n, 3, 3) of point clouds, or ``voxel_bases``
        (n, 3, 3) and ``grid_shapes`` (n, 3; zeros in open space) of voxels.

    Returns
    -------
    names : list of str
    samples : list of PointCloud or SparseTensor
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    channels = tuple(str(name) for name in arrays["channels"])
    samples: list[Sample] = []
    for i, (start, stop) in enumerate(zip(arrays["offsets"][:-1], arrays["offsets"][1:], strict=True)):
        coords, feats = arrays["coords"][start:stop], arrays["feats"][start:stop]
        if "lattices" in arrays:
            samples.append(PointCloud(coords, feats, channels, arrays["lattices"][i]))
        else:
            nx, ny, nz = (int(n) for n in arrays["grid_shapes"][i])
            samples.append(SparseTensor(coords, feats, channels, arrays["voxel_bases"][i], (nx, ny, nz) if nx else None))
    return [str(name) for name in arrays["names"]], samples


def save_statistics(sources: Named, featurizer: Any, out: str | os.PathLike[str], on_error: OnError) -> int:
    """Featurize every source and write one row each to a csv or parquet file, with the source's name in the column ``name``.

    Parameters
    ----------
    sources : pairs of name and source
        See :func:`named_sources`.
    featurizer : matminer featurizer
        Numbers only.
    out : path
        Ends in ``.csv`` or ``.parquet``.
    on_error : callable
        Takes the name and the error of a source that fails; it is left out.

    Returns
    -------
    int
        Number of rows written.

    Raises
    ------
    ValueError
        If `out` has another ending, or no source could be featurized.
    """
    import pandas as pd

    out = Path(out)
    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"`out` must end in .csv or .parquet for statistics, got {out}")
    rows = []
    for name, source in sources:
        try:
            rows.append([name, *featurizer.featurize(source)])
        except ROW_ERRORS as error:
            on_error(name, error)
    if not rows:
        raise ValueError(f"no source could be featurized, nothing is written to {out}")
    frame = pd.DataFrame(rows, columns=["name", *featurizer.feature_labels()])
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".csv":
        frame.to_csv(out, index=False)
    else:
        frame.to_parquet(out, index=False)
    return len(frame)
