"""CCP4 (MRC) map: float32, mode 2, P1, the whole cell; through gemmi."""

from __future__ import annotations

import warnings
from io import BufferedWriter

import numpy as np

from matminer_ed3d.density import Density
from matminer_ed3d.writers.limits import left_out_warning

__all__ = ["write_ccp4"]


def write_ccp4(density: Density, file: BufferedWriter) -> None:
    """Write the channel ``total`` of a density of point values.

    The format holds the lengths and angles of the cell, not its orientation: whoever reads the map puts a along x and b into the xy
    plane, a rotation that changes no distance. A left-handed cell would come back as its mirror image and is refused. Atoms are
    left out.

    Raises
    ------
    ValueError
        If the cell is left-handed, or a value is too large for float32.
    """
    import gemmi

    if np.linalg.det(density.lattice) < 0:
        raise ValueError(
            "a CCP4 map holds lengths and angles of a right-handed cell, and this one is left-handed; "
            "describe the crystal in one that is not, density.change_basis(-numpy.eye(3))"
        )
    message = left_out_warning(density, "a CCP4 map")
    if message is not None:
        warnings.warn(message, UserWarning, stacklevel=4)
    total = density.channels["total"]
    largest = float(np.abs(total).max())
    if largest > float(np.finfo(np.float32).max):
        raise ValueError(f"a CCP4 map holds float32, got a value of {largest:g}; write chgcar, cube or xsf")
    with np.errstate(under="ignore"):
        values = total.astype(np.float32)
    lengths = np.linalg.norm(density.lattice, axis=1)
    unit = density.lattice / lengths[:, None]
    cosines = np.array([unit[1] @ unit[2], unit[2] @ unit[0], unit[0] @ unit[1]])
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = gemmi.FloatGrid(values, gemmi.UnitCell(*lengths, *angles), gemmi.find_spacegroup_by_name("P 1"))
    ccp4.update_ccp4_header(2)
    file.flush()
    ccp4.write_ccp4_map(file.name)  # gemmi opens the same file by its name
