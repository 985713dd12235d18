"""ABINIT's densities, potentials and ELF in netCDF: DEN.nc, POT.nc, VHA.nc, ELF.nc and their kin.

The layout is that of ETSF-IO (Gonze et al., Comput. Mater. Sci. 43, 1056 (2008); https://esl.cecam.org/data/etsf_io/). The variables'
names are those of ABINIT's ``varname_from_fname`` (src/56_io_mpi/m_hdr.F90); the meaning of the components is that of abipy's
``FieldReader.read_denpot`` (abipy/core/fields.py): of two components of a density the first is the total and the second spin up; of four
the last three are the magnetisation. ETSF's own meaning of two is up and down; the number of electrons in the file tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d.density import Density, Quantity
from matminer_ed3d.readers.binary import chosen_channels, density_unit, plain_file, structure_or_none
from matminer_ed3d.readers.streams import TextStream
from matminer_ed3d.readers.units import BOHR, Unit

__all__ = ["VARIABLES", "density_of_variables", "read_netcdf"]

HARTREE = 27.211386245988
"""Hartree energy in eV (CODATA 2018)."""

FIELDS: dict[str, Quantity] = {
    "density": "electron_density",
    "pawrhor": "electron_density",
    "vtrial": "potential",
    "vhartree": "potential",
    "vpsp": "potential",
    "vhxc": "potential",
    "exchange_correlation_potential": "potential",
    "vhartree_vloc": "potential",
    "elfr": "elf",
}
VARIABLES = (
    *FIELDS,
    "primitive_vectors",
    "reduced_atom_positions",
    "atom_species",
    "atomic_numbers",
    "number_of_electrons",
    "nelect",
)
"""All variables that are read, of either kind of netCDF."""

POTENTIAL_CHANNELS = {1: ("total",), 2: ("up", "down"), 4: ("up", "down", "re_updown", "im_updown")}
MAGNETIC = ("total", "diff_x", "diff_y", "diff_z")
LONGEST_HEADER = 1 << 24  # bytes


def read_netcdf(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read a netCDF file of ABINIT in one of the classic formats; netCDF-4 is HDF5, see :func:`read_hdf5`.

    Parameters
    ----------
    stream : TextStream
        Of the file; its path is opened again.
    channels, quantity, unit : optional
        See :func:`density_of_variables`.

    Raises
    ------
    DensityFileError
        If the file is damaged or holds no density, potential or ELF.
    """
    with plain_file(stream.path) as path:
        variables = _classic_variables(path, stream)
    return density_of_variables(variables, stream, channels=channels, quantity=quantity, unit=unit)


class Header:
    """The header of a classic netCDF file, read item by item; never further than its end.

    Format: https://docs.unidata.ucar.edu/netcdf-c/current/file_format_specifications.html. SciPy reads it too, but takes memory for what a
    damaged header announces and lets the file's attributes replace those of its own objects.
    """

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at, self.version = raw, 4, raw[3]

    def integer(self, n_bytes: int = 4) -> int:
        """Read a signed integer."""
        return int.from_bytes(self.take(n_bytes), "big", signed=True)

    def count(self) -> int:
        """Read a count, which has eight bytes in CDF-5; it cannot be negative."""
        count = self.integer(8 if self.version == 5 else 4)
        if count < 0:
            raise ValueError(f"a count of {count}")
        return count

    def take(self, n_bytes: int) -> bytes:
        """Take so many bytes."""
        if self.at + n_bytes > len(self.raw):
            raise ValueError("a header without end")
        self.at += n_bytes
        return self.raw[self.at - n_bytes : self.at]

    def text(self, n_bytes: int) -> str:
        """Take text, which is filled up to four bytes."""
        return self.take(n_bytes + -n_bytes % 4)[:n_bytes].decode("latin-1")

    def items(self, tag: int) -> range:
        """Begin a list of the kind `tag`, which may be absent."""
        found, count = self.integer(), self.count()
        if found != tag and (found, count) != (0, 0):
            raise ValueError(f"a list of kind {found} in place of {tag}")
        return range(count)

    def skip_attributes(self) -> None:
        """Pass over a list of attributes."""
        for _ in self.items(12):
            self.text(self.count())
            n_bytes = np.dtype(TYPES[self.integer()]).itemsize
            self.text(self.count() * n_bytes)


