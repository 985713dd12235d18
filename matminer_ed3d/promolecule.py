"""Atoms to density: superposed independent atoms (the promolecule), from X-ray scattering factors, occupancies and displacement.

Each atom is a sum of five Gaussians, f(s) = sum_c a_c exp(-b_c s^2), the last one the constant c of the table with b = 0
(International Tables C, 1992, table 6.1.1.4, as tabulated by gemmi), and its displacement widens each of them. A Gaussian that is
smooth on the grid is summed in reciprocal space; a sharp one, which a transform would alias, is integrated over the voxels around
its atom in real space. Both give the mean over each voxel, so the electrons are conserved on any grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.fft
from jaxtyping import Complex, Float, Int

from matminer_ed3d import grids
from matminer_ed3d.density import Density

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

__all__ = ["Atoms", "DEFAULT_B_ISO", "atoms_from_structure", "density_from_atoms", "density_from_structure", "form_factor_table"]

DEFAULT_B_ISO = 0.5
"""B in Å² of an atom whose displacement nobody gave; typical of inorganic crystals at room temperature."""

OVERSAMPLING = 2  # the reciprocal sum runs to twice the grid's Nyquist frequency and is folded back
SMOOTH = 12.0  # a Gaussian is smooth if it has fallen by exp(-12) at that frequency
NARROWEST = 0.02  # sigma in voxels; an atom that stands still is widened to this, so that a voxel can hold it
LARGEST_LOG = 600.0  # exponents below this do not overflow, and what their product loses is below exp(-100)
AT_ONCE = 500_000  # values held at once while sharp Gaussians are integrated
REACH = 5.0  # a sharp Gaussian is cut at 5 sigma, where it has fallen by exp(-12.5); the cut is made up for by its norm
U_CIF_KEYS = ("U11_cif", "U22_cif", "U33_cif", "U23_cif", "U13_cif", "U12_cif")  # pymatgen's names, in its order

Method = Literal["mean", "point", "band_limited"]


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
    """

    lattice: Float[np.ndarray, "3 3"]
    frac_coords: Float[np.ndarray, "n_atoms 3"]
    numbers: Int[np.ndarray, " n_atoms"]
    occupancies: Float[np.ndarray, " n_atoms"]
    u_frac: Float[np.ndarray, "n_atoms 3 3"]

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
    """Return the coefficients a (electrons) and b (Å²) of the neutral atoms, row Z; row 0 is empty. The fifth b is 0."""
    import gemmi

    table = [gemmi.Element(z).it92 for z in range(1, 99)]
    a = np.array([[0.0] * 5] + [[*row.a, row.c] for row in table])
    b = np.array([[0.0] * 5] + [[*row.b, 0.0] for row in table])
    return a, b


def _site_displacement(site: Any, lattice: np.ndarray, default_u: np.ndarray) -> np.ndarray:
    """Mean-square displacement of one pymatgen site in fractional coordinates, from the property that it carries."""
    given = site.properties
    metric_inverse = np.linalg.inv(lattice @ lattice.T)
    if given.get("b_iso") is not None:
        u_frac = float(given["b_iso"]) / (8 * np.pi**2) * metric_inverse
    elif given.get("u_iso") is not None:
        u_frac = float(given["u_iso"]) * metric_inverse
    elif all(given.get(key) is not None for key in U_CIF_KEYS):
        u11, u22, u33, u23, u13, u12 = (float(given[key]) for key in U_CIF_KEYS)
        reciprocal_lengths = np.sqrt(np.diag(metric_inverse))
        u_frac = np.array([[u11, u12, u13], [u12, u22, u23], [u13, u23, u33]]) * np.outer(reciprocal_lengths, reciprocal_lengths)
    else:
        return default_u
    if not np.isfinite(u_frac).all() or np.linalg.eigvalsh(lattice.T @ u_frac @ lattice).min() < 0:
        raise ValueError(f"the displacement of site {site.species_string} must be finite and positive definite, got {dict(given)}")
    return u_frac


