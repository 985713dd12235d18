"""The one door to spglib."""

from __future__ import annotations

import warnings
from typing import Any

__all__ = ["call_spglib"]


def call_spglib(function: str, *args: Any, **options: Any) -> Any:
    """Call a function of spglib by its name; None where it finds no answer.

    spglib 2.7 and later announce at every call that failures will one day raise. Both ways come out alike here, and the notice, which
    is not for our users, is left out.
    """
    import spglib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return getattr(spglib, function)(*args, **options)
        except getattr(spglib, "SpglibError", RuntimeError):
            return None
