"""Atoms to density: superposed independent atoms (the promolecule), from X-ray scattering factors, occupancies and displacement.

Each atom is a sum of five Gaussians, f(s) = sum_c a_c exp(-b_c s^2), the last one the constant c of the table with b = 0
(International Tables C, 1992, table 6.1.1.4, as tabulated by gemmi), and its displacement widens each of them;
:mod:`matminer_ed3d.superposition` sums them on the grid.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from jaxtyping import Float, Int

from matminer_ed3d import grids, scattering_factors, superposition
from matminer_ed3d.density import Density
from matminer_ed3d.scattering_factors import DEFAULT_B_ISO, Table
from matminer_ed3d.superposition import Method

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

__all__ = ["Atoms", "DEFAULT_B_ISO", "atoms_from_structure", "density_from_atoms", "density_from_structure", "form_factor_table"]

U_CIF_KEYS = ("U11_cif", "U22_cif", "U33_cif", "U23_cif", "U13_cif", "U12_cif")  # pymatgen's names, in its order
MOST_POINTS = 1 << 28  # of a grid; 2 GiB, and some times that to sum on it
LARGEST_ROUNDING = 1e-12  # Å², below zero, of a displacement that is 0


@dataclass(frozen=True, eq=False)
class Atoms:
    """The atoms of one cell as arrays.

    Parameters
    ----------
    lattice : (3, 3) float
        Rows in Å.
    frac_coords : (n_atoms, 3) float
        Fractional coordinates.
    numbers : (n_atoms,) int
        Atomic numbers, 1 to 98. A site shared by several species is several atoms.
    occupancies : (n_atoms,) float
        Share of the site, in (0, 1].
    u_frac : (n_atoms, 3, 3) float
        Mean-square displacement in fractional coordinates; ``b_iso / (8 pi^2) * inv(lattice @ lattice.T)`` if isotropic.
    charges : (n_atoms,) int, optional
        Of ions, such as 3 for Fe3+; atoms are neutral if not given.
    table : {"it92", "waasmaier_kirfel"}
        Of scattering factors, see :mod:`matminer_ed3d.scattering_factors`.
    """

    lattice: Float[np.ndarray, "3 3"]
    frac_coords: Float[np.ndarray, "n_atoms 3"]
    numbers: Int[np.ndarray, " n_atoms"]
    occupancies: Float[np.ndarray, " n_atoms"]
    u_frac: Float[np.ndarray, "n_atoms 3 3"]
    charges: Int[np.ndarray, " n_atoms"] | None = None
    table: Table = "it92"

    @classmethod
    def isotropic(
        cls, lattice: np.ndarray, frac_coords: np.ndarray, numbers: np.ndarray, b_iso: float | np.ndarray = DEFAULT_B_ISO
    ) -> Atoms:
        """Fully occupied atoms that move alike in all directions with `b_iso` (Å²)."""
        lattice = np.asarray(lattice, dtype=float)
        n_atoms = len(numbers)
        u_iso = np.broadcast_to(np.asarray(b_iso, dtype=float) / (8 * np.pi**2), n_atoms)
        return cls(
            lattice=lattice,
            frac_coords=np.asarray(frac_coords, dtype=float).reshape(n_atoms, 3),
            numbers=np.asarray(numbers, dtype=np.int64),
            occupancies=np.ones(n_atoms),
            u_frac=u_iso[:, None, None] * np.linalg.inv(lattice @ lattice.T),
        )


@cache
def form_factor_table() -> tuple[Float[np.ndarray, "n_elements 5"], Float[np.ndarray, "n_elements 5"]]:
    """Return the coefficients a (electrons) and b (Å²) of the neutral atoms of ``it92``, row Z; row 0 is empty. The fifth b is 0."""
    a, b = scattering_factors.gaussians_of(np.arange(1, 99))
    return np.vstack([np.zeros(5), a]), np.vstack([np.zeros(5), b])


def _displacements(structure: Structure, b_default: float) -> Float[np.ndarray, "n_sites 3 3"]:
    """Mean-square displacement of each site in fractional coordinates, from the property that it carries, or the default."""
    lattice = structure.lattice.matrix
    metric_inverse = np.linalg.inv(lattice @ lattice.T)
    lengths = np.sqrt(np.diag(metric_inverse))
    given = [site.properties for site in structure]
    u_iso = np.full(len(given), b_default / (8 * np.pi**2))
    u_frac = np.empty((len(given), 3, 3))
    anisotropic = []
    for n, properties in enumerate(given):
        if not properties:
            continue
        if properties.get("b_iso") is not None:
            u_iso[n] = float(properties["b_iso"]) / (8 * np.pi**2)
        elif properties.get("u_iso") is not None:
            u_iso[n] = float(properties["u_iso"])
        elif all(properties.get(key) is not None for key in U_CIF_KEYS):
            anisotropic.append(n)
    u_frac[:] = u_iso[:, None, None] * metric_inverse
    if anisotropic:
        u_cif = np.array([[float(given[n][key]) for key in U_CIF_KEYS] for n in anisotropic])
        u_frac[anisotropic] = u_cif[:, [0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(-1, 3, 3) * np.outer(lengths, lengths)
    finite = np.isfinite(u_frac).all(axis=(1, 2))
    smallest = np.full(len(given), -np.inf)
    smallest[finite] = np.linalg.eigvalsh(lattice.T @ u_frac[finite] @ lattice)[:, 0]
    if smallest.min() < -LARGEST_ROUNDING:
        n = int(smallest.argmin())
        raise ValueError(f"the displacement of site {structure[n].species_string} must be finite and positive definite, got {given[n]}")
    return u_frac


def _charges(species: list[Any], numbers: Int[np.ndarray, " n_atoms"], table: Table) -> Int[np.ndarray, " n_atoms"] | None:
    """Charges of pymatgen's species; None, with a warning, if the table lacks one of the ions."""
    states = [float(getattr(specie, "oxi_state", None) or 0) for specie in species]
    if not any(states):
        return None
    ions = {
        (z, state): scattering_factors.species_name(specie.symbol, state)
        for specie, z, state in zip(species, numbers.tolist(), states, strict=True)
    }
    known = scattering_factors.coefficients(table)
    missing = [name for pair, name in ions.items() if pair not in known]
    if missing:
        others = [other for other in get_args(Table) if all(pair in scattering_factors.coefficients(other) for pair in ions)]
        way_out = f"`table={others[0]!r}` has all of them" if others else "`ions=False` takes neutral atoms without a warning"
        message = f"`{table}` has no scattering factor for {', '.join(missing)}; all atoms of the structure count as neutral; {way_out}"
        warnings.warn(message, UserWarning, stacklevel=4)
        return None
    return np.array(states, dtype=np.int64)


