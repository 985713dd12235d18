"""How one crystal of a table is shown to a model: the protocol's cell, a cut resolution, noise; then the model's own sample.

Everything here runs in worker processes: no torch is imported, and what a row holds never stops a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from matminer_ed3d import controls, datasets, labels, protocols
from matminer_ed3d.density import Density
from matminer_ed3d.promolecule import density_from_structure
from matminer_ed3d.samples import SampleOptions, make_sample
from matminer_ed3d.symmetry_estimators import SymmetryOptions, symmetry_of

__all__ = [
    "ROW_ERRORS",
    "Conditions",
    "PreparedRow",
    "add_noise",
    "describe_error",
    "in_parallel",
    "prepare_row",
    "row_features",
    "shown_source",
]

GRID_SPACING = 0.25  # Å, of the grid that noise lies on
PRE_DISPATCH = 256  # rows that may wait for a worker: bounds the memory
# What one bad row or file can raise: it cannot be read or ends early, wrong values, an atom without form factor, no convergence, a
# cell too large for the memory.
ROW_ERRORS = (OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a crystal is shown to the model; see :func:`evaluate`."""

    protocol: str = "blind"
    symprec: float = 0.1
    noise: float = 0.0
    d_min: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in protocols.PROTOCOLS:
            raise ValueError(f"`protocol` must be one of {protocols.PROTOCOLS}, got {self.protocol!r}")
        if self.symprec not in datasets.LABEL_COLUMNS:
            raise ValueError(f"`symprec` must be one of {sorted(datasets.LABEL_COLUMNS)}, got {self.symprec}")
        if not self.noise >= 0:
            raise ValueError(f"`noise` must be a share of the density's own rms, 0 or more, got {self.noise}")
        if self.d_min is not None and not self.d_min > 0:
            raise ValueError(f"`d_min` must be a positive resolution in Å, got {self.d_min}")
        if self.seed < 0:
            raise ValueError(f"`seed` must be 0 or more, got {self.seed}")

    def rng(self, row_id: str) -> np.random.Generator:
        """Return the random numbers of one row: they depend on the seed and the row's id, not on its place or the workers."""
        return np.random.default_rng([self.seed, *f"{row_id}".encode()])


def add_noise(density: Density, noise: float, rng: np.random.Generator) -> Density:
    """Add white Gaussian noise whose rms is `noise` times the rms of ``rho - mean`` to the total density."""
    rho = density.channels["total"]
    return replace(density, channels={"total": rho + noise * rho.std() * rng.normal(size=rho.shape)})


def shown_source(structure: Any, conditions: Conditions, rng: np.random.Generator) -> Any:
    """Return what a model is shown: the structure in the protocol's cell, or its cut or noisy density on a grid of 0.25 Å.

    Parameters
    ----------
    structure : pymatgen Structure
        As given.
    conditions : Conditions
        Protocol, noise and resolution.
    rng : numpy Generator
        Of the blind cell and the noise.

    Returns
    -------
    Structure or Density
    """
    shown = protocols.apply_protocol(structure, conditions.protocol, rng, conditions.symprec)
    if not conditions.noise and conditions.d_min is None:
        return shown
    # 0.5 Å is all that a grid of 0.25 Å can hold.
    density = density_from_structure(
        shown, grid_spacing=GRID_SPACING, method="band_limited", d_min=max(conditions.d_min or 0.0, 2 * GRID_SPACING)
    )
    return add_noise(density, conditions.noise, rng) if conditions.noise else density


@dataclass(frozen=True, eq=False)
class PreparedRow:
    """One row, ready for the model; or the reason why not."""

    row_id: str
    sample: Any = None
    space_group_number: int = 0
    features: Any = None
    failure: str = ""


def describe_error(error: BaseException) -> str:
    """Say in one line what went wrong."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def row_features(row: dict[str, Any], label: int | None, conditions: Conditions) -> PreparedRow:
    """Label and features of the controls of one row, without a sample."""
    row_id = str(row["id"])
    try:
        cell = datasets.cell_of_row(row)
        features = controls.control_features(cell, conditions.protocol, conditions.symprec)
        number = label if label is not None else labels.space_group_number(datasets.structure_of_cell(cell), conditions.symprec)
    except ROW_ERRORS as error:
        return PreparedRow(row_id, failure=describe_error(error))
    return PreparedRow(row_id, None, number, features)


def prepare_row(row: dict[str, Any], label: int | None, conditions: Conditions, options: SampleOptions | SymmetryOptions) -> PreparedRow:
    """Make the model's sample, the label and the controls' features of one row; never raises for what the row holds.

    Parameters
    ----------
    row : dict
        ``id``, ``lattice``, ``numbers``, ``frac``.
    label : int or None
        Space group number, where the table knows it; else spglib finds it in the structure as given.
    conditions, options
        How it is shown, and sampled; with SymmetryOptions the sample is the symmetry that the density proves.
    """
    prepared = row_features(row, label, conditions)
    if prepared.failure:
        return prepared
    rng = conditions.rng(prepared.row_id)
    try:
        structure = datasets.structure_of_cell(datasets.cell_of_row(row))
        source = shown_source(structure, conditions, rng)
        sample = symmetry_of(source, options) if isinstance(options, SymmetryOptions) else make_sample(source, options, 0)
    except ROW_ERRORS as error:
        return PreparedRow(prepared.row_id, failure=describe_error(error))
    return PreparedRow(prepared.row_id, sample, prepared.space_group_number, prepared.features)


def in_parallel(
    function: Any, rows: datasets.StructureTable, known: Sequence[int | None], n_jobs: int, *args: Any
) -> Iterator[PreparedRow]:
    """Yield ``function(row, label, *args)`` for every row in order, from joblib's processes, a bounded number ahead."""
    from joblib import Parallel, delayed

    calls = (delayed(function)(rows.row(i), known[i], *args) for i in range(rows.n_rows))
    yield from Parallel(n_jobs=n_jobs, return_as="generator", pre_dispatch=PRE_DISPATCH, batch_size=8 if n_jobs != 1 else 1)(calls)
