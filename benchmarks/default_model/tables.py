"""Print the tables of docs/results.md from what ``ed3d evaluate --json`` wrote: python benchmarks/default_model/tables.py OUT.json..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGETS = {"crystal_system": "crystal system", "extinction_group": "extinction group", "space_group": "space group"}
CONTROLS = ("metric", "volume", "composition", "majority")


def percent(value: float | None) -> str:
    """Write a share as a number with one decimal."""
    return "–" if value is None else f"{100 * value:.1f}"


def rows(result: dict[str, Any]) -> list[str]:
    """Rows of the main table: one for each target."""
    lines = []
    for name, title in TARGETS.items():
        scored = result[name]
        controls = scored["controls"] or {}
        cells = [percent(controls[control]["top1"]) if control in controls else "–" for control in CONTROLS]
        figures = [percent(scored[key]) for key in ("top1", "top3", "macro_f1", "ece")]
        lines.append(f"| {result['protocol']} | {result['split']} | {result['n']:,} | {title} | " + " | ".join([*figures, *cells]) + " |")
    return lines


def main() -> None:
    """Print one table of all results, then the recalls of the crystal systems."""
    results = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    print("| protocol | split | n | target | top-1 | top-3 | macro-F1 | ECE | " + " | ".join(CONTROLS) + " |")
    print("|" + "---|" * (8 + len(CONTROLS)))
    for result in results:
        print("\n".join(rows(result)))
    print()
    systems = list(results[0]["crystal_system"]["per_class_recall"])
    print(
        "| protocol | split | noise | d_min | labels at | space group up to enantiomorph | metric misleads: system right (n) | "
        + " | ".join(systems)
        + " |"
    )
    print("|" + "---|" * (7 + len(systems)))
    for result in results:
        system = result["crystal_system"]
        misled = system.get("metric_misleads")
        cells = [percent(system["per_class_recall"][name]) for name in systems]
        told = f"{percent(misled['top1'])} ({misled['n']})" if misled else "–"
        space_group = percent(result["space_group"]["top1_up_to_enantiomorph"])
        conditions = [result["protocol"], result["split"], str(result["noise"]), str(result["d_min"] or "–"), str(result["symprec"])]
        print("| " + " | ".join([*conditions, space_group, told, *cells]) + " |")


if __name__ == "__main__":
    main()
