"""Print and draw the learning curves: python benchmarks/learning_curves/tables.py SMALL.json DEFAULT.json.

The files are those of small_networks.py and default_network.py. Where several seeds were run, a number is their mean, and its spread is
half the distance from the lowest to the highest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import default_network
import numpy as np
import small_networks

TARGETS = {"crystal_system": "crystal system", "extinction_group": "extinction group", "space_group_number": "space group"}
Results = dict[str, Any]


def results_of(made: Results, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of one point, all seeds."""
    found = []
    for key, result in made.items():
        given = json.loads(key)
        given.pop("seed")
        if json.dumps(given, sort_keys=True) == json.dumps(arguments, sort_keys=True):
            found.append(result)
    return found


def percent(results: list[dict[str, Any]], target: str) -> str:
    """Mean over seeds, and spread."""
    values = [result["accuracy"][target] for result in results]
    spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def print_curves(runs: dict[str, list[Any]], made: Results) -> None:
    """One Markdown table."""
    header = ["curve", "shown", "crystals", "weights", *TARGETS.values(), "seeds", "samples/s, threads"]
    print("| " + " | ".join(header) + " |\n" + "|" + "---|" * len(header))
    for curve, points in runs.items():
        for shown, arguments in points:
            results = results_of(made, arguments)
            if results:
                first = results[0]
                cells = [
                    curve,
                    shown,
                    f"{first['n_train']:,}",
                    f"{first['n_weights']:,}",
                    *(percent(results, target) for target in TARGETS),
                ]
                speed = f"{np.median([result['samples_per_second'] for result in results]):.0f}, {first['threads']}"
                print("| " + " | ".join([*cells, str(len(results)), speed]) + " |")
    print()


def draw(small: Results, default: Results, path: Path) -> None:
    """Accuracy against crystals, epochs and points."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    def line(made: Results, points: list[Any], x_of: Callable[[dict[str, Any]], Any]) -> list[tuple[Any, float]]:
        found = [(results_of(made, arguments), arguments) for _, arguments in points]
        return [(x_of(r[0] | a), float(np.mean([s["accuracy"]["space_group_number"] for s in r]))) for r, a in found if r]

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    sizes = small_networks.runs()["size"]
    lines = {
        "default": (default, default_network.runs()["size"]),
        "residual sparse CNN": (small, [run for run in sizes if run[1]["network"] == small_networks.RESNET]),
        "PointNet": (small, [run for run in sizes if run[1]["network"] == small_networks.POINTNET]),
    }
    for name, (made, points) in lines.items():
        at = line(made, points, lambda run: run["n_train"])
        axes[0].semilogx(*zip(*at, strict=True), "o-", label=name)
        largest = results_of(made, points[-1][1])[0]["by_epoch"]
        axes[1].plot(range(1, len(largest) + 1), largest, label=name)
    at = line(small, small_networks.runs()["points"], lambda run: run.get("max_points", 1024))
    axes[2].semilogx(*zip(*at, strict=True), "o-", color="C2", label="PointNet")
    for axis, label in zip(axes, ("training crystals", "epochs (the most crystals)", "points of a cloud"), strict=True):
        axis.set_xlabel(label)
        axis.set_ylim(0, 100)
    axes[0].set_ylabel("space group right, %")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path)
    parser.add_argument("default", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    small, default = (json.loads(path.read_text()) for path in (args.small, args.default))
    print_curves(small_networks.runs(), small)
    print_curves(default_network.runs(), default)
    if args.figure:
        draw(small, default, args.figure)


if __name__ == "__main__":
    main()