def atoms_from_structure(structure: Structure, b_iso: float | None = None) -> Atoms:
    """Take the atoms, occupancies and displacements of a pymatgen Structure.

    Parameters
    ----------
    structure : pymatgen Structure
        Displacements are read from the site properties ``b_iso`` (Å²), ``u_iso`` (Å²) or ``U11_cif`` … ``U12_cif`` (Å², the
        CIF's U_ij). Ions count as their neutral atom.
    b_iso : float, optional
        B in Å² of the sites that carry none; :data:`DEFAULT_B_ISO` if not given.

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
    default_u = b_default / (8 * np.pi**2) * np.linalg.inv(lattice @ lattice.T)
    rows = []
    for site in structure:
        u_frac = _site_displacement(site, lattice, default_u)
        for specie, occupancy in site.species.items():
            number = getattr(specie, "Z", None)
            if not isinstance(number, int) or not 1 <= number <= 98:
                raise ValueError(
                    f"no scattering factor for {specie} at {site.frac_coords.round(4).tolist()}; known are H to Cf (Z = 1 to 98)"
                )
            rows.append((site.frac_coords, number, occupancy, u_frac))
    frac_coords, numbers, occupancies, u = (np.array(column) for column in zip(*rows, strict=True))
    if not np.isfinite(frac_coords).all():
        raise ValueError("the coordinates of `structure` must be finite, got NaN or infinity")
    return Atoms(lattice, frac_coords.astype(float), numbers, occupancies.astype(float), u)


def _groups(atoms: Atoms) -> list[np.ndarray]:
    """Index arrays of the atoms that are alike in element and displacement: they share their Gaussians."""
    keys = np.column_stack([atoms.numbers, (atoms.u_frac.reshape(-1, 9) * 1e12).round()])
    _, inverse = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(inverse.ravel()[order])) + 1)


def _half_spectrum_axes(grid_shape: grids.GridShape) -> list[np.ndarray]:
    nx, ny, nz = grid_shape
    return [np.fft.fftfreq(nx, 1 / nx).round(), np.fft.fftfreq(ny, 1 / ny).round(), np.arange(nz // 2 + 1.0)]


def _quadratic_form(axes: list[np.ndarray], matrix: np.ndarray) -> Float[np.ndarray, "nx ny nz"]:
    """h^T matrix h for every h of three axes."""
    x, y, z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    plane = matrix[0, 0] * x * x + 2 * matrix[0, 1] * x * y + matrix[1, 1] * y * y
    return plane + (2 * matrix[0, 2] * x + 2 * matrix[1, 2] * y) * z + matrix[2, 2] * z * z


def _geometric_sum(axes: list[np.ndarray], frac_coords: np.ndarray, weights: np.ndarray) -> Complex[np.ndarray, "nx ny nz"]:
    """Sum weights_j exp(-2 pi i h.x_j) for every h of three axes, as one matrix product."""
    ex, ey, ez = (np.exp(-2j * np.pi * np.outer(h, frac_coords[:, i])) for i, h in enumerate(axes))
    planes = (ex[:, None, :] * (ey * weights)[None, :, :]).reshape(-1, len(weights))
    return (planes @ ez.T).reshape(len(axes[0]), len(axes[1]), len(axes[2]))


def _fold(spectrum: Complex[np.ndarray, "mx my mz"], grid_shape: grids.GridShape) -> Float[np.ndarray, "nx ny nz"]:
    """Values on a coarse grid of a function known by the half spectrum of an `OVERSAMPLING` times finer one."""
    fine = tuple(OVERSAMPLING * n for n in grid_shape)
    half_folded = spectrum.reshape(OVERSAMPLING, grid_shape[0], OVERSAMPLING, grid_shape[1], -1).sum(axis=(0, 2))
    # Along z the spectrum is Hermitian: transform x and y first, then let the real transform go to the fine grid.
    planes = scipy.fft.ifft2(half_folded, axes=(0, 1), norm="forward")
    return scipy.fft.irfft(planes, n=fine[2], axis=2, norm="forward")[:, :, ::OVERSAMPLING]


@cache
def _voxel_nodes(n_nodes: int) -> tuple[Float[np.ndarray, " n_nodes"], Float[np.ndarray, " n_nodes"]]:
    """Gauss-Legendre nodes in a voxel, (-1/2, 1/2), and their weights, which sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    return 0.5 * nodes, 0.5 * weights


