"""Crystal structures from CIF and from pymatgen's JSON."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from matminer_ed3d.readers.displacements import add_displacements, has_displacements
from matminer_ed3d.readers.streams import TextStream
from matminer_ed3d.scattering_factors import DEFAULT_B_ISO

__all__ = ["PARSER_ERRORS", "check_sites", "read_cif", "read_json", "structure_from_record"]

SMALLEST_VOLUME = 1e-6  # Å³
LARGEST_LENGTH = 1e5  # Å
SHOWN = 5  # labels named in a warning
LETTERS = re.compile(r"[A-Za-z]+")
NO_ELEMENT = re.compile(r"OH|NH|CN|NO[23]|Vac?$|Vc$|Dum|Xx", re.IGNORECASE)  # groups, which pymatgen leaves out, and places without an atom
WATER = re.compile(r"[HO]w|Wat|wat")
ISOTOPE = re.compile(r"[DT](?:\d*[+-]\d*)?")
NOT_GIVEN = ("?", ".")
CHARGED = re.compile(
    r"[A-Z][a-z]?(?:(?P<size>\d+(?:\.\d+)?)?(?P<sign>[+-])|(?P<sign_first>[+-])(?P<size_last>\d+(?:\.\d+)?))"
)  # Fe3+, Cl-, Fe+3
DECIMALS = re.compile(r"[+-]?\d*\.(\d+)")
COARSEST = 5e-3  # error of a coordinate of two decimals; fewer are taken for exact beyond that
FARTHEST = 0.25  # Å between an atom and its image, if they are the same atom
PYMATGEN_MERGES = 5e-5  # images closer than this, in fractions of the cell, pymatgen makes one site itself
LARGEST_SUM = 1.02  # of the occupancies on one place; 3 x 0.334 is 1.002
OF_STRUCTURE = ("_cell", "_symmetry", "_space_group", "_atom", "_chemical", "_magnetic", "_parent")  # what pymatgen looks at
OPERATIONS = (
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv.pos_as_xyz",
    "_space_group_symop_operation_xyz",
    "_space_group_symop.operation_xyz",
    "_space_group_symop_magn_operation.xyz",
    "_space_group_symop_magn_centering.xyz",
)
TAG = re.compile(r"^_\S+", re.MULTILINE)
MIXED_CASE = {  # tags are alike in any case, but pymatgen asks for these, and for all others in lower case
    tag.lower(): tag
    for tag in (
        "_cell_formula_units_Z",
        "_space_group_IT_number",
        "_space_group_magn.name_BNS",
        "_space_group_magn.number_BNS",
        "_magnetic_space_group.transform_to_standard_Pp_abc",
        "_space_group_magn.transform_BNS_Pp",
        "_space_group_magn.transform_BNS_Pp_abc",
        "_space_group_name_H-M_alt",
        "_space_group_name_Hall",
        "_symmetry_Int_Tables_number",
        "_symmetry_space_group_name_H-M",
        "_symmetry_space_group_name_H_M",
    )
}
GRAMMAR_ERROR = re.compile(r"string:(\d+)(?::\d+(?:\(\d+\))?:| in \S+:)\s*")  # how gemmi's complaints begin
HALL_NAMES = ("_space_group_name_Hall", "_symmetry_space_group_name_Hall")
GROUP_NAMES = ("_space_group_name_H-M_alt", "_symmetry_space_group_name_H-M", "_symmetry_space_group_name_H_M")
GROUP_NUMBERS = ("_space_group_IT_number", "_symmetry_Int_Tables_number")
ICSD_SETTING = re.compile(r"\s*:?\s*(HR|S|Z)$", re.IGNORECASE)  # how the ICSD ends a Hermann-Mauguin symbol ...
SETTINGS = {"HR": ":H", "S": ":1", "Z": ":2"}  # ... and what that is called in International Tables
MOST_CELLS = 10_000  # away from the origin; farther away the digits of a coordinate mean nothing
ANGLES = ("alpha", "beta", "gamma")
CELL = ("length_a", "length_b", "length_c", *(f"angle_{angle}" for angle in ANGLES))
SAME_LENGTHS = 0.05  # share by which lengths that a space group makes equal may differ; more is another setting
LONGEST_WORD = 1000  # of what is said of an atom, and of an operation
MOST_OPERATIONS = 1536  # 192 are those of Fm-3m; more only in a cell chosen too large
MOST_ATOMS, MOST_IMAGES = 5_000, 15_000  # atoms, and atoms times operations; pymatgen's time grows with the squares, to half a minute here
MOST_FORGIVEN = 1 << 20  # bytes of a CIF against the standard, which pymatgen is asked to make sound
CROWDED = 0.5  # Å; no two atoms of any molecule or crystal come that close
NO_GUESS = re.compile(
    "Spacegroup from|fractional coordinates rounded|Cannot determine chemical composition|stoichiometry check|is not a valid"
)
# What pymatgen's CIF reader raises on bad files; an empty list of atoms divides by zero.
PARSER_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _is_ambiguous(document: Any) -> bool:
    """Tell whether a block has a tag of the structure twice, or without a value."""
    for block in document:
        tags = [tag.lower() for item in block for tag in (item.loop.tags if item.loop is not None else (item.pair or ())[:1])]
        tags += [item.pair[0].lower() for item in block if item.pair is not None and not item.pair[1]]
        ours = [tag for tag in tags if tag.startswith(OF_STRUCTURE)]
        if len(set(ours)) < len(ours):
            return True
    return False


def _document(stream: TextStream, text: str) -> Any:
    """Return gemmi's CIF document; of text against the grammar, that of what pymatgen, which forgives more, makes of it."""
    import gemmi
    from pymatgen.io.cif import CifFile

    try:
        return gemmi.cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        place = GRAMMAR_ERROR.match(str(error))
        complaint, line = str(error)[place.end() if place else 0 :], int(place[1]) if place else None
    if len(text) > MOST_FORGIVEN:
        raise stream.error(f"{len(text)} characters that are no CIF by its grammar ({complaint})", "a sound CIF", line)
    refusal = stream.error(f"text that is no CIF ({complaint})", "a complete one", line)
    try:
        document = gemmi.cif.read_string(text, check_level=0)
    except (ValueError, RuntimeError):
        pass
    else:  # only tags that stand twice, or without a value
        if _is_ambiguous(document):
            raise refusal
        return document
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            document = gemmi.cif.read_string(str(CifFile.from_str(text)))
        except (*PARSER_ERRORS, Warning) as error:
            raise refusal from error
    where = stream.path if line is None else f"{stream.path}:{line}"
    warnings.warn(f"{where}: against the grammar of CIF ({complaint}); read as pymatgen does, is all there?", UserWarning, stacklevel=5)
    return document