def atoms_from_structure(structure: Structure, b_iso: float | None = None, *, ions: bool = True, table: Table = "it92") -> Atoms:
    """Take the atoms, occupancies and displacements of a pymatgen Structure.

    Parameters
    ----------
    structure : pymatgen Structure
        Displacements are read from the site properties ``b_iso`` (Å²), ``u_iso`` (Å²) or ``U11_cif`` … ``U12_cif`` (Å², the
        CIF's U_ij).
    b_iso : float, optional
        B in Å² of the sites that carry none; :data:`DEFAULT_B_ISO` if not given.
    ions : bool
        Take the scattering factor of the ion where a species has an oxidation state. Where the table lacks one of the structure's
        ions, or a state is not whole, all its atoms are neutral, with a UserWarning; so the cell's electrons stay balanced.
    table : {"it92", "waasmaier_kirfel"}
        Of scattering factors, see :mod:`matminer_ed3d.scattering_factors`.

    Raises
    ------
    ValueError
        If there are no atoms, an element has no form factor (Z > 98, dummy species), or a coordinate or displacement is off.
    """
    b_default = DEFAULT_B_ISO if b_iso is None else float(b_iso)
    if not (np.isfinite(b_default) and b_default >= 0):
        raise ValueError(f"`b_iso` must be a B in Å² of at least 0, got {b_iso}")
    if not any(len(site.species) for site in structure):
        raise ValueError("`structure` must hold at least one atom, got none")
    lattice = np.array(structure.lattice.matrix, dtype=float)
    if not (np.isfinite(lattice).all() and abs(np.linalg.det(lattice)) > 1e-6):
        raise ValueError(f"the lattice of `structure` must be finite with a non-zero volume, got {lattice.tolist()}")
    rows = [(n, specie, occupancy) for n, site in enumerate(structure) for specie, occupancy in site.species.items()]
    sites, species, occupancies = (list(column) for column in zip(*rows, strict=True))
    numbers = [getattr(specie, "Z", None) for specie in species]
    for site, specie, number in zip(sites, species, numbers, strict=True):
        if not isinstance(number, int) or not 1 <= number <= 98:
            at = structure[site].frac_coords.round(4).tolist()
            raise ValueError(f"no scattering factor for {specie} at {at}; known are H to Cf (Z = 1 to 98)")
    frac_coords = np.array(structure.frac_coords, dtype=float)[sites]
    if not np.isfinite(frac_coords).all():
        raise ValueError("the coordinates of `structure` must be finite, got NaN or infinity")
    z = np.array(numbers, dtype=np.int64)
    charges = _charges(species, z, table) if ions else None
    u_frac = _displacements(structure, b_default)[sites]
    return Atoms(lattice, frac_coords, z, np.array(occupancies, dtype=float), u_frac, charges, table)


