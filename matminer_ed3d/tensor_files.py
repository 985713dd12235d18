"""Tensors and a JSON header in one safetensors file: written all or nothing, and nothing in it is ever executed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from matminer_ed3d.atomic_files import replacing

if TYPE_CHECKING:
    import torch

__all__ = ["read", "read_header", "write"]

HEADER_KEY = "matminer_ed3d"  # of the safetensors metadata, whose values are strings


def write(path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a header so that a reader, at any time, finds the old file or the new one, never a part.

    Parameters
    ----------
    path : path
        Its folder is made where it is missing.
    tensors : mapping of str to Tensor
        On any device.
    header : mapping
        JSON values.

    Raises
    ------
    TypeError
        If the header is no JSON.
    """
    from safetensors.torch import save

    payload = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {HEADER_KEY: json.dumps(header)})
    with replacing(path) as file:
        file.write(payload)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read the header and the tensors, on the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no such file, or damaged.
    """
    with _opened(path, "pt") as file:
        return _header_of(file, path), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  a file, not a dict


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the header alone, without torch; raises as :func:`read`."""
    with _opened(path, "numpy") as file:
        return _header_of(file, path)


@contextmanager
def _opened(path: str | os.PathLike[str], framework: str) -> Iterator[Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must be a weight file (.safetensors), found none at {os.fspath(path)}")
    try:
        with safe_open(os.fspath(path), framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} is no safetensors file, or a damaged one ({error}); fetch or save it again") from error


def _header_of(file: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    text = (file.metadata() or {}).get(HEADER_KEY)
    if text is None:
        raise ValueError(
            f"{os.fspath(path)} has no {HEADER_KEY!r} header: nothing says what its tensors are for; write it with this package"
        )
    header: dict[str, Any] = json.loads(text)
    return header
