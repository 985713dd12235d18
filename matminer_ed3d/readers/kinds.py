"""Tell what a file is from its first bytes, not from its name."""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["Kind", "TITLES", "kind_of", "refusal"]

Kind = Literal[
    "poscar", "cif", "structure_json", "chgcar_json", "density_json", "cube", "xsf", "grd", "ccp4", "pgrid", "netcdf", "hdf5", "binary"
]
TITLES: dict[Kind, str] = {
    "poscar": "POSCAR or volumetric file of VASP",
    "cif": "CIF",
    "structure_json": "structure JSON",
    "chgcar_json": "Chgcar JSON",
    "density_json": "Density JSON",
    "cube": "Gaussian cube",
    "xsf": "XSF",
    "grd": "VESTA .grd",
    "ccp4": "CCP4 or MRC map",
    "pgrid": "VESTA .pgrid",
    "netcdf": "netCDF file",
    "hdf5": "HDF5 file",
    "binary": "binary file",
}

LEADING_BLANKS = rb"(?:\s|#[^\n]*(?:\n|$))*"
CIF = re.compile(LEADING_BLANKS + rb"data_", re.IGNORECASE)
JSON = re.compile(rb"\s*[{\[]")
CHGCAR_JSON = re.compile(rb'"@class"\s*:\s*"(?:Chgcar|Locpot|Elfcar|VolumetricData)"|"(?:data_aug|poscar)"\s*:')
DENSITY_JSON = re.compile(rb'"@class"\s*:\s*"Density"|"is_voxel_mean"\s*:')
XSF = re.compile(LEADING_BLANKS + rb"(?:CRYSTAL|SLAB|POLYMER|MOLECULE|DIM-GROUP|PRIMVEC|ATOMS|ANIMSTEPS|BEGIN_BLOCK_DATAGRID)\b")
NUMBER = rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?"
SCALE = re.compile(NUMBER + rb"(?:\s+" + NUMBER + rb"){0,2}\b.*")
VECTOR = re.compile(NUMBER + rb"(?:\s+" + NUMBER + rb"){2}\b.*")
GRD = re.compile(rb"[^\n]*\n\s*" + NUMBER + rb"(?:\s+" + NUMBER + rb"){5}\s+\d+(?:\s+\d+){2}\s+" + NUMBER + rb"\b")  # six of the cell, three counts
CUBE_ROW = re.compile(rb"\s*[+-]?\d+(?:\s+[+-]?\d*\.\d+(?:[eE][+-]?\d+)?){3}(?:\s+1)?\s*")

# What people hand over in place of a density: how it begins, and its name with the way out.
REFUSED = (
    (
        re.compile(rb"\s*<(?:!doctype|html|\?xml|head|body)", re.IGNORECASE),
        "an HTML or XML page; the download failed, fetch the file itself",
    ),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer; fetch the file with `git lfs pull`"),
    (re.compile(rb"PK\x03\x04"), "a zip archive; unpack it"),
    (re.compile(rb"7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd"), "a compressed file; gzip, bzip2 and xz are understood"),
    (re.compile(rb".{257}ustar", re.DOTALL), "a tar archive; unpack it"),
    (re.compile(rb"%PDF"), "a PDF"),
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
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith((b"CDF\x01", b"CDF\x02", b"CDF\x05")):
        return "netcdf"
    if CIF.match(head):
        return "cif"
    if JSON.match(head):
        if DENSITY_JSON.search(head):
            return "density_json"
        return "chgcar_json" if CHGCAR_JSON.search(head) else "structure_json"
    if XSF.match(head):
        return "xsf"
    if GRD.match(head):
        return "grd"
    comment, _, rest = head.partition(b"\n")
    if b"\0" in (rest or comment):  # a POSCAR's comment may hold anything
        return "binary"
    rows = rest.split(b"\n", 5)
    if len(rows) > 5 and all(CUBE_ROW.fullmatch(row) for row in rows[1:5]):
        return "cube"
    return "poscar"
