"""Atomic displacements of a CIF, isotropic and anisotropic, for every site of the structure that is made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

__all__ = ["add_displacements", "has_displacements"]

ATOM_TAGS = ["label", "?fract_x", "?fract_y", "?fract_z", "?occupancy", "?U_iso_or_equiv", "?B_iso_or_equiv"]
COMPONENTS = ("11", "22", "33", "23", "13", "12")
PROPERTIES = tuple(f"U{ij}_cif" for ij in COMPONENTS)  # pymatgen's names of the CIF's U_ij
B_TO_U = 1 / (8 * math.pi**2)
SAME_SITE = 5e-4  # in fractions of the cell; pymatgen rounds coordinates and merges sites by 1e-4


def has_displacements(block: Any) -> bool:
    """Tell whether a gemmi CIF block has any column of displacements, filled or not."""
    return any(len(block.find_values(f"_atom_site_{tag}")) > 0 for tag in ("U_iso_or_equiv", "B_iso_or_equiv")) or any(
        len(block.find_values(f"_atom_site_aniso_{kind}_11")) > 0 for kind in ("U", "B", "beta")
    )


def _anisotropic(block: Any, lattice: Float[np.ndarray, "3 3"]) -> dict[str, Float[np.ndarray, "3 3"]]:
    """Mean-square displacement in fractional coordinates by atom label, where all six components make a positive ellipsoid."""
    from gemmi.cif import as_number

    lengths = np.linalg.norm(np.linalg.inv(lattice), axis=0)  # a*, b*, c*
    scales = {"U": np.outer(lengths, lengths), "B": B_TO_U * np.outer(lengths, lengths), "beta": np.ones((3, 3)) / (2 * math.pi**2)}
    given: dict[str, np.ndarray] = {}
    twice: set[str] = set()
    for kind, scale in scales.items():
        for row in block.find("_atom_site_aniso_", ["label", *(f"{kind}_{ij}" for ij in COMPONENTS)]):
            xx, yy, zz, yz, xz, xy = (as_number(row[i]) for i in range(1, 7))
            u_frac = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) * scale
            if not np.isfinite(u_frac).all() or np.linalg.eigvalsh(lattice.T @ u_frac @ lattice).min() <= 0:
                continue
            if not np.allclose(given.setdefault(row.str(0), u_frac), u_frac, rtol=1e-2, atol=0):
                twice.add(row.str(0))
    return {label: u_frac for label, u_frac in given.items() if label not in twice}


def _isotropic(row: Any) -> float:
    """Equivalent isotropic U (Å²) of an atom; NaN where none is given or it is not positive."""
    from gemmi.cif import as_number

    u_iso = as_number(row[5]) if row.has(5) else math.nan
    if math.isnan(u_iso) and row.has(6):
        u_iso = as_number(row[6]) * B_TO_U
    return u_iso if 0 < u_iso < math.inf else math.nan


def _sites_of(
    images: Float[np.ndarray, "n_images 3"], frac_coords: Float[np.ndarray, "n_sites 3"]
) -> tuple[Shaped[np.ndarray, " n_images"], Shaped[np.ndarray, " n_images"]]:
    """Row of the site that each image falls on, and whether there is one."""
    from scipy.spatial import cKDTree

    inside = frac_coords - np.floor(frac_coords)
    inside[inside >= 1] = 0
    distances, sites = cKDTree(inside, boxsize=1).query(images - np.floor(images))
    return sites, distances < SAME_SITE


def add_displacements(structure: Structure, block: Any, operations: Sequence[Any]) -> list[str]:
    """Give every site of a structure the displacement that its CIF states, turned by the operation that makes the site.

    A site gets ``u_iso`` (Å²), or ``U11_cif`` to ``U12_cif`` (Å², the CIF's U_ij, in the setting of the cell) where the CIF is
    anisotropic, which counts before an isotropic value. Where several operations or several atoms make one site, it gets their mean,
    weighted by occupancy: the operations of its site symmetry then hold exactly, whatever the digits of the file.

    Parameters
    ----------
    structure : pymatgen Structure
        In the cell of the CIF; changed in place.
    block : gemmi.cif.Block
        With the atoms, their displacements and the cell of `structure`.
    operations : sequence of pymatgen SymmOp
        Those by which the atoms of `block` became the sites.

    Returns
    -------
    list of str
        Labels of the sites left without a displacement: it is missing, ``?``, 0, or no ellipsoid.
    """
    from gemmi.cif import as_number

    lattice = structure.lattice.matrix
    metric = lattice @ lattice.T
    anisotropic = _anisotropic(block, lattice)
    rotations = np.array([op.rotation_matrix for op in operations]).reshape(-1, 3, 3)
    translations = np.array([op.translation_vector for op in operations]).reshape(-1, 3)
    u_frac, weights, is_anisotropic = np.zeros((len(structure), 3, 3)), np.zeros(len(structure)), np.zeros(len(structure), dtype=bool)
    for row in block.find("_atom_site_", ATOM_TAGS):
        coords = np.array([as_number(row[i]) if row.has(i) else math.nan for i in (1, 2, 3)])
        occupancy = as_number(row[4], 1.0) if row.has(4) else 1.0
        own = anisotropic.get(row.str(0))
        u_iso = _isotropic(row)
        if not np.isfinite(coords).all() or not occupancy > 0 or (own is None and math.isnan(u_iso)):
            continue
        sites, found = _sites_of(rotations @ coords + translations, structure.frac_coords)
        images = rotations @ (u_iso * np.linalg.inv(metric) if own is None else own) @ rotations.transpose(0, 2, 1)
        np.add.at(u_frac, sites[found], occupancy * images[found])
        np.add.at(weights, sites[found], occupancy)
        is_anisotropic[sites[found]] |= own is not None
    known = weights > 0
    u_frac[known] /= weights[known, None, None]
    if (known & ~is_anisotropic).any():
        u_iso_of_sites = np.einsum("nij,ji->n", u_frac, metric) / 3
        isotropic = known & ~is_anisotropic
        structure.add_site_property("u_iso", [float(u) if here else None for u, here in zip(u_iso_of_sites, isotropic, strict=True)])
    if is_anisotropic.any():
        lengths = np.sqrt(np.diag(np.linalg.inv(metric)))
        u_cif = u_frac / np.outer(lengths, lengths)
        for name, ij in zip(PROPERTIES, COMPONENTS, strict=True):
            values = u_cif[:, int(ij[0]) - 1, int(ij[1]) - 1]
            structure.add_site_property(name, [float(u) if here else None for u, here in zip(values, is_anisotropic, strict=True)])
    return list(dict.fromkeys(site.label for site, here in zip(structure, known, strict=True) if not here))
