"""Units of an electron density, for the formats that do not name theirs."""

from __future__ import annotations

from typing import Literal

__all__ = ["BOHR", "Unit"]

BOHR = 0.529177210903
"""Bohr radius in Å (CODATA 2018)."""

Unit = Literal["e/A^3", "e/bohr^3"]
