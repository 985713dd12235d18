"""Which operations of a density keep its magnetisation, which turn it round, and what magnetic space group they make: :func:`spin_parity`.

A magnetic cell may be larger than the chemical one, so every operation {W|t} of the density is tried with every lattice translation of
the primitive cell that is none of the given cell. The magnetisation after the operation is

    m'(x) = m(W^-1 (x - t))               collinear: a scalar, whose axis in space the density does not tell
    m'(x) = det(R) R m(W^-1 (x - t))      non-collinear: an axial vector; R is W in Cartesian axes

and the operation is even if m' = m, odd if m' = -m (it holds together with time reversal), and broken else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from jaxtyping import Complex, Float, Int

from matminer_ed3d._spglib import call_spglib
from matminer_ed3d.density import Density
from matminer_ed3d.grids import fourier_coefficients
from matminer_ed3d.reduction import band_limited_coefficients, noise_power
from matminer_ed3d.symmetry.finding import DensitySymmetry

__all__ = ["Parity", "SpinOperation", "SpinSymmetry", "spin_parity"]

Parity = Literal["even", "odd", "both", "broken"]

DEFAULT_TOLERANCE = 1e-3  # residual; two atoms whose moments differ by 5 to 6 %, as calculations of one and the same moment do not
LEAST_MAGNETISATION = 1e-3  # Bohr magnetons (electrons of spin) in the primitive cell, as the integral of abs(m): converged calculations
NOISE_DEVIATIONS = 5
TYPING_SYMPREC = 1e-4  # Å; the operations that are typed are exact
LARGEST_BASIS = 64  # primitive cells in the given cell


@dataclass(frozen=True, eq=False)
class SpinOperation:
    """A symmetry operation x -> W x + t of the density, and what it does to the magnetisation.

    Parameters
    ----------
    rotation : (3, 3) int
        W, of fractional coordinates (columns) of the primitive cell ``symmetry.lattice``.
    translation : (3,) float
        t in the same cell; its whole numbers matter where the magnetic cell is larger.
    even_residual, odd_residual : float
        Sum of abs(m' - m)^2, or of abs(m' + m)^2, over twice the sum of abs(m)^2: 0 if it holds, 1 if nothing agrees; both 0 without m.
    parity : {"even", "odd", "both", "broken"}
        "both" where there is no magnetisation.
    """

    rotation: Int[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    even_residual: float
    odd_residual: float
    parity: Parity


@dataclass(frozen=True, eq=False)
class SpinSymmetry:
    """What :func:`spin_parity` finds.

    Parameters
    ----------
    operations : tuple of SpinOperation
        Every operation of the density with every lattice translation within the given cell; the identity first.
    lattice : (3, 3) float
        Rows in Å: a primitive cell of the magnetisation, in the density's own orientation.
    basis : (3, 3) int
        Its rows in the basis of the primitive cell of the density; its determinant says how many of them it holds.
    is_collinear : bool
        Whether m is the one channel ``diff``. The group is then that of a scalar, black and white: the moments' axis, which a
        collinear density does not tell, may lower it further.
    magnetic_type : int or None
        1: no operation is odd; 2 (grey): no magnetisation; 3: half of the operations are odd, no translation is; 4: a translation is odd.
        None if the operations that hold do not make a group, which says that `tolerance` falls into a gap that is none.
    bns_number, uni_number : str and int, or None
        Of the magnetic space group, such as "229.140" and its place from 1 to 1651, where spglib finds one.
    noise : float
        Power of the noise over that of the magnetisation.
    tolerance : float
        Largest residual, without the noise, of an operation that holds.
    """

    operations: tuple[SpinOperation, ...]
    lattice: Float[np.ndarray, "3 3"]
    basis: Int[np.ndarray, "3 3"]
    is_collinear: bool
    magnetic_type: int | None
    bns_number: str | None
    uni_number: int | None
    noise: float
    tolerance: float

    def of_parity(self, parity: Parity) -> tuple[SpinOperation, ...]:
        """Operations of one parity."""
        return tuple(operation for operation in self.operations if operation.parity == parity)

    @property
    def needs_time_reversal(self) -> tuple[SpinOperation, ...]:
        """Operations that hold only together with time reversal."""
        return self.of_parity("odd")


@dataclass(frozen=True, eq=False)
class _Magnetisation:
    """Fourier coefficients of m, F(0) among them: (n_refl, 1) of a scalar, (n_refl, 3) of a vector; `noise` is the power in each row."""

    h: Int[np.ndarray, "n_refl 3"]
    coefficients: Complex[np.ndarray, "n_refl n_components"]
    noise: float


def _magnetisation(density: Density, d_min: float) -> _Magnetisation | None:
    names = [name for name in ("diff", "diff_x", "diff_y", "diff_z") if name in density.channels]
    if not names:
        return None
    d_min = max(d_min, 2 * float(density.grid_spacing.max()))
    transforms = {name: fourier_coefficients(density.channel(name)) for name in names}
    read = [band_limited_coefficients(density, name, d_min, transform) for name, transform in transforms.items()]
    noise = sum(noise_power(density, name, transform) for name, transform in transforms.items())
    return _Magnetisation(read[0][0], np.stack([coefficients for _, coefficients in read], axis=1), noise)


def _in_primitive_basis(rows: Int[np.ndarray, "n 3"]) -> Int[np.ndarray, "3 3"]:
    """Basis (rows) of the lattice that integer rows of rank 3 span: their Hermite normal form."""
    rows = rows.copy()
    for column in range(3):
        while True:
            filled = column + np.flatnonzero(rows[column:, column])
            smallest = filled[np.argmin(np.abs(rows[filled, column]))]
            rows[[column, smallest]] = rows[[smallest, column]]
            if len(filled) == 1:
                break
            others = np.arange(len(rows)) > column
            rows[others] -= (rows[others, column] // rows[column, column])[:, None] * rows[column]
    return rows[:3]


def _lattice_translations(cell: Int[np.ndarray, "3 3"]) -> Int[np.ndarray, "n 3"]:
    """Lattice translations, zero first, of which each translation of the primitive lattice is one modulo the rows of `cell`."""
    return np.array(list(product(*(range(abs(n)) for n in np.diag(_in_primitive_basis(cell))))))


def _overlaps(m: _Magnetisation, symmetry: DensitySymmetry, cell: Int[np.ndarray, "3 3"]) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Yield W, t and sum m'* m / sum abs(m)^2 for every operation with every lattice translation."""
    translations = _lattice_translations(cell)
    place = np.full(2 * np.abs(m.h).max(axis=0) + 1, -1)
    place[tuple((m.h % place.shape).T)] = np.arange(len(m.h))
    reach = np.abs(m.h).max(axis=0)
    primitive_h = m.h @ symmetry.basis.T  # not whole where the given cell is larger
    power = (np.abs(m.coefficients) ** 2).sum(axis=1)
    for operation in symmetry.operations:
        image = primitive_h @ operation.rotation @ cell.T
        whole = np.rint(image).astype(np.int64)
        is_whole = np.abs(image - whole).max(axis=1) < 1e-6
        inside = (np.abs(whole) <= reach).all(axis=1)
        rows = np.where(is_whole & inside, place[tuple((whole % place.shape).T)], -1)
        turned = m.coefficients[rows]
        if m.coefficients.shape[1] == 3:
            cartesian = symmetry.lattice.T @ operation.rotation @ np.linalg.inv(symmetry.lattice.T)
            u, _, v = np.linalg.svd(cartesian)
            turned = turned @ (np.linalg.det(cartesian) * u @ v).T
        terms = np.where(rows >= 0, (m.coefficients.conj() * turned).sum(axis=1), 0)
        counted = float(power[(rows >= 0) | ~is_whole].sum())  # an image outside the sphere, of a metric that is nearly kept, says nothing
        for shift in translations:
            translation = operation.translation + shift
            phases = np.exp(-2j * np.pi * (primitive_h @ translation))
            yield operation.rotation, translation, float((terms * phases).sum().real) / counted


