"""Gaussian's cube files, as many programs write them.

Two comments; the number of atoms, the origin and perhaps the number of values at each point; three lines of a count and a step along
an axis; the atoms (atomic number, charge, x, y, z); and the values, last axis fastest (https://gaussian.com/cubegen;
https://paulbourke.net/dataformats/cube; https://h5cube-spec.readthedocs.io/en/latest/cubeformat.html). A negative number of atoms
announces a line of numbers of orbitals. Lengths are in Bohr, or in Å where the counts are negative. Values are in atomic units in either
case, since the sign is of the lengths; programs that put e/Å³ into such a file do so with positive counts too. End points are left out.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from matminer_ed3d.density import Density, Quantity
from matminer_ed3d.readers import headers
from matminer_ed3d.readers.binary import chosen_channels, density_unit
from matminer_ed3d.readers.streams import TextStream
from matminer_ed3d.readers.units import (
    BOHR,
    HARTREE,
    Unit,
    check_own_unit,
    negative_share,
    quantity_named,
    settle_quantity,
    unit_named,
)

__all__ = ["read_cube"]

MOST_SETS = 10_000
LOOPS = re.compile(r"outer loop:?\s*([xyz]),?\s*middle loop:?\s*([xyz]),?\s*inner loop:?\s*([xyz])", re.IGNORECASE)
NEVER_NEGATIVE = 1e-3  # the share of an electron density that may be


@dataclass(frozen=True, eq=False)
class Header:
    """What stands before the values.

    Parameters
    ----------
    text : str
        The comments.
    shape : (int, int, int)
        Points along each axis.
    lattice : (3, 3) float
        Rows in Å: the steps times the counts.
    protons : tuple of int
        Atomic numbers; 0 is a dummy.
    charges : tuple of float
        Second column of the atoms: Z, the charge of the ion, or nothing.
    cart_coords : (n_atoms, 3) float
        Å, from the first point of the grid.
    orbitals : tuple of int
        Numbers of the orbitals, where the file lists them.
    n_sets : int
        Values at each point.
    """

    text: str
    shape: tuple[int, int, int]
    lattice: Float[np.ndarray, "3 3"]
    protons: tuple[int, ...]
    charges: tuple[float, ...]
    cart_coords: Float[np.ndarray, "n_atoms 3"]
    orbitals: tuple[int, ...]
    n_sets: int


def _count_and_vector(stream: TextStream, expected: str) -> tuple[int, list[float], list[bytes]]:
    """Read a line of a whole number and three real ones; return also the words after them."""
    words = headers.required_line(stream, expected).split()
    if len(words) < 4:
        raise stream.error(headers.show(b" ".join(words)), expected)
    return headers.whole_numbers(stream, words[:1], expected)[0], headers.reals(stream, words[1:4], expected), words[4:]


def _read_orbitals(stream: TextStream) -> tuple[int, ...]:
    """Read how many orbitals there are, and their numbers, folded over lines."""
    expected = "the number of orbitals and their numbers, which a negative number of atoms announces"
    numbers = headers.whole_numbers(stream, headers.required_line(stream, expected).split(), expected)
    if not 1 <= numbers[0] <= MOST_SETS:
        raise stream.error(f"{numbers[0]} orbitals", f"1 to {MOST_SETS}")
    while len(numbers) < 1 + numbers[0]:
        numbers += headers.whole_numbers(stream, headers.required_line(stream, expected).split(), expected)
    if len(numbers) > 1 + numbers[0]:
        raise stream.error(f"{len(numbers) - 1} numbers of orbitals", f"{numbers[0]}, as announced")
    return tuple(numbers[1:])


def _read_header(stream: TextStream) -> Header:
    comments = [(stream.read_line() or b"").decode("latin-1") for _ in range(2)]
    text = "\n".join(comments)
    loops = LOOPS.search(text)
    if loops and "".join(loops.groups()).lower() != "xyz":
        raise stream.error(loops[0], "the outer loop over x and the inner over z, as the format has it")
    n_atoms, origin, rest = _count_and_vector(stream, "the number of atoms and the origin (three numbers)")
    n_values = headers.whole_numbers(stream, rest[:1], "the number of values at each point")[0] if rest else 1
    if not 1 <= n_values <= MOST_SETS:
        raise stream.error(f"{n_values} values at each point", f"1 to {MOST_SETS}")
    if len(rest) > 1:
        raise stream.error(headers.show(b" ".join(rest)), "one number, of values at each point, at the end of the line")
    counts: list[int] = []
    steps: list[list[float]] = []
    for axis in range(3):
        count, step, extra = _count_and_vector(stream, f"the count and the step along axis {axis + 1} (four numbers)")
        if extra:
            raise stream.error(headers.show(extra[0]), "the end of the line, after a count and a step")
        if count == 0 or count * (counts[0] if counts else count) < 0:
            raise stream.error(f"{count} points", "at least one; three positive counts (Bohr) or three negative ones (Å)")
        counts.append(count)
        steps.append(step)
    length = BOHR if counts[0] > 0 else 1.0
    shape = (abs(counts[0]), abs(counts[1]), abs(counts[2]))
    lattice = np.array(steps) * np.array(shape)[:, None] * length
    headers.check_cell(stream, lattice)
    if abs(n_atoms) > min(headers.MOST_ATOMS, stream.max_bytes // 10):
        raise stream.error(f"{abs(n_atoms)} atoms", f"no more than a file of this size can hold, and {headers.MOST_ATOMS}")
    protons, rows = [], []
    for n in range(abs(n_atoms)):
        expected = f"atom {n + 1} of {abs(n_atoms)}: atomic number, charge and three coordinates"
        words = headers.required_line(stream, expected).split()
        if len(words) != 5:
            raise stream.error(headers.show(b" ".join(words)), expected)
        protons.append(headers.as_protons(stream, words[0], expected))
        rows.append(headers.reals(stream, words[1:], expected))
    atoms = np.array(rows).reshape(-1, 4)
    orbitals = _read_orbitals(stream) if n_atoms < 0 else ()
    if orbitals and n_values not in (1, len(orbitals)):
        raise stream.error(f"{len(orbitals)} orbitals and {n_values} values at each point", "one value of each orbital")
    return Header(
        text=text,
        shape=shape,
        lattice=lattice,
        protons=tuple(protons),
        charges=tuple(atoms[:, 0].tolist()),
        cart_coords=(atoms[:, 1:] - origin) * length,
        orbitals=orbitals,
        n_sets=max(n_values, len(orbitals)),
    )


def _sets(values: Float[np.ndarray, " n_values"], header: Header, stream: TextStream) -> Float[np.ndarray, "nx ny nz n_sets"]:
    """Sort several values a point into grids: the orbitals of a point together, the density of a row of points before its gradient.

    A density with its derivatives comes in either order: Gaussian and Molpro write, for each row, all densities and then all gradients;
    other programs keep the values of a point together. The density is that of the two that is nowhere negative.
    """
    by_point = values.reshape(*header.shape, header.n_sets)
    if header.n_sets == 1 or header.orbitals:
        return by_point
    n_z = header.shape[2]
    rows = values.reshape(header.shape[0], header.shape[1], header.n_sets * n_z)
    by_row = np.concatenate([rows[:, :, :n_z, None], rows[:, :, n_z:].reshape(*header.shape, header.n_sets - 1)], axis=3)
    fitting = [grid for grid in (by_point, by_row) if negative_share(grid[..., 0]) <= NEVER_NEGATIVE]
    if len(fitting) != 1:
        raise stream.error(
            f"{header.n_sets} values at each point whose order is not known",
            "a density with its derivatives, of which the density alone is nowhere negative; write the density to a file of its own",
        )
    return fitting[0]


def _drop_castep_end_points(values: np.ndarray, header: Header, stream: TextStream) -> tuple[np.ndarray, np.ndarray]:
    """Castep's castep2cube repeats the first points at the end of each axis, unlike all others; return the values and the lattice."""
    inner, difference, tolerance = headers.without_end_points(values[..., 0])
    if difference > tolerance or 0 in inner.shape:
        raise stream.error(f"end points that differ from the first by {difference:.3g}", "those of castep2cube, which are the same")
    return values[:-1, :-1, :-1], header.lattice * (1 - 1 / np.array(header.shape))[:, None]


