"""Anything to a ``Density``: the only place that asks "what is this?".

Nothing heavy is imported to find out: an object can be a pymatgen Structure or a pandas Series only if somebody has imported
the module of its class already.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matminer_ed3d.density import Density, Quantity
from matminer_ed3d.readers import abinit, ccp4, cube, json_density, kinds, other_structures, structures, vasp, vasp_hdf5, vesta, xsf
from matminer_ed3d.readers.errors import DensityFileError, file_error
from matminer_ed3d.readers.streams import TextStream, open_stream
from matminer_ed3d.readers.units import Unit
from matminer_ed3d.representations import PointCloud, SparseTensor

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure
    from pymatgen.io.vasp.outputs import Chgcar

__all__ = ["DensityFileError", "as_density", "as_list", "density_from_chgcar", "read_density", "read_structure", "what_is"]

ACCEPTED = "a Density, a pymatgen Structure, a pymatgen Chgcar, or the path of a density or structure file"
FORMATS = (
    "a CHGCAR or its kin of VASP, a Chgcar JSON, a Gaussian cube, an XSF, a CCP4 or MRC map, a .grd or .pgrid of VESTA, a DEN.nc of ABINIT"
    " or a vaspwave.h5, plain or compressed by gzip, bzip2 or xz"
)
QUANTITY_TITLES = {"potential": "a potential", "elf": "an electron localisation function", "orbital": "an orbital"}
# Each takes the stream at its beginning and any of the options of `read_density`; binary formats open `stream.path` themselves.
READERS: dict[kinds.Kind, Callable[..., Density]] = {
    "poscar": vasp.read_volumetric,
    "chgcar_json": json_density.read_chgcar_json,
    "density_json": json_density.read_density_json,
    "cube": cube.read_cube,
    "xsf": xsf.read_xsf,
    "ccp4": ccp4.read_ccp4,
    "grd": vesta.read_grd,
    "pgrid": vesta.read_pgrid,
    "netcdf": abinit.read_netcdf,
    "hdf5": vasp_hdf5.read_hdf5,
}
HEAD = 1 << 16  # bytes that tell what a file is


def _is_a(thing: Any, module: str, *names: str) -> bool:
    """Isinstance without an import."""
    home = sys.modules.get(module)
    return home is not None and isinstance(thing, tuple(getattr(home, name) for name in names))


def _is_structure(thing: Any) -> bool:
    return _is_a(thing, "pymatgen.core.structure", "IStructure")


def _is_chgcar(thing: Any) -> bool:
    return _is_a(thing, "pymatgen.io.vasp.outputs", "Chgcar")


def _is_input(thing: Any) -> bool:
    """Tell whether `thing` is one input, not many."""
    one = (Density, PointCloud, SparseTensor, str, bytes, os.PathLike)
    return isinstance(thing, one) or _is_structure(thing) or _is_chgcar(thing)


def _describe(thing: Any) -> str:
    if thing is None:
        return "None"
    if isinstance(thing, float) and np.isnan(thing):
        return "NaN, which marks a missing or failed row of a table; see `featurize_many(X, ignore_errors=True, return_errors=True)`"
    if isinstance(thing, np.ndarray):
        return f"an array of dtype {thing.dtype} and shape {thing.shape}"
    return f"an object of {type(thing).__module__}.{type(thing).__qualname__}"


def as_density(source: Any, *, name: str | None = None, **structure_options: Any) -> Density:
    """Make a Density of whatever holds one.

    Parameters
    ----------
    source : Density, pymatgen Structure, pymatgen Chgcar, str or PathLike
        A path may lead to a density (see :func:`read_density`) or a structure (see :func:`read_structure`); its content decides.
    name : str, optional
        What errors call the source, such as ``"row 5"``.
    **structure_options
        For :func:`matminer_ed3d.promolecule.density_from_structure`, where the source is a structure; sources that hold a
        density ignore them.

    Returns
    -------
    Density
        e/Å³; a Density is passed through as it is.

    Raises
    ------
    TypeError
        If `source` is of another type.
    ValueError
        If it is NaN, or a structure that has no density.
    DensityFileError
        If a file cannot be read; names the file and the line.
    """
    if isinstance(source, Density):
        return _electrons_only(source, name)
    if _is_structure(source):
        return _from_structure(source, name, structure_options)
    if _is_chgcar(source):
        return density_from_chgcar(source)
    if isinstance(source, str | os.PathLike):
        return _from_path(source, structure_options)
    message = f"{name or '`source`'} must be {ACCEPTED}, got {_describe(source)}"
    raise ValueError(message) if isinstance(source, float) and np.isnan(source) else TypeError(message)


def _from_structure(structure: Structure, name: str | None, options: dict[str, Any]) -> Density:
    from matminer_ed3d.promolecule import density_from_structure

    try:
        return density_from_structure(structure, **options)
    except ValueError as error:
        if name is None:
            raise
        raise ValueError(f"{name}: {error}") from error


def _from_path(path: str | os.PathLike[str], options: dict[str, Any]) -> Density:
    _, holds_grid = what_is(path)
    if holds_grid:
        return _electrons_only(read_density(path), os.fspath(path))
    from matminer_ed3d.promolecule import density_from_structure

    structure = read_structure(path)
    try:
        return density_from_structure(structure, **options)
    except ValueError as error:
        raise DensityFileError(f"{os.fspath(path)}: {error}") from error


def what_is(path: str | os.PathLike[str]) -> tuple[kinds.Kind, bool]:
    """Tell what a file is by its content, and whether it holds a grid of values or a structure alone.

    Raises
    ------
    DensityFileError
        If it is neither, is missing, or is damaged at its beginning.
    """
    with open_stream(path) as stream:
        kind = _known_kind(stream)
        if kind == "poscar":
            vasp.read_poscar(stream, quiet=True)
            return kind, vasp.has_grid(stream)
        return kind, xsf.has_grid(stream) if kind == "xsf" else kind in READERS


def _electrons_only(density: Density, name: str | None) -> Density:
    if density.quantity != "electron_density":
        found = QUANTITY_TITLES.get(density.quantity, "values of an unknown quantity")
        way_out = "if it is one after all, `Density.from_file(path, quantity='electron_density')`"
        raise DensityFileError(f"{name or '`source`'}: found {found}, expected an electron density; {way_out}")
    return density


def _known_kind(stream: TextStream) -> kinds.Kind:
    """Kind of a file, or the error that says what it is instead."""
    head = stream.head(HEAD)
    what = kinds.refusal(head)
    if what is not None:
        raise file_error(stream.path, what, f"{FORMATS}, or a CIF, POSCAR or structure JSON")
    kind = kinds.kind_of(head)
    if kind == "poscar" and Path(stream.path).name.lower().removesuffix(".gz").endswith(".cif"):
        raise file_error(stream.path, "no data_ block", "a CIF, which begins with data_")
    return "other_structure" if kind == "poscar" and other_structures.is_named_as_atat(stream.path) else kind


def read_density(
    path: str | os.PathLike[str], *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read a density file of any known format, plain or compressed by gzip, bzip2 or xz.

    CHGCAR, CHG, PARCHG, AECCAR, LOCPOT and ELFCAR of VASP; the Materials Project's Chgcar JSON; Gaussian cube; XSF; CCP4 and MRC maps;
    VESTA's .grd and .pgrid; ABINIT's DEN.nc; VASP's vaspwave.h5 and vaspout.h5 (the last two with the extra ``hdf5``).

    Parameters
    ----------
    path : str or PathLike
        The content says what it is, not the name.
    channels : sequence of str, optional
        Read these alone, such as ``("total",)``, which is faster where they come first; all of the file if not given.
    quantity : str, optional
        What the values are (:data:`matminer_ed3d.density.UNITS`), where the file does not say it or says it wrong.
    unit : {"e/A^3", "e/bohr^3"}, optional
        Unit of an electron density in a format that leaves it open (cube, XSF, CCP4, VESTA, netCDF); by default the format's own.

    Returns
    -------
    Density
        An electron density in e/Å³ with the channels ``total``; ``total, diff``; or ``total, diff_x, diff_y, diff_z``; or the
        `quantity` that the file holds instead.

    Raises
    ------
    DensityFileError
        If the file is missing, damaged or something else; names the file, the line, what was found and what was expected.
    """
    with open_stream(path) as stream:
        kind = _known_kind(stream)
        if kind not in READERS:
            raise file_error(path, f"a {kinds.TITLES[kind]}", FORMATS + "; a structure becomes a density by `as_density`")
        return READERS[kind](stream, channels=channels, quantity=quantity, unit=unit)


