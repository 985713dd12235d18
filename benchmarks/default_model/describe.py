"""Write what ``ed3d evaluate --json`` measured into a model's header: python describe.py MODEL.safetensors OUT.json...

The weights stay as they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matminer_ed3d.checkpoints import load_checkpoint, save_checkpoint

TARGETS = ("crystal_system", "extinction_group", "space_group")
FIGURES = ("top1", "top3", "macro_f1", "ece")


def main() -> None:
    """Read the header and the results, write the header back."""
    model, *results = sys.argv[1:]
    header, tensors = load_checkpoint(model)
    metrics = dict(header.get("metrics") or {})
    for name in results:
        result = json.loads(Path(name).read_text(encoding="utf-8"))
        title = f"{result['protocol']}, split {result['split']}, labels at symprec {result['symprec']}"
        scores = {target: {figure: round(result[target][figure], 4) for figure in FIGURES} for target in TARGETS}
        metrics[title] = {"n": result["n"], **scores}
    save_checkpoint(model, tensors, {**header, "metrics": metrics}, dtype="float16")  # as it was stored: nothing is rounded again


if __name__ == "__main__":
    main()
