"""Crystal structures from CIF and from pymatgen's JSON."""

from __future__ import annotations

import json
import math
import re
import warnings
from typing import Any

from matminer_ed3d.readers.displacements import add_displacements, has_displacements
from matminer_ed3d.readers.streams import TextStream

__all__ = ["read_cif", "read_json"]

SHOWN = 5  # labels named in a warning
LETTERS = re.compile(r"[A-Za-z]+")
NO_GUESS = re.compile(
    "Spacegroup from|fractional coordinates rounded|Cannot determine chemical composition|stoichiometry check|is not a valid"
)
# What pymatgen's CIF reader raises on bad files; an empty list of atoms divides by zero.
PARSER_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _first_block(text: str) -> Any:
    """Return gemmi's first CIF block with atoms; None without one."""
    import gemmi

    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError):  # pymatgen forgives more than the standard does
        return None
    return next((block for block in document if len(block.find_values("_atom_site_label")) > 0), None)


def _check_atoms(stream: TextStream, block: Any) -> None:
    """Refuse what pymatgen leaves out or takes for something else without a word."""
    from gemmi.cif import as_number
    from pymatgen.core.periodic_table import Element

    for row in block.find("_atom_site_", ["label", "?type_symbol", "?occupancy"]):
        symbol = row.str(1) if row.has(1) else ""
        letters = LETTERS.match(symbol)
        if symbol and not (letters and Element.is_valid_symbol(letters[0].capitalize())):
            raise stream.error(f"species {symbol!r} of atom {row.str(0)}", "an element of the periodic table")
        occupancy = as_number(row[2]) if row.has(2) else math.nan
        if not math.isnan(occupancy) and not 0 <= occupancy <= 1 + 1e-6:
            raise stream.error(f"occupancy {row[2]} of atom {row.str(0)}", "at least 0, at most 1")


def _operations(parser: Any, text: str, name: str) -> list[Any]:
    """Return the symmetry operations that pymatgen reads in one block; none if it does not know the block."""
    from pymatgen.io.cif import CifFile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said before, when the atoms were read
        block = CifFile.from_str(text).data.get(name[:74])
        if block is None:
            return []
        return list(parser.get_magsymops(block) if parser.feature_flags["magcif"] else parser.get_symops(block))


def _check_sites(stream: TextStream, structure: Any) -> None:
    from pymatgen.core.periodic_table import Element, Species

    if len(structure) == 0:
        raise stream.error("no atoms", "at least one")
    for site in structure:
        if not all(math.isfinite(x) for x in site.frac_coords):
            raise stream.error(f"coordinates {site.frac_coords.tolist()} of {site.species_string}", "finite numbers")
        for specie, occupancy in site.species.items():
            if not isinstance(specie, Element | Species):
                raise stream.error(f"species {str(specie)!r}", "an element of the periodic table")
            if not 0 < occupancy <= 1 + 1e-6:
                raise stream.error(f"occupancy {occupancy} of {specie}", "more than 0, at most 1")


def read_cif(stream: TextStream) -> Any:
    """Read the first structure of a CIF as a pymatgen Structure, in the cell of the file.

    Displacements become the site property ``u_iso`` or ``U11_cif`` to ``U12_cif`` (Å²), see
    :func:`matminer_ed3d.readers.displacements.add_displacements`; a file that gives them for some atoms only makes a UserWarning, one
    that gives none does not. A coordinate within 1e-4 of a third or two thirds, such as 0.3333, is taken for it, as pymatgen does.

    Raises
    ------
    DensityFileError
        If there is no structure in it: no atoms, an unknown element, a missing coordinate, an impossible cell or occupancy.
    """
    from pymatgen.io.cif import CifParser

    text = stream.read_rest()
    block = _first_block(text)
    if block is not None:
        _check_atoms(stream, block)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            parser = CifParser.from_str(text)
            structure = parser.parse_structures(primitive=False)[0]
        except PARSER_ERRORS as error:
            reasons = [str(warning.message).splitlines()[-1] for warning in caught if "No structure parsed" in str(warning.message)]
            reason = "; ".join(reasons) or str(error) or type(error).__name__
            raise stream.error(
                f"no crystal structure ({reason})", "a CIF with a cell, known elements, coordinates and occupancies"
            ) from error
    for note in _notes(caught):
        warnings.warn(f"{stream.path}: {note}", UserWarning, stacklevel=3)
    _check_sites(stream, structure)
    if block is not None and has_displacements(block):
        bare = add_displacements(structure, block, _operations(parser, text, block.name))
        if bare:
            some = ", ".join(bare[:SHOWN]) + (" ..." if len(bare) > SHOWN else "")
            message = f"{stream.path}: no usable displacement for {some}; there the default B of 0.5 Å² or `b_iso` counts"
            warnings.warn(message, UserWarning, stacklevel=3)
    return structure


def _notes(caught: list[warnings.WarningMessage]) -> list[str]:
    """Return what pymatgen had to guess, each guess once, without what is no guess."""
    texts = (str(warning.message).removeprefix("Issues encountered while parsing CIF: ") for warning in caught)
    lines = dict.fromkeys(line for text in texts for line in text.splitlines())
    return [line for line in lines if line and not NO_GUESS.search(line)]


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str | bool) or (isinstance(value, list) and all(_plain(v) for v in value))


def read_json(stream: TextStream) -> Any:
    """Read a pymatgen Structure from its JSON; nothing that the file names is ever imported.

    Raises
    ------
    DensityFileError
        If the text is not JSON, is that of something else, or has a site that is none.
    """
    from pymatgen.core.structure import Structure

    text = stream.read_rest()
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise stream.error(f"text that is not JSON ({error})", "a pymatgen Structure written by `structure.to(filename=...)`") from error
    name = record.get("@class") if isinstance(record, dict) else None
    if not isinstance(record, dict) or name not in (None, "Structure", "IStructure") or not {"lattice", "sites"} <= set(record):
        what = f"JSON of {name}" if name else "JSON of something else"
        raise stream.error(what, "JSON of a pymatgen Structure, with `lattice` and `sites`")
    try:
        sites = []
        for site in record["sites"]:
            properties = {key: value for key, value in (site.get("properties") or {}).items() if _plain(value)}
            # pymatgen imports the classes that site properties name, so only plain values go through.
            species = [
                {k: v for k, v in sp.items() if k in ("element", "occu", "oxidation_state", "spin") and v is not None}
                for sp in site["species"]
            ]
            sites.append({"species": species, "abc": [float(x) for x in site["abc"]], "properties": properties, "label": site.get("label")})
        structure = Structure.from_dict({"lattice": {"matrix": record["lattice"]["matrix"]}, "sites": sites})
    except PARSER_ERRORS as error:
        raise stream.error(f"a structure that cannot be built ({error})", "the lattice and the sites of a pymatgen Structure") from error
    if not math.isfinite(structure.volume) or structure.volume < 1e-6:
        raise stream.error(f"a cell of volume {structure.volume}", "three lattice vectors that span a cell")
    _check_sites(stream, structure)
    return structure
