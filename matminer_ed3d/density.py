"""``Density``: named channels of an electron density on the periodic grid of a cell. Knows no file format and no atom."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from monty.json import MontyEncoder, MSONable

from matminer_ed3d import grids

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure
    from pymatgen.io.vasp.outputs import Chgcar

__all__ = ["Density", "Quantity", "UNITS"]

DERIVED = {"up": +0.5, "down": -0.5}  # share of `diff` beside half of `total`

Quantity = Literal["electron_density", "potential", "elf", "orbital", "unknown"]
UNITS: dict[str, str] = {"electron_density": "e/Å³", "potential": "eV", "elf": "1", "orbital": "Å^-3/2", "unknown": "unknown"}
"""Unit of each quantity that a file of this kind may hold."""


@dataclass(frozen=True, eq=False)
class Density(MSONable):
    """An electron density on a periodic grid.

    Parameters
    ----------
    lattice : (3, 3) float
        Rows a, b, c in Å; ``cart_coords = frac_coords @ lattice``.
    channels : dict of str to (nx, ny, nz) float
        e/Å³ at the points (i/nx, j/ny, k/nz), end point excluded. ``total`` is required; ``diff`` is spin up minus spin
        down; ``diff_x``, ``diff_y``, ``diff_z`` are the magnetisation of a non-collinear density. ``up`` and ``down`` are
        derived from ``total`` and ``diff``. Another `quantity` has channels of any name, in its own unit (:data:`UNITS`).
    structure : pymatgen Structure, optional
        The atoms, where the source gave them. Carried along, never needed.
    is_voxel_mean : bool
        True if a value is the mean over the voxel around its point, as :meth:`from_structure` makes it by default, not the value
        at the point. Whoever needs Fourier coefficients has to know: the mean over oblique voxels hides some of the symmetry.
    quantity : {"electron_density", "potential", "elf", "orbital", "unknown"}
        What the values are. The files of all of these look alike; featurizers and estimators take an electron density only.

    Raises
    ------
    ValueError
        On a wrong shape, a missing ``total``, a value that is not finite, or a cell without volume.

    Examples
    --------
    >>> import numpy as np
    >>> density = Density(lattice=4.0 * np.eye(3), channels={"total": np.full((8, 8, 8), 0.5)})
    >>> density.n_electrons()
    32.0
    """

    lattice: Float[np.ndarray, "3 3"]
    channels: dict[str, np.ndarray]
    structure: Any = None
    is_voxel_mean: bool = False
    quantity: Quantity = "electron_density"

    def __post_init__(self) -> None:
        # Lists and integers are welcome; frozen, so set through object.
        for name, values in self.channels.items():
            if np.iscomplexobj(values):
                raise ValueError(f"channel {name!r} must be real, got complex numbers; take the real part, or its Fourier transform first")
        object.__setattr__(self, "lattice", np.asarray(self.lattice, dtype=float))
        object.__setattr__(self, "channels", {k: np.asarray(v, dtype=float) for k, v in self.channels.items()})
        if self.lattice.shape != (3, 3):
            raise ValueError(f"`lattice` must be (3, 3) rows in Å, got shape {self.lattice.shape}; use Lattice.from_parameters(...).matrix")
        if not np.isfinite(self.lattice).all() or self.volume < 1e-6:
            raise ValueError(f"`lattice` must be finite with a non-zero volume, got {self.lattice.tolist()}")
        if self.quantity not in UNITS:
            raise ValueError(f"`quantity` must be one of {sorted(UNITS)}, got {self.quantity!r}")
        if not self.channels:
            raise ValueError("`channels` must hold at least one grid, got none")
        if self.quantity == "electron_density":
            if "total" not in self.channels:
                raise ValueError(f"`channels` must hold 'total', got {sorted(self.channels)}")
            unknown = set(self.channels) - {"total", "diff", "diff_x", "diff_y", "diff_z"}
            if unknown:
                raise ValueError(f"`channels` may hold total, diff, diff_x, diff_y, diff_z, got also {sorted(unknown)}")
        for name, values in self.channels.items():
            if values.ndim != 3 or 0 in values.shape:
                raise ValueError(f"channel {name!r} must be (nx, ny, nz), got shape {values.shape}")
            if values.shape != self.grid_shape:
                raise ValueError(f"every channel must have the shape of the first, {self.grid_shape}; {name!r} has {values.shape}")
            with np.errstate(over="ignore", invalid="ignore"):
                is_finite = bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())  # a sum makes no array, and mostly tells
            if not is_finite:
                first = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
                raise ValueError(
                    f"channel {name!r} must be finite, got {values[first]} at grid point {first}; mend the source of the density"
                )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, which ``json.dumps`` takes and :meth:`from_dict` reads."""
        array = MontyEncoder().default
        return {
            "@module": type(self).__module__,
            "@class": type(self).__name__,
            "lattice": array(self.lattice),
            "channels": {name: array(values) for name, values in self.channels.items()},
            "structure": None if self.structure is None else self.structure.as_dict(),
            "is_voxel_mean": self.is_voxel_mean,
            "quantity": self.quantity,
        }

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Points along a, b, c."""
        return next(iter(self.channels.values())).shape

    @property
    def grid_spacing(self) -> Float[np.ndarray, "3"]:
        """Distance in Å between neighbouring points along a, b, c."""
        return np.linalg.norm(self.lattice, axis=1) / np.array(self.grid_shape)

    @property
    def volume(self) -> float:
        """Volume of the cell, Å³."""
        return float(abs(np.dot(self.lattice[0], np.cross(self.lattice[1], self.lattice[2]))))

    def channel(self, name: str) -> Float[np.ndarray, "nx ny nz"]:
        """Values of one channel, e/Å³; ``up`` and ``down`` are (total ± diff) / 2, and ``diff`` is 0 where the source has no spin.

        Raises
        ------
        ValueError
            If there is no such channel, or a collinear one is asked of a non-collinear density.
        """
        if name in self.channels:
            return self.channels[name]
        if self.quantity != "electron_density":
            raise ValueError(f"`channel` must be one of {sorted(self.channels)}, those of this {self.quantity}, got {name!r}")
        if name not in ("diff", *DERIVED):
            raise ValueError(f"`channel` must be one of {sorted({*self.channels, 'diff', 'up', 'down'})}, got {name!r}")
        if "diff_x" in self.channels:
            raise ValueError(f"a non-collinear density has no channel {name!r}; take 'total', 'diff_x', 'diff_y' or 'diff_z'")
        total = self.channels["total"]
        diff = self.channels.get("diff", np.zeros_like(total))
        return diff if name == "diff" else 0.5 * total + DERIVED[name] * diff

    def n_electrons(self, channel: str = "total") -> float:
        """Integral of a channel over the cell: mean times volume, in electrons; a ValueError for another quantity."""
        if self.quantity != "electron_density":
            raise ValueError(f"only an electron density has electrons, got the quantity {self.quantity!r}")
        return float(self.channel(channel).mean() * self.volume)

    def point_values(self) -> Density:
        """Undo the mean over voxels; a density of point values comes back as it is. The number of electrons stays."""
        if not self.is_voxel_mean:
            return self
        return replace(self, channels={k: grids.points_of_voxel_means(v) for k, v in self.channels.items()}, is_voxel_mean=False)

    def resample(self, grid_shape: tuple[int, int, int], method: Literal["fourier", "mean"] = "fourier") -> Density:
        """Put the density on another grid of the same cell; the number of electrons stays, to rounding.

        Parameters
        ----------
        grid_shape : (int, int, int)
            Points along a, b, c; each at least 1.
        method : {"fourier", "mean"}
            Trigonometric interpolation of the point values, or the mean over the voxel around each new point.

        Raises
        ------
        ValueError
            If an entry of `grid_shape` is smaller than 1, or `method` is unknown.
        """
        if len(grid_shape) != 3 or min(grid_shape) < 1:
            raise ValueError(f"`grid_shape` must be three counts of at least 1, got {grid_shape}")
        methods = {"fourier": grids.fourier_resample, "mean": grids.mean_resample}
        if method not in methods:
            raise ValueError(f"`method` must be one of {sorted(methods)}, got {method!r}")
        if tuple(grid_shape) == self.grid_shape:
            return self
        source = self.point_values() if method == "fourier" else self
        channels = {k: methods[method](v, grid_shape) for k, v in source.channels.items()}
        return replace(self, channels=channels, is_voxel_mean=method == "mean")

    def shift_origin(self, frac_shift: Any) -> Density:
        """Move the origin to `frac_shift` (fractional): rho_new(x) = rho(x + frac_shift); atoms move by -frac_shift."""
        shift = np.asarray(frac_shift, dtype=float)
        if shift.shape != (3,):
            raise ValueError(f"`frac_shift` must be three fractional coordinates, got shape {shift.shape}")
        structure = self.structure
        if structure is not None:
            structure = structure.copy()
            structure.translate_sites(list(range(len(structure))), -shift, frac_coords=True)
        return replace(self, channels={k: grids.shift_origin(v, shift) for k, v in self.channels.items()}, structure=structure)

    def change_basis(self, basis_change: Any, grid_shape: tuple[int, int, int] | None = None) -> Density:
        """Describe the same crystal in the cell with rows ``basis_change @ lattice``.

        Parameters
        ----------
        basis_change : (3, 3) int
            Determinant ±1 for another choice of the same lattice, larger for a supercell.
        grid_shape : (int, int, int), optional
            Default: every new point on an old one where that keeps the spacing, else Fourier interpolation on a grid as
            fine as the finest old axis.

        Raises
        ------
        ValueError
            If `basis_change` is not an integer (3, 3) matrix with a non-zero determinant, or an entry of `grid_shape` is smaller
            than 1.
        """
        matrix = np.asarray(basis_change)
        if matrix.shape != (3, 3) or not np.array_equal(matrix, np.round(matrix)) or round(float(np.linalg.det(matrix))) == 0:
            raise ValueError(f"`basis_change` must be an integer (3, 3) matrix with a non-zero determinant, got {matrix.tolist()}")
        matrix = np.round(matrix).astype(np.int64)
        if grid_shape is not None and (len(grid_shape) != 3 or min(grid_shape) < 1):
            raise ValueError(f"`grid_shape` must be three counts of at least 1, got {grid_shape}")
        shape = grid_shape or grids.matching_grid_shape(self.lattice, self.grid_shape, matrix)
        structure = self.structure
        if structure is not None:
            structure = structure.make_supercell(matrix, to_unit_cell=True, in_place=False)
        # A voxel stays a voxel where axes are only renamed, turned round or repeated.
        same_voxels = (np.count_nonzero(matrix, axis=1) == 1).all() and tuple(np.abs(matrix) @ self.grid_shape) == tuple(shape)
        source = self if same_voxels else self.point_values()
        channels = {k: grids.change_basis(v, matrix, shape) for k, v in source.channels.items()}
        return replace(source, lattice=matrix @ self.lattice, channels=channels, structure=structure)

    # The four doors below are conveniences: the work is done in `sources`, `writers` and `promolecule`, which know files and atoms.

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **options: Any) -> Density:
        """Read a density file of any known format; see :func:`matminer_ed3d.sources.read_density`."""
        from matminer_ed3d.sources import read_density

        return read_density(path, **options)

    def to_file(self, path: str | os.PathLike[str], file_format: str | None = None) -> None:
        """Write a CHGCAR, cube, XSF or CCP4 map; see :func:`matminer_ed3d.writers.write_density`."""
        from matminer_ed3d.writers import write_density

        write_density(self, path, file_format)

    @classmethod
    def from_structure(cls, structure: Structure, **options: Any) -> Density:
        """Superpose independent atoms; see :func:`matminer_ed3d.promolecule.density_from_structure`."""
        from matminer_ed3d.promolecule import density_from_structure

        return density_from_structure(structure, **options)

    @classmethod
    def from_chgcar(cls, chgcar: Chgcar) -> Density:
        """Take over a pymatgen Chgcar; see :func:`matminer_ed3d.sources.density_from_chgcar`."""
        from matminer_ed3d.sources import density_from_chgcar

        return density_from_chgcar(chgcar)
