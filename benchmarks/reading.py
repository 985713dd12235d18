"""Reading densities: python benchmarks/reading.py [--quick] [--folder FOLDER] [--cases chgcar_plain ...].

Makes the files it reads (a spin-polarised CHGCAR of 94 MB with 40 atoms and its augmentation, formatted as VASP does, and a Chgcar JSON
of 10 MB as the Materials Project has them), keeps them in a folder, and prints one JSON line for each case: our seconds (median), the
peer's, their ratio, and the peak memory of a process that does nothing but the one read. Ours and the peer's runs alternate in one
process, and every read is warm: nothing is imported and the file is in the page cache. The quick run takes a grid of an eighth.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SPECIES, COUNTS = ("Sr", "Ti", "O"), (8, 8, 24)
CELL = np.array([[7.81, 0.0, 0.0], [0.0, 7.81, 0.0], [0.3, -0.2, 11.9]])  # rows, Å
GRID, QUICK_GRID = (120, 120, 180), (60, 60, 90)
JSON_GRID = (80, 80, 80)  # 10.5 MB of text, one set
PROJECTORS = {"Sr": 33, "Ti": 56, "O": 18}  # occupancies of an atom's augmentation


def fortran_words(values: np.ndarray, digits: int = 11) -> np.ndarray:
    """Format as Fortran's 1X,E17.11: ``0.12345678901E+03`` and ``-.12345678901E+03``, one row of bytes a number."""
    size = np.abs(values)
    with np.errstate(divide="ignore"):
        exponent = np.where(size > 0, np.floor(np.log10(np.where(size > 0, size, 1.0))) + 1, 0).astype(int)
    mantissa = np.rint(size * 10.0 ** (digits - exponent)).astype(np.int64)
    carried = mantissa >= 10**digits
    mantissa[carried] //= 10
    exponent[carried] += 1
    words = np.full((values.size, digits + 7), ord(" "), np.uint8)
    words[:, 1] = np.where(values < 0, ord("-"), ord("0"))
    words[:, 2] = ord(".")
    for column in range(digits + 2, 2, -1):
        mantissa, digit = np.divmod(mantissa, 10)
        words[:, column] = digit + ord("0")
    words[:, digits + 3] = ord("E")
    words[:, digits + 4] = np.where(exponent < 0, ord("-"), ord("+"))
    words[:, digits + 5] = np.abs(exponent) // 10 + ord("0")
    words[:, digits + 6] = np.abs(exponent) % 10 + ord("0")
    return words


def grid_text(values: np.ndarray, digits: int = 11) -> bytes:
    """Five numbers a line; the last line is shorter where they do not divide."""
    words = fortran_words(values, digits)
    n_whole = len(words) - len(words) % 5
    lines = words[:n_whole].reshape(-1, 5 * words.shape[1])
    text = np.concatenate([lines, np.full((len(lines), 1), ord("\n"), np.uint8)], axis=1).tobytes()
    return text + (words[n_whole:].tobytes() + b"\n" if n_whole < len(words) else b"")


def frac_coords() -> np.ndarray:
    """Forty atoms of a distorted perovskite."""
    rng = np.random.default_rng(1)
    corners = np.array([(i, j, k) for i in (0, 0.5) for j in (0, 0.5) for k in (0, 0.5)])
    offsets = [(0.0, 0.0, 0.0), (0.25, 0.25, 0.25), (0.25, 0.25, 0.0), (0.25, 0.0, 0.25), (0.0, 0.25, 0.25)]
    sites = np.concatenate([corners + offset for offset in offsets])
    return (sites + rng.normal(scale=0.01, size=sites.shape)) % 1.0