def read_structure(path: str | os.PathLike[str]) -> Structure:
    """Read a crystal structure, by content, plain or compressed.

    CIF; POSCAR, also at the head of a CHGCAR; pymatgen's JSON and YAML; XSF; vasprun.xml; the input of exciting; CSSR; .res in P 1;
    PWmat; ATAT's rndstr.in, lat.in and bestsqs.out.

    Raises
    ------
    DensityFileError
        If the file is missing, damaged or something else, or names no elements.
    """
    with open_stream(path) as stream:
        kind = _known_kind(stream)
        if kind == "cif":
            return structures.read_cif(stream)
        if kind == "structure_json":
            return structures.read_json(stream)
        if kind == "xsf":
            return other_structures.read_other(stream, "XSF")
        if kind == "other_structure":
            return other_structures.read_other(stream, other_structures.format_of(stream.head(HEAD)) or "ATAT")
        if kind != "poscar":
            raise file_error(path, f"a {kinds.TITLES[kind]}", "a CIF, a POSCAR or a structure JSON")
        structure = vasp.structure_of(vasp.read_poscar(stream))
        if structure is None:
            raise file_error(path, "no element symbols", "a line of symbols before the numbers of atoms (VASP 5); add it")
        return structure


def density_from_chgcar(chgcar: Chgcar) -> Density:
    """Take over a pymatgen Chgcar: its data are density times volume, divided here, once.

    Parameters
    ----------
    chgcar : pymatgen Chgcar
        Not spin-polarised, spin-polarised, or non-collinear (whose ``diff``, derived by pymatgen, is left behind).

    Returns
    -------
    Density
        e/Å³, with the structure.

    Raises
    ------
    TypeError
        If `chgcar` is anything else, such as a Locpot.
    """
    if not _is_chgcar(chgcar):
        raise TypeError(f"`chgcar` must be a pymatgen Chgcar, got {_describe(chgcar)}")
    structure = chgcar.structure
    non_collinear = "diff_x" in chgcar.data
    names = ("total", "diff_x", "diff_y", "diff_z") if non_collinear else ("total", "diff")
    channels = {name: np.asarray(chgcar.data[name], dtype=float) / structure.volume for name in names if name in chgcar.data}
    return Density(lattice=structure.lattice.matrix, channels=channels, structure=structure)


