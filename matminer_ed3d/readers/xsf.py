"""XSF, the format of XCrySDen: structures, and grids of values on them (http://www.xcrysden.org/doc/XSF.html).

Lengths are in Å. A grid is "general": its counts include the end points, which repeat the first ones, and its vectors span the cell from
the first point to the last; x is fastest. Those vectors need not be PRIMVEC: a grid over the conventional cell makes a density of
that cell. ASE leaves the end points out by default, which its vectors of (n + 1) / n cells tell. The format states no unit: XCrySDen,
Quantum ESPRESSO and Siesta write e/bohr³, tools around VASP e/Å³.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d.density import Density, Quantity
from matminer_ed3d.readers import headers
from matminer_ed3d.readers.binary import chosen_channels, density_unit
from matminer_ed3d.readers.streams import TextStream
from matminer_ed3d.readers.units import Unit, settle_quantity, unit_by_count, unit_named

__all__ = ["has_grid", "read_xsf"]

MOST_LINES = 10_000_000  # outside of grids
MOST_GRIDS = 64
GRID_BLOCK = re.compile(rb"(?:BEGIN_)?BLOCK_DATAGRID_?3D", re.IGNORECASE)
GRID = re.compile(rb"(?:BEGIN_)?DATAGRID_?3D_?(.*)", re.IGNORECASE)
SKIPPED = re.compile(rb"BEGIN_(INFO|BLOCK_DATAGRID_?2D)", re.IGNORECASE)
BY_ASE = ["data", "grid#1"]  # the title and the name of a grid of ASE's
ASE_DIGITS = 2e-6  # Å; twice what its six decimals round by
SAME_VECTOR = 1e-3  # Å; rounding of lattice vectors in the text
ROLES = (
    ("diff_x", r"(?:diff|mag|m|spin)_?x"),
    ("diff_y", r"(?:diff|mag|m|spin)_?y"),
    ("diff_z", r"(?:diff|mag|m|spin)_?z"),
    ("up", r"(?:spin_?)?(?:up|alpha)|spin_?1"),
    ("down", r"(?:spin_?)?(?:down|dn|beta)|spin_?2"),
    ("diff", r"diff|difference|spin(?:_?density)?|mag|magneti[sz]ation"),
    ("total", r"total|sum|charge(?:_?density)?|rho|density"),
)


@dataclass(eq=False)
class Contents:
    """What has been read of a file so far.

    Parameters
    ----------
    text : list of str
        Comments, titles and names of grids.
    vectors : (3, 3) float or None
        PRIMVEC, rows in Å.
    is_crystal : bool
        Periodic in three dimensions.
    protons : list of int
    cart_coords : list of three floats
        Å.
    names : list of str
    grids : list of (nx, ny, nz) float
        Without end points.
    origin : (3,) float
        Of the first grid, Å.
    lattice : (3, 3) float or None
        What the first grid spans.
    """

    text: list[str] = field(default_factory=list)
    vectors: Float[np.ndarray, "3 3"] | None = None
    is_crystal: bool = True
    protons: list[int] = field(default_factory=list)
    cart_coords: list[list[float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    grids: list[np.ndarray] = field(default_factory=list)
    origin: Float[np.ndarray, "3"] = field(default_factory=lambda: np.zeros(3))
    lattice: Float[np.ndarray, "3 3"] | None = None


def _read_vectors(stream: TextStream, what: str) -> Float[np.ndarray, "3 3"]:
    rows = []
    for name in "abc":
        expected = f"vector {name} of {what} (three numbers, Å)"
        words = headers.required_line(stream, expected).split()
        if len(words) != 3:
            raise stream.error(headers.show(b" ".join(words)), expected)
        rows.append(headers.reals(stream, words, expected))
    vectors = np.array(rows)
    headers.check_cell(stream, vectors)
    return vectors


def _read_atom(stream: TextStream, words: Sequence[bytes], contents: Contents, expected: str) -> None:
    """Take an atom: symbol or number, three coordinates, perhaps three components of a force."""
    if len(words) not in (4, 7):
        raise stream.error(headers.show(b" ".join(words)), expected)
    if len(contents.protons) == headers.MOST_ATOMS:
        raise stream.error("more atoms", f"at most {headers.MOST_ATOMS}")
    contents.protons.append(headers.as_protons(stream, words[0], expected))
    contents.cart_coords.append(headers.reals(stream, words[1:], expected)[:3])


def _read_counted_atoms(stream: TextStream, contents: Contents) -> None:
    expected = "the number of atoms, and 1"
    words = headers.required_line(stream, expected).split()
    n_atoms = headers.whole_numbers(stream, words[:1], expected)[0]
    if not 0 <= n_atoms <= min(headers.MOST_ATOMS, stream.max_bytes // 8):
        raise stream.error(f"{n_atoms} atoms", f"no more than a file of this size can hold, and {headers.MOST_ATOMS}")
    contents.protons.clear()
    contents.cart_coords.clear()
    for n in range(n_atoms):
        expected = f"atom {n + 1} of {n_atoms}: an element and three coordinates"
        _read_atom(stream, headers.required_line(stream, expected).split(), contents, expected)


def _is_by_ase(contents: Contents, shape: Sequence[int], origin: Float[np.ndarray, "3"], spans: Float[np.ndarray, "3 3"]) -> bool:
    """Tell whether a grid of n points spans (n + 1) / n cells: so ASE writes one without end points, and no other program.

    Where there is no PRIMVEC, in a molecule, the origin of ASE's grid is a point's distance from the corner of the cell along each axis.
    """
    if contents.text[-2:] != BY_ASE:
        return False
    larger = 1 + 1 / np.array(shape)[:, None]
    if contents.vectors is not None:
        return bool(np.abs(spans - contents.vectors * larger).max() <= ASE_DIGITS)
    return bool(np.abs(origin - (spans / larger / np.array(shape)[:, None]).sum(axis=0)).max() <= ASE_DIGITS)


def _read_grid(stream: TextStream, name: str, contents: Contents) -> None:
    """Read one grid up to its values, and check that it is periodic."""
    expected = f"the three counts of grid {name!r}"
    words = headers.required_line(stream, expected).split()
    if len(words) != 3:
        raise stream.error(headers.show(b" ".join(words)), expected)
    shape = headers.whole_numbers(stream, words, expected)
    if min(shape) < 2:
        raise stream.error(f"a grid of {headers.grid_text(shape)} points", "at least 2 along each axis, for the end points are among them")
    expected = f"the origin of grid {name!r} (three numbers, Å)"
    words = headers.required_line(stream, expected).split()
    if len(words) != 3:
        raise stream.error(headers.show(b" ".join(words)), expected)
    origin = np.array(headers.reals(stream, words, expected))
    lattice = _read_vectors(stream, f"grid {name!r}")
    is_by_ase = _is_by_ase(contents, shape, origin, lattice)
    if is_by_ase and contents.vectors is not None:
        lattice = contents.vectors
    if contents.lattice is None:
        contents.lattice, contents.origin = lattice, origin
    elif np.abs(lattice - contents.lattice).max() > SAME_VECTOR or np.abs(origin - contents.origin).max() > SAME_VECTOR:
        raise stream.error(
            f"grid {name!r} over another cell", "the origin and the vectors of the first grid; put the grids into files of their own"
        )
    what = f"values of grid {name!r} of {headers.grid_text(shape)} points"
    values = stream.read_values(shape[0] * shape[1] * shape[2], what).reshape(shape, order="F")
    inner, difference, tolerance = headers.without_end_points(values)
    if is_by_ase:
        if not contents.is_crystal or contents.vectors is None or difference <= tolerance:
            raise stream.error(
                f"a grid that ASE wrote over (n + 1) / n cells, {'with or without end points' if contents.is_crystal else 'not periodic'}",
                "a crystal's; write it with its end points: ase.io.write(..., data=np.pad(data, [(0, 1)] * 3, mode='wrap'),"
                " origin=np.zeros(3), span_vectors=atoms.cell), or as a cube",
            )
        inner = values
    elif difference > tolerance:
        raise stream.error(
            f"a grid {name!r} that is not periodic: a last plane differs from the first by up to {difference:.3g}",
            "end points that repeat the first ones (to 1e-4), as XSF wants for a crystal; write the grid with them",
        )
    if contents.grids and inner.shape != contents.grids[0].shape:
        raise stream.error(f"grid {name!r} of {headers.grid_text(shape)} points", "the points of the first grid")
    contents.names.append(name)
    contents.grids.append(np.ascontiguousarray(inner))


def _read_grid_block(stream: TextStream, contents: Contents) -> None:
    """Read a block: a title, and any number of grids."""
    expected = "a grid (BEGIN_DATAGRID_3D_name) or END_BLOCK_DATAGRID_3D"
    line = headers.required_line(stream, "the title of the block of grids")
    if not GRID.fullmatch(line):
        contents.text.append(line.decode("latin-1"))
        line = headers.required_line(stream, expected)
    while not line.upper().startswith(b"END_BLOCK_DATAGRID"):
        match = GRID.fullmatch(line)
        if match is None:
            raise stream.error(headers.show(line), expected)
        if len(contents.grids) == MOST_GRIDS:
            raise stream.error(f"more than {MOST_GRIDS} grids", "fewer; put them into files of their own")
        name = match[1].decode("latin-1").strip() or "grid"
        contents.text.append(name)
        n_same = sum(re.sub(r"#\d+$", "", other) == name for other in contents.names)
        _read_grid(stream, f"{name}#{n_same + 1}" if n_same else name, contents)
        line = headers.required_line(stream, "END_DATAGRID_3D")
        if not line.upper().startswith(b"END_DATAGRID"):
            raise stream.error(headers.show(line), "END_DATAGRID_3D after the values of the grid")
        line = headers.required_line(stream, expected)


def _skip_to(stream: TextStream, end: bytes) -> None:
    for _ in range(MOST_LINES):
        if headers.required_line(stream, end.decode()).upper().startswith(end):
            return
    raise stream.error(f"{MOST_LINES} lines", end.decode())


def _read_contents(stream: TextStream) -> Contents:
    """Read the sections of a file in whatever order they come."""
    contents = Contents()
    line = stream.next_line()
    n_comments = n_lines = 0
    while line is not None:
        n_lines += 1
        if n_lines > MOST_LINES:
            raise stream.error(f"{MOST_LINES} lines outside of grids", "fewer; is this an XSF?")
        words = line.split()
        keyword = words[0].upper()
        if line.startswith(b"#"):
            n_comments += 1
            if n_comments <= 100:
                contents.text.append(line.decode("latin-1"))
        elif keyword == b"ATOMS":
            line = stream.next_line()
            while line is not None and re.match(rb"(?:[A-Za-z]{1,2}|\d+)\s+[-+.\d]", line):
                _read_atom(stream, line.split(), contents, "an atom: an element and three coordinates")
                line = stream.next_line()
            continue
        elif keyword in (b"CRYSTAL", b"SLAB", b"POLYMER", b"MOLECULE"):
            contents.is_crystal = keyword == b"CRYSTAL"
        elif keyword == b"DIM-GROUP":
            expected = "the number of periodic dimensions and of the group"
            numbers = headers.whole_numbers(stream, headers.required_line(stream, expected).split(), expected)
            contents.is_crystal = numbers[0] == 3
        elif keyword == b"PRIMVEC":
            contents.vectors = _read_vectors(stream, "PRIMVEC")
        elif keyword in (b"CONVVEC", b"RECIP-PRIMVEC", b"RECIP-CONVVEC", b"WIGNER-SEITZ-PRIMVEC"):
            _read_vectors(stream, keyword.decode())
        elif keyword == b"PRIMCOORD":
            _read_counted_atoms(stream, contents)
        elif keyword == b"CONVCOORD":
            _read_counted_atoms(stream, Contents())
        elif GRID_BLOCK.fullmatch(keyword):
            _read_grid_block(stream, contents)
        elif match := SKIPPED.fullmatch(keyword):
            _skip_to(stream, b"END_" + match[1].upper())
        elif keyword == b"ANIMSTEPS":
            raise stream.error("an animation (ANIMSTEPS)", "one structure with its grid")
        elif b"BANDGRID" in keyword:
            raise stream.error("a band grid (BXSF), whose values are energies", "a grid of values in space (DATAGRID_3D)")
        else:
            raise stream.error(headers.show(line), "a section of XSF, such as PRIMVEC, PRIMCOORD or BEGIN_BLOCK_DATAGRID_3D")
        line = stream.next_line()
    if not contents.grids:
        raise stream.error("no grid", "a block BEGIN_BLOCK_DATAGRID_3D with a grid; as_density() makes a density of a structure alone")
    return contents


def _structure(stream: TextStream, contents: Contents) -> Any:
    """Make the structure in the cell of the grid, its origin the first point of the grid."""
    lattice = contents.lattice
    assert lattice is not None
    coords = np.array(contents.cart_coords).reshape(-1, 3)
    if contents.vectors is None:
        return headers.make_structure(stream.path, lattice, contents.protons, coords - contents.origin)
    multiples = lattice @ np.linalg.inv(contents.vectors)
    whole = np.round(multiples)
    fits = np.abs(whole @ contents.vectors - lattice).max() <= SAME_VECTOR and abs(float(np.linalg.det(whole))) > 0.5
    if not fits and contents.is_crystal:
        raise stream.error(
            f"a grid whose vectors are {np.round(multiples, 4).tolist()} times PRIMVEC",
            "vectors that span a cell of the lattice, whole multiples of PRIMVEC, end points included",
        )
    if not fits:
        return headers.make_structure(stream.path, lattice, contents.protons, coords - contents.origin)
    structure = headers.make_structure(stream.path, contents.vectors, contents.protons, coords - contents.origin)
    if structure is None or np.array_equal(whole, np.eye(3)):
        return None if structure is None else headers.make_structure(stream.path, lattice, contents.protons, coords - contents.origin)
    if abs(np.linalg.det(whole)) * len(structure) > headers.MOST_ATOMS:
        raise stream.error(f"a grid over {abs(np.linalg.det(whole)):.0f} cells of the lattice", f"at most {headers.MOST_ATOMS} atoms")
    return structure.make_supercell(whole.astype(int), in_place=False)


def _role(name: str) -> str | None:
    """Return the channel that the name of a grid ends in."""
    return next((role for role, words in ROLES if re.search(rf"(?i)(?:^|[^a-z])(?:{words})$", name.strip())), None)


def _density_channels(stream: TextStream, contents: Contents, channels: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Sort grids into the channels of an electron density, by their names."""
    by_name = dict(zip(contents.names, contents.grids, strict=True))
    if len(by_name) == 1:
        chosen_channels(stream, ("total", *by_name), channels)
        return {"total": contents.grids[0]}
    if channels is not None and len(channels) == 1 and channels[0] in by_name and channels[0] not in ("total", "diff"):
        return {"total": by_name[channels[0]]}
    roles = [_role(name) for name in contents.names]
    found = {role: grid for role, grid in zip(roles, contents.grids, strict=True) if role is not None}
    if len(found) == len(by_name) and set(found) == {"up", "down"}:
        found = {"total": found["up"] + found["down"], "diff": found["up"] - found["down"]}
    if len(found) < len(by_name) or "total" not in found or set(found) & {"up", "down"}:
        names = ", ".join(by_name)
        raise stream.error(
            f"the grids {names}",
            "names that end in total and diff, or in up and down; read one as the density, such as"
            f" channels=({contents.names[0]!r},), or all with quantity='unknown'",
        )
    return {name: found[name] for name in chosen_channels(stream, tuple(found), channels)}


