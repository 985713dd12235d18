"""One small density and one small structure in every text format, to be damaged, and the process that reads the result within limits."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import multiprocessing
import os
import resource
import struct
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHAPE = (2, 3, 4)
LATTICE = np.diag([2.0, 3.0, 4.0])
VOLUME = 24.0
BOHR = 0.529177210903
INNER = (1, 1, 1)  # no end point, wherever a format repeats those


def words(changed: str = "5.5E-01") -> np.ndarray:
    """Text of the value at each point, all different and positive; `changed` stands at the point `INNER`."""
    out = np.array([f"{(n + 1) / 4:.6E}" for n in range(24)], dtype=object).reshape(SHAPE)
    out[INNER] = changed
    return out


def rows(flat: Sequence[str], per_line: int = 5) -> str:
    return "".join(" " + " ".join(flat[i : i + per_line]) + "\n" for i in range(0, len(flat), per_line))


POSCAR = """a comment
 1.0
 2.0 0.0 0.0
 0.0 3.0 0.0
 0.0 0.0 4.0
 Na Cl
 1 2
Direct
 0.0 0.0 0.0
 0.5 0.5 0.5
 0.25 0.75 0.1
"""
AUGMENTATION = """augmentation occupancies   1  7
  0.1E+00  0.2E+00  0.3E+00  0.4E+00  0.5E+00
  0.6E+00  0.7E+00
augmentation occupancies   2  3
  0.1E+00  0.2E+00  0.3E+00
augmentation occupancies   3  1
  0.4E+00
"""


def chgcar_set(grid: np.ndarray, augmentation: str = AUGMENTATION) -> str:
    return " ".join(f"{n:4d}" for n in grid.shape) + "\n" + rows(list(grid.ravel(order="F"))) + augmentation


def chgcar(grid: np.ndarray) -> str:
    return POSCAR + "\n" + chgcar_set(grid)


def cube(grid: np.ndarray) -> str:
    """Bohr: counts are positive; z is fastest, and each row of z begins a line."""
    steps = LATTICE / np.array(SHAPE)[:, None] / BOHR
    head = "a comment\ndensity in e/bohr^3\n 1 0.0 0.0 0.0\n"
    head += "".join(f" {n} {a:.12f} {b:.12f} {c:.12f}\n" for n, (a, b, c) in zip(SHAPE, steps, strict=True))
    return head + " 11 11.0 0.0 0.0 0.0\n" + "".join(rows(list(row), 6) for row in grid.reshape(-1, SHAPE[2]))


def xsf(grid: np.ndarray) -> str:
    """A general grid: the end points are written too; x is fastest."""
    whole = np.pad(grid, [(0, 1)] * 3, mode="wrap")
    vectors = "".join(" {} {} {}\n".format(*row) for row in LATTICE)
    atoms = "CRYSTAL\nPRIMVEC\n" + vectors + "PRIMCOORD\n 1 1\n 11 0.0 0.0 0.0\n"
    counts = " ".join(str(n) for n in whole.shape)
    head = "BEGIN_BLOCK_DATAGRID_3D\n density\n BEGIN_DATAGRID_3D_density\n " + counts + "\n 0.0 0.0 0.0\n" + vectors
    return atoms + head + rows(list(whole.ravel(order="F"))) + " END_DATAGRID_3D\nEND_BLOCK_DATAGRID_3D\n"


def grd(grid: np.ndarray) -> str:
    """VESTA's text: title, cell, counts, values; z is fastest."""
    return "a title\n 2.0 3.0 4.0 90.0 90.0 90.0\n" + " {} {} {}\n".format(*grid.shape) + rows(list(grid.ravel()))


def poscar_record() -> dict[str, object]:
    """A structure as pymatgen writes it in JSON."""
    sites = [
        {"species": [{"element": element, "occu": 1}], "abc": abc, "properties": {}, "label": element}
        for element, abc in [("Na", [0.0, 0.0, 0.0]), ("Cl", [0.5, 0.5, 0.5]), ("Cl", [0.25, 0.75, 0.1])]
    ]
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "lattice": {"matrix": LATTICE.tolist(), "pbc": [True, True, True]},
        "sites": sites,
    }


def nested(grid: np.ndarray) -> str:
    return "[" + ", ".join("[" + ", ".join("[" + ", ".join(row) + "]" for row in plane) + "]" for plane in grid) + "]"


def _array_json(grid: np.ndarray) -> str:
    return '{"@module": "numpy", "@class": "array", "dtype": "float64", "data": ' + nested(grid) + "}"


def chgcar_json(grid: np.ndarray) -> str:
    """A Chgcar as the Materials Project keeps it."""
    poscar = json.dumps({"@module": "pymatgen.io.vasp.inputs", "@class": "Poscar", "structure": poscar_record(), "comment": "NaCl2"})
    head = '{"@module": "pymatgen.io.vasp.outputs", "@class": "Chgcar", "@version": null, "poscar": ' + poscar
    return head + ', "data": {"total": ' + _array_json(grid) + '}, "data_aug": null}'


