"""Fuzz the text parsers: ``python fuzz/run.py [--minutes 10] [parser ...]``; what it finds lies in build/fuzz/PARSER/findings.

A run starts from the small files of `tests/bad_files.py` and the corpus in `tests/fuzz_corpus`. It ends with the numbers that the README
quotes. With --merge, inputs that add coverage are written to `tests/fuzz_corpus`, about 30 of all sizes for each parser, with the small
files.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
KEPT = ROOT / "tests" / "fuzz_corpus"
BUILD = ROOT / "build" / "fuzz"
PARSERS = ("vasp", "cube", "xsf", "grd", "density_json", "structure_json", "cif")
LIMITS = ("-max_len=4096", "-rss_limit_mb=1500", "-timeout=20")
MOST_KEPT = 30
LARGEST_KEPT = 3000

sys.path.insert(0, str(ROOT / "tests"))


def environment(folder: Path) -> dict[str, str]:
    """Return what the harnesses need; libFuzzer starts itself anew to merge, by the first line of the script."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"ED3D_FUZZ_FINDINGS": str(folder / "findings"), "OMP_NUM_THREADS": "1", "PATH": path}


def seeds(parser: str) -> dict[str, str]:
    """Return small sound files for a parser."""
    import bad_files as made

    grid = made.words()
    small = grid[:1, :2, :2]
    text = {
        "vasp": {
            "poscar": made.POSCAR,
            "one": made.chgcar(grid),
            "two": made.POSCAR + "\n" + made.chgcar_set(small) * 2,
            "four": made.POSCAR + "\n" + made.chgcar_set(small, "") * 4,
            "fortran": made.POSCAR + "\n" + made.chgcar_set(made.words("0.5-100"), ""),
            "vasp4": made.chgcar(small).replace(" Na Cl\n", ""),
            "selective": made.POSCAR.replace("Direct\n", "Selective\nCartesian\n").replace(" 1.0\n", " -24.0\n"),
        },
        "cube": {
            "one": made.cube(grid),
            "angstrom": made.cube(grid).replace(" 2 1.", " -2 1.").replace("\n 3 0", "\n -3 0").replace("\n 4 0", "\n -4 0"),
            "orbitals": made.cube(grid)
            .replace(" 1 0.0 0.0 0.0\n", " -1 0.0 0.0 0.0\n")
            .replace("0.0 0.0 0.0\n 1.5", "0.0 0.0 0.0\n 1 5\n 1.5"),
            "values": made.cube(grid).replace(" 1 0.0 0.0 0.0\n", " 1 0.0 0.0 0.0 1\n"),
        },
        "xsf": {
            "one": made.xsf(grid),
            "small": made.xsf(small),
            "structure": made.xsf(grid).split("BEGIN_BLOCK")[0],
            "two": made.xsf(small).replace("END_BLOCK", "X").replace(" X", "END_BLOCK"),
        },
        "grd": {"one": made.grd(grid), "small": made.grd(small)},
        "density_json": {
            "chgcar": made.chgcar_json(grid),
            "small": made.chgcar_json(small),
            "density": made.density_json(grid),
            "escaped": made.density_json(small).replace("total", "tot\\u0061l"),
        },
        "structure_json": {
            "one": json.dumps(made.poscar_record()),
            "two": json.dumps(made.poscar_record()).replace("{}", '{"magmom": [1.0, 2.0]}'),
        },
        "cif": {
            "one": made.CIF,
            "group": made.CIF.replace("loop_\n _symmetry_equiv_pos_as_xyz\n 'x, y, z'\n '-x, -y, -z'\n", "_symmetry_Int_Tables_number 1\n"),
            "aniso": made.CIF
            + "loop_\n _atom_site_aniso_label\n"
            + "".join(f" _atom_site_aniso_U_{ij}\n" for ij in (11, 22, 33, 23, 13, 12))
            + " Na1 0.01 0.02 0.03 0 0 0\n",
            "ions": made.CIF + "loop_\n _atom_type_symbol\n _atom_type_oxidation_number\n Na 1\n Cl -1\n",
        },
    }
    return text[parser]


