"""Run one parser under atheris: called by the harness of each parser."""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

INSTRUMENTED = ["matminer_ed3d.density", "matminer_ed3d.readers", "pymatgen.io.cif"]

with atheris.instrument_imports(include=INSTRUMENTED):
    import fuzz_targets


def _place(error: BaseException) -> str:
    """Name where an error came from, so that each is kept once."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "matminer_ed3d" in frame.filename or "fuzz_targets" in frame.filename] or frames
    return f"{type(error).__name__}-{Path(ours[-1].filename).stem}-{ours[-1].lineno}"


def run(name: str) -> None:
    """Fuzz the parser `name` of `fuzz_targets`; the arguments of the command line are libFuzzer's.

    With ``ED3D_FUZZ_FINDINGS`` set to a folder, an input that breaks a rule is kept there, once for each line that raises, and the run
    goes on; otherwise it ends there, as libFuzzer's runs do.
    """
    findings = os.environ.get("ED3D_FUZZ_FINDINGS")
    seen: set[str] = set()

    def test_one_input(data: bytes) -> None:
        try:
            fuzz_targets.examine_bytes(name, data)
        except Exception as error:
            if findings is None:
                raise
            place = _place(error)
            if place not in seen:
                seen.add(place)
                file = Path(findings) / f"{place}-{hashlib.sha1(data).hexdigest()[:8]}"
                file.write_bytes(data)
                print(f"FINDING {place}: {str(error)[:200]!r}", file=sys.stderr, flush=True)

    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