TYPES = {1: "i1", 2: "S1", 3: ">i2", 4: ">i4", 5: ">f4", 6: ">f8", 7: "u1", 8: ">u2", 9: ">u4", 10: ">i8", 11: ">u8"}


def _classic_variables(path: Path, stream: TextStream) -> dict[str, np.ndarray]:
    """Read the known variables of a classic netCDF file (CDF-1, 2 or 5), each once it is known to lie inside the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = Header(file.read(LONGEST_HEADER))
        try:
            header.take(8 if header.version == 5 else 4)  # number of records, of which these variables have none
            dimensions = [(header.text(header.count()), header.count()) for _ in header.items(10)]
            header.skip_attributes()
            places = {}
            for _ in header.items(11):
                name = header.text(header.count())
                shape = tuple(dimensions[header.count()][1] for _ in range(header.count()))
                header.skip_attributes()
                dtype = np.dtype(TYPES[header.integer()])
                header.count() if header.version == 5 else header.take(4)  # size, which may be too large for its four bytes
                places[name] = (shape, dtype, header.integer(4 if header.version == 1 else 8))
        except (IndexError, KeyError, ValueError) as error:
            raise stream.error(f"a damaged netCDF header ({error})", "a complete file; fetch it again") from error
        variables = {}
        for name in VARIABLES:
            if name not in places:
                continue
            shape, dtype, begin = places[name]
            n_bytes = math.prod(shape) * dtype.itemsize
            if begin < 0 or begin + n_bytes > size:
                raise stream.error(f"{name} of shape {shape} ({n_bytes} bytes from byte {begin} on) in a file of {size}", "a complete file")
            file.seek(begin)
            variables[name] = np.frombuffer(file.read(n_bytes), dtype).reshape(shape)
    return variables


def _lattice(variables: dict[str, np.ndarray], stream: TextStream) -> Float[np.ndarray, "3 3"]:
    vectors = variables.get("primitive_vectors")
    if vectors is None or vectors.shape != (3, 3) or vectors.dtype.kind not in "fiu":
        raise stream.error(
            "no primitive_vectors" if vectors is None else f"primitive_vectors of shape {vectors.shape}", "three vectors, bohr"
        )
    lattice = vectors.astype(float) * BOHR
    if not np.isfinite(lattice).all() or not abs(np.linalg.det(lattice)) > 1e-6:
        raise stream.error(f"primitive_vectors {vectors.tolist()}", "three finite vectors that span a cell")
    return lattice


def _structure(variables: dict[str, np.ndarray], lattice: np.ndarray, stream: TextStream) -> Any:
    """Make the structure; None where the file has no atoms, or mixed ones without an atomic number."""
    from pymatgen.core.periodic_table import Element

    names = ("reduced_atom_positions", "atom_species", "atomic_numbers")
    if not all(name in variables for name in names):
        return None
    positions, species, numbers = (variables[name] for name in names)
    if any(array.dtype.kind not in "fiu" for array in (positions, species, numbers)) or species.ndim != 1 or numbers.ndim != 1:
        raise stream.error("atoms that are no lists of numbers", "reduced_atom_positions, atom_species, atomic_numbers")
    kinds = species.astype(np.int64) - 1
    if kinds.size == 0 or kinds.min() < 0 or kinds.max() >= numbers.size:
        raise stream.error(f"atom_species {species[:10].tolist()}", f"numbers from 1 to {numbers.size}")
    charges = numbers.astype(float)[kinds]
    if not np.isfinite(charges).all() or charges.min() < 1 or charges.max() > 118 or (charges != np.round(charges)).any():
        return None  # an alchemical mixture or an empty sphere
    return structure_or_none(stream, lattice, [Element.from_Z(int(z)).symbol for z in charges], positions.astype(float))


def _is_total_and_up(first: np.ndarray, second: np.ndarray, volume: float, variables: dict[str, np.ndarray]) -> bool:
    """Tell ABINIT's components, total and up, from ETSF's, up and down, by the number of electrons; ABINIT's if it is not there."""
    n_electrons = next((float(variables[name]) for name in ("nelect", "number_of_electrons") if _is_number(variables.get(name))), math.nan)
    errors = [abs(float(values.mean()) * volume - n_electrons) for values in (first, first + second)]
    return not errors[1] < errors[0]


