"""XSF of XCrySDen and VESTA: cell and atoms in Å, then one general grid with end points for each channel, x fastest.

The name of the block is ``electron_density_e/A^3``: the format has no place for a unit. A grid's name ends in that of its channel.
"""

from __future__ import annotations

from io import BufferedIOBase

import numpy as np

from matminer_ed3d.density import Density
from matminer_ed3d.writers.limits import ordered_symbols
from matminer_ed3d.writers.number_text import write_values

__all__ = ["write_xsf"]

BLOCK_NAME = "electron_density_e/A^3"


def _row(numbers: np.ndarray) -> str:
    return "".join(f" {x:21.14f}" for x in numbers)


def write_xsf(density: Density, file: BufferedIOBase) -> None:
    """Write every channel of a density of point values, with the atoms if there are any.

    Raises
    ------
    ValueError
        If the structure is disordered.
    """
    lattice = [_row(vector) for vector in density.lattice]
    lines = ["CRYSTAL", "PRIMVEC", *lattice]
    if density.structure is not None and len(density.structure):
        symbols = ordered_symbols(density, "an XSF")
        cart_coords = np.asarray(density.structure.frac_coords) @ density.lattice
        lines += ["PRIMCOORD", f"{len(symbols)} 1"]
        lines += [f"{symbol:<3}{_row(row)}" for symbol, row in zip(symbols, cart_coords, strict=True)]
    lines += ["BEGIN_BLOCK_DATAGRID_3D", BLOCK_NAME]
    shape = " ".join(str(n + 1) for n in density.grid_shape)
    for name, values in density.channels.items():
        lines += [f"BEGIN_DATAGRID_3D_{name}", shape, _row(np.zeros(3)), *lattice]
        file.write(("\n".join(lines) + "\n").encode())
        for k in range(values.shape[2] + 1):  # a plane at a time; the last of each axis is the first again
            plane = np.pad(values[:, :, k % values.shape[2]], (0, 1), mode="wrap")
            write_values(file, plane.ravel(order="F"))
        lines = ["END_DATAGRID_3D"]
    file.write(("\n".join([*lines, "END_BLOCK_DATAGRID_3D"]) + "\n").encode())