def _warn_of_end_points(values: np.ndarray, path: str) -> None:
    """Warn if the last plane along each axis repeats the first, in a grid where this is no rounding."""
    if min(values.shape) < 3:
        return
    _, difference, tolerance = headers.without_end_points(values)
    largest = max(float(np.ptp(values.take(0, axis))) for axis in range(3))
    if difference <= min(tolerance, 1e-3 * largest) and largest > 1e-3 * float(np.abs(values).max()):  # not in the void round a molecule
        message = (
            f"{path}: the last plane of points along each axis repeats the first; if these are end points, which a cube should not have"
        )
        warnings.warn(f"{message}, its cell is too large by one step along each axis", UserWarning, stacklevel=4)


def _factor(header: Header, quantity: Quantity, unit: Unit | None) -> float:
    """Return what atomic units are to be multiplied by for ours."""
    if quantity == "electron_density" or unit is not None:
        return density_unit(unit_named(header.text) or "e/bohr^3", unit, quantity)
    if quantity == "potential":
        return HARTREE / 2 if re.search("pwscf|quantum espresso", header.text, re.IGNORECASE) else HARTREE
    return BOHR**-1.5 if quantity == "orbital" else 1.0


def _names(header: Header, quantity: Quantity) -> tuple[str, ...]:
    if quantity == "orbital" and header.orbitals:
        if len(set(header.orbitals)) == len(header.orbitals):
            return tuple(f"orbital_{number}" for number in header.orbitals)
        return tuple(f"orbital_{number}_{n + 1}" for n, number in enumerate(header.orbitals))
    if header.n_sets == 1 or quantity == "electron_density":
        return ("orbital",) if quantity == "orbital" else ("total",)
    return tuple(f"values_{n + 1}" for n in range(header.n_sets))


