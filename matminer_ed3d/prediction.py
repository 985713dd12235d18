"""From files and a trained model to symmetry answers: one plain dict a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d import checkpoints, datasets, labels, sources
from matminer_ed3d.density import Density
from matminer_ed3d.symmetry import DensitySymmetry, Operation, SpinOperation, spin_parity
from matminer_ed3d.symmetry_estimators import SymmetryEvidenceClassifier, SymmetryOptions, symmetry_of

__all__ = [
    "EVIDENCE",
    "TARGET_NAMES",
    "SymmetryModel",
    "evidence_answer",
    "load_model",
    "predict_file",
    "predict_many",
    "symmetry_answer",
    "target_proba",
    "xyz_triplet",
]

EVIDENCE = "evidence"
"""Name of the model that needs no training: the symmetry that the density itself proves."""

# What a target is called on the command line, and in `labels`.
TARGET_NAMES = {"crystal_system": "crystal_system", "extinction_group": "extinction_group", "space_group": "space_group_number"}


@dataclass(frozen=True, eq=False)
class SymmetryModel:
    """A fitted classifier of one symmetry target, and what is known of its training.

    Parameters
    ----------
    name : str
        Name of a shipped model, or the path it came from.
    estimator : classifier
        With ``classes_`` and ``predict_proba``.
    target : {"crystal_system", "extinction_group", "space_group_number"}
        What its classes are.
    train_ids : frozenset of str or None
        Ids of its training and validation rows; None if no list lies beside the weights.
    """

    name: str
    estimator: Any
    target: str
    train_ids: frozenset[str] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets that it can answer: its own and the coarser ones."""
        return labels.TARGETS[: labels.TARGETS.index(self.target) + 1]


def train_ids_path(model_path: str | os.PathLike[str]) -> Path:
    """Return where the list of training ids of a file of weights lies: ``NAME.train_ids.npz`` beside ``NAME.safetensors``."""
    return Path(model_path).with_suffix(".train_ids.npz")


def load_model(name: str = "default", symprec: float = 0.01) -> SymmetryModel:
    """Load a shipped model by its name, or one of your own by the path of its ``.safetensors`` file.

    Parameters
    ----------
    name : str
        One of ``list_pretrained()``, a path that ends in ``.safetensors``, or ``evidence``.
    symprec : float
        Of the model ``evidence``, in Å; the others have none.

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    ValueError
        If there is no model of that name, or it is no classifier of a symmetry target.
    """
    if name == EVIDENCE:
        return SymmetryModel(name, SymmetryEvidenceClassifier(symprec=symprec), "space_group_number", frozenset())
    path = Path(name)
    if path.suffix != ".safetensors":
        shipped = checkpoints.pretrained_paths()
        if name not in shipped:
            raise ValueError(
                f"`model` must be one of the shipped models {sorted(shipped)}, {EVIDENCE!r} or a path to a .safetensors file, got {name!r}"
            )
        path = shipped[name]
    header = checkpoints.read_header(path)
    if header["target"] not in labels.TARGETS:
        raise ValueError(f"{path}: expected a classifier of one of {labels.TARGETS}, got an estimator of {header['target']!r}")
    ids = train_ids_path(path)
    return SymmetryModel(name, checkpoints.load_estimator(path), header["target"], datasets.load_train_ids(ids) if ids.is_file() else None)


def target_proba(
    proba: Float[np.ndarray, "n k"], classes: Sequence[Any] | np.ndarray, own_target: str, target: str
) -> tuple[Float[np.ndarray, "n m"], np.ndarray]:
    """Probabilities of a target from those of an equal or finer one: a coarser class has the sum of its members.

    Raises
    ------
    ValueError
        If `target` is finer than `own_target`.
    """
    if labels.TARGETS.index(target) > labels.TARGETS.index(own_target):
        raise ValueError(f"a model of {own_target!r} cannot tell {target!r}; use a model of a finer target")
    classes = np.asarray(classes)
    if own_target == target:
        return proba, classes
    if own_target == "extinction_group":  # a group lies within one crystal system: any member names it
        classes = np.array([labels.extinction_group_members(int(group))[0] for group in classes])
    return labels.coarsen_proba(proba, classes, target)


