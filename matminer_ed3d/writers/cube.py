"""Gaussian cube: Bohr and e/bohr³, origin at 0, z fastest, no end points; one channel."""

from __future__ import annotations

import warnings
from io import BufferedIOBase

import numpy as np

from matminer_ed3d.density import Density
from matminer_ed3d.writers.limits import left_out_warning, ordered_symbols
from matminer_ed3d.writers.number_text import write_values

__all__ = ["write_cube"]

BOHR = 0.529177210903  # Å, CODATA 2018, as in readers.units


def write_cube(density: Density, file: BufferedIOBase) -> None:
    """Write the channel ``total`` of a density of point values, with the atoms if there are any.

    Lengths have 12 decimals and values 12 digits, which every program that splits lines at blanks reads; Gaussian itself writes 6.

    Raises
    ------
    ValueError
        If the structure is disordered.
    """
    message = left_out_warning(density, "a cube")
    if message is not None:
        warnings.warn(message, UserWarning, stacklevel=4)
    atoms: list[str] = []
    if density.structure is not None and len(density.structure):
        ordered_symbols(density, "a cube")
        cart_coords = np.asarray(density.structure.frac_coords) @ density.lattice / BOHR
        for site, row in zip(density.structure, cart_coords, strict=True):
            n_protons = next(iter(site.species)).Z
            atoms.append(f"{n_protons:5d} {n_protons:12.6f}" + "".join(f" {x:18.12f}" for x in row))
    voxels = density.lattice / np.array(density.grid_shape)[:, None] / BOHR
    lines = [
        "Electron density, e/bohr^3",
        "lengths in Bohr; grid without end points, z fastest",
        f"{len(atoms):5d}" + f" {0.0:18.12f}" * 3,
        *(f"{n:5d}" + "".join(f" {x:18.12f}" for x in row) for n, row in zip(density.grid_shape, voxels, strict=True)),
        *atoms,
    ]
    file.write(("\n".join(lines) + "\n").encode())
    plane = density.grid_shape[1:]
    for values in density.channels["total"]:  # a plane at a time
        write_values(file, values.reshape(plane[0] * plane[1]), per_line=6, factor=BOHR**3)