def read_cube(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read a cube.

    Parameters
    ----------
    stream : TextStream
        At the beginning of the file.
    channels : sequence of str, optional
        Read these alone. A single grid is ``total``, or ``orbital``; the orbitals that a file lists are ``orbital_5`` and so on.
    quantity : str, optional
        By default what the comments name: ELF, potential, orbital, density; orbitals too where the file lists their numbers.
        A spin density, a difference, and values that are negative by more than 1 % of their sum are ``unknown``.
    unit : {"e/A^3", "e/bohr^3"}, optional
        Of an electron density. By default what the comments name, else e/bohr³, the format's own.

    Returns
    -------
    Density
        Its point (0, 0, 0) is the file's origin, and atoms are moved along. An electron density in e/Å³; a potential in eV, read as
        Hartree, or as Rydberg in a file of PWscf (Quantum ESPRESSO); orbitals in Å^-3/2; an unknown quantity in the numbers of the file.
        The structure is None where an atom is a dummy (atomic number 0).

    Raises
    ------
    DensityFileError
        If the file is anything else, or is cut short; names the line.

    Warns
    -----
    UserWarning
        If the number of electrons speaks for another unit (:func:`~matminer_ed3d.readers.units.check_own_unit`), derivatives of a
        density or dummies are left out, the values are negative, or the last planes repeat the first ones.
    """
    header = _read_header(stream)
    n_points = header.shape[0] * header.shape[1] * header.shape[2]
    what = f"values on a grid of {headers.grid_text(header.shape)}" + (f", {header.n_sets} a point" if header.n_sets > 1 else "")
    raw = stream.read_values(n_points * header.n_sets, what)
    after = stream.next_line()
    if after is not None:
        raise stream.error(
            headers.show(after), f"the end of the file after {n_points * header.n_sets} values; are there two files in this one?"
        )
    lattice, values = header.lattice, _sets(raw, header, stream)
    if "castep2cube" in header.text:
        values, lattice = _drop_castep_end_points(values, header, stream)
    else:
        _warn_of_end_points(values[..., 0], stream.path)
    if quantity is None and header.orbitals and quantity_named(header.text) != "electron_density":
        quantity = "orbital"
    elif header.n_sets > 1 and not header.orbitals:
        quantity = quantity or "electron_density"
    quantity = settle_quantity(stream.path, values[..., 0], header.text, quantity)
    names = _names(header, quantity)
    if len(names) < header.n_sets:
        message = f"{stream.path}: {header.n_sets} values at each point; the first is read as the density, the others are left out"
        warnings.warn(message, UserWarning, stacklevel=3)
    factor = _factor(header, quantity, unit)
    if quantity == "electron_density" and unit is None and unit_named(header.text) is None:
        volume = abs(float(np.linalg.det(lattice)))
        protons = [z for z in header.protons if z > 0]
        charges = [charge for charge, z in zip(header.charges, header.protons, strict=True) if z > 0]
        check_own_unit(stream.path, float(values[..., 0].mean()) * volume, "e/bohr^3", protons, charges)
    chosen = chosen_channels(stream, names, channels)
    grids = {name: np.ascontiguousarray(values[..., n]) for n, name in enumerate(names) if name in chosen}
    for grid in grids.values():
        grid *= factor
    structure = headers.make_structure(stream.path, lattice, header.protons, header.cart_coords)
    return Density(lattice=lattice, channels=grids, structure=structure, quantity=quantity)