def _parity(even_residual: float, odd_residual: float, limit: float) -> Parity:
    if min(even_residual, odd_residual) > limit:
        return "broken"
    return "even" if even_residual <= odd_residual else "odd"


def _named(
    operations: tuple[SpinOperation, ...], symmetry: DensitySymmetry, cell: Int[np.ndarray, "3 3"]
) -> tuple[Int[np.ndarray, "3 3"], int | None, str | None, int | None]:
    """Basis of the magnetic lattice, type, BNS and UNI number."""
    is_identity = [bool((o.rotation == np.eye(3)).all()) for o in operations]
    kept = [o.translation for o, is_one in zip(operations, is_identity, strict=True) if is_one and o.parity in ("even", "both")]
    whole = np.rint(np.array(kept) - symmetry.operations[0].translation).astype(np.int64)
    basis = _in_primitive_basis(np.concatenate([cell, whole]))
    reduced = call_spglib("niggli_reduce", basis @ symmetry.lattice, eps=1e-5)
    if reduced is not None:
        basis = np.rint(reduced @ np.linalg.inv(symmetry.lattice)).astype(np.int64)
    basis = basis if np.linalg.det(basis) > 0 else -basis
    to_magnetic = np.linalg.inv(basis.T)
    members: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray, int]] = {}
    for o in operations:
        if o.parity == "broken":
            continue
        exact = to_magnetic @ o.rotation @ basis.T
        rotation = np.rint(exact).astype(np.int64)
        if np.abs(exact - rotation).max() > 1e-6:
            return basis, None, None, None
        translation = (to_magnetic @ o.translation + 1e-6) % 1.0 - 1e-6
        key = (*rotation.ravel().tolist(), *np.rint(translation * 1e4).astype(int).tolist())
        for reversal in {"even": (0,), "odd": (1,), "both": (0, 1)}[o.parity]:
            members[(*key, reversal)] = rotation, translation, reversal
    rotations, translations, reversals = (np.array(column) for column in zip(*members.values(), strict=True))
    if not _is_closed(rotations, translations, reversals):
        return basis, None, None, None
    odd_translation = bool(((rotations == np.eye(3)).all(axis=(1, 2)) & (reversals == 1)).any())
    magnetic_type = 1 if not reversals.any() else 4 if odd_translation else 3
    if operations[0].parity == "both":
        magnetic_type = 2
    found: Any = call_spglib(
        "get_magnetic_spacegroup_type_from_symmetry",
        rotations,
        translations,
        reversals,
        lattice=basis @ symmetry.lattice,
        symprec=TYPING_SYMPREC,
    )
    if found is None or int(found.type) != magnetic_type:
        return basis, magnetic_type, None, None
    return basis, magnetic_type, str(found.bns_number), int(found.uni_number)