def _first_block(stream: TextStream, text: str) -> Any:
    """Return gemmi's first CIF block with atoms, with a warning if there are more."""
    document = _document(stream, text)
    blocks = [block for block in document if len(block.find_values("_atom_site_label")) > 0]
    if len(blocks) > 1:
        message = f"{stream.path}: {len(blocks)} blocks with atoms; the first, {blocks[0].name!r}, is read"
        warnings.warn(message, UserWarning, stacklevel=4)
    if not blocks:
        raise stream.error("no atoms", "a loop of `_atom_site_label` with fractional coordinates")
    return blocks[0]


def _check_species(stream: TextStream, symbol: str, label: str) -> None:
    """Refuse a species that is none, and say what is made of a label that stands in for it."""
    from pymatgen.core.periodic_table import Element

    letters = LETTERS.match(symbol or label)
    known = [letters[0][:n] for n in (2, 1) if letters and len(letters[0]) >= n and Element.is_valid_symbol(letters[0][:n].capitalize())]
    if letters is None or not known or NO_ELEMENT.match(letters[0]) or (symbol and known[0] != letters[0]):
        raise stream.error(f"species {symbol or label!r} of atom {label}", "an element of the periodic table")
    if known[0] != letters[0] and not WATER.match(label):  # pymatgen says itself what it takes for water
        message = f"{stream.path}: atom {label} is taken for {known[0].capitalize()}; `_atom_site_type_symbol` would say it"
        warnings.warn(message, UserWarning, stacklevel=5)


