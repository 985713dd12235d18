"""Densities in JSON."""

from __future__ import annotations

from collections.abc import Sequence

from matminer_ed3d.density import Density, Quantity
from matminer_ed3d.readers.streams import TextStream
from matminer_ed3d.readers.units import Unit


def read_chgcar_json(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    raise NotImplementedError


def read_density_json(
    stream: TextStream, *, channels: Sequence[str] | None = None, quantity: Quantity | None = None, unit: Unit | None = None
) -> Density:
    raise NotImplementedError