def _voxel_integrals(
    nodes: list[np.ndarray], node_weights: list[np.ndarray], precision: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "n_atoms wx wy wz"]:
    """Integrate exp(-r^T precision r / 2) over the voxels of a box, for every atom.

    `nodes` of each axis are (n_atoms, n_voxels, n_nodes). The exponent is a sum over pairs of axes, so the sums over y and z are
    matrix products; where y and z do not mix, as in most conventional cells, they are done before x.
    """
    (x, y, z), (weights_x, weights_y, weights_z) = nodes, node_weights
    n_atoms, wx, nx = x.shape
    wy, wz = y.shape[1], z.shape[1]
    mixed = abs(precision[1, 2]) > 1e-12 * np.sqrt(precision[1, 1] * precision[2, 2])
    squares = 0.25 * np.diag(precision)  # shared by the two pairs of each axis, so that neither grows large
    own, shared = (squares, squares) if mixed else (2 * squares, 0 * squares)
    x, y, z = x.reshape(n_atoms, wx * nx, 1, 1), y[:, None], z[:, None]
    log_xy = -squares[0] * x**2 - own[1] * y**2 - precision[0, 1] * x * y + np.log(np.tile(weights_x, wx)[:, None, None] * weights_y)
    log_xz = -squares[0] * x**2 - own[2] * z**2 - precision[0, 2] * x * z + np.log(weights_z)
    skewed = log_xy.max() + log_xz.max() > LARGEST_LOG
    if not (mixed or skewed):
        xy, xz = (np.exp(part).sum(axis=3).reshape(n_atoms, wx, nx, -1) for part in (log_xy, log_xz))
        return xy.transpose(0, 1, 3, 2) @ xz
    y, z = y[:, 0, :, :, None], z.reshape(n_atoms, 1, 1, -1)
    log_yz = -shared[1] * y**2 - shared[2] * z**2 - precision[1, 2] * y * z
    log_xy, log_xz = log_xy.transpose(0, 2, 1, 3), log_xz.reshape(n_atoms, 1, wx * nx, -1)
    if skewed or log_xy.max() + log_xz.max() + log_yz.max() > LARGEST_LOG:
        xyz = sum(np.exp(log_xy[..., n, None] + log_yz[:, :, None, n] + log_xz) for n in range(y.shape[2]))
    else:
        xyz = (np.exp(log_xy) @ np.exp(log_yz)) * np.exp(log_xz)
    return xyz.reshape(n_atoms, wy, wx, nx, -1).sum(axis=3).reshape(n_atoms, wy, wx, wz, -1).sum(axis=4).transpose(0, 2, 1, 3)