def _check_size(stream: TextStream, block: Any) -> None:
    """Refuse more than pymatgen can read in a minute, and words without end, on which its patterns hang."""
    words = [word for tag in OPERATIONS for word in block.find_values(tag)]
    n_operations, n_atoms = max(len(words), 1), len(block.find_values("_atom_site_label"))
    if n_operations > MOST_OPERATIONS:
        raise stream.error(f"{n_operations} symmetry operations", f"at most {MOST_OPERATIONS}")
    if n_atoms > MOST_ATOMS or n_atoms * n_operations > MOST_IMAGES:
        found = f"{n_atoms} atoms and {n_operations} symmetry operations"
        raise stream.error(found, f"at most {MOST_ATOMS} atoms and {MOST_IMAGES} images of them in a CIF; a POSCAR may hold more")
    for item in block:
        tags = item.loop.tags if item.loop is not None else item.pair[:1] if item.pair is not None else []
        if any(tag.lower().startswith(OF_STRUCTURE) for tag in tags):
            words = item.loop.values if item.loop is not None else item.pair[1:]
            longest = max(words, key=len, default="")
            if len(longest) > LONGEST_WORD:
                raise stream.error(f"a value of {len(longest)} characters, {longest[:20]!r} ...", f"at most {LONGEST_WORD} ({tags[0]})")


def _check_cell(stream: TextStream, block: Any) -> None:
    """Refuse lengths and angles that pymatgen takes for something else without a word."""
    from gemmi.cif import as_number

    for tag, least, most in [*((f"_cell_length_{x}", 0, LARGEST_LENGTH) for x in "abc"), *((f"_cell_angle_{x}", 0, 180) for x in ANGLES)]:
        word = block.find_value(tag)
        if word is not None and not least < as_number(word) < most:
            raise stream.error(f"{tag} {word[:40]}", f"a number above {least} and below {most:g}")


def _stated(block: Any, tags: Sequence[str]) -> str:
    """Return the first of some values that a CIF states; empty if none."""
    from gemmi.cif import as_string

    words = (as_string(word).strip() for word in map(block.find_value, tags) if word is not None)
    return next((word for word in words if word not in ("", *NOT_GIVEN)), "")


def _state_operations(stream: TextStream, block: Any) -> None:
    """Write out the operations of a space group that a CIF only names, for pymatgen takes what it does not know for P 1.

    Raises
    ------
    DensityFileError
        If the name or the number is of no known group, or of one that cannot have such a cell.

    Warns
    -----
    UserWarning
        If the group has two choices of origin, and the file does not tell which.
    """
    import gemmi

    hall, name, number = (_stated(block, tags) for tags in (HALL_NAMES, GROUP_NAMES, GROUP_NUMBERS))
    if any(len(block.find_values(tag)) > 0 for tag in OPERATIONS) or not (hall or name or number):
        return
    cell = gemmi.UnitCell(*(gemmi.cif.as_number(_stated(block, [f"_cell_{of}"])) for of in CELL))
    group: Any = None
    if hall:
        with suppress(RuntimeError):  # gemmi's, for what is no Hall symbol
            group = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(hall))
    if group is None and (name or number):
        numbered = gemmi.find_spacegroup_by_number(int(number)) if not name and number.isdecimal() and len(number) < 4 else None
        setting = ICSD_SETTING.search(name)
        plain = ICSD_SETTING.sub("", name) + (SETTINGS[setting[1].upper()] if setting else "")
        group = gemmi.find_spacegroup_by_name(numbered.hm if numbered else plain.replace("_", ""), cell.alpha, cell.gamma)
        if group is not None and group.ext == "1" and "1" not in plain.partition(":")[2]:
            message = f"{stream.path}: space group {name or number} has two choices of origin; the first is assumed"
            warnings.warn(message, UserWarning, stacklevel=4)
    if group is None:
        way_out = "a known one, or its operations (_space_group_symop_operation_xyz)"
        raise stream.error(f"space group {(hall or name or number)[:40]!r}", way_out)
    if not cell.is_compatible_with_spacegroup(group, SAME_LENGTHS):
        raise stream.error(f"space group {group.xhm()} and a cell of {cell.parameters}", "a cell that the group allows")
    loop = block.init_loop("_space_group_symop_", ["operation_xyz"])
    for operation in group.operations():
        loop.add_row([f"'{operation.triplet()}'"])


