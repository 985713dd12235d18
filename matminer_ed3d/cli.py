"""The command ``ed3d``: arguments to calls, answers to lines. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

__all__ = ["main"]

# Where these stand in for imported names, the modules that own them would bring torch or scikit-learn into `--help`.
TARGETS = ("space_group", "extinction_group", "crystal_system")
PROTOCOLS = ("conventional", "primitive", "blind")
SPLITS = ("unseen", "test", "prototype_test", "all")
# What a command can raise for its inputs: one line, not a traceback. The last names are of what a machine or a fit can run out of.
COMMAND_ERRORS = (OSError, EOFError, ValueError, TypeError, LookupError, ImportError, ArithmeticError, RuntimeError, MemoryError)
STATISTICS_REFUSE = ("voxel_size", "voxel_basis", "reduction", "threshold", "max_points", "seed")  # options of `featurize`
TITLES = {"crystal_system": "crystal system", "extinction_group": "extinction group", "space_group_number": "space group"}
PARITIES = ("even", "odd", "both", "broken")
LEAST_SHOWN = 5e-5  # probability of an alternative
SPEAKING = (OSError, ValueError, TypeError, ImportError)  # their messages need no name of the error before them


class _Complaints:
    """One line on stderr for each input that fails, and the exit status that they make."""

    def __init__(self) -> None:
        self.status = 0

    def __call__(self, name: str, error: BaseException) -> None:
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            message = error.strerror
        print(f"ed3d: {name}: {message.removeprefix(f'{name}: ')}", file=sys.stderr)
        self.status = 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ed3d", description="Crystal system, extinction group and space group from a 3D electron density."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('matminer_ed3d')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    predict = commands.add_parser("predict", help="name the symmetry of crystals in files")
    predict.add_argument("files", nargs="+", metavar="FILE", help="a density (CHGCAR) or a structure (CIF, POSCAR, pymatgen's JSON)")
    predict.add_argument("--model", default="default", metavar="NAME", help="a shipped model, a path to a .safetensors file, or 'evidence'")
    predict.add_argument("--top", type=_positive, default=3, metavar="K", help="alternatives to name (default: %(default)s)")
    predict.add_argument("--no-evidence", action="store_true", help="leave out the symmetry that the density itself proves")
    predict.add_argument(
        "--explain", action="store_true", help="list the operations of the evidence, how well each holds, and its candidates"
    )
    predict.add_argument("--symprec", type=float, default=0.01, metavar="A", help="of the evidence, in Å (default: %(default)s)")
    predict.add_argument("--json", action="store_true", help="print one JSON object a line for each file")
    predict.set_defaults(run=_predict)

    info = commands.add_parser("info", help="say what density or structure files hold, and check it")
    info.add_argument("files", nargs="+", metavar="FILE", help="a density (CHGCAR, cube, XSF, CCP4, ...) or a structure, by content")
    info.add_argument("--json", action="store_true", help="print one JSON object a line for each file")
    info.set_defaults(run=_info)

    report = commands.add_parser("report", help="write a page that shows the symmetry of a density and its proof")
    report.add_argument("file", metavar="FILE", help="a density, or a structure, whose atoms are superposed")
    report.add_argument("--out", type=Path, metavar="HTML", help="default: FILE's name with .html after it, in this folder")
    report.add_argument("--symprec", type=float, default=0.01, metavar="A", help="largest displacement in Å (default: %(default)s)")
    report.set_defaults(run=_report)

    featurize = commands.add_parser("featurize", help="turn files or table rows into samples or statistics")
    featurize.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="files as for predict, parquet tables of structures, or folders with all that is in them"
    )
    featurize.add_argument("--files-from", metavar="LIST", help="more inputs, one a line of this file; - is the standard input")
    featurize.add_argument("--featurizer", choices=("points", "voxels", "statistics"), default="statistics", help="default: %(default)s")
    featurize.add_argument(
        "--out",
        required=True,
        type=Path,
        help=".csv or .parquet for statistics, .npz for points and voxels; or, for large batches, a folder, which a second run completes",
    )
    featurize.add_argument("--failures", type=Path, metavar="CSV", help="table of what failed (default: OUT.failures.csv, or in OUT)")
    featurize.add_argument("--no-resume", action="store_true", help="throw away what OUT holds from an earlier run")
    featurize.add_argument("--part-size", type=_positive, default=64, metavar="MB", help="of a part, in memory (default: %(default)s)")
    featurize.add_argument("--cache", metavar="DIR", help="keep every result in this folder, and look there first (default: no cache)")
    featurize.add_argument("--n-jobs", type=int, default=1, metavar="N", help="processes; -1: one per core (default: %(default)s)")
    featurize.add_argument("--channels", default="total", metavar="A,B", help="of total, diff, up, down (default: %(default)s)")
    featurize.add_argument("--voxel-size", type=float, metavar="A", help="points and voxels, in Å (default: 0.25)")
    featurize.add_argument("--voxel-basis", choices=("lattice", "cartesian"), help="voxels only (default: lattice)")
    featurize.add_argument(
        "--reduction", choices=("random", "mean"), help="one grid point of a voxel, or its mean (points: random; voxels: mean)"
    )
    featurize.add_argument("--threshold", type=float, metavar="RHO", help="points and voxels: leave out what is below, e/Å³ (default: 0)")
    featurize.add_argument(
        "--max-points", type=_max_points, metavar="N", help="points and voxels: keep the densest N of a sample; 'paper' is by cell size"
    )
    featurize.add_argument("--seed", type=int, help="points and voxels: of random points (default: 0)")
    featurize.set_defaults(run=_featurize)

    train = commands.add_parser("train", help="train a model on a table of structures")
    train.add_argument("structures", metavar="STRUCTURES.parquet")
    train.add_argument("--target", required=True, help=f"{', '.join(TARGETS)}, or a column of numbers")
    train.add_argument("--model-out", required=True, type=Path, metavar="PATH", help="the weights, .safetensors")
    train.add_argument("--family", choices=("sparse_cnn", "pointnet"), default="sparse_cnn", help="default: %(default)s")
    train.add_argument(
        "--architecture",
        default="small",
        help="small; paper; of sparse_cnn also convnext, or crystal, which brings the shipped model's samples (default: %(default)s)",
    )
    train.add_argument("--channels", default="total", metavar="A,B", help="default: %(default)s")
    train.add_argument("--voxel-size", type=float, metavar="A", help="in Å (default: that of the estimator)")
    train.add_argument("--voxel-basis", choices=("lattice", "cartesian"), help="sparse_cnn (default: that of the estimator)")
    train.add_argument("--reduction", choices=("random", "mean"), help="one grid point of a voxel, or its mean")
    train.add_argument("--threshold", type=float, metavar="RHO", help="leave out what is below, e/Å³")
    train.add_argument("--cell", choices=("as_given", "reduced"), help="default: as_given; crystal: reduced")
    train.add_argument("--d-min", type=float, metavar="A", help="sparse_cnn: resolution of the samples, in Å (with --cell reduced)")
    train.add_argument("--standardize", action=argparse.BooleanOptionalAction, help="sparse_cnn: (rho - mean) / rms (with --d-min)")
    train.add_argument("--max-voxels", type=_positive, metavar="N", help="sparse_cnn: enlarge the voxels of large cells (with --d-min)")
    train.add_argument("--multiple-of", type=_positive, metavar="N", help="sparse_cnn: counts of voxels along a, b, c")
    train.add_argument("--max-points", type=_max_points, metavar="N", help="cap of a sample")
    train.add_argument("--symprec", type=float, choices=(0.1, 0.01), default=0.1, help="of the labels, in Å (default: %(default)s)")
    train.add_argument("--split", choices=("train", "all"), default="train", help="train: keep the test rows out (default: %(default)s)")
    train.add_argument("--limit", type=_positive, metavar="N", help="at most N rows, drawn by the seed")
    train.add_argument("--epochs", type=_positive, default=30, help="default: %(default)s")
    train.add_argument("--batch-size", type=_positive, default=32, help="default: %(default)s")
    train.add_argument("--max-points-per-batch", type=_positive, metavar="N", help="of a batch, at most (default: no limit)")
    train.add_argument("--learning-rate", type=float, default=1e-3, help="default: %(default)s")
    train.add_argument("--weight-decay", type=float, metavar="F", help="of AdamW (default: that of the estimator)")
    train.add_argument("--class-balance", type=float, metavar="F", help="0: classes as often as they are; 1: equally often (default: 0)")
    train.add_argument("--label-smoothing", type=float, metavar="F", help="of classes (default: 0)")
    train.add_argument(
        "--hierarchical", action="store_true", default=None, help="teach crystal system, extinction group and space group at once"
    )
    train.add_argument("--backend", metavar="NAME", help="of sparse convolutions: auto, torch, triton, minkowski or spconv (default: auto)")
    train.add_argument("--checkpointing", action="store_true", default=None, help="sparse_cnn: less memory, more time")
    train.add_argument("--ema-decay", type=float, metavar="F", help="average the weights (default: no average)")
    train.add_argument("--augment", default="", metavar="A,B", help="augmentations, by name")
    train.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="default: %(default)s")
    train.add_argument("--device", default="auto", help="default: %(default)s")
    train.add_argument("--checkpoint-dir", type=Path, metavar="DIR", help="write the state after each epoch, and resume from it")
    train.add_argument("--devices", type=_positive, metavar="N", help="GPUs, or processes on the CPU (extra distributed; default: 1)")
    train.add_argument("--cache", metavar="DIR", help="keep the samples in this folder, and look there first (default: no cache)")
    train.add_argument("--n-jobs", type=int, default=1, help="processes that make samples (default: %(default)s)")
    train.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="score a model on a table of structures under a protocol, beside the controls")
    evaluate.add_argument("structures", metavar="STRUCTURES.parquet")
    evaluate.add_argument(
        "--model", default="default", metavar="NAME", help="a shipped model, a path to a .safetensors file, or 'evidence'"
    )
    evaluate.add_argument("--target", choices=(*TARGETS, "all"), default="all", help="default: %(default)s")
    evaluate.add_argument("--protocol", choices=PROTOCOLS, default="blind", help="in which cell a crystal is shown (default: %(default)s)")
    evaluate.add_argument("--symprec", type=float, choices=(0.1, 0.01), default=0.1, help="of the labels, in Å (default: %(default)s)")
    evaluate.add_argument("--noise", type=float, default=0.0, metavar="F", help="rms of white noise, relative to that of rho - mean")
    evaluate.add_argument("--d-min", type=float, metavar="A", help="cut the density at this resolution, in Å")
    evaluate.add_argument("--limit", type=_positive, metavar="N", help="take N of the eligible rows, drawn by the seed")
    evaluate.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    evaluate.add_argument("--split", choices=SPLITS, default="unseen", help="unseen: all but the training rows (default: %(default)s)")
    evaluate.add_argument("--control-rows", type=int, default=24_000, metavar="N", help="most rows to fit controls on; 0: no controls")
    evaluate.add_argument("--n-jobs", type=int, default=1, help="processes that make samples (default: %(default)s)")
    evaluate.add_argument("--json", type=Path, metavar="OUT", help="write the result there; default: print it")
    evaluate.set_defaults(run=_evaluate)

    models = commands.add_parser("models", help="list the shipped models")
    models.add_argument("--json", action="store_true", help="print their headers as one JSON object")
    models.set_defaults(run=_models)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _max_points(text: str) -> int | str:
    return text if text == "paper" else _positive(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _predict(options: argparse.Namespace) -> int:
    from matminer_ed3d import prediction
    from matminer_ed3d.conditions import ROW_ERRORS

    if options.explain and options.no_evidence:
        raise ValueError("--explain explains the evidence; leave out --no-evidence")
    model = prediction.load_model(options.model, options.symprec)
    evidence = not options.no_evidence and (options.explain or model.name != prediction.EVIDENCE)
    complain = _Complaints()
    for path in options.files:
        try:
            answer = prediction.predict_file(path, model, options.top, evidence=evidence, explain=options.explain, symprec=options.symprec)
        except ROW_ERRORS as error:
            complain(path, error)
            continue
        print(json.dumps(answer, ensure_ascii=False) if options.json else _readable(answer), flush=True)
    return complain.status


def _info(options: argparse.Namespace) -> int:
    from matminer_ed3d.file_info import file_info, readable

    complain = _Complaints()
    for path in options.files:
        try:
            answer = file_info(path)
        except COMMAND_ERRORS as error:
            complain(path, error)
            continue
        print(json.dumps(answer, ensure_ascii=False) if options.json else readable(answer), flush=True)
    return complain.status


def _report(options: argparse.Namespace) -> int:
    from matminer_ed3d.symmetry_report import write_report

    if not options.symprec > 0:
        raise ValueError(f"--symprec must be a positive number of Å, got {options.symprec}")
    out = options.out or Path(f"{Path(options.file).name}.html")
    try:
        found = write_report(options.file, out, symprec=options.symprec)
    except COMMAND_ERRORS as error:
        complain = _Complaints()
        complain(options.file, error)
        return complain.status
    print(f"{options.file}: {found.group.symbol} ({found.space_group_number}), probability {found.probability:.4f}; written to {out}")
    return 0


def _readable(answer: dict[str, Any]) -> str:
    """Lay out one answer of ``predict`` for a person: the model's, and the evidence beside it."""
    evidence = answer.get("evidence", {})
    sides = [answer["top"], *([evidence["top"]] if "top" in evidence else [])]
    lines = [answer["file"]]
    if len(sides) == 2:
        lines.append(f"  {'':<18}{'model ' + _shortened(answer['model'], 30):<46}evidence of the density itself")
    for target, title in TITLES.items():
        columns = [[_entry(target, entry, rank) for rank, entry in enumerate(side.get(target, ()))] for side in sides]
        for rank, row in enumerate(zip_longest(*columns, fillvalue="")):
            if any(row):
                lines.append(f"  {title if rank == 0 else '':<18}{row[0]:<46}{''.join(row[1:])}".rstrip())
    if "failure" in evidence:
        lines.append(f"  no evidence: {evidence['failure']}")
    elif evidence.get("disagrees_on"):
        lines.append(f"  they disagree on the {' and the '.join(TITLES[target] for target in evidence['disagrees_on'])}")
    if "operations" in evidence:
        lines += _explained(evidence)
    if "spin" in evidence:
        lines += _spin_explained(evidence["spin"])
    return "\n".join(lines)


