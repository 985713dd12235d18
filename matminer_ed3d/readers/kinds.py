"""Tell what a file is from its first bytes, not from its name."""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["Kind", "kind_of", "refusal"]

Kind = Literal["poscar", "cif", "json", "cube", "ccp4", "binary"]

LEADING_BLANKS = rb"(?:\s|#[^\n]*(?:\n|$))*"
CIF = re.compile(LEADING_BLANKS + rb"data_", re.IGNORECASE)
JSON = re.compile(rb"\s*[{\[]")
NUMBER = rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?"
SCALE = re.compile(NUMBER + rb"(?:\s+" + NUMBER + rb"){0,2}\b.*")
VECTOR = re.compile(NUMBER + rb"(?:\s+" + NUMBER + rb"){2}\b.*")
CUBE_ROW = re.compile(rb"\s*[+-]?\d+(?:\s+[+-]?\d*\.\d+(?:[eE][+-]?\d+)?){3}(?:\s+1)?\s*")

# What people hand over in place of a density: how it begins, and its name with the way out.
REFUSED = (
    (
        re.compile(rb"\s*<(?:!doctype|html|\?xml|head|body)", re.IGNORECASE),
        "an HTML or XML page; the download failed, fetch the file itself",
    ),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer; fetch the file with `git lfs pull`"),
    (re.compile(rb"\x89HDF"), "an HDF5 file"),
    (re.compile(rb"PK\x03\x04"), "a zip archive; unpack it"),
    (re.compile(rb"7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd"), "a compressed file; gzip, bzip2 and xz are understood"),
    (re.compile(rb".{257}ustar", re.DOTALL), "a tar archive; unpack it"),
    (re.compile(rb"%PDF"), "a PDF"),
    (re.compile(LEADING_BLANKS + rb"(?:CRYSTAL|SLAB|POLYMER|MOLECULE|DIM-GROUP|PRIMVEC)\s"), "an XCrySDen file (XSF)"),
)


def refusal(head: bytes) -> str | None:
    """Name what can never be read, and the way out; None if `head` may begin a file that can."""
    if _is_poscar(head):
        return None
    named = next((what for pattern, what in REFUSED if pattern.match(head)), None)
    return "binary data" if named is None and kind_of(head) == "binary" else named


def _is_poscar(head: bytes) -> bool:
    """Tell whether a scale and three vectors follow the first line, which is a comment and may look like anything."""
    rows = [row.strip() for row in head[:4096].split(b"\n")[1:] if row.strip()]
    return len(rows) > 4 and bool(SCALE.fullmatch(rows[0])) and all(VECTOR.fullmatch(row) for row in rows[1:4])


def kind_of(head: bytes) -> Kind:
    """Guess the format from the beginning of a file: ``poscar`` (with or without a grid) is any text that is nothing else."""
    if _is_poscar(head):
        return "poscar"
    if head[208:212] == b"MAP ":
        return "ccp4"
    if CIF.match(head):
        return "cif"
    if JSON.match(head):
        return "json"
    comment, _, rest = head.partition(b"\n")
    if b"\0" in (rest or comment):  # a POSCAR's comment may hold anything
        return "binary"
    rows = rest.split(b"\n", 5)
    if len(rows) > 5 and all(CUBE_ROW.fullmatch(row) for row in rows[1:5]):
        return "cube"
    return "poscar"