def density_json(grid: np.ndarray) -> str:
    """A Density as `json.dumps(density.as_dict())` writes it."""
    head = '{"@module": "matminer_ed3d.density", "@class": "Density", "lattice": '
    head += '{"@module": "numpy", "@class": "array", "dtype": "float64", "data": ' + json.dumps(LATTICE.tolist()) + "}"
    return head + ', "channels": {"total": ' + _array_json(grid) + '}, "structure": null, "is_voxel_mean": false}'


@dataclass(frozen=True)
class Format:
    """One format: its text from the words of a grid, how to read it, and what its numbers are to be multiplied by to be e/Å³."""

    text: Callable[[np.ndarray], str]
    factor: float = 1.0
    options: tuple[tuple[str, str], ...] = (("quantity", "electron_density"),)  # the values of damaged files may look like others


TEXT = {
    "CHGCAR": Format(chgcar, 1 / VOLUME),
    "cube": Format(cube, BOHR**-3, (("quantity", "electron_density"), ("unit", "e/bohr^3"))),
    "xsf": Format(xsf, 1.0, (("quantity", "electron_density"), ("unit", "e/A^3"))),
    "grd": Format(grd, 1.0, (("quantity", "electron_density"), ("unit", "e/A^3"))),
}
JSON = {"Chgcar JSON": Format(chgcar_json, 1 / VOLUME), "Density JSON": Format(density_json)}

CIF = """data_salt
_cell_length_a 4.0
_cell_length_b 4.0
_cell_length_c 5.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
 _symmetry_equiv_pos_as_xyz
 'x, y, z'
 '-x, -y, -z'
loop_
 _atom_site_label
 _atom_site_type_symbol
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy
 _atom_site_U_iso_or_equiv
 Na1 Na 0.1 0.2 0.3 1.0 0.010
 Cl1 Cl 0.4 0.1 0.7 0.5 0.020
"""


def ccp4(
    counts: Sequence[int] = SHAPE,
    values: np.ndarray | None = None,
    mode: int = 2,
    n_symmetry: int = 0,
    cell: Sequence[float] = (2, 3, 4, 90, 90, 90),
) -> bytes:
    """Make a CCP4 map of a whole cell, with a along columns; its header is 256 words of four bytes."""
    head = bytearray(1024)
    struct.pack_into("<10i", head, 0, *counts, mode, 0, 0, 0, *counts)
    struct.pack_into("<6f", head, 40, *cell)
    struct.pack_into("<3i", head, 64, 1, 2, 3)
    struct.pack_into("<i", head, 88, 1)
    struct.pack_into("<i", head, 92, n_symmetry)
    head[208:216] = b"MAP \x44\x44\0\0"
    data = (np.arange(24) + 1).reshape(SHAPE) / 4 if values is None else values
    return bytes(head) + data.ravel(order="F").astype("<f4").tobytes()


def pgrid(counts: Sequence[int] = SHAPE, values: np.ndarray | None = None, cell: Sequence[float] = (2, 3, 4, 90, 90, 90)) -> bytes:
    """Make a periodic grid of VESTA."""
    data = (np.arange(24) + 1).reshape(SHAPE) / 4 if values is None else values
    head = struct.pack("<4i80s8i6f", 3, 0, 0, 0, b"a title", 1, 0, 1, 3, *counts, data.size, *cell)
    return head + data.ravel(order="F").astype("<f4").tobytes()


def repeated(compress: Callable[[bytes], bytes], head: bytes, piece: bytes, times: int) -> bytes:
    """A small file that inflates to `head` and `times` times `piece`: every format here allows members one after the other."""
    return compress(head) + compress(piece) * times


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}

# --- reading within limits --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a file: ``read`` or the class of the error, its text, the time in s, the peak memory in MB."""

    kind: str
    text: str
    seconds: float
    megabytes: float


def _peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _examine(door: str, path: str, limit: int, channel) -> None:
    """In a process of its own: read a file through one of the doors, with a limit on the address space."""
    from matminer_ed3d import sources

    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    try:
        getattr(sources, door)(path)
        kind, text = "read", ""
    except BaseException as error:
        kind, text = type(error).__name__, str(error)[:2000]
    channel.send(Outcome(kind, text, time.perf_counter() - start, _peak_megabytes()))


def examine(door: str, path: str | os.PathLike[str], seconds: float = 60, limit: int = 2 << 30) -> Outcome:
    """Read `path` by `door` of matminer_ed3d.sources in another process; an outcome of kind "killed" took too long or died."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["matminer_ed3d.sources", "pymatgen.core.structure", "pymatgen.io.cif"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_examine, args=(door, os.fspath(path), limit, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(seconds):
            return ours.recv()
        return Outcome("killed", f"no answer within {seconds} s", seconds, 0.0)
    except EOFError:
        process.join(5)
        return Outcome("killed", f"the process died, {process.exitcode}", 0.0, 0.0)
    finally:
        process.kill()
        process.join()


LINUX = sys.platform.startswith("linux")