def prepare(parser: str) -> Path:
    """Make the folders of a run and fill its corpus."""
    folder = BUILD / parser
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    (folder / "findings").mkdir(exist_ok=True)
    for name, text in seeds(parser).items():
        (folder / "corpus" / f"seed_{name}").write_text(text)
    if (KEPT / parser).is_dir():
        for file in (KEPT / parser).iterdir():
            shutil.copy(file, folder / "corpus" / file.name)
    return folder


def fuzz(parser: str, minutes: float) -> dict[str, object]:
    """Run one harness for some minutes, starting again after a timeout; return what libFuzzer counted."""
    folder = prepare(parser)
    start, executions, coverage, restarts = time.monotonic(), 0, 0, -1
    while (left := minutes * 60 - (time.monotonic() - start)) > 10:
        restarts += 1
        command = [sys.executable, str(HERE / f"fuzz_{parser}.py"), str(folder / "corpus"), *LIMITS, f"-max_total_time={int(left)}"]
        command += [f"-dict={HERE / 'tokens.dict'}", f"-artifact_prefix={folder / 'findings'}/", "-print_final_stats=1"]
        run = subprocess.run(command, env=environment(folder), capture_output=True, text=True, errors="replace", check=False)
        (folder / "log").open("a").write(run.stderr)
        counts = re.findall(r"#(\d+)\s+\S+\s+cov: (\d+)", run.stderr)
        executions += int(counts[-1][0]) if counts else 0
        coverage = max([coverage, *(int(cov) for _, cov in counts)])
        if restarts > 20:
            break
    findings = sorted(file.name for file in (folder / "findings").iterdir())
    minutes_run = round((time.monotonic() - start) / 60, 1)
    return {
        "parser": parser,
        "minutes": minutes_run,
        "executions": executions,
        "coverage": coverage,
        "restarts": restarts,
        "findings": findings,
    }


def merge(parser: str) -> int:
    """Keep in tests/fuzz_corpus the inputs that add coverage; return how many there are now."""
    folder, kept = BUILD / parser, KEPT / parser
    kept.mkdir(parents=True, exist_ok=True)
    merged = folder / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    command = [
        sys.executable,
        str(HERE / f"fuzz_{parser}.py"),
        "-merge=1",
        str(merged),
        str(folder / "corpus"),
        *LIMITS[1:],
        f"-max_len={LARGEST_KEPT}",
    ]
    subprocess.run(command, env=environment(folder), capture_output=True, check=False)
    present = {file.read_bytes() for file in kept.iterdir()}
    # One of every so many by size: the smallest alone would all be refused in the first line.
    found = sorted((file for file in merged.iterdir() if file.read_bytes() not in present), key=lambda file: file.stat().st_size)
    places = max(MOST_KEPT - sum(not file.name.startswith("seed_") for file in kept.iterdir()), 0)
    for n in range(min(places, len(found))):
        file = found[n * len(found) // min(places, len(found))]
        shutil.copy(file, kept / file.name[:12])
    for name, text in seeds(parser).items():
        (kept / f"seed_{name}").write_text(text)
    return len(list(kept.iterdir()))


def main() -> None:
    """Run what the command line names."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("parsers", nargs="*", default=PARSERS, metavar="parser", help=", ".join(PARSERS))
    arguments.add_argument("--minutes", type=float, default=10.0, help="for each parser")
    arguments.add_argument("--merge", action="store_true", help="update tests/fuzz_corpus afterwards")
    given = arguments.parse_args()
    for parser in given.parsers:
        if given.minutes > 0:
            print(json.dumps(fuzz(parser, given.minutes)), flush=True)
        if given.merge:
            print(json.dumps({"parser": parser, "kept": merge(parser)}), flush=True)


if __name__ == "__main__":
    main()
