"""Print and draw the learning curves: python benchmarks/learning_curves/tables.py SMALL.json DEFAULT.json.

The files are those of small_networks.py and default_network.py. Where several seeds were run, a number is their mean, and its spread is
half the distance from the lowest to the highest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import default_network
import numpy as np
import small_networks
from runs import Results, key_of

MOST_SEEDS = 20
TARGETS = {"crystal_system": "crystal system", "extinction_group": "extinction group", "space_group_number": "space group"}


def results_of(module: Any, made: Results, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of one point, all seeds."""
    keys = [key_of(module.result_of, arguments | {"seed": seed}) for seed in range(MOST_SEEDS)]
    return [made[key] for key in keys if key in made]


def percent(results: list[dict[str, Any]], target: str) -> str:
    """Mean over seeds, and spread."""
    values = [result["accuracy"][target] for result in results]
    spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def print_curves(module: Any, made: Results) -> None:
    """One Markdown table."""
    header = ["curve", "shown", "crystals", "weights", *TARGETS.values(), "seeds"]
    print("| " + " | ".join(header) + " |\n" + "|" + "---|" * len(header))
    for curve, points in module.curves().items():
        for shown, arguments in points:
            results = results_of(module, made, arguments)
            if results:
                first = results[0]
                cells = [
                    curve,
                    shown,
                    f"{first['n_train']:,}",
                    f"{first['n_weights']:,}" if first["n_weights"] else "-",
                    *(percent(results, target) for target in TARGETS),
                ]
                print("| " + " | ".join([*cells, str(len(results))]) + " |")
    print()


def draw(small: Results, default: Results, path: Path) -> None:
    """Accuracy against crystals, epochs and points."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    sizes = small_networks.curves()["size"]
    lines = {
        "default": (default_network, default, default_network.curves()["size"]),
        "residual sparse CNN": (small_networks, small, [point for point in sizes if point[1]["network"] == small_networks.RESNET]),
        "PointNet": (small_networks, small, [point for point in sizes if point[1]["network"] == small_networks.POINTNET]),
        "trees on the cell alone": (
            small_networks,
            small,
            [point for point in small_networks.curves()["metric"] if "protocol" not in point[1]],
        ),
    }
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for name, (module, made, points) in lines.items():
        found = [results for _, arguments in points if (results := results_of(module, made, arguments))]
        axes[0].semilogx([results[0]["n_train"] for results in found], [space_groups(results) for results in found], "o-", label=name)
        by_epoch = found[-1][0].get("by_epoch", [])
        axes[1].plot(range(1, len(by_epoch) + 1), by_epoch)
    clouds = [(arguments.get("max_points", 1024), arguments) for _, arguments in small_networks.curves()["points"]]
    shown = [(n, space_groups(results)) for n, arguments in clouds if (results := results_of(small_networks, small, arguments))]
    axes[2].semilogx(*zip(*shown, strict=True), "o-", color="C2")
    for axis, label in zip(axes, ("training crystals", "epochs (most crystals)", "points of a cloud (PointNet)"), strict=True):
        axis.set_xlabel(label)
        axis.set_ylim(0, 100)
    axes[0].set_ylabel("space group right, %")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def space_groups(results: list[dict[str, Any]]) -> float:
    """Mean accuracy over seeds, per cent."""
    return float(np.mean([result["accuracy"]["space_group_number"] for result in results]))


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path)
    parser.add_argument("default", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    small, default = (json.loads(path.read_text()) for path in (args.small, args.default))
    print_curves(small_networks, small)
    print_curves(default_network, default)
    if args.figure:
        draw(small, default, args.figure)


if __name__ == "__main__":
    main()
