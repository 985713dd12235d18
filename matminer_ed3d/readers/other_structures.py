"""Crystal structures in the other formats that pymatgen knows: its YAML, vasprun.xml, exciting, CSSR, AIRSS .res, PWmat, XSF, ATAT.

Each is told by its content, but for ATAT's lists of numbers, which have no mark and go by pymatgen's rule of names. The text is read
once, bounded, and nothing that it names is opened, imported or resolved. Not read: what is binary (ABINIT's netCDF is a density here),
what needs a plug-in of pymatgen (FHI-aims, FLEUR), what pymatgen does not read from text (LMTO's CTRL) or at all (Prismatic).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matminer_ed3d.readers.streams import TextStream
from matminer_ed3d.readers.structures import PARSER_ERRORS, check_sites, structure_from_record

__all__ = ["format_of", "is_named_as_atat", "read_other"]

DECLARATION = rb"\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)*+"
MARKS: dict[str, re.Pattern[bytes]] = {
    "vasprun.xml of VASP": re.compile(DECLARATION + rb"<modeling\b", re.DOTALL),
    "exciting input": re.compile(DECLARATION + rb"<input\b", re.DOTALL),
    "CSSR": re.compile(rb"[^\n]*\n[^\n]*\bSPGR\b"),
    "AIRSS or SHELX .res": re.compile(rb"\s*(?:REM[^\n]*\n\s*)*TITL\b.*^[ \t]*CELL\s", re.DOTALL | re.MULTILINE),
    "PWmat configuration": re.compile(rb"\s*\d[^\n]*\n\s*lattice(?!\s*=)", re.IGNORECASE),
    "pymatgen YAML": re.compile(rb"(?=.*^(['\"]?)lattice\1:)(?=.*^(['\"]?)(?:sites|@class)\2:)", re.DOTALL | re.MULTILINE),
}
ATAT = re.compile(r"rndstr\.in|lat\.in|bestsqs", re.IGNORECASE)
LONGEST_YAML = 1 << 21  # characters; at 80,000 a second, where they are all short words, half a minute
WAY_OUT = "or convert it with pymatgen, `structure.to(filename='x.cif')`"


def format_of(head: bytes) -> str | None:
    """Name the format whose mark the beginning of a file bears; None if none does. XSF is a kind of its own."""
    return next((name for name, mark in MARKS.items() if mark.match(head)), None)


def is_named_as_atat(path: str) -> bool:
    """Tell whether pymatgen takes a name for ATAT's rndstr.in, lat.in or bestsqs.out."""
    return bool(ATAT.search(Path(path).name))


def read_other(stream: TextStream, name: str) -> Any:
    """Read a structure in a format of :func:`format_of`, ``"XSF"`` or ``"ATAT"``.

    Parameters
    ----------
    stream : TextStream
        At the beginning of the file.
    name : str
        Of the format.

    Returns
    -------
    pymatgen Structure

    Raises
    ------
    DensityFileError
        If the text is not a whole structure in P 1, or asks for more than to be read (YAML tags and aliases, XML entities).
    """
    text = stream.read_rest()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            structure = READERS[name](stream, text)
        except PARSER_ERRORS as error:
            if type(error).__module__.startswith("matminer_ed3d"):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise stream.error(f"no {name} structure ({reason})", f"a complete one, {WAY_OUT}") from error
    for note in dict.fromkeys(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)):
        warnings.warn(f"{stream.path}: {note}", UserWarning, stacklevel=3)
    check_sites(stream, structure)
    return structure


def _by_pymatgen(text: str, fmt: Any) -> Any:
    from pymatgen.core.structure import Structure

    return Structure.from_str(text, fmt=fmt)


def _expect_count(stream: TextStream, structure: Any, announced: int) -> Any:
    """Refuse atoms that pymatgen's pattern did not match and left out."""
    if len(structure) != announced:
        raise stream.error(f"{len(structure)} atoms that can be read", f"the {announced} announced; write plain symbols, {WAY_OUT}")
    return structure


