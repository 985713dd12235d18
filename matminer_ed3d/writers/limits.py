"""What formats cannot hold: disorder, atoms of another cell, a second channel."""

from __future__ import annotations

import numpy as np

from matminer_ed3d.density import Density

__all__ = ["left_out_warning", "ordered_symbols"]


def ordered_symbols(density: Density, file_format: str) -> list[str]:
    """Return the element of each site, for a format that knows atoms and no occupancies.

    Raises
    ------
    ValueError
        If a site is disordered or no element, or the structure has another cell than the density.
    """
    from pymatgen.core.periodic_table import Element

    structure = density.structure
    cell = np.asarray(structure.lattice.matrix)
    if not np.allclose(cell, density.lattice, rtol=0, atol=1e-4 * float(np.abs(density.lattice).max())):
        raise ValueError(
            f"`density.structure` must have the lattice of the density, {density.lattice.tolist()}, got {cell.tolist()}; "
            "give it the structure of its own cell, or none"
        )
    symbols = []
    for site in structure:
        species = next(iter(site.species)) if len(site.species) == 1 else None
        symbol = str(getattr(species, "symbol", species))
        if species is None or abs(site.species[species] - 1) > 1e-6 or not Element.is_valid_symbol(symbol):
            raise ValueError(
                f"{file_format} holds whole atoms of elements, got {site.species_string!r} at {np.round(site.frac_coords, 5).tolist()}; "
                "write an ordered structure, or none (dataclasses.replace(density, structure=None)) to cube, xsf or ccp4"
            )
        symbols.append(symbol)
    return symbols


def left_out_warning(density: Density, file_format: str) -> str | None:
    """Say which channels a format of one channel leaves out; None if none."""
    names = [name for name in density.channels if name != "total"]
    if not names:
        return None
    return (
        f"{file_format} holds one channel: 'total' is written, {', '.join(map(repr, names))} left out; "
        "write another by Density(lattice, {'total': density.channel(name)}), or all to xsf or chgcar"
    )