def _entry(target: str, entry: dict[str, Any], rank: int) -> str:
    if rank and entry["probability"] < LEAST_SHOWN:
        return ""
    symbol = entry.get(target.removesuffix("_number") + "_symbol", "")
    name = f"{entry[target]}  {_shortened(symbol)}" if symbol else str(entry[target])
    return f"{name:<34}{100 * entry['probability']:6.2f} %"


def _explained(evidence: dict[str, Any]) -> list[str]:
    """Operations and candidates of the evidence, a line each."""

    def line(operation: dict[str, Any]) -> str:
        numbers = (
            (operation["residual"], 10, ".1e"),
            (operation["displacement"], 9, ".4f"),
            (operation["scattering_difference"], 9, ".4f"),
        )
        return f"    {_order(operation['order']):>3}  {operation['xyz']:<36}" + "".join(_number(*number) for number in numbers)

    columns = f"{'residual':>10}{'displ. Å':>9}{'scatt.':>9}"
    noise = f"noise {evidence['noise']:.1e} of the power, " if evidence["noise"] is not None else ""
    lines = [f"  evidence: {noise}resolution {evidence['d_min']:.2f} Å, symprec {evidence['symprec']} Å"]
    lines.append(f"  {'operations that hold, in the primitive cell':<45}" + columns)
    lines += [line(operation) for operation in evidence["operations"]]
    if evidence["rejected"]:
        lines.append(f"  {'operations that do not':<45}" + columns)
        lines += [line(operation) for operation in evidence["rejected"]]
    lines.append(f"  {'space groups':<45}{'evidence':>10}{'displ. Å':>9}{'scatt.':>9}{'probability':>15}")
    for candidate in evidence["candidates"]:
        name = f"{candidate['space_group_number']:>5}  {candidate['space_group_symbol']:<12}{candidate['relation']}"
        numbers = (
            (candidate["log_evidence"], 10, ".1f"),
            (candidate["displacement"], 9, ".4f"),
            (candidate["scattering_difference"], 9, ".4f"),
        )
        lines.append(f"  {name:<45}" + "".join(_number(*number) for number in numbers) + f"{100 * candidate['probability']:13.2f} %")
    return lines