def _read_cssr(stream: TextStream, text: str) -> Any:
    lines = text.splitlines()
    group = re.search(r"SPGR\s*=?\s*(\d+)", lines[1])
    if group is None or int(group[1]) != 1:
        raise stream.error("a space group other than 1", f"all atoms of the cell, SPGR = 1, {WAY_OUT}", 2)
    return _expect_count(stream, _by_pymatgen(text, "cssr"), int(lines[2].split()[0]))


def _read_res(stream: TextStream, text: str) -> Any:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and (words[0].upper() == "SYMM" or (words[0].upper() == "LATT" and words[1:] != ["-1"])):
            raise stream.error(f"symmetry, {line.strip()!r}", f"all atoms of the cell, LATT -1 and no SYMM, {WAY_OUT}", number)
    from pymatgen.io.res import ResParseError

    try:
        return _by_pymatgen(text, "res")
    except (ResParseError, Warning) as error:  # it raises a Warning at a card that it does not know
        raise ValueError(str(error)) from error


def _read_pwmat(stream: TextStream, text: str) -> Any:
    return _expect_count(stream, _by_pymatgen(text, "pwmat"), int(text.split()[0]))


def _read_yaml(stream: TextStream, text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent

    if len(text) > LONGEST_YAML:
        raise stream.error(f"{len(text)} characters of YAML", f"at most {LONGEST_YAML}, {WAY_OUT}")
    yaml = YAML(typ="safe", pure=True)
    try:
        for event in yaml.parse(text):
            if isinstance(event, AliasEvent) or getattr(event, "tag", None) is not None:
                raise stream.error("a tag or an alias", "plain YAML of a pymatgen Structure", event.start_mark.line + 1)
        record = yaml.load(text)
    except (YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise stream.error(f"text that is not YAML ({reason})", "YAML of a pymatgen Structure") from error
    return structure_from_record(record, stream)


def _xml(stream: TextStream, text: str) -> Any:
    from xml.etree import ElementTree

    if re.search(r"<!(?:DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise stream.error("an XML document type or entity", "plain elements; nothing is expanded here")
    try:
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise stream.error(f"damaged XML ({error})", "a complete file", error.position[0]) from error


def _read_exciting(stream: TextStream, text: str) -> Any:
    _xml(stream, text)
    return _by_pymatgen(text, "exciting")


def _rows(element: Any, name: str) -> list[list[float]]:
    found = element.find(f".//varray[@name='{name}']")
    if found is None:
        raise ValueError(f"no {name}")
    return [[float(x) for x in (row.text or "").split()] for row in found.findall("v")]


def _read_vasprun(stream: TextStream, text: str) -> Any:
    """Read the last structure: that named finalpos, or of the last ionic step."""
    from pymatgen.core.structure import Structure

    root = _xml(stream, text)
    atoms = root.find(".//atominfo/array[@name='atoms']/set")
    found = root.findall(".//structure")
    if atoms is None or not found:
        raise ValueError("no atoms or no structure")
    symbols = [(row.find("c").text or "").strip() for row in atoms.findall("rc")]
    last = next((one for one in reversed(found) if one.get("name") == "finalpos"), found[-1])
    positions = _rows(last, "positions")
    if len(positions) != len(symbols) or not all(len(row) == 3 and all(map(math.isfinite, row)) for row in positions):
        raise ValueError(f"{len(positions)} positions of {len(symbols)} atoms")
    return Structure(_rows(last, "basis"), [{"r": "Zr", "X": "Xe"}.get(symbol, symbol) for symbol in symbols], positions)


READERS: dict[str, Callable[[TextStream, str], Any]] = {
    "vasprun.xml of VASP": _read_vasprun,
    "exciting input": _read_exciting,
    "CSSR": _read_cssr,
    "AIRSS or SHELX .res": _read_res,
    "PWmat configuration": _read_pwmat,
    "pymatgen YAML": _read_yaml,
    "XSF": lambda stream, text: _by_pymatgen(text, "xsf"),
    "ATAT": lambda stream, text: _by_pymatgen(text, "mcsqs"),
}