def _is_closed(rotations: Int[np.ndarray, "n 3 3"], translations: Float[np.ndarray, "n 3"], reversals: Int[np.ndarray, " n"]) -> bool:
    """Whether the products of operations, modulo the lattice, are among them."""
    for w, t, r in zip(rotations, translations, reversals, strict=True):
        products, shifts = w @ rotations, translations @ w.T + t
        for product_, shift, reversal in zip(products, shifts, reversals ^ r, strict=True):
            same = (rotations == product_).all(axis=(1, 2)) & (reversals == reversal)
            if not same.any() or np.abs((translations[same] - shift + 0.5) % 1.0 - 0.5).max(axis=1).min() > 1e-3:
                return False
    return True


def spin_parity(density: Density, symmetry: DensitySymmetry, *, tolerance: float = DEFAULT_TOLERANCE) -> SpinSymmetry:
    """Ask of each symmetry operation of a density whether its magnetisation is even or odd under it.

    Parameters
    ----------
    density : Density
        With the channel ``diff``, or ``diff_x``, ``diff_y`` and ``diff_z`` (Cartesian); without them it is not magnetic. The given cell
        must hold the magnetic one.
    symmetry : DensitySymmetry
        Of the total density, as :func:`matminer_ed3d.symmetry.find_symmetry` finds it.
    tolerance : float
        Largest residual of an operation that holds: the smaller of the even and the odd residual must not exceed it, beyond the
        noise of the magnetisation and five standard deviations of it. Two moments that differ by the share d have a residual of about
        d^2 / 4 under the operation that swaps them.

    Returns
    -------
    SpinSymmetry

    Raises
    ------
    ValueError
        If `symmetry` is not that of this density's cell, or the given cell holds more than 64 primitive cells.

    Notes
    -----
    The density is grey (type II) where the integral of abs(m) over the primitive cell is below 1e-3 Bohr magnetons, or nothing of m
    exceeds the noise.

    References
    ----------
    D. B. Litvin, Magnetic Group Tables, IUCr (2013); K. Shinohara, A. Togo and I. Tanaka, Acta Cryst. A79, 390 (2023), for spglib's types.
    """
    cell = np.rint(np.linalg.inv(symmetry.basis)).astype(np.int64)  # rows of the given cell in the primitive one
    if not np.allclose(cell @ symmetry.lattice, density.lattice, atol=1e-6 * np.abs(density.lattice).max()):
        raise ValueError("`symmetry` must be that of this density; its primitive lattice does not span the cell of the density")
    n_cells = abs(round(float(np.linalg.det(cell))))
    if n_cells > LARGEST_BASIS:
        raise ValueError(f"the given cell must hold at most {LARGEST_BASIS} primitive cells, got {n_cells}; give the magnetic cell")
    is_collinear = "diff_x" not in density.channels
    m = _magnetisation(density, symmetry.d_min)
    noise = 0.0
    if m is not None:
        length = np.sqrt(sum(density.channels[name] ** 2 for name in density.channels if name.startswith("diff")))
        power = float((np.abs(m.coefficients) ** 2).sum())
        noise = min(m.noise * len(m.h) / power, 1.0) if power > 0 else 0.0
        if length.mean() * density.volume / n_cells < LEAST_MAGNETISATION or noise > 1 - NOISE_DEVIATIONS * np.sqrt(2 / len(m.h)):
            m = None
    if m is None:
        made = [
            SpinOperation(o.rotation, o.translation + shift, 0.0, 0.0, "both")
            for o in symmetry.operations
            for shift in _lattice_translations(cell)
        ]
    else:
        limit = tolerance + noise * (1 + NOISE_DEVIATIONS * np.sqrt(2 / len(m.h)))
        made = []
        for rotation, translation, overlap in _overlaps(m, symmetry, cell):
            even, odd = max(1 - overlap, 0.0), max(1 + overlap, 0.0)
            made.append(SpinOperation(rotation, translation, even, odd, _parity(even, odd, limit)))
    basis, magnetic_type, bns_number, uni_number = _named(tuple(made), symmetry, cell)
    return SpinSymmetry(
        operations=tuple(made),
        lattice=basis @ symmetry.lattice,
        basis=basis,
        is_collinear=is_collinear,
        magnetic_type=magnetic_type,
        bns_number=bns_number,
        uni_number=uni_number,
        noise=noise,
        tolerance=tolerance,
    )