def symmetry_answer(proba: Float[np.ndarray, " k"], model: SymmetryModel, top: int = 3) -> dict[str, Any]:
    """Turn one row of a model's probabilities into an answer.

    Parameters
    ----------
    proba : (n_classes,) float
        In the order of ``model.estimator.classes_``.
    model : SymmetryModel
        Whose they are.
    top : int
        Alternatives to name for each target.

    Returns
    -------
    dict
        For each target that the model can tell the most probable label, its probability under ``<target>_probability``, and
        under ``top`` the `top` most probable labels. A coarser target has the sums of the finer one, so its best label is
        not always that of the best space group.
    """
    answer: dict[str, Any] = {}
    ranking: dict[str, list[dict[str, Any]]] = {}
    for target in model.targets:
        values, classes = target_proba(proba[None], model.estimator.classes_, model.target, target)
        order = np.argsort(-values[0], kind="stable")[:top]
        ranking[target] = [{**_named(target, classes[i]), "probability": float(values[0, i])} for i in order]
        answer |= _named(target, classes[order[0]])
        answer[f"{target}_probability"] = float(values[0, order[0]])
        if target == "space_group_number":
            answer["space_group_symbol_probability"] = answer["space_group_number_probability"]
    answer["top"] = ranking
    return answer


def _named(target: str, label: Any) -> dict[str, Any]:
    if target == "crystal_system":
        return {target: str(label)}
    symbol = labels.extinction_group_symbol if target == "extinction_group" else labels.space_group_symbol
    return {target: int(label), target.removesuffix("_number") + "_symbol": symbol(int(label))}


def xyz_triplet(operation: Operation | SpinOperation) -> str:
    """Write an operation as International Tables do, such as ``-x+1/2, y, z``; a translation that is no simple fraction in decimals.

    Whole translations are left out, but not of a SpinOperation, whose lattice may be larger.
    """
    whole_counts = isinstance(operation, SpinOperation)
    rows = []
    for row, shift in zip(operation.rotation.tolist(), operation.translation.tolist(), strict=True):
        text = "".join(f"{'+' if n > 0 else '-'}{'' if abs(n) == 1 else abs(n)}{axis}" for n, axis in zip(row, "xyz", strict=True) if n)
        shift = round(shift, 4) if whole_counts else round(shift % 1.0, 4) % 1.0
        fraction = Fraction(shift).limit_denominator(12)
        if shift:
            number = str(fraction) if abs(fraction - shift) < 2e-4 else f"{shift:.4f}"
            text += number if number.startswith("-") else f"+{number}"
        rows.append(text.removeprefix("+"))
    return ", ".join(rows)


def _operation(operation: Operation) -> dict[str, Any]:
    return {
        "xyz": xyz_triplet(operation),
        "order": labels.rotation_order(operation.rotation),
        "rotation": operation.rotation.tolist(),
        "translation": operation.translation.tolist(),
        "residual": _finite(operation.residual),
        "displacement": _finite(operation.displacement),
        "scattering_difference": _finite(operation.scattering_difference),
        "log_evidence": _finite(operation.log_evidence),
        "translation_uncertainty": _finite(operation.translation_uncertainty),
    }


def _spin_answer(density: Density, symmetry: DensitySymmetry) -> dict[str, Any]:
    """What each operation does to the magnetisation, and the magnetic space group, as JSON values; or why it cannot be told."""
    try:
        spin = spin_parity(density, symmetry)
    except ValueError as error:
        return {"failure": " ".join(str(error).split())}
    return {
        "magnetic_type": spin.magnetic_type,
        "bns_number": spin.bns_number,
        "uni_number": spin.uni_number,
        "is_collinear": spin.is_collinear,
        "lattice": spin.lattice.tolist(),
        "basis": spin.basis.tolist(),
        "noise": spin.noise,
        "tolerance": spin.tolerance,
        "operations": [
            {
                "xyz": xyz_triplet(operation),
                "order": labels.rotation_order(operation.rotation),
                "rotation": operation.rotation.tolist(),
                "translation": operation.translation.tolist(),
                "even_residual": operation.even_residual,
                "odd_residual": operation.odd_residual,
                "parity": operation.parity,
            }
            for operation in spin.operations
        ],
    }


def _finite(value: float) -> float | None:
    """Make JSON of a number: NaN and infinity, which it does not have, become None."""
    return float(value) if np.isfinite(value) else None


