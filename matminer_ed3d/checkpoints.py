"""Weights on disk: safetensors files whose header says what the weights are for, and the pretrained models of the package.

A file is tensors and JSON text: nothing in it is ever executed. Reading a header needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module, metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matminer_ed3d import labels, tensor_files
from matminer_ed3d.samples import SampleOptions

if TYPE_CHECKING:
    import torch

__all__ = [
    "ESTIMATORS",
    "FORMAT_VERSION",
    "list_pretrained",
    "load_checkpoint",
    "load_estimator",
    "load_pretrained",
    "pretrained_paths",
    "read_header",
    "save_checkpoint",
]

FORMAT_VERSION = 1
ESTIMATORS = {  # the only classes that a file can name
    name: f"matminer_ed3d.estimators:{name}"
    for name in ("PointNetClassifier", "PointNetRegressor", "SparseCNNClassifier", "SparseCNNRegressor")
}
REQUIRED = ("format_version", "package_version", "estimator", "params", "classes", "target", "preprocessing")
OPTIONAL = ("target_scale", "data", "protocol", "metrics", "citation")


def save_checkpoint(
    path: str | os.PathLike[str], state_dict: Mapping[str, torch.Tensor], header: Mapping[str, Any], *, dtype: str = "float32"
) -> None:
    """Write weights and their header, all or nothing.

    Parameters
    ----------
    path : path
        Usually ends in ``.safetensors``.
    state_dict : mapping of str to Tensor
        As ``module.state_dict()`` gives it.
    header : mapping
        JSON values. ``estimator``, ``params``, ``classes``, ``target`` and ``preprocessing`` are required (see
        :func:`load_checkpoint`); ``target_scale``, ``data``, ``protocol``, ``metrics`` and ``citation`` may be there. The two
        versions are added.
    dtype : {"float32", "float16"}
        Storage of floating-point tensors; float16 halves the file and keeps 3 digits. They are float32 again when read.

    Raises
    ------
    ValueError
        If the header could not be read back, or a weight does not fit into float16.
    """
    import torch

    header = {"format_version": FORMAT_VERSION, "package_version": _package_version(), **header}
    _check_header(header, str(path))
    if dtype not in ("float32", "float16"):
        raise ValueError(f"`dtype` must be 'float32' or 'float16', got {dtype!r}")
    tensors = {}
    for name, tensor in state_dict.items():
        tensors[name] = tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
        if tensor.is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise ValueError(f"weight {name!r} is not finite when stored as {dtype}; use dtype='float32', or look for a diverged training")
    tensor_files.write(path, tensors, header)


def pretrained_paths() -> dict[str, Path]:
    """Return the files of the shipped models by name."""
    folder = Path(str(resources.files("matminer_ed3d") / "data" / "models"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read weights and their header, and refuse what this version does not know.

    Parameters
    ----------
    path : path
        A file that :func:`save_checkpoint` wrote.

    Returns
    -------
    header : dict
        ``format_version``, ``package_version``, ``estimator`` (class name), ``params`` (its parameters), ``classes`` (labels in the
        order of the outputs; None for a regressor), ``target`` (one of ``labels.TARGETS``, or None), ``preprocessing`` (the fields
        of ``SampleOptions``), and what else was given.
    tensors : dict of str to Tensor
        Floating-point tensors in float32.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, has another format version, or names an estimator, label or preprocessing unknown here.
    """
    header, tensors = tensor_files.read(path)
    _check_header(header, str(path))
    return header, {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check the header alone; see :func:`load_checkpoint`."""
    header = tensor_files.read_header(path)
    _check_header(header, str(path))
    return header


def load_estimator(path: str | os.PathLike[str]) -> Any:
    """Load a fitted estimator from a file that its ``save`` wrote; the file says which class it is.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    estimator
        Ready to predict.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`load_checkpoint`.
    """
    # By name: estimators import this module, and the table above is the only source of names.
    module, _, name = ESTIMATORS[read_header(path)["estimator"]].partition(":")
    return getattr(import_module(module), name).load(path)


def load_pretrained(name: str = "default") -> Any:
    """Load a model that is shipped with the package.

    Parameters
    ----------
    name : str
        One of the keys of :func:`list_pretrained`.

    Returns
    -------
    estimator
        Fitted; its header is in :func:`list_pretrained`.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    models = pretrained_paths()
    if name not in models:
        raise ValueError(f"`name` must be one of the shipped models {sorted(models)}, got {name!r}; use load_estimator(path) for a file")
    return load_estimator(models[name])


def list_pretrained() -> dict[str, dict[str, Any]]:
    """Return the headers of the shipped models by name: classes, preprocessing, data, protocol, metrics."""
    return {name: read_header(path) for name, path in pretrained_paths().items()}


def _check_header(header: Mapping[str, Any], path: str) -> None:
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version must be {FORMAT_VERSION}, got {version!r} (written by matminer_ed3d {header.get('package_version')}); "
            "install that version of the package, or train again"
        )
    missing, unknown = set(REQUIRED) - set(header), set(header) - set(REQUIRED) - set(OPTIONAL)
    if missing or unknown:
        raise ValueError(f"{path}: the header must have the keys {REQUIRED}, missing {sorted(missing)}, unknown {sorted(unknown)}")
    if header["estimator"] not in ESTIMATORS:
        raise ValueError(f"{path}: `estimator` must be one of {sorted(ESTIMATORS)}, got {header['estimator']!r}")
    if header["target"] not in (None, *labels.TARGETS):
        raise ValueError(f"{path}: `target` must be None or one of {labels.TARGETS}, got {header['target']!r}")
    known = _known_labels(header["target"])
    strangers = [] if known is None else [label for label in header["classes"] or [] if label not in known]
    if strangers:
        raise ValueError(f"{path}: `classes` must be labels of {header['target']!r}, got {strangers[:5]}")
    options = {field.name for field in fields(SampleOptions)}
    if set(header["preprocessing"]) != options:
        odd = sorted(set(header["preprocessing"]) ^ options)
        raise ValueError(f"{path}: `preprocessing` must have the fields of SampleOptions {sorted(options)}; missing or unknown: {odd}")


def _known_labels(target: str | None) -> frozenset[int | str] | None:
    """Return the labels that a target can take; None for a target of the user's own."""
    if target is None:
        return None
    names: dict[str, Any] = {
        "crystal_system": labels.CRYSTAL_SYSTEMS,
        "extinction_group": range(1, 102),
        "space_group_number": range(1, 231),
    }
    return frozenset(names[target])


def _package_version() -> str:
    try:
        return metadata.version("matminer_ed3d")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