def _spin_explained(spin: dict[str, Any]) -> list[str]:
    """The magnetic group, how many operations are of each parity, and those that do not simply hold, a line each."""
    if "failure" in spin:
        return [f"  no spin parity: {spin['failure']}"]
    parities = [operation["parity"] for operation in spin["operations"]]
    counts = ", ".join(f"{parities.count(parity)} {parity}" for parity in PARITIES if parity in parities)
    group = f"magnetic space group {spin['bns_number']} (BNS), type {spin['magnetic_type']}" if spin["bns_number"] else "no magnetic group"
    kind = " (collinear: the moments' axis is not told)" if spin["is_collinear"] else ""
    lines = [f"  magnetisation: {group}{kind}; operations {counts}"]
    others = [operation for operation in spin["operations"] if operation["parity"] in ("odd", "broken")]
    if others:
        lines.append(f"  {'odd ones need time reversal':<45}{'even res.':>10}{'odd res.':>10}  parity")
    for operation in others:
        numbers = _number(operation["even_residual"], 10, ".1e") + _number(operation["odd_residual"], 10, ".1e")
        lines.append(f"    {_order(operation['order']):>3}  {operation['xyz']:<38}{numbers}  {operation['parity']}")
    return lines


def _order(order: int) -> str:
    return "m" if order == -2 else str(order)


