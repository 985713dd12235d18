"""Print the tables of docs/results.md from what ``ed3d evaluate --json`` wrote: python benchmarks/default_model/tables.py OUT.json..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGETS = {"crystal_system": "crystal system", "extinction_group": "extinction group", "space_group": "space group"}
CONTROLS = ("metric", "volume", "composition", "majority")
FIGURES = {"top1": "top-1", "top3": "top-3", "macro_f1": "macro-F1", "ece": "ECE"}


def percent(value: float | None) -> str:
    """Write a share in per cent, with one decimal."""
    return "–" if value is None else f"{100 * value:.1f}"


def show(header: list[str], rows: list[list[str]]) -> None:
    """Print one Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main_rows(result: dict[str, Any]) -> list[list[str]]:
    """Rows of the main table, one for each target."""
    rows = []
    for name, title in TARGETS.items():
        scored = result[name]
        controls = [percent(scored["controls"][control]["top1"]) for control in CONTROLS]
        figures = [percent(scored[key]) for key in FIGURES]
        rows.append([result["protocol"], result["split"], f"{result['n']:,}", title, *figures, *controls])
    return rows


def condition_row(result: dict[str, Any]) -> list[str]:
    """Row of the table of conditions: top-1 of the three targets."""
    noise, d_min = f"{100 * result['noise']:g} %", f"{result['d_min']} Å" if result["d_min"] else "full"
    top1 = [percent(result[name]["top1"]) for name in TARGETS]
    return [result["protocol"], result["split"], str(result["symprec"]), noise, d_min, f"{result['n']:,}", *top1]


def system_row(result: dict[str, Any], systems: list[str]) -> list[str]:
    """Row of the table of crystal systems: recalls, enantiomorphs, and the crystals whose metric misleads."""
    scored = result["crystal_system"]
    misled = scored["metric_misleads"]
    recalls = [percent(scored["per_class_recall"][system]) for system in systems]
    both_hands = percent(result["space_group"]["top1_up_to_enantiomorph"])
    return [result["protocol"], result["split"], *recalls, both_hands, f"{percent(misled['top1'])} of {misled['n']}"]


def main() -> None:
    """Print the main table, the recalls, and the conditions."""
    results = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    full = [result for result in results if result["space_group"]["controls"]]
    show(["protocol", "split", "n", "target", *FIGURES.values(), *CONTROLS], [row for result in full for row in main_rows(result)])
    systems = list(full[0]["crystal_system"]["per_class_recall"])
    columns = ["protocol", "split", *systems, "space group, either hand", "system where the metric misleads"]
    show(columns, [system_row(result, systems) for result in full])
    columns = ["protocol", "split", "labels at symprec", "noise", "resolution", "n", *TARGETS.values()]
    show(columns, [condition_row(result) for result in results])


if __name__ == "__main__":
    main()
