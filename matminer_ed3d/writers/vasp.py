"""CHGCAR, LOCPOT and ELFCAR: a POSCAR, then for each channel the counts of the grid and the numbers, x fastest.

A charge is written as density times the volume of the cell, a potential or an ELF as it is. The sets of a file have no names: one is the
total, two are total and spin up minus down, four are total and the magnetisation along x, y, z. Two sets of a potential or an ELF are
those of spin up and down.
"""

from __future__ import annotations

from io import BufferedIOBase

import numpy as np

from matminer_ed3d.density import Density, Quantity
from matminer_ed3d.writers.limits import ordered_symbols
from matminer_ed3d.writers.number_text import write_values

__all__ = ["VOLUMETRIC_NAMES", "check_name", "write_chgcar"]

SETS: tuple[tuple[str, ...], ...] = (("total",), ("total", "diff"), ("total", "diff_x", "diff_y", "diff_z"))
OF_EACH_SPIN: tuple[tuple[str, ...], ...] = (("total",), ("up", "down"), SETS[2])  # of a potential or an ELF
VOLUMETRIC_NAMES = {
    "CHGCAR": "electron_density",
    "CHG": "electron_density",
    "PARCHG": "electron_density",
    "AECCAR": "electron_density",
    "LOCPOT": "potential",
    "ELFCAR": "elf",
}
"""How VASP calls a file of each quantity; nothing in such a file tells them apart."""


def check_name(name: str, quantity: Quantity) -> None:
    """Refuse a name that would make a reader take the file for something else.

    Raises
    ------
    ValueError
        If VASP has no such file, or the name is VASP's for another quantity, or a potential or ELF has a name that does not say so.
    """
    start = next((start for start in VOLUMETRIC_NAMES if name.upper().startswith(start)), None)
    named = VOLUMETRIC_NAMES[start] if start else None
    if named == quantity or (named is None and quantity == "electron_density"):
        return
    fitting = [start for start, held in VOLUMETRIC_NAMES.items() if held == quantity]
    if not fitting:
        raise ValueError(f"VASP's files hold an electron density, a potential or an ELF, got the quantity {quantity!r}")
    raise ValueError(
        f"the name says which quantity a file of VASP holds: one of {quantity!r} begins with {' or '.join(fitting)}, got {name!r}"
    )


def write_chgcar(density: Density, file: BufferedIOBase) -> None:
    """Write a density of point values, or a potential or an ELF, in VASP's format.

    Sites are grouped by element, as a POSCAR demands, elements in the order in which they first come; oxidation states are left out.

    Raises
    ------
    ValueError
        If there is no structure or a disordered one, or the channels are none of VASP's sets.
    """
    if density.structure is None or len(density.structure) == 0:
        raise ValueError("a CHGCAR begins with the atoms, and `density.structure` has none; add them, or write cube, xsf or ccp4")
    names = tuple(density.channels)
    known = SETS if density.quantity == "electron_density" else OF_EACH_SPIN
    sets = next((sets for sets in known if set(sets) == set(names)), None)
    if sets is None and density.quantity != "electron_density" and len(names) == 1:
        sets = names
    if sets is None:
        possible = ", or ".join(" + ".join(sets) for sets in known)
        raise ValueError(f"a file of VASP holds of this {density.quantity} the channels {possible}; got {', '.join(names)}")
    symbols = ordered_symbols(density, "a CHGCAR")
    elements = list(dict.fromkeys(symbols))
    order = [at for element in elements for at, symbol in enumerate(symbols) if symbol == element]
    frac_coords = np.asarray(density.structure.frac_coords)[order]
    lines = [
        " ".join(f"{element}{symbols.count(element)}" for element in elements),
        "   1.0",
        *(" " + " ".join(f"{x:21.16f}" for x in row) for row in density.lattice),
        " " + " ".join(f"{element:>5}" for element in elements),
        " " + " ".join(f"{symbols.count(element):5d}" for element in elements),
        "Direct",
        *(" " + " ".join(f"{x:19.16f}" for x in row) for row in frac_coords),
    ]
    file.write(("\n".join(lines) + "\n").encode())
    factor = density.volume if density.quantity == "electron_density" else 1.0
    nx, ny, nz = density.grid_shape
    for name in sets:
        file.write(f"\n {nx:4d} {ny:4d} {nz:4d}\n".encode())
        write_values(file, density.channels[name].ravel(order="F"), factor=factor)