def _number(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"


def _shortened(symbol: str, width: int = 26) -> str:
    return symbol if len(symbol) <= width else symbol[: width - 2] + " …"


def _featurize(options: argparse.Namespace) -> int:
    from matminer_ed3d import table_features

    meaningless = {"points": ("voxel_basis",), "voxels": (), "statistics": STATISTICS_REFUSE}[options.featurizer]
    given = [f"--{name.replace('_', '-')}" for name in meaningless if getattr(options, name) is not None]
    if given:
        raise ValueError(f"--featurizer {options.featurizer} does not take {', '.join(given)}; leave it out or choose another featurizer")
    complain = _Complaints()
    featurizer, save = _featurizer(options)
    inputs = [*options.inputs, *(table_features.read_path_list(options.files_from) if options.files_from else ())]
    if not inputs:
        raise ValueError("there is nothing to featurize: expected files, folders or --files-from LIST")
    own = [options.out, f"{options.out}.parts", f"{options.out}.failures.csv", *filter(None, (options.failures, options.cache))]
    paths = table_features.input_paths(inputs, without=own)
    report = save(
        table_features.named_sources(paths),
        featurizer,
        options.out,
        complain,
        n_jobs=options.n_jobs,
        resume=not options.no_resume,
        part_bytes=options.part_size << 20,
        failures=options.failures,
        n_sources=None if any(path.endswith(".parquet") for path in paths) else len(paths),
    )
    earlier = f", {report.n_earlier} of them by an earlier run" if report.n_earlier else ""
    failed = f"; {report.n_failed} failed" if report.n_failed else ""
    print(f"{report.n_done} of {options.featurizer} written to {options.out}{earlier}{failed}")
    return complain.status


def _featurizer(options: argparse.Namespace) -> tuple[Any, Any]:
    """Featurizer of the command ``featurize``, and the function that saves what it makes."""
    from matminer_ed3d import featurizers, table_features

    shared: dict[str, Any] = {"channels": _names(options.channels), "cache": options.cache}
    if options.featurizer == "statistics":
        return featurizers.DensityStatistics(**shared), table_features.save_statistics
    shared |= {
        "voxel_size": 0.25 if options.voxel_size is None else options.voxel_size,
        "threshold": options.threshold or 0.0,
        "max_points": options.max_points,
        "random_state": options.seed or 0,
    }
    if options.featurizer == "points":
        return featurizers.DensityPointCloud(reduction=options.reduction or "random", **shared), table_features.save_samples
    voxels = featurizers.DensitySparseTensor(voxel_basis=options.voxel_basis or "lattice", reduction=options.reduction or "mean", **shared)
    return voxels, table_features.save_samples


def _train(options: argparse.Namespace) -> int:
    from matminer_ed3d import table_training

    estimator = table_training.build_estimator(
        options.family,
        regression=options.target not in TARGETS,
        architecture=options.architecture,
        channels=_names(options.channels),
        voxel_size=options.voxel_size,
        voxel_basis=options.voxel_basis,
        reduction=options.reduction,
        threshold=options.threshold,
        cell=options.cell,
        d_min=options.d_min,
        standardize=options.standardize,
        max_voxels=options.max_voxels,
        multiple_of=options.multiple_of,
        max_points=options.max_points,
        weight_decay=options.weight_decay,
        ema_decay=options.ema_decay,
        max_epochs=options.epochs,
        batch_size=options.batch_size,
        max_points_per_batch=options.max_points_per_batch,
        class_balance=options.class_balance,
        label_smoothing=options.label_smoothing,
        hierarchical=options.hierarchical,
        backend=options.backend,
        checkpointing=options.checkpointing,
        learning_rate=options.learning_rate,
        augmentations=_names(options.augment),
        precision=options.precision,
        device=options.device,
        devices=options.devices,
        checkpoint_dir=options.checkpoint_dir,
        n_jobs=options.n_jobs,
        random_state=options.seed,
        verbose=1,
    )
    rows = table_training.training_rows(
        options.structures, options.target, symprec=options.symprec, split=options.split, limit=options.limit, seed=options.seed
    )
    print(f"{len(rows.ids)} structures to train on", file=sys.stderr)
    data = {"table": Path(options.structures).name, "n_rows": len(rows.ids), "split": options.split, "symprec": options.symprec}
    protocol = {
        "cell": f"as the table gives it, sampled with cell={estimator.cell!r}",
        "split": "train and validation sides of assign_split" if options.split == "train" else "every row of the table",
        "validation": f"a random share of {estimator.validation_fraction:g} of these rows chose the epoch; no row was scored for a test",
    }
    table_training.train_on_table(estimator, rows, options.target, options.model_out, data=data, protocol=protocol, cache=options.cache)
    print(f"weights written to {options.model_out}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from matminer_ed3d.evaluation import evaluate

    if options.json and not options.json.absolute().parent.is_dir():
        raise FileNotFoundError(f"--json {options.json}: there is no such folder")
    result = evaluate(
        options.structures,
        options.model,
        options.target,
        protocol=options.protocol,
        symprec=options.symprec,
        noise=options.noise,
        d_min=options.d_min,
        limit=options.limit,
        seed=options.seed,
        split=options.split,
        control_rows=options.control_rows,
        n_jobs=options.n_jobs,
    )
    text = json.dumps(result, indent=2, ensure_ascii=False)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
        print(_summary(result))
    else:
        print(text)
    if not result["n"]:
        first = result["failures"]["rows"][0]
        print(f"ed3d: all {result['n_failed']} rows failed, the first, {first['id']}: {first['reason']}", file=sys.stderr)
    return 0 if result["n"] else 1


def _summary(result: dict[str, Any]) -> str:
    """Lay out the main figures of an evaluation for a person."""
    failed = f", {result['n_failed']} failed" if result["n_failed"] else ""
    lines = [f"{result['n']} structures{failed}; protocol {result['protocol']}, split {result['split']}, symprec {result['symprec']}"]
    if not result["training_ids_known"]:
        lines.append("what the model was trained on is not known: there is no list of training ids beside its weights")
    elif result["n_seen_in_training"]:
        lines.append(f"{result['n_seen_in_training']} rows that the model has seen in training were {result['seen_rows']}")
    counting = {"top-1 with the failed as wrong": "top1_counting_failures"} if result["n_failed"] else {}
    for target in TARGETS:
        scored = result.get(target)
        if not scored:
            continue
        figures = {"top-1": "top1", **counting, "top-3": "top3", "macro-F1": "macro_f1", "ECE": "ece"}
        lines.append(f"{target:<17} " + "  ".join(f"{title} {scored[key]:.4f}" for title, key in figures.items()))
        for name, control in (scored["controls"] or {}).items():
            lines.append(f"  {name:<15} top-1 {control['top1']:.4f}                macro-F1 {control['macro_f1']:.4f}")
    return "\n".join(lines)


def _models(options: argparse.Namespace) -> int:
    from matminer_ed3d.checkpoints import list_pretrained

    headers = list_pretrained()
    if options.json:
        print(json.dumps(headers, ensure_ascii=False))
        return 0
    for name, header in headers.items():
        target = header["target"] or "a number"
        print(f"{name}: {header['estimator']}, {header['params'].get('architecture')}, {target}, {len(header['classes'] or ())} classes")
        for key, title in (("data", "trained on"), ("protocol", "protocol"), ("metrics", "metrics")):
            print(f"  {title + ':':<12}{_one_line(header.get(key))}")
    if not headers:
        print("no model is shipped with this version")
    return 0


def _one_line(value: Any) -> str:
    """Lay out a value of a header, JSON, in one line for a person."""
    if value is None:
        return "not recorded"
    if isinstance(value, dict):
        return ", ".join(f"{key} {{{_one_line(v)}}}" if isinstance(v, dict) else f"{key} {_one_line(v)}" for key, v in value.items())
    if isinstance(value, list):
        return " ".join(map(_one_line, value))
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``ed3d``.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.

    Returns
    -------
    int
        Exit status: 0, or 1 if an input failed or the command could not run (one line on stderr says why); argparse itself
        ends the process with 2 on wrong usage.
    """
    options = _parser().parse_args(arguments)
    # spglib's C side prints notices on its own; what matters comes back as an error that we report.
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    try:
        return int(options.run(options))
    except COMMAND_ERRORS as error:
        message = " ".join([str(error), *getattr(error, "__notes__", ())]).split()
        name = [] if isinstance(error, SPEAKING) and message else [type(error).__name__ + ":" * bool(message)]
        print("ed3d:", *name, *message, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ed3d: stopped", file=sys.stderr)
        return 130