def density_from_atoms(
    atoms: Atoms, grid_shape: grids.GridShape, method: Method = "mean", d_min: float | None = None
) -> Float[np.ndarray, "nx ny nz"]:
    """Superpose atoms on a grid.

    Parameters
    ----------
    atoms : Atoms
        Of one cell.
    grid_shape : (int, int, int)
        Points along a, b, c.
    method : {"mean", "point", "band_limited"}
        Mean over the voxel around each point, value at the point, or the Fourier sum of all reflections to `d_min`.
    d_min : float, optional
        Resolution in Å, for ``band_limited`` only.

    Returns
    -------
    (nx, ny, nz) float
        e/Å³; see :func:`matminer_ed3d.superposition.superpose`, which does the sums and states their error and cost.
    """
    a, b = scattering_factors.gaussians_of(atoms.numbers, atoms.charges, atoms.table)
    return superposition.superpose(atoms.lattice, atoms.frac_coords, atoms.occupancies, a, b, atoms.u_frac, grid_shape, method, d_min)


def density_from_structure(
    structure: Structure,
    *,
    grid_spacing: float = 0.25,
    grid_shape: grids.GridShape | Callable[[np.ndarray], grids.GridShape] | None = None,
    method: Method = "mean",
    d_min: float | None = None,
    b_iso: float | None = None,
    ions: bool = True,
    table: Table = "it92",
) -> Density:
    """Make the independent-atom density of a structure, as VESTA and GSAS do.

    Parameters
    ----------
    structure : pymatgen Structure
        Occupancies and displacements are used; see :func:`atoms_from_structure`.
    grid_spacing : float
        Largest distance between points, Å; the paper's voxel, 0.25 Å, by default.
    grid_shape : (int, int, int) or function, optional
        In place of `grid_spacing`; a function makes it of the lattice.
    method : {"mean", "point", "band_limited"}
        What each grid value is; see :func:`density_from_atoms`.
    d_min : float, optional
        Resolution in Å of ``band_limited``; twice `grid_spacing` if not given.
    b_iso : float, optional
        B in Å² of sites without a displacement; 0.5 if not given.
    ions : bool
        Scattering factors by oxidation state where a species has one; see :func:`atoms_from_structure`.
    table : {"it92", "waasmaier_kirfel"}
        Of scattering factors, see :mod:`matminer_ed3d.scattering_factors`.

    Returns
    -------
    Density
        Channel ``total`` in e/Å³, with the structure.

    Raises
    ------
    ValueError
        If `grid_spacing`, `grid_shape` or `method` is off, the grid would have more than 2^28 points, `d_min` is finer than the grid
        can hold, or the structure has no density (see :func:`atoms_from_structure`).
    """
    if method not in ("mean", "point", "band_limited"):
        raise ValueError(f"`method` must be 'mean', 'point' or 'band_limited', got {method!r}")
    if not (np.isfinite(grid_spacing) and grid_spacing > 0):
        raise ValueError(f"`grid_spacing` must be a positive distance in Å, got {grid_spacing}")
    atoms = atoms_from_structure(structure, b_iso, ions=ions, table=table)
    if grid_shape is None:
        grid_shape = grids.fine_grid_shape(atoms.lattice, grid_spacing)
    elif callable(grid_shape):
        grid_shape = grid_shape(atoms.lattice)
    if len(grid_shape) != 3 or min(grid_shape) < 1:
        raise ValueError(f"`grid_shape` must be three counts of at least 1, got {grid_shape}")
    if math.prod(int(n) for n in grid_shape) > MOST_POINTS:
        lengths = " x ".join(f"{length:.4g}" for length in np.linalg.norm(atoms.lattice, axis=1))
        points = " x ".join(str(int(n)) for n in grid_shape)
        raise ValueError(
            f"a grid of {points} points over a cell of {lengths} Å must have at most {MOST_POINTS}; is the cell in Å?"
            " else a larger `grid_spacing`"
        )
    if method == "band_limited":
        spacing = float((np.linalg.norm(atoms.lattice, axis=1) / grid_shape).max())
        d_min = 2 * spacing if d_min is None else d_min
        if not d_min >= 2 * spacing * (1 - 1e-9):
            raise ValueError(f"`d_min` must be at least twice the grid spacing, {2 * spacing:.3f} Å, got {d_min}; use a finer grid")
    elif d_min is not None:
        raise ValueError(f"`d_min` goes with method='band_limited', got method={method!r}")
    rho = density_from_atoms(atoms, grid_shape, method, d_min)
    return Density(lattice=atoms.lattice, channels={"total": rho}, structure=structure, is_voxel_mean=method == "mean")
