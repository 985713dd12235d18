"""Calibration of the evidence: python benchmarks/calibration.py STRUCTURES.parquet [--n 400] [--picture docs/calibration.svg] [--wrong].

Random rows of a split in blind cells, shown as `ed3d evaluate --model evidence` shows them, labels by spglib at symprec 0.01. For each
level of white noise (rms relative to that of the density, on a grid of 0.25 Å) the answers are put into bins of their probability.

Prints a Markdown table (noise, bin, answers, their mean probability, fraction right). --picture draws the reliability diagram; --wrong
prints one JSON line for each wrong answer: the operations that set it apart from the label with their displacement and
scattering difference, and the largest symprec at which spglib gives the answer, the smallest at which it gives the label.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from itertools import pairwise
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SPGLIB_WARNING", "OFF")

import numpy as np

from matminer_ed3d import datasets, labels
from matminer_ed3d._spglib import call_spglib
from matminer_ed3d.conditions import Conditions, in_parallel, prepare_row
from matminer_ed3d.prediction import EVIDENCE, load_model
from matminer_ed3d.symmetry import DensitySymmetry

SYMPREC = 0.01
EDGES = (0.0, 0.5, 0.7, 0.9, 1.0)
TOLERANCES = np.geomspace(1e-3, 0.1, 81)  # Å, at which spglib is asked about a structure whose answer was wrong
COLOURS = ("#1b4f72", "#b9770e", "#7b241c", "#1e8449")  # readable on white


def answers(rows: datasets.StructureTable, noise: float, n_jobs: int, seed: int) -> list[dict[str, Any]]:
    """Label, answer, probability and the symmetry found of every row; a row without an answer is an error."""
    conditions = Conditions("blind", SYMPREC, noise, None, seed)
    estimator = load_model(EVIDENCE, SYMPREC).estimator
    known = datasets.space_group_labels(rows, SYMPREC)
    out = []
    for number, row in enumerate(in_parallel(prepare_row, rows, known, n_jobs, conditions, estimator.sample_options_)):
        if row.failure:
            raise RuntimeError(f"{row.row_id}: {row.failure}")
        proba = estimator.predict_proba([row.sample])[0]
        best = int(proba.argmax())
        given = int(estimator.classes_[best])
        out.append({"row": number, "id": row.row_id, "expected": row.space_group_number, "given": given, "probability": float(proba[best])})
        if given != row.space_group_number:
            out[-1]["symmetry"] = row.sample
    return out


def binned(found: list[dict[str, Any]], edges: tuple[float, ...]) -> list[tuple[float, float, int, float, float]]:
    """Lower and upper edge, number of answers, their mean probability and the fraction right, for each bin; the last includes 1."""
    probability = np.array([answer["probability"] for answer in found])
    right = np.array([answer["given"] == answer["expected"] for answer in found])
    place = np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, len(edges) - 2)
    table = []
    for i, (low, high) in enumerate(pairwise(edges)):
        inside = place == i
        n = int(inside.sum())
        table.append((low, high, n, float(probability[inside].mean()) if n else np.nan, float(right[inside].mean()) if n else np.nan))
    return table


def markdown(levels: dict[float, list[dict[str, Any]]]) -> str:
    lines = ["| noise | probability | n | mean probability | fraction right |", "|---|---|---|---|---|"]
    for noise, found in levels.items():
        for low, high, n, mean, right in binned(found, EDGES):
            numbers = f"{mean:.3f} | {right:.3f}" if n else "- | -"
            lines.append(f"| {100 * noise:.0f} % | {low:g} to {high:g} | {n} | {numbers} |")
    return "\n".join(lines)


def draw(levels: dict[float, list[dict[str, Any]]], path: str) -> None:
    """Draw the fraction right over the mean probability of each bin with its 95 % interval (Wilson), and how many answers each holds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "calibration"
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(5.2, 6.0), sharex=True, height_ratios=(3, 1), constrained_layout=True, facecolor="white"
    )
    upper.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--", label="calibrated")
    near = upper.inset_axes((0.11, 0.12, 0.36, 0.36), xlim=(0.965, 1.002), ylim=(0.95, 1.004))
    near.set_title("near 1", fontsize=8)
    near.tick_params(labelsize=7)
    near.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
    width = 0.17 / len(levels)
    for i, ((noise, found), colour, marker) in enumerate(zip(levels.items(), COLOURS, "os^D", strict=False)):
        table = [row for row in binned(found, EDGES) if row[2]]
        n, mean, right = (np.array([row[k] for row in table]) for k in (2, 3, 4))
        centre, half = wilson(right, n)
        bars = np.clip([right - (centre - half), centre + half - right], 0, None)
        for axes in (upper, near):
            axes.errorbar(mean, right, bars, fmt=marker, color=colour, capsize=2, label=f"{100 * noise:.0f} % noise")
        places = np.array([0.5 * (row[0] + row[1]) for row in table]) + (i - 0.5 * (len(levels) - 1)) * width / 2
        lower.bar(places, n, width / 2, color=colour)
    upper.set(ylabel="fraction right", ylim=(-0.02, 1.02), xlim=(0, 1.02))
    upper.legend(loc="upper left", frameon=False)
    lower.set(xlabel="probability of the answer", ylabel="answers", yscale="log")
    for edge in EDGES[1:-1]:
        lower.axvline(edge, color="#cccccc", linewidth=0.8, zorder=0)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None, dpi=120)


