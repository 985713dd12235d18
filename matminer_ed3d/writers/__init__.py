"""Write a ``Density`` to a file that other programs read: CHGCAR and its kin of VASP, Gaussian cube, XSF, CCP4 map.

A file is written all or nothing (:mod:`matminer_ed3d.atomic_files`). Every program takes the numbers of a density file for the values
at its grid points, and no format can say otherwise, so voxel means are turned into point values first
(:meth:`~matminer_ed3d.density.Density.point_values`, to which the numbers of electrons are the same).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matminer_ed3d.atomic_files import replacing
from matminer_ed3d.density import Density
from matminer_ed3d.writers.ccp4 import write_ccp4
from matminer_ed3d.writers.cube import write_cube
from matminer_ed3d.writers.number_text import gzipped
from matminer_ed3d.writers.vasp import VOLUMETRIC_NAMES, check_name, write_chgcar
from matminer_ed3d.writers.xsf import write_xsf

__all__ = ["write_density"]

WRITERS: dict[str, Callable[[Density, Any], None]] = {
    "chgcar": write_chgcar,
    "cube": write_cube,
    "xsf": write_xsf,
    "ccp4": write_ccp4,
}
SUFFIXES = {".vasp": "chgcar", ".cube": "cube", ".cub": "cube", ".xsf": "xsf", ".ccp4": "ccp4", ".map": "ccp4", ".mrc": "ccp4"}
KNOWN = (
    f"'chgcar' ({', '.join(f'{name}*' for name in VOLUMETRIC_NAMES)} or *.vasp), 'cube' (*.cube), 'xsf' (*.xsf) or "
    "'ccp4' (*.ccp4, *.map, *.mrc); the first three also with .gz"
)


def write_density(density: Density, path: str | os.PathLike[str], file_format: str | None = None) -> None:
    """Write a density to a file, in place of the old one only when it is complete.

    ``chgcar``
        12 digits; e (density times volume). Channels total; total and diff; total, diff_x, diff_y and diff_z; a potential (eV) or an
        ELF as they are. Needs ordered atoms; oxidation states are lost, sites are grouped by element.
    ``cube``
        12 digits; Bohr and e/bohr³. The channel total; others are left out with a warning. Atoms, ordered, or none.
    ``xsf``
        12 digits; Å and e/Å³. All channels. Atoms, ordered, or none.
    ``ccp4``
        float32; e/Å³. The channel total; others are left out with a warning. No atoms. Lengths and angles of the cell, not its orientation;
        right-handed cells only.

    A cube or a map of another channel is written by ``Density(lattice, {"total": density.channel("diff")})``.

    Parameters
    ----------
    density : Density
        Voxel means are written as the values at the grid points that have these means.
    path : str or PathLike
        Where to; a ``.gz`` at the end of the name of a text format compresses.
    file_format : {"chgcar", "cube", "xsf", "ccp4"}, optional
        By default the name says it: ``CHGCAR*``, ``CHG*``, ``PARCHG*``, ``AECCAR*``, ``LOCPOT*``, ``ELFCAR*`` or ``.vasp``; ``.cube``;
        ``.xsf``; ``.ccp4``, ``.map`` or ``.mrc``.

    Raises
    ------
    ValueError
        If the format is unknown, or cannot hold this density: the message says what is in the way and what to do.
    OSError
        If the file cannot be written.

    Warns
    -----
    UserWarning
        If the format holds one channel and the density has more.
    """
    path = Path(path)
    name = path.name.lower()
    compressed = name.endswith(".gz")
    if file_format is None:
        file_format = _format_of(path, name.removesuffix(".gz"))
    elif file_format not in WRITERS:
        raise ValueError(f"`file_format` must be {KNOWN}; got {file_format!r}")
    if file_format == "chgcar":
        check_name(path.name, density.quantity)
    elif density.quantity != "electron_density":
        raise ValueError(
            f"{file_format!r} files are written of an electron density, got the quantity {density.quantity!r}; "
            "'chgcar' holds a potential (LOCPOT) or an ELF (ELFCAR)"
        )
    if compressed and file_format == "ccp4":
        raise ValueError(f"a CCP4 map is binary and is written without compression, got the name {path.name!r}; leave out the .gz")
    points = density.point_values()
    with replacing(path) as file:
        if compressed:
            with gzipped(file) as text:
                WRITERS[file_format](points, text)
        else:
            WRITERS[file_format](points, file)


def _format_of(path: Path, name: str) -> str:
    known = SUFFIXES.get(Path(name).suffix)
    if known is None and name.startswith(tuple(start.lower() for start in VOLUMETRIC_NAMES)):
        known = "chgcar"
    if known is None:
        raise ValueError(f"`file_format` must be given, for the name {path.name!r} does not say it: {KNOWN}")
    return known
