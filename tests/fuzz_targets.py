"""What each text parser must do with any bytes: give a finite density or structure of the file's own numbers, or DensityFileError.

Shared by the harnesses in `fuzz/` and by the test that replays their corpus. The numbers are compared with those of a slow reading
word by word, which shares nothing with the readers.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress

import numpy as np

from matminer_ed3d.density import Density
from matminer_ed3d.readers import cube, json_density, kinds, structures, vasp, vesta, xsf
from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.readers.streams import TextStream

SEPARATE = re.compile(r"([+-]?[0-9.]+)([+-][0-9]{3})")


def stream_of(data: bytes) -> TextStream:
    return TextStream("input", io.BytesIO(data), len(data), lambda: nullcontext(io.BytesIO(data)))


def slow_number(word: str) -> float:
    """Read a number of Fortran's; NaN for anything else."""
    bare = SEPARATE.fullmatch(word)
    try:
        return float(f"{bare[1]}e{bare[2]}" if bare else word.lower().replace("d", "e"))
    except ValueError:
        return math.nan


def slow_numbers(data: bytes) -> tuple[list[str], np.ndarray]:
    text = data.decode("latin-1")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    found = re.split("[\x00-\x20]+", text)
    return found, np.array([slow_number(word) for word in found])


def check_density(density: Density) -> None:
    assert np.isfinite(density.lattice).all()
    assert density.volume > 0
    for values in density.channels.values():
        assert values.shape == density.grid_shape
        assert np.isfinite(values).all()
    check_structure(density.structure)


def check_structure(structure) -> None:
    if structure is None:
        return
    assert len(structure) > 0
    assert np.isfinite(structure.lattice.matrix).all()
    assert np.isfinite(structure.frac_coords).all()
    for site in structure:
        assert 0 < site.species.num_atoms <= 1 + 1e-5 or all(0 < occupancy <= 1 + 1e-5 for occupancy in site.species.values())


def check_values(density: Density, data: bytes, factor: float = 1.0) -> None:
    """Every value is one of the numbers of the file."""
    _, numbers = slow_numbers(data)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    assert density.channels["total"].size <= numbers.size
    for values in density.channels.values():
        sought = values.ravel() / factor
        at = np.searchsorted(numbers, sought)
        below, above = numbers[np.maximum(at - 1, 0)], numbers[np.minimum(at, numbers.size - 1)]
        distance = np.minimum(abs(sought - below), abs(sought - above))
        assert (distance <= 1e-9 * abs(sought) + 1e-300).all(), "a value that is not in the file"


def volumetric(data: bytes) -> None:
    """Read a CHGCAR; each channel must follow its counts in the file, in the order of the channels."""
    density = vasp.read_volumetric(stream_of(data))
    check_density(density)
    found, numbers = slow_numbers(data)
    shape = density.grid_shape
    n_points = shape[0] * shape[1] * shape[2]
    factor = density.volume if density.quantity == "electron_density" else 1.0
    start = 0
    for name, values in density.channels.items():
        sought = values.ravel(order="F") * factor
        for at in range(start, len(found) - n_points - 2):
            if not all(word.isdigit() for word in found[at : at + 3]) or tuple(int(word) for word in found[at : at + 3]) != shape:
                continue
            here = numbers[at + 3 : at + 3 + n_points]
            if (abs(here - sought) <= 1e-9 * abs(sought) + 1e-300).all():
                start = at + 3 + n_points
                break
        else:
            raise AssertionError(f"channel {name} is not in the file")


def poscar(data: bytes) -> None:
    check_structure(vasp.structure_of(vasp.read_poscar(stream_of(data))))


def vasp_text(data: bytes) -> None:
    """Read as a POSCAR and as a CHGCAR."""
    for read in (poscar, volumetric):
        with suppress(DensityFileError):
            read(data)


def _general(read: Callable[..., Density], data: bytes) -> None:
    """Read with all stated, where the numbers are those of the file, or as a user would."""
    if len(data) % 2:
        check_density(read(stream_of(data)))
        return
    density = read(stream_of(data), quantity="electron_density", unit="e/A^3")
    check_density(density)
    check_values(density, data)


def cube_text(data: bytes) -> None:
    _general(cube.read_cube, data)


def xsf_text(data: bytes) -> None:
    _general(xsf.read_xsf, data)


def grd_text(data: bytes) -> None:
    _general(vesta.read_grd, data)


def _record(density: Density, data: bytes, factor: float) -> dict | None:
    """Read by the standard library; None for what it does not take for numbers (as 05.0), which are then compared one by one."""
    text = data.decode("utf-8-sig", "surrogateescape")
    try:
        return json.loads(text)
    except ValueError:
        check_values(density, re.sub("[][,{}]", " ", text).encode("utf-8", "surrogateescape"), factor)
        return None


def _json_grid(value) -> np.ndarray:
    return np.array(value["data"] if isinstance(value, dict) else value, dtype=float)


def chgcar_json(data: bytes) -> None:
    """The grids are those of the standard library's parser."""
    density = json_density.read_chgcar_json(stream_of(data))
    check_density(density)
    factor = density.volume if density.quantity == "electron_density" else 1.0
    record = _record(density, data, 1 / factor)
    if record is None:
        return
    grids = record["data"] if "poscar" in record else record["data"]["data"]
    for name, values in density.channels.items():
        assert np.allclose(values * factor, _json_grid(grids[name]), rtol=1e-9, atol=1e-300), name


def density_json(data: bytes) -> None:
    density = json_density.read_density_json(stream_of(data))
    check_density(density)
    record = _record(density, data, 1.0)
    if record is None:
        return
    for name, values in density.channels.items():
        assert np.allclose(values, _json_grid(record["channels"][name]), rtol=1e-9, atol=1e-300), name


def json_text(data: bytes) -> None:
    """Read as a Density if it says so, else as a Chgcar."""
    (density_json if kinds.kind_of(data) == "density_json" else chgcar_json)(data)


def structure_json(data: bytes) -> None:
    check_structure(structures.read_json(stream_of(data)))


def cif(data: bytes) -> None:
    check_structure(structures.read_cif(stream_of(data)))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "vasp": vasp_text,
    "cube": cube_text,
    "xsf": xsf_text,
    "grd": grd_text,
    "density_json": json_text,
    "structure_json": structure_json,
    "cif": cif,
}


def examine_bytes(name: str, data: bytes) -> None:
    """Read `data` with one parser; only DensityFileError and warnings are allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds.refusal(data[: 1 << 16])
        message = None
        try:
            TARGETS[name](data)
        except DensityFileError as error:
            message = str(error)
    assert message is None or (message.startswith("input") and ": found " in message and ", expected " in message), message
