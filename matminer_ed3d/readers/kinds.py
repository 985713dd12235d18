"""Tell what a file is from its first bytes, not from its name."""

from __future__ import annotations

import re
import struct
from typing import Literal

from matminer_ed3d.readers import other_structures

__all__ = ["Kind", "PGRID_HEADER", "TITLES", "kind_of", "pgrid_byte_order", "refusal"]

Kind = Literal[
    "poscar",
    "cif",
    "structure_json",
    "chgcar_json",
    "density_json",
    "cube",
    "xsf",
    "grd",
    "ccp4",
    "pgrid",
    "netcdf",
    "hdf5",
    "binary",
    "other_structure",
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
    "other_structure": "structure file",
}

LEADING_BLANKS = rb"(?:\s|#[^\n]*(?:\n|$))*"
CIF = re.compile(LEADING_BLANKS + rb"data_", re.IGNORECASE)
JSON = re.compile(rb"\s*[{\[]")
CHGCAR_JSON = re.compile(rb'"@class"\s*:\s*"(?:Chgcar|Locpot|Elfcar|VolumetricData)"|"(?:data_aug|poscar)"\s*:')
DENSITY_JSON = re.compile(rb'"@class"\s*:\s*"Density"|"is_voxel_mean"\s*:')
XSF = re.compile(LEADING_BLANKS + rb"(?:CRYSTAL|SLAB|POLYMER|MOLECULE|DIM-GROUP|PRIMVEC|ATOMS|ANIMSTEPS|BEGIN_BLOCK_DATAGRID)\b")
NUMBER = rb"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eEdD][+-]?\d+)?"
SCALE = re.compile(NUMBER + rb"(?:\s+" + NUMBER + rb"){0,2}\b.*")
VECTOR = re.compile(NUMBER + rb"(?:\s+" + NUMBER + rb"){2}\b.*")
GRD = re.compile(
    rb"[^\n]*\n\s*" + NUMBER + rb"(?:\s+" + NUMBER + rb"){5}\s+\d+(?:\s+\d+){2}\s+" + NUMBER + rb"\b"
)  # six of the cell, three counts
CUBE_ROW = re.compile(rb"\s*[+-]?\d+(?:\s+" + NUMBER + rb"){3}(?:\s+\d+)?\s*")
CELL_ROW = re.compile(rb"\s*" + NUMBER + rb"(?:\s+" + NUMBER + rb"){5}\s*")
COUNTS_ROW = re.compile(rb"\s*\d+(?:\s+\d+){2}\s*")
PGRID_HEADER = "4i80s8i6f"
"""Fields of a .pgrid: version, title, kind of grid, kind of data, values a point, dimensions, counts, values stored, cell."""

TAR = re.compile(rb"[^\n]{257}ustar")

# What people hand over in place of a density: how it begins, and its name with the way out.
REFUSED = (
    (
        re.compile(rb"\s*<(?:!doctype|html|\?xml|head|body)", re.IGNORECASE),
        "an HTML or XML page; the download failed, fetch the file itself",
    ),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer; fetch the file with `git lfs pull`"),
    (re.compile(rb"PK\x03\x04"), "a zip archive; unpack it"),
    (re.compile(rb"\x1f\x8b|BZh[1-9]1AY|\xfd7zXZ\0"), "a compressed file in a compressed file; unpack it once"),
    (re.compile(rb"7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd|\x1f\x9d"), "a compressed file; gzip, bzip2 and xz are understood"),
    (re.compile(rb"%PDF"), "a PDF"),
)


def refusal(head: bytes) -> str | None:
    """Name what can never be read, and the way out; None if `head` may begin a file that can."""
    if TAR.match(head):  # its first member may be a POSCAR
        return "a tar archive; unpack it"
    if _is_poscar(head) or other_structures.format_of(head):
        return None
    named = next((what for pattern, what in REFUSED if pattern.match(head)), None)
    return "binary data" if named is None and kind_of(head) == "binary" else named


def _is_poscar(head: bytes) -> bool:
    """Tell whether a scale and three vectors follow the first line, which is a comment and may look like anything."""
    rows = [row.strip() for row in head[:4096].split(b"\n")[1:] if row.strip()]
    return len(rows) > 4 and bool(SCALE.fullmatch(rows[0])) and all(VECTOR.fullmatch(row) for row in rows[1:4])


def _is_grd(head: bytes) -> bool:
    """Tell whether a title is followed by a line of six numbers and one of three counts, which is no POSCAR's scale and vector."""
    rows = head.split(b"\n", 3)[1:3]
    return len(rows) == 2 and all(len(row) < 1000 for row in rows) and bool(CELL_ROW.fullmatch(rows[0]) and COUNTS_ROW.fullmatch(rows[1]))


def _is_cube(head: bytes) -> bool:
    """Tell whether two comments, which may be blank or look like anything, are followed by four lines of a count and three numbers."""
    rows = head.split(b"\n", 6)[2:6]
    n_sound = sum(len(row) < 1000 and CUBE_ROW.fullmatch(row) is not None for row in rows)
    return len(rows) == 4 and n_sound > 2 and not other_structures.format_of(head)  # with one row damaged it is a cube still


def pgrid_byte_order(head: bytes) -> Literal["<", ">"] | None:
    """Return the order of bytes in the header of a .pgrid or .ggrid of VESTA; None if `head` is none."""
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        n_bytes = struct.calcsize(order + PGRID_HEADER)
        if len(head) >= n_bytes:
            fields = struct.unpack(order + PGRID_HEADER, head[:n_bytes])
            if fields[5] in (0, 1) and fields[6] in (0, 1) and fields[7] in (1, 2) and fields[8] == 3 and min(fields[9:12]) > 0:
                return order
    return None


def kind_of(head: bytes) -> Kind:
    """Guess the format from the beginning of a file: ``poscar`` (with or without a grid) is any text that is nothing else."""
    if _is_cube(head):
        return "cube"
    if _is_grd(head):
        return "grd"
    if _is_poscar(head):
        return "poscar"
    if head[208:212] in (b"MAP ", b"MAP\0") and b"\0" in head[:208]:  # the header's numbers are no text
        return "ccp4"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith((b"CDF\x01", b"CDF\x02", b"CDF\x05")):
        return "netcdf"
    if pgrid_byte_order(head):
        return "pgrid"
    if CIF.match(head):
        return "cif"
    if JSON.match(head):
        if DENSITY_JSON.search(head):
            return "density_json"
        return "chgcar_json" if CHGCAR_JSON.search(head) else "structure_json"
    if XSF.match(head):
        return "xsf"
    if other_structures.format_of(head):
        return "other_structure"
    if GRD.match(head):
        return "grd"
    comment, _, rest = head.partition(b"\n")
    return "binary" if b"\0" in (rest or comment) else "poscar"  # a POSCAR's comment may hold anything