def evidence_answer(symmetry: DensitySymmetry, top: int = 3, explain: bool = False) -> dict[str, Any]:
    """Turn the symmetry that a density proves into an answer like that of a model.

    Parameters
    ----------
    symmetry : DensitySymmetry
        From :func:`matminer_ed3d.symmetry.find_symmetry`.
    top : int
        Alternatives to name for each target.
    explain : bool
        Add ``operations``, ``rejected`` and ``candidates``.

    Returns
    -------
    dict
        The keys of :func:`symmetry_answer`; of the group whose operations were found (nearly always the most probable one)
        ``found_space_group_number``, ``hall_number``, ``hall_symbol``, ``point_group``, ``centring``, ``n_operations``;
        ``noise`` (a share of the power), ``d_min`` and ``symprec`` (Å); ``lattice`` (Å, rows) of the primitive cell, ``basis``
        (of it in the given cell), and ``transformation`` with ``origin_shift`` from the given cell to the standard setting.
        JSON values: what is not finite is None.
    """
    model = load_model(EVIDENCE, symmetry.symprec)
    transformation, origin_shift = symmetry.transformation
    answer = {
        **symmetry_answer(model.estimator.predict_proba([symmetry])[0], model, top),
        "found_space_group_number": symmetry.space_group_number,
        "hall_number": symmetry.group.hall_number,
        "hall_symbol": symmetry.group.hall_symbol,
        "point_group": symmetry.group.point_group,
        "centring": symmetry.centring,
        "n_operations": len(symmetry.operations),
        "noise": _finite(symmetry.noise),
        "d_min": _finite(symmetry.d_min),
        "symprec": symmetry.symprec,
        "lattice": symmetry.lattice.tolist(),
        "basis": symmetry.basis.tolist(),
        "transformation": np.asarray(transformation).tolist(),
        "origin_shift": np.asarray(origin_shift).tolist(),
    }
    if explain:
        answer["operations"] = [_operation(operation) for operation in symmetry.operations]
        answer["rejected"] = [_operation(operation) for operation in symmetry.rejected]
        answer["candidates"] = [
            {
                "space_group_number": candidate.space_group_number,
                "space_group_symbol": labels.space_group_symbol(candidate.space_group_number),
                "relation": candidate.relation,
                "n_operations": candidate.n_operations,
                "log_evidence": _finite(candidate.log_evidence),
                "displacement": _finite(candidate.displacement),
                "scattering_difference": _finite(candidate.scattering_difference),
                "probability": candidate.probability,
            }
            for candidate in symmetry.candidates
        ]
    return answer


def _evidence_of(source: Any, answer: dict[str, Any], top: int, symprec: float, explain: bool) -> dict[str, Any]:
    """Evidence of a source that a model has answered, and the targets in which the two differ; or why there is none."""
    try:
        symmetry = symmetry_of(source, SymmetryOptions(symprec=symprec))
        evidence = evidence_answer(symmetry, top, explain)
        if explain and isinstance(source, Density) and any(name.startswith("diff") for name in source.channels):
            evidence["spin"] = _spin_answer(source, symmetry)
    except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        return {"failure": " ".join(str(error).split()) or type(error).__name__}
    evidence["disagrees_on"] = [target for target in labels.TARGETS if target in answer and answer[target] != evidence[target]]
    return evidence


def predict_file(
    path: str | os.PathLike[str],
    model: SymmetryModel,
    top: int = 3,
    *,
    evidence: bool = False,
    explain: bool = False,
    symprec: float = 0.01,
) -> dict[str, Any]:
    """Predict the symmetry of the crystal in one file.

    Parameters
    ----------
    path : path
        A density (CHGCAR) or a structure (CIF, POSCAR, pymatgen's JSON).
    model : SymmetryModel
        From :func:`load_model`.
    top : int
        Alternatives to name.
    evidence : bool
        Add the symmetry that the density itself proves, under ``evidence``.
    explain : bool
        With `evidence`: add its operations and candidates, and under ``spin``, where the density has a spin channel, which operations
        keep the magnetisation (``even``), turn it round (``odd``: they hold with time reversal) or do neither (``broken``).
    symprec : float
        Of the evidence, Å.

    Returns
    -------
    dict
        ``file``, ``model`` and the keys of :func:`symmetry_answer`; with `evidence` those of :func:`evidence_answer` under ``evidence``,
        and ``disagrees_on`` there, the targets in which the two differ; where no symmetry can be found, ``failure`` alone. JSON values
        only.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, or holds nothing that the model can see.
    """
    if top < 1:
        raise ValueError(f"`top` must be at least 1, got {top}")
    SymmetryOptions(symprec=symprec).check()
    # A grid is read once for both; a structure becomes a density in the way that each of them needs.
    source = sources.as_density(path) if evidence and sources.what_is(path)[1] else str(path)
    proba = model.estimator.predict_proba([source])
    answer = {"file": str(path), "model": model.name, **symmetry_answer(np.asarray(proba)[0], model, top)}
    if evidence:
        answer["evidence"] = _evidence_of(source, answer, top, symprec, explain)
    return answer


def predict_many(paths: Sequence[str | os.PathLike[str]], model: SymmetryModel, top: int = 3, **options: Any) -> list[dict[str, Any]]:
    """Predict each of several files; see :func:`predict_file`."""
    return [predict_file(path, model, top, **options) for path in paths]