def as_list(X: Any) -> list[Any]:
    """Make a list of the inputs that a user calls X.

    Parameters
    ----------
    X : list, tuple, pandas Series, object array or one-column DataFrame
        Of densities, structures, Chgcars, paths or samples. Rows of one entry, as scikit-learn and matminer make them of a
        column of objects, are opened.

    Returns
    -------
    list
        The inputs, in order; what each of them is, is not looked at.

    Raises
    ------
    TypeError
        If X is a single input or not a sequence.
    ValueError
        If X is empty, or has more than one column.
    """
    if _is_input(X):
        raise TypeError(f"`X` must be a list of inputs, got a single one, {_describe(X)}; write [X]")
    if _is_a(X, "pandas", "DataFrame"):
        if X.shape[1] != 1:
            raise ValueError(f"`X` must have one column, got {X.shape[1]}: {list(X.columns)}; choose one, X[['structure']]")
        items = list(X.iloc[:, 0])
    elif isinstance(X, np.ndarray):
        if X.dtype.kind not in "OU" or X.ndim > 2 or X.ndim == 0 or (X.ndim == 2 and X.shape[1] != 1):
            raise ValueError(f"`X` must be a one-dimensional array of objects, got dtype {X.dtype} and shape {X.shape}")
        items = list(X.ravel())
    elif isinstance(X, list | tuple) or _is_a(X, "pandas", "Series", "Index"):
        items = list(X)
    else:
        raise TypeError(f"`X` must be a list, tuple, Series, object array or one-column DataFrame of inputs, got {_describe(X)}")
    if not items:
        raise ValueError("`X` must hold at least one input, got none")
    return [_open_row(item) for item in items]


def _open_row(item: Any) -> Any:
    if isinstance(item, list | tuple) or (isinstance(item, np.ndarray) and item.dtype == object):
        if len(item) != 1:
            raise ValueError(f"a row of `X` must hold one input, got {len(item)}")
        return item[0]
    return item