def _sharp_gaussian(
    out: Float[np.ndarray, " n_grid"],
    grid_shape: grids.GridShape,
    centres: Float[np.ndarray, "n_atoms 3"],
    covariance: Float[np.ndarray, "3 3"],
    weights: Float[np.ndarray, " n_atoms"],
    average: bool,
) -> None:
    """Add atoms' shares of one Gaussian (all in voxel units) to the flat grid `out`; each atom's sum is its weight if `average`."""
    precision = np.linalg.inv(covariance)
    reach = np.ceil(REACH * np.sqrt(np.diag(covariance)) + (0.5 if average else 0.0)).astype(int)
    offsets = [np.arange(-r, r + 1) for r in reach]
    if average:  # as many nodes as the narrowest cut through the Gaussian asks for
        rules = [_voxel_nodes(max(3, int(np.ceil(2 * np.sqrt(p))) + 1)) for p in np.diag(precision)]
    else:
        rules = [(np.zeros(1), np.ones(1))] * 3
    widths = [len(offset) * len(rule[0]) for offset, rule in zip(offsets, rules, strict=True)]
    n_together = max(1, AT_ONCE // (widths[0] * len(offsets[1]) * widths[2]))
    for some in np.array_split(np.arange(len(centres)), -(-len(centres) // n_together)):
        nearest = np.round(centres[some]).astype(int)
        nodes = [
            (nearest[:, i] - centres[some, i])[:, None, None] + offset[:, None] + rule[0]
            for i, (offset, rule) in enumerate(zip(offsets, rules, strict=True))
        ]
        blocks = _voxel_integrals(nodes, [rule[1] for rule in rules], precision)
        norm = blocks.sum(axis=(1, 2, 3)) if average else np.sqrt(np.linalg.det(2 * np.pi * covariance))
        blocks *= (weights[some] / norm)[:, None, None, None]
        ix, iy, iz = ((nearest[:, i, None] + offsets[i]) % grid_shape[i] for i in range(3))
        index = (ix[:, :, None, None] * grid_shape[1] + iy[:, None, :, None]) * grid_shape[2] + iz[:, None, None, :]
        np.add.at(out, index.ravel(), blocks.ravel())


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
        e/Å³. ``mean`` and ``band_limited`` sum to the table's electrons; ``point`` does not where the grid is coarser than
        the atoms (up to 15 % off at 0.25 Å).
    """
    a_table, b_table = form_factor_table()
    lattice = atoms.lattice
    shape = np.array(grid_shape)
    metric_inverse = np.linalg.inv(lattice @ lattice.T)
    band_limited = method == "band_limited"
    axes = _half_spectrum_axes(grid_shape if band_limited else tuple(OVERSAMPLING * n for n in grid_shape))  # type: ignore[arg-type]
    q_squared = _quadratic_form(axes, metric_inverse)
    spectrum = np.zeros(q_squared.shape, dtype=complex)
    sharp = np.zeros(int(shape.prod()))
    moved, displacement = None, np.zeros(0)
    for group in _groups(atoms):
        number, u_frac = int(atoms.numbers[group[0]]), atoms.u_frac[group[0]]
        frac_coords, occupancies = atoms.frac_coords[group], atoms.occupancies[group]
        shape_factor = np.zeros_like(q_squared)
        for a, b in zip(a_table[number], b_table[number], strict=True):
            covariance = (b / (8 * np.pi**2) * metric_inverse + u_frac) * np.outer(shape, shape)
            covariance += max(0.0, NARROWEST**2 - np.linalg.eigvalsh(covariance)[0]) * np.eye(3)
            # exp(-2 pi^2 h U h) at the faces of the oversampled box, the least of which decides
            if band_limited or (0.5 * (np.pi * OVERSAMPLING) ** 2 / np.diag(np.linalg.inv(covariance))).min() >= SMOOTH:
                shape_factor += a * np.exp(-0.25 * b * q_squared)
            else:
                _sharp_gaussian(sharp, grid_shape, frac_coords * shape, covariance, a * occupancies, average=method == "mean")
        if shape_factor.any():
            if moved is None or not np.array_equal(moved, u_frac):  # mostly all atoms move alike
                moved, displacement = u_frac, np.exp(-2 * np.pi**2 * _quadratic_form(axes, u_frac))
            spectrum += shape_factor * displacement * _geometric_sum(axes, frac_coords, occupancies)
    volume = abs(np.linalg.det(lattice))
    if band_limited:
        if d_min is not None:
            spectrum[q_squared > d_min**-2 * (1 + 1e-9)] = 0
        return scipy.fft.irfftn(spectrum, s=grid_shape, norm="forward") / volume
    if method == "mean":
        for axis, h in enumerate(axes):
            spectrum *= np.sinc(h / grid_shape[axis]).reshape([-1 if i == axis else 1 for i in range(3)])
    return (_fold(spectrum, grid_shape) + sharp.reshape(grid_shape) * shape.prod()) / volume


def density_from_structure(
    structure: Structure,
    *,
    grid_spacing: float = 0.25,
    grid_shape: grids.GridShape | Callable[[np.ndarray], grids.GridShape] | None = None,
    method: Method = "mean",
    d_min: float | None = None,
    b_iso: float | None = None,
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

    Returns
    -------
    Density
        Channel ``total`` in e/Å³, with the structure.

    Raises
    ------
    ValueError
        If `grid_spacing`, `grid_shape` or `method` is off, `d_min` is finer than the grid can hold, or the structure has no
        density (see :func:`atoms_from_structure`).
    """
    if method not in ("mean", "point", "band_limited"):
        raise ValueError(f"`method` must be 'mean', 'point' or 'band_limited', got {method!r}")
    if not (np.isfinite(grid_spacing) and grid_spacing > 0):
        raise ValueError(f"`grid_spacing` must be a positive distance in Å, got {grid_spacing}")
    atoms = atoms_from_structure(structure, b_iso)
    if grid_shape is None:
        grid_shape = grids.fine_grid_shape(atoms.lattice, grid_spacing)
    elif callable(grid_shape):
        grid_shape = grid_shape(atoms.lattice)
    if len(grid_shape) != 3 or min(grid_shape) < 1:
        raise ValueError(f"`grid_shape` must be three counts of at least 1, got {grid_shape}")
    if method == "band_limited":
        spacing = float((np.linalg.norm(atoms.lattice, axis=1) / grid_shape).max())
        d_min = 2 * spacing if d_min is None else d_min
        if not d_min >= 2 * spacing * (1 - 1e-9):
            raise ValueError(f"`d_min` must be at least twice the grid spacing, {2 * spacing:.3f} Å, got {d_min}; use a finer grid")
    elif d_min is not None:
        raise ValueError(f"`d_min` goes with method='band_limited', got method={method!r}")
    rho = density_from_atoms(atoms, grid_shape, method, d_min)
    return Density(lattice=atoms.lattice, channels={"total": rho}, structure=structure, is_voxel_mean=method == "mean")
