"""From files and a trained model to symmetry answers: one plain dict a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from matminer_ed3d import checkpoints, datasets, labels

__all__ = ["TARGET_NAMES", "SymmetryModel", "load_model", "predict_file", "predict_many", "symmetry_answer", "target_proba"]

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


def load_model(name: str = "default") -> SymmetryModel:
    """Load a shipped model by its name, or one of your own by the path of its ``.safetensors`` file.

    Parameters
    ----------
    name : str
        One of ``list_pretrained()``, or a path that ends in ``.safetensors``.

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    ValueError
        If there is no model of that name, or it is no classifier of a symmetry target.
    """
    path = Path(name)
    if path.suffix != ".safetensors":
        shipped = checkpoints.pretrained_paths()
        if name not in shipped:
            raise ValueError(f"`model` must be one of the shipped models {sorted(shipped)} or a path to a .safetensors file, got {name!r}")
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


def predict_file(path: str | os.PathLike[str], model: SymmetryModel, top: int = 3) -> dict[str, Any]:
    """Predict the symmetry of the crystal in one file.

    Parameters
    ----------
    path : path
        A density (CHGCAR) or a structure (CIF, POSCAR, pymatgen's JSON).
    model : SymmetryModel
        From :func:`load_model`.
    top : int
        Alternatives to name.

    Returns
    -------
    dict
        ``file``, ``model`` and the keys of :func:`symmetry_answer`; JSON values only.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, or holds nothing that the model can see.
    """
    if top < 1:
        raise ValueError(f"`top` must be at least 1, got {top}")
    proba = model.estimator.predict_proba([str(path)])
    return {"file": str(path), "model": model.name, **symmetry_answer(np.asarray(proba)[0], model, top)}


def predict_many(paths: Sequence[str | os.PathLike[str]], model: SymmetryModel, top: int = 3) -> list[dict[str, Any]]:
    """Predict each of several files; see :func:`predict_file`."""
    return [predict_file(path, model, top) for path in paths]