def wilson(share: np.ndarray, n: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half width of the interval of a binomial share; E. B. Wilson, J. Am. Stat. Assoc. 22, 209 (1927)."""
    denominator = 1 + z**2 / n
    return (share + z**2 / (2 * n)) / denominator, z / denominator * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))


def described(answer: dict[str, Any], row: dict[str, Any], noise: float) -> dict[str, Any]:
    """Say of a wrong answer what set it apart from the label."""
    symmetry: DensitySymmetry = answer["symmetry"]
    cell = datasets.cell_of_row(row)
    numbers = [getattr(call_spglib("get_symmetry_dataset", cell, symprec=float(t)), "number", 0) for t in TOLERANCES]

    def spans(number: int) -> list[float]:
        at = TOLERANCES[np.array(numbers) == number]
        return [float(f"{t:.3g}") for t in (at.min(), at.max())] if len(at) else []

    candidates = [
        {
            "group": labels.space_group_symbol(c.space_group_number),
            "relation": c.relation,
            "displacement": round(c.displacement, 4),
            "scattering": round(c.scattering_difference, 4),
            "log_evidence": round(c.log_evidence, 2),
            "probability": round(c.probability, 4),
        }
        for c in symmetry.candidates
        if c.space_group_number in (answer["expected"], answer["given"], symmetry.space_group_number)
    ]
    return {
        "id": answer["id"],
        "formula": datasets.structure_of_cell(cell).composition.reduced_formula,
        "n_sites": len(cell[2]),
        "noise": noise,
        "expected": f"{answer['expected']} {labels.space_group_symbol(answer['expected'])}",
        "given": f"{answer['given']} {labels.space_group_symbol(answer['given'])}",
        "probability": round(answer["probability"], 4),
        "spglib_gives_expected_between": spans(answer["expected"]),
        "spglib_gives_given_between": spans(answer["given"]),
        "candidates": candidates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", help="a parquet table of structures")
    parser.add_argument("--n", type=int, default=400, help="rows at each level (default: %(default)s)")
    parser.add_argument("--split", choices=("test", "prototype_test", "train"), default="test")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.05, 0.2, 0.6], help="levels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-jobs", type=int, default=1)
    parser.add_argument("--picture", metavar="FILE", help="draw the reliability diagram, .svg or .png")
    parser.add_argument("--wrong", action="store_true", help="list the wrong answers on stderr")
    options = parser.parse_args()
    table = datasets.read_structures(options.structures)
    chosen = np.flatnonzero(datasets.assigned_sides(table) == options.split)
    rows = table.take(datasets.random_rows(chosen, options.n, options.seed))
    levels = {}
    for noise in options.noise:
        levels[noise] = answers(rows, noise, options.n_jobs, options.seed)
        wrong = [answer for answer in levels[noise] if answer["given"] != answer["expected"]]
        print(f"noise {noise}: {len(wrong)} of {len(levels[noise])} wrong", file=sys.stderr, flush=True)
        if options.wrong:
            for answer in wrong:
                print(json.dumps(described(answer, rows.row(answer["row"]), noise), ensure_ascii=False), file=sys.stderr, flush=True)
    print(markdown(levels))
    if options.picture:
        draw(levels, options.picture)


if __name__ == "__main__":
    main()