def _check_atoms(stream: TextStream, block: Any) -> None:
    """Refuse what pymatgen leaves out or takes for something else without a word, and write out occupancies that are not given."""
    from gemmi.cif import as_number

    for row in block.find("_atom_site_", ["label", "?type_symbol", "?occupancy", "?fract_x", "?fract_y", "?fract_z", "?calc_flag"]):
        label = row.str(0)
        if row.has(6) and row.str(6) == "dum":
            raise stream.error(f"atom {label}, which its `_atom_site_calc_flag` calls a dummy", "atoms; delete its row")
        _check_species(stream, row.str(1) if row.has(1) else "", label)
        if row.has(1) and ISOTOPE.fullmatch(row.str(1)):  # of one density; pymatgen cannot have both on one site
            row[1] = row.str(1).replace("D", "H").replace("T", "H")
        if row.has(2) and row[2] in NOT_GIVEN:
            row[2] = "1"
        if row.has(2) and not 0 <= as_number(row[2]) <= 1 + 1e-6:
            raise stream.error(f"occupancy {row[2]} of atom {label}", "at least 0, at most 1")
        for i, axis in enumerate("xyz", 3):
            if row.has(i) and not abs(as_number(row[i])) < MOST_CELLS:
                raise stream.error(f"coordinate {axis} = {row[i][:40]} of atom {label}", f"a number below {MOST_CELLS}")


def _charge(match: re.Match[str] | None) -> float:
    if match is None:
        return 0.0
    size = float(match["size"] or match["size_last"] or 1)
    return -size if (match["sign"] or match["sign_first"]) == "-" else size


def _state_charges(block: Any) -> None:
    """Write the charges of symbols such as Fe3+ or O2- as the oxidation numbers that pymatgen looks for."""
    if len(block.find_values("_atom_type_oxidation_number")) > 0:
        return
    symbols = dict.fromkeys(row.str(0) for row in block.find(["_atom_site_type_symbol"]))
    found = {symbol: CHARGED.fullmatch(symbol) for symbol in symbols}
    if not any(found.values()):
        return
    charges = [_charge(match) for match in found.values()]
    block.find_mmcif_category("_atom_type_").erase()
    loop = block.init_loop("_atom_type_", ["symbol", "oxidation_number"])
    for symbol, charge in zip(symbols, charges, strict=True):
        loop.add_row([f"'{symbol}'", f"{charge:g}"])


def _digits(word: str) -> float:
    """Largest error that the digits of a coordinate leave, at most `COARSEST`."""
    decimals = DECIMALS.match(word)
    return min(0.5 * 10.0 ** -len(decimals[1]), COARSEST) if decimals else 0.0


def _place_on_symmetry(block: Any, operations: list[Any], lattice: np.ndarray) -> bool:
    """Move atoms onto the special positions that the digits of their coordinates cannot tell them from; tell whether any moved.

    An atom at (0.333, 0.667, z) is one atom, not three around the axis at (1/3, 2/3, z). Its place is the mean over the operations
    that hold it in place within the rounding of its digits. pymatgen does so for thirds of four digits only.
    """
    from gemmi.cif import as_number

    moved = False
    rotations = np.array([op.rotation_matrix for op in operations]).reshape(-1, 3, 3)
    translations = np.array([op.translation_vector for op in operations]).reshape(-1, 3)
    for row in block.find("_atom_site_", ["fract_x", "fract_y", "fract_z"]):
        words = [row.str(i) for i in range(3)]
        coords = np.array([as_number(word) for word in words])
        if not np.isfinite(coords).all():
            continue
        rounding = np.array([_digits(word) for word in words])
        steps = rotations @ coords + translations - coords
        steps -= np.round(steps)
        close = (np.abs(steps) <= np.abs(rotations) @ rounding + rounding + 1e-9).all(axis=1)
        close &= np.linalg.norm(steps @ lattice, axis=1) <= FARTHEST
        if close.any() and np.abs(steps[close]).max() > PYMATGEN_MERGES:
            for i, x in enumerate(coords + steps[close].mean(axis=0)):
                row[i] = f"{x:.10f}"
            moved = True
    return moved


def _operations(parser: Any, text: str, name: str) -> list[Any]:
    """Return the symmetry operations that pymatgen reads in one block; none if it does not know the block."""
    from pymatgen.io.cif import CifFile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said before, when the atoms were read
        block = CifFile.from_str(text).data.get(name[:74])
        if block is None:
            return []
        return list(parser.get_magsymops(block) if parser.feature_flags["magcif"] else parser.get_symops(block))


