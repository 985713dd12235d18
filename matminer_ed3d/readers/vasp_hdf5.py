"""HDF5 files: VASP's vaspwave.h5 and vaspout.h5, and the netCDF-4 of ABINIT.

The layout of VASP's is that of pymatgen's ``Vaspwave`` (pymatgen/io/vasp/outputs.py) and py4vasp's schema
(src/py4vasp/_raw/definition.py): ``charge/charge`` is (1, 2 or 4 components, nz, ny, nx) and density times volume, as in a CHGCAR
(``Vaspwave.get_chgcar`` hands it on unchanged); ``locpot/total`` of vaspwave.h5 and ``results/potential/total`` of vaspout.h5 are the local
potential in eV, as in a LOCPOT, whose second component is half of spin up minus spin down (``py4vasp.Potential.to_dict``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d.density import Density, Quantity
from matminer_ed3d.readers import abinit
from matminer_ed3d.readers.binary import chosen_channels, find_object, open_hdf5, plain_file, read_dataset, structure_or_none
from matminer_ed3d.readers.streams import TextStream
from matminer_ed3d.readers.units import Unit

__all__ = ["read_hdf5"]

GRIDS: dict[str, tuple[Quantity, str | None]] = {  # dataset: what it holds, and where nx, ny, nz stand
    "charge/charge": ("electron_density", "charge/grid"),
    "locpot/total": ("potential", "locpot/grid"),
    "results/potential/total": ("potential", None),
}
STRUCTURES = ("structure/positions", "locpot/position", "results/positions")
CHANNELS = {1: ("total",), 2: ("total", "diff"), 4: ("total", "diff_x", "diff_y", "diff_z")}
SYMBOL = re.compile(r"[A-Z][a-z]?(?=$|[_./\s\d])")  # an element, perhaps with what VASP hangs on it: Fe_pv, O_s/a0b1c2


def read_hdf5(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read the density or local potential in an HDF5 file of VASP 6, or a netCDF-4 file of ABINIT.

    Parameters
    ----------
    stream : TextStream
        Of the file; its path is opened again.
    channels : sequence of str, optional
        total[, diff | diff_x, diff_y, diff_z]; only what is asked for is read.
    quantity : str, optional
        ``potential`` takes the local potential of a file that has a density too; otherwise what the values are instead.
    unit : {"e/A^3", "e/bohr^3"}, optional
        For ABINIT; VASP's unit is known.

    Returns
    -------
    Density
        e/Å³, or a potential in eV; with the structure.

    Raises
    ------
    ImportError
        If h5py is not installed.
    DensityFileError
        If the file is damaged, holds no density, or leads to data in other places.
    """
    with plain_file(stream.path) as path, open_hdf5(path, stream) as file:
        if find_object(file, "primitive_vectors", stream) is not None:
            found = {name: read_dataset(file, name, stream) for name in abinit.VARIABLES}
            variables = {name: values for name, values in found.items() if values is not None}
            return abinit.density_of_variables(variables, stream, channels=channels, quantity=quantity, unit=unit)
        if unit is not None:
            raise ValueError(f"`unit` makes no sense for a file of VASP, whose unit is known, got {unit!r}; leave it out")
        return _read_vasp(file, stream, channels, quantity)


def _read_vasp(file: Any, stream: TextStream, channels: Sequence[str] | None, quantity: Quantity | None) -> Density:
    there = [name for name in GRIDS if find_object(file, name, stream) is not None]
    if not there:
        found = "an HDF5 file without charge/charge"
        if find_object(file, "results/partial_charges", stream) is not None:
            found = "partial charges of single bands (results/partial_charges)"
        raise stream.error(
            found, "a vaspwave.h5 with a charge density (LCHARGH5 or LH5 = .TRUE.; a vaspout.h5 has none) or a DEN.nc of ABINIT"
        )
    name = next((name for name in there if GRIDS[name][0] == quantity), there[0])
    kind, grid_name = GRIDS[name]
    shape = getattr(find_object(file, name, stream), "shape", None)
    if shape is None or len(shape) != 4 or shape[0] not in CHANNELS or 0 in shape:
        raise stream.error(f"{name} of shape {shape}", "(1, 2 or 4 components, nz, ny, nx)")
    grid = None if grid_name is None else read_dataset(file, grid_name, stream)
    if grid is not None and grid.tolist() != list(shape[:0:-1]):
        raise stream.error(f"{name} of shape {shape} on a grid of {grid.tolist()}", "the same counts, nx ny nz backwards")
    lattice, structure = _read_structure(file, stream)
    factor = 1 / abs(float(np.linalg.det(lattice))) if kind == "electron_density" else 1.0
    names = CHANNELS[shape[0]]
    values = {}
    for channel in chosen_channels(stream, names, channels):
        component = read_dataset(file, name, stream, names.index(channel))
        if component is None or component.dtype.kind not in "fiu":
            raise stream.error(f"values in {name} that are no numbers", "numbers")
        with np.errstate(over="ignore"):
            values[channel] = component.T * factor
        if not np.isfinite(values[channel]).all():
            raise stream.error(f"values in {name} that are not finite", "finite numbers that a double can hold")
    return Density(lattice=lattice, channels=values, structure=structure, quantity=quantity or kind)


def _read_structure(file: Any, stream: TextStream) -> tuple[Float[np.ndarray, "3 3"], Any]:
    """Read the cell and the atoms beside the grid."""
    place = next((place for place in STRUCTURES if find_object(file, place, stream) is not None), None)
    if place is None:
        raise stream.error("no cell", f"lattice_vectors in {' or '.join(STRUCTURES)}; take the CHGCAR")

    def number(name: str) -> np.ndarray:
        values = read_dataset(file, f"{place}/{name}", stream)
        if values is None or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise stream.error(f"no finite numbers in {place}/{name}", "what VASP writes there")
        return values.astype(float)

    scale, vectors = number("scale"), number("lattice_vectors")
    if scale.size != 1 or not scale.item() > 0 or vectors.shape != (3, 3):
        raise stream.error(
            f"scale {scale.tolist()} and lattice_vectors of shape {vectors.shape}", "a positive number and three vectors in Å"
        )
    lattice = scale.item() * vectors
    if not abs(np.linalg.det(lattice)) > 1e-6:
        raise stream.error(f"lattice_vectors {vectors.tolist()}", "three vectors that span a cell")
    types = read_dataset(file, f"{place}/ion_types", stream)
    if types is None:
        return lattice, None
    counts, coords = number("number_ion_types").ravel(), number("position_ions")
    labels = [label.decode("latin-1").strip() for label in types.ravel().tolist()] if types.dtype.kind == "S" else []
    elements = [match[0] for match in map(SYMBOL.match, labels) if match]
    if len(elements) != len(labels) or len(labels) != counts.size or (counts < 0).any() or counts.sum() != len(coords):
        found = f"ion_types {labels[:10]}, number_ion_types {counts.tolist()[:10]} and position_ions of shape {coords.shape}"
        raise stream.error(found, "an element and a count for each kind, and as many positions")
    symbols = [element for element, count in zip(elements, counts, strict=True) for _ in range(int(count))]
    direct = number("direct_coordinates")
    if direct.size != 1:
        raise stream.error(f"direct_coordinates {direct.tolist()[:10]}", "1 (fractional) or 0 (Cartesian)")
    cartesian = direct.item() != 1
    return lattice, structure_or_none(stream, lattice, symbols, scale.item() * coords if cartesian else coords, cartesian)