def _is_number(value: np.ndarray | None) -> bool:
    return value is not None and value.shape == () and value.dtype.kind in "fiu"


def density_of_variables(
    variables: dict[str, np.ndarray],
    stream: TextStream,
    *,
    channels: Sequence[str] | None = None,
    quantity: Quantity | None = None,
    unit: Unit | None = None,
) -> Density:
    """Make a density of the variables of a netCDF file, in atomic units.

    Parameters
    ----------
    variables : dict of str to array
        Those of :data:`VARIABLES` that the file has. A field is (components, n3, n2, n1, 1).
    channels : sequence of str, optional
        Of a density: total[, diff | diff_x, diff_y, diff_z]; of a potential: total, or up, down[, re_updown, im_updown].
    quantity : str, optional
        What the values are, instead of what their name says. A field of that quantity is taken first, where there are several.
    unit : {"e/A^3", "e/bohr^3"}, optional
        e/bohr³ by default.

    Returns
    -------
    Density
        e/Å³, or a potential in eV; with the structure.
    """
    fields = [name for name in FIELDS if name in variables]
    if not fields:
        raise stream.error("no variable with a density, potential or ELF of ABINIT", f"one of {', '.join(FIELDS)}")
    name = next((name for name in fields if quantity == FIELDS[name]), fields[0])
    kind = quantity or FIELDS[name]
    values = variables[name]
    if values.ndim != 5 or values.shape[0] not in POTENTIAL_CHANNELS or 0 in values.shape or values.dtype.kind not in "fiu":
        raise stream.error(
            f"{name} of shape {values.shape} and type {values.dtype}",
            "real numbers, (1, 2 or 4 components, n3, n2, n1, 1), as ETSF-IO writes",
        )
    if values.shape[-1] != 1:
        raise stream.error(f"complex values in {name}", "real ones; the response to a perturbation is no density")
    lattice = _lattice(variables, stream)
    volume = abs(float(np.linalg.det(variables["primitive_vectors"].astype(float))))
    grids = [values[component, :, :, :, 0].T.astype(float) for component in range(values.shape[0])]
    factor = HARTREE if kind == "potential" else 1.0
    if kind == "electron_density" or unit is not None:
        factor = density_unit("e/bohr^3", unit, kind)
    names = POTENTIAL_CHANNELS[len(grids)]
    with np.errstate(over="ignore", invalid="ignore"):
        if FIELDS[name] == "electron_density":
            names = ("total", "diff") if len(grids) == 2 else MAGNETIC[: len(grids)]
            if len(grids) == 2:
                total_and_up = _is_total_and_up(grids[0], grids[1], volume, variables)
                grids = [grids[0], 2 * grids[1] - grids[0]] if total_and_up else [grids[0] + grids[1], grids[0] - grids[1]]
        grids = [grid * factor for grid in grids]
    if not all(np.isfinite(grid).all() for grid in grids):
        raise stream.error(f"values in {name} that are not finite", "finite numbers that a double can hold")
    wanted = chosen_channels(stream, names, channels)
    return Density(
        lattice=lattice,
        channels={channel: grid for channel, grid in zip(names, grids, strict=True) if channel in wanted},
        structure=_structure(variables, lattice, stream),
        quantity=kind,
    )