def check_sites(stream: TextStream, structure: Any) -> None:
    """Refuse a structure without atoms or volume, and sites without an element, a finite place or an occupancy in (0, 1]."""
    from pymatgen.core.periodic_table import Element, Species

    if len(structure) == 0:
        raise stream.error("no atoms", "at least one")
    if not SMALLEST_VOLUME < structure.volume <= LARGEST_LENGTH**3:
        raise stream.error(f"a cell of volume {structure.volume}", "three lattice vectors that span a cell")
    for site in structure:
        if not site.species:
            raise stream.error(f"no species at {site.frac_coords.tolist()}", "an element of the periodic table")
        if not all(math.isfinite(x) for x in site.frac_coords):
            raise stream.error(f"coordinates {site.frac_coords.tolist()} of {site.species_string}", "finite numbers")
        for specie, occupancy in site.species.items():
            if not isinstance(specie, Element | Species):
                raise stream.error(f"species {str(specie)!r}", "an element of the periodic table")
            if not 0 < occupancy <= 1 + 1e-6:
                raise stream.error(f"occupancy {occupancy} of {specie}", "more than 0, at most 1")


def _parse(stream: TextStream, text: str) -> tuple[Any, Any, list[str]]:
    """Let pymatgen read the first structure of a CIF; return its parser, the structure and what it had to guess."""
    from pymatgen.io.cif import CifParser

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            parser = CifParser.from_str(text, occupancy_tolerance=LARGEST_SUM)
            structure = parser.parse_structures(primitive=False)[0]
        except PARSER_ERRORS as error:
            reasons = [str(warning.message).splitlines()[-1] for warning in caught if "No structure parsed" in str(warning.message)]
            reason = "; ".join(reasons) or str(error) or type(error).__name__
            raise stream.error(
                f"no crystal structure ({reason})", "a CIF with a cell, known elements, coordinates and occupancies"
            ) from error
    return parser, structure, _notes(caught)


def read_cif(stream: TextStream) -> Any:
    """Read the first structure of a CIF as a pymatgen Structure, in the cell of the file.

    Symmetry is expanded; atoms on one place share a site. Disorder is kept as it is written: every group of every assembly, with its
    occupancies. Occupancies that sum to at most 1.02 on a place are scaled to 1, with a warning, larger ones refused. Oxidation
    numbers, or charges in the symbols, make ions. A magnetic CIF gives its nuclei, with their moments.

    Displacements become the site property ``u_iso`` or ``U11_cif`` to ``U12_cif`` (Å²), see
    :func:`matminer_ed3d.readers.displacements.add_displacements`; a file that leaves atoms without one makes a UserWarning.

    An atom that the digits of its coordinates cannot tell from a special position, such as (0.333, 0.667, z) on a threefold axis, is
    put there, so that it is one atom and not several side by side.

    Raises
    ------
    DensityFileError
        If there is no structure in it: no atoms, an unknown element, a missing coordinate, an impossible cell or occupancy.
    """
    text = stream.read_rest()
    block = _first_block(stream, text)
    _check_cell(stream, block)
    _state_operations(stream, block)
    _check_size(stream, block)
    _check_atoms(stream, block)
    _state_charges(block)
    alone = _text_of(block)
    parser, structure, notes = _parse(stream, alone)
    operations = _operations(parser, alone, block.name)
    for operation in operations:
        if not abs(abs(np.linalg.det(operation.rotation_matrix)) - 1) < 1e-3:
            raise stream.error(f"symmetry operation {operation.as_xyz_str()!r}", "one that maps the crystal on itself")
    if _place_on_symmetry(block, operations, structure.lattice.matrix):
        _, structure, notes = _parse(stream, _text_of(block))
    for note in notes:
        warnings.warn(f"{stream.path}: {note}", UserWarning, stacklevel=3)
    check_sites(stream, structure)
    crowded = _crowded(structure)
    if crowded:
        message = (
            f"{stream.path}: {_some(crowded)} overlap, closer than {CROWDED} Å with more than one atom in all; are occupancies missing?"
        )
        warnings.warn(message, UserWarning, stacklevel=3)
    bare = add_displacements(structure, block, operations)
    if bare:
        of = _some(bare) if has_displacements(block) else "any atom"
        way_out = f"the default B of {DEFAULT_B_ISO} Å² counts there, or yours, `as_density(path, b_iso=...)`"
        warnings.warn(f"{stream.path}: no usable displacement for {of}; {way_out}", UserWarning, stacklevel=3)
    return structure


def _some(labels: list[str]) -> str:
    return ", ".join(labels[:SHOWN]) + (" ..." if len(labels) > SHOWN else "")


def _text_of(block: Any) -> str:
    """What one block says of the cell, the symmetry and the atoms, as the text of a CIF."""
    import gemmi

    document = gemmi.cif.Document()
    document.add_copied_block(block)
    for item in document[0]:  # reflections and the like can be a hundred times as long, and pymatgen reads them all
        tags = item.loop.tags if item.loop is not None else item.pair[:1] if item.pair is not None else []
        if not any(tag.lower().startswith(OF_STRUCTURE) for tag in tags):
            item.erase()
    return TAG.sub(lambda tag: MIXED_CASE.get(tag[0].lower(), tag[0].lower()), document.as_string())