def read_xsf(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    """Read an XSF with one or more grids in space.

    Parameters
    ----------
    stream : TextStream
        At the beginning of the file.
    channels : sequence of str, optional
        Read these alone. One grid is ``total``; several whose names end in total and diff (or diff_x, ...) are those, and two that end in
        up and down, or in Siesta's spin_1 and spin_2, make ``total`` and ``diff``. Of others, the name of one makes it the ``total``.
        Grids of another quantity keep their names.
    quantity : str, optional
        By default what titles, names and comments say; an electron density where they say nothing. A spin density, a difference, and
        values that are negative by more than 1 % of their sum are ``unknown``.
    unit : {"e/A^3", "e/bohr^3"}, optional
        Of an electron density. By default what a title, a name or a comment names, else what the number of electrons says
        (:func:`~matminer_ed3d.readers.units.unit_by_count`).

    Returns
    -------
    Density
        In the cell that the grid spans, its point (0, 0, 0) at the origin of the grid; atoms are moved and repeated accordingly. A
        potential is taken to be in eV, with a warning; other quantities are in the numbers of the file.

    Raises
    ------
    DensityFileError
        If the file is anything else, is cut short, the end points do not repeat the first ones, or the cell of the grid is none of the
        lattice.

    Warns
    -----
    UserWarning
        If the unit is an assumption, an atom is a dummy, or the values are negative.
    """
    contents = _read_contents(stream)
    lattice = contents.lattice
    assert lattice is not None
    structure = _structure(stream, contents)
    text = "\n".join(contents.text)
    names, grids = contents.names, contents.grids
    roles = [_role(name) for name in names]
    first = roles.index("total") if "total" in roles else 0
    only_total = len(grids) > 1 and quantity is None  # then "diff" among the names does not mean a difference density
    hints = "\n".join(line for line in contents.text if line not in names) if only_total else text
    quantity = settle_quantity(stream.path, grids[first], hints, quantity)
    if quantity == "electron_density":
        found = _density_channels(stream, contents, channels)
        own = unit_named(text)
        if own is None and unit is None:
            protons = [] if structure is None else [site.specie.Z for site in structure]
            volume = abs(float(np.linalg.det(lattice)))
            own = unit_by_count(stream.path, float(found.get("total", grids[first]).mean()) * volume, protons)
        factor = density_unit(own or "e/bohr^3", unit, quantity)
        for grid in found.values():
            grid *= factor
    else:
        if unit is not None:
            density_unit("e/A^3", unit, quantity)
        if quantity == "potential":
            message = f"{stream.path}: XSF states no unit; the potential is taken to be in eV (Quantum ESPRESSO writes Rydberg)"
            warnings.warn(message, UserWarning, stacklevel=3)
        present = ("total",) if len(grids) == 1 else tuple(names)
        chosen = chosen_channels(stream, present, channels)
        found = {name: grid for name, grid in zip(present, grids, strict=True) if name in chosen}
    return Density(lattice=lattice, channels=found, structure=structure, quantity=quantity)


def has_grid(stream: TextStream) -> bool:
    """Tell whether a grid in space comes, in the first ten million lines."""
    for _ in range(MOST_LINES):
        line = stream.next_line()
        if line is None:
            return False
        if line[:1] in b"Bb" and GRID_BLOCK.match(line):
            return True
    return False