def smooth_density(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Periodic humps at the atoms, times the volume, (nx, ny, nz); `seed` above 0 gives a magnetisation, of both signs."""
    rng = np.random.default_rng(seed)
    axes = [np.arange(n) / n for n in shape]
    rho = np.full(shape, 2.0 if seed == 0 else 0.0)
    for at in frac_coords():
        weight = rng.uniform(2e2, 4e3) if seed == 0 else rng.normal(scale=40.0)
        humps = [np.exp(12.0 * (np.cos(2 * np.pi * (x - x0)) - 1.0)) for x, x0 in zip(axes, at, strict=True)]
        rho += weight * np.einsum("i,j,k->ijk", *humps)
    return rho


def header() -> bytes:
    rows = "\n".join("".join(f"{x:12.6f}" for x in row) for row in CELL)
    atoms = "\n".join("".join(f"{x:10.6f}" for x in row) for row in frac_coords())
    counts = "".join(f"{n:6d}" for n in COUNTS)
    return f"perovskite\n   1.00000000000000\n{rows}\n   {'   '.join(SPECIES)}\n{counts}\nDirect\n{atoms}\n\n".encode()


def write_chgcar(path: Path, shape: tuple[int, int, int]) -> None:
    """Write a spin-polarised CHGCAR, and the same with gzip beside it."""
    rng = np.random.default_rng(2)
    with path.open("wb") as file:
        file.write(header())
        for n in range(2):
            if n:
                moments = fortran_words(rng.normal(size=sum(COUNTS)), 12)
                file.writelines(row.tobytes() + b"\n" for row in moments.reshape(-1, 5 * moments.shape[1]))
            file.write("{:5d}{:5d}{:5d}\n".format(*shape).encode())
            file.write(grid_text(smooth_density(shape, n).ravel(order="F")))
            atom = 0
            for symbol, count in zip(SPECIES, COUNTS, strict=True):
                for _ in range(count):
                    atom += 1
                    file.write(f"augmentation occupancies{atom:4d}{PROJECTORS[symbol]:4d}\n".encode())
                    file.write(grid_text(rng.normal(scale=0.3, size=PROJECTORS[symbol]), 7))
    with path.open("rb") as plain, gzip.open(f"{path}.gz", "wb", compresslevel=6) as packed:
        while piece := plain.read(1 << 20):
            packed.write(piece)


def write_chgcar_json(path: Path, shape: tuple[int, int, int]) -> None:
    """Write a Chgcar JSON as pymatgen and monty do."""
    from monty.json import MontyEncoder
    from pymatgen.core.structure import Structure
    from pymatgen.io.vasp.inputs import Poscar
    from pymatgen.io.vasp.outputs import Chgcar

    species = [symbol for symbol, count in zip(SPECIES, COUNTS, strict=True) for _ in range(count)]
    chgcar = Chgcar(Poscar(Structure(CELL, species, frac_coords())), {"total": smooth_density(shape, 0)})
    path.write_bytes(gzip.compress(json.dumps(chgcar.as_dict(), cls=MontyEncoder).encode(), 6))


def read_ours(path: str, **options: Any) -> Any:
    from matminer_ed3d.density import Density

    return Density.from_file(path, **options)


def read_total(path: str) -> Any:
    return read_ours(path, channels=("total",))


def read_pymatgen(path: str) -> Any:
    from pymatgen.io.vasp.outputs import Chgcar

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Chgcar.from_file(path)


def read_mp_api(path: str) -> Any:
    """Read as mp-api does: inflate, orjson, MontyDecoder; orjson is not a dependency, so `json` takes its place where it is missing."""
    from monty.json import MontyDecoder

    try:
        from orjson import loads
    except ImportError:
        from json import loads
    with gzip.open(path) as file:
        return MontyDecoder().process_decoded(loads(file.read()))


READS: dict[str, Callable[[str], Any]] = {"ours": read_ours, "total": read_total, "pymatgen": read_pymatgen, "mp_api": read_mp_api}
# Case: file, our read, the peer's, and whether the peer is measured once (it takes half a minute).
CASES = {
    "chgcar_plain": ("CHGCAR", "ours", "pymatgen", False),
    "chgcar_plain_total_only": ("CHGCAR", "total", "ours", False),
    "chgcar_gz": ("CHGCAR.gz", "ours", "pymatgen", True),
    "mp_json_gz": ("chgcar.json.gz", "ours", "mp_api", False),
}


def seconds(read: str, path: str) -> float:
    gc.collect()  # what the last read left in cycles is not this one's
    started = time.perf_counter()
    READS[read](path)
    return time.perf_counter() - started


def peak() -> float:
    """Peak memory of this process, MiB. On Linux `ru_maxrss` starts with that of the process that started it, so the kernel's is read."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def peak_mib(read: str, path: str) -> float:
    """Peak memory of a process that imports what the read needs, reads once, and ends."""
    home = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {home!r}); import reading; it = reading.READS[{read!r}]({path!r}); print(reading.peak())"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def measure(case: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Time one case, ours and the peer in turn."""
    name, our_read, peer_read, once = CASES[case]
    path = str(folder / name)
    seconds(our_read, path)
    peer = [seconds(peer_read, path)]  # the first one warms, and counts only where there is no other
    ours = []
    if not once:
        peer = []
    for _ in range(repeats):
        ours.append(seconds(our_read, path))
        if not once:
            peer.append(seconds(peer_read, path))
    return {
        "case": case,
        "bytes": (folder / name).stat().st_size,
        "seconds": round(median(ours), 4),
        "peer": peer_read,
        "peer_seconds": round(median(peer), 4),
        "times_faster": round(median(peer) / median(ours), 2),
        "times_faster_best": round(min(peer) / min(ours), 2),
        "repeats": repeats,
        "peak_mib": round(peak_mib(our_read, path), 1),
        "peer_peak_mib": round(peak_mib(peer_read, path), 1),
        "versions": {name: installed(name) for name in ("matminer-ed3d", "pymatgen-core", "numpy", "isal", "orjson", "monty")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a grid of an eighth, three repeats: a rehearsal")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ed3d_reading", help="where the files are kept")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=list(CASES))
    options = parser.parse_args()
    folder = options.folder / ("quick" if options.quick else "full")
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "complete"
    if not done.exists():
        write_chgcar(folder / "CHGCAR", QUICK_GRID if options.quick else GRID)
        write_chgcar_json(folder / "chgcar.json.gz", (40, 40, 40) if options.quick else JSON_GRID)
        done.touch()
    for case in options.cases:
        print(json.dumps(measure(case, folder, 3 if options.quick else options.repeats)), flush=True)


if __name__ == "__main__":
    main()