def _crowded(structure: Any) -> list[str]:
    """Labels of sites so near to others that they are the same place, where the occupancies there sum to more than 1."""
    from scipy.spatial import cKDTree

    lattice = structure.lattice.matrix
    inside = structure.frac_coords - np.floor(structure.frac_coords)
    inside[inside >= 1] = 0
    reach = CROWDED * float(np.linalg.norm(np.linalg.inv(lattice), 2))  # no pair in the sphere is farther apart in fractions of the cell
    pairs = cKDTree(inside, boxsize=1).query_pairs(reach, output_type="ndarray")
    steps = inside[pairs[:, 0]] - inside[pairs[:, 1]]
    pairs = pairs[np.linalg.norm((steps - np.round(steps)) @ lattice, axis=1) < CROWDED]
    centres, others = np.concatenate([pairs, pairs[:, ::-1]]).T
    occupancies = np.array([site.species.num_atoms for site in structure])
    sums = occupancies + np.bincount(centres, occupancies[others], minlength=len(structure))
    alone = np.bincount(centres, minlength=len(structure)) == 0
    return list(dict.fromkeys(structure[int(i)].label for i in np.flatnonzero((sums > LARGEST_SUM) & ~alone)))


def _notes(caught: list[warnings.WarningMessage]) -> list[str]:
    """Return what pymatgen had to guess, each guess once, without what is no guess."""
    texts = (str(warning.message).removeprefix("Issues encountered while parsing CIF: ") for warning in caught)
    lines = dict.fromkeys(line for text in texts for line in text.splitlines())
    return [line for line in lines if line and not NO_GUESS.search(line)]


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str | bool) or (isinstance(value, list) and all(_plain(v) for v in value))


def structure_from_record(record: Any, stream: TextStream) -> Any:
    """Build a pymatgen Structure from the dict of its JSON; nothing that the dict names is ever imported.

    Parameters
    ----------
    record : dict
        With ``lattice`` (its ``matrix``, rows in Å) and ``sites`` (``species``, fractional ``abc``, ``label``, ``properties``). Only
        properties of numbers, text and lists of them are kept.
    stream : TextStream
        Names the file in errors.

    Raises
    ------
    DensityFileError
        If `record` is no structure, or has a site, a species or a cell that is none.
    """
    from pymatgen.core.structure import Structure

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
            if not all(math.isfinite(sp["occu"]) for sp in species):  # pymatgen would leave out a species of NaN
                raise ValueError(f"occupancies {[sp['occu'] for sp in species]}")
            sites.append({"species": species, "abc": [float(x) for x in site["abc"]], "properties": properties, "label": site.get("label")})
        matrix = np.array(record["lattice"]["matrix"], dtype=float)
        if matrix.shape != (3, 3) or not (np.abs(matrix) <= LARGEST_LENGTH).all():
            raise ValueError(f"a lattice that is not three finite rows in Å of at most {LARGEST_LENGTH:.0e}")
        structure = Structure.from_dict({"lattice": {"matrix": matrix.tolist()}, "sites": sites})
    except PARSER_ERRORS as error:
        raise stream.error(f"a structure that cannot be built ({error})", "the lattice and the sites of a pymatgen Structure") from error
    check_sites(stream, structure)
    return structure


def read_json(stream: TextStream) -> Any:
    """Read a pymatgen Structure from its JSON, or from a document of the Materials Project with a ``structure`` in it.

    Nothing that the file names is ever imported.

    Raises
    ------
    DensityFileError
        If the text is not JSON, is that of something else or of a list of structures, or has a site that is none.
    """
    text = stream.read_rest()
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise stream.error(f"text that is not JSON ({error})", "a pymatgen Structure written by `structure.to(filename=...)`") from error
    if isinstance(record, list) and record and all(isinstance(one, dict) and {"sites", "structure"} & set(one) for one in record):
        raise stream.error(f"a list of {len(record)} structures", "a single one; take one of them into a file of its own")
    if isinstance(record, dict) and not {"lattice", "sites"} & set(record) and isinstance(record.get("structure"), dict):
        record = record["structure"]
    return structure_from_record(record, stream)
