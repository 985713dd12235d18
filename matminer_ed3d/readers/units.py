"""Units and quantities, for the formats that do not name theirs: cube, XSF and VESTA's.

A density in e/bohr³ that is taken for e/Å³, or the other way round, is wrong by a factor of 6.748. Where the atoms are known, the number of
electrons tells: it is about a whole number, no more than the protons, and at least one for every second atom. Files say in their
comments what they hold; where they say nothing, a value that is negative in earnest is no electron density.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from matminer_ed3d.density import Quantity
from matminer_ed3d.readers.errors import file_error

__all__ = [
    "BOHR",
    "HARTREE",
    "Unit",
    "check_own_unit",
    "electron_counts",
    "is_times_volume",
    "negative_share",
    "quantity_named",
    "settle_quantity",
    "unit_by_count",
    "unit_named",
]

BOHR = 0.529177210903
"""Bohr radius in Å (CODATA 2018)."""

HARTREE = 27.211386245988
"""Hartree in eV (CODATA 2018)."""

Unit = Literal["e/A^3", "e/bohr^3"]

NAMED_UNIT = re.compile(
    r"(?<![a-z])e(?:l|lectrons?)?\s*/\s*\(?(?:(?P<bohr>bohr|a0|a\.?u\.?)|(?:å|ang(?:stroms?)?|a))\s*(?:\^|\*\*)?\s*(?:3|³)", re.IGNORECASE
)
# Not about what the values are: settings and results of the calculation, which titles of good densities name too.
HARMLESS = re.compile(
    r"(?i)(?:no|non|without)[-_ ]?spin(?![a-z])"
    r"|(?<![a-z])spin[-_ ]*(?:polari|multiplicit|orbit|state|(?:un)?restricted|singlet|quantum|contamin)"
    r"|(?:conjugate|generali[sz]ed)[-_ ]gradients?|gradient[-_ ](?:correct|optimi|descent)"
    r"|pseudo[-_ ]?potential|potential[-_ ](?:well|energy)|(?:chemical|interatomic)[-_ ]potential|\d\s*hartree"
    r"|(?:finite|energy)[-_ ]differences?|different(?:ly)?(?![a-z])"
)
# The first that is found counts: "electrostatic potential from the SCF density" is a potential.
QUANTITY_WORDS: tuple[tuple[Quantity, re.Pattern[str]], ...] = (
    ("elf", re.compile(r"(?i)(?<![a-z])elf(?:car)?(?![a-z])|electron locali[sz]ation")),
    ("potential", re.compile(r"(?i)potential|(?<![a-z])v?_?hartree(?!s|[- ]?fock)|(?<![a-z])(?:esp|mep|locpot)(?![a-z])")),
    ("orbital", re.compile(r"\bMOs?\b|(?i:orbital|wave ?function|\b(?:homo|lumo)\b)")),
    (
        "unknown",
        re.compile(
            r"(?i)(?<![a-z])spin(?![a-z])|differen|(?<![a-z])diff(?![a-z])|laplacian|gradient|magneti[sz]ation"
            r"|deformation|(?<![a-z])(?:rdg|nci|mag)(?![a-z])"
        ),
    ),
    ("electron_density", re.compile(r"(?i)density|charge|(?<![a-z])rho(?![a-z])")),
)
MOST_NEGATIVE = 0.01  # of the sum of magnitudes: augmented and interpolated densities dip below 0 by less
EXCESS = (0.02, 2.0)  # electrons more than protons: grids that miss the cusps, and anions
WHOLE = (1e-3, 1e-6)  # electrons, and share of them, by which a sum over a grid may miss a whole number
NOT_WHOLE = 0.05  # electrons


def unit_named(text: str) -> Unit | None:
    """Return the unit of a density that a title or comment names, such as ``e/A^3``; None if it names none, or both."""
    found: set[Unit] = {"e/bohr^3" if match["bohr"] else "e/A^3" for match in NAMED_UNIT.finditer(text)}
    return found.pop() if len(found) == 1 else None


def quantity_named(text: str) -> Quantity | None:
    """Return the quantity that a title or comment names; ``unknown`` for a spin density, a difference or a derivative; None if none."""
    telling = HARMLESS.sub("", text)
    return next((quantity for quantity, words in QUANTITY_WORDS if words.search(telling)), None)


def negative_share(values: np.ndarray) -> float:
    """Return the sum of the negative values over the sum of the magnitudes, between 0 and 1."""
    total = float(np.abs(values).sum())
    return (total - float(values.sum())) / (2 * total) if total > 0 else 0.0


def settle_quantity(path: str, values: np.ndarray, text: str, quantity: Quantity | None) -> Quantity:
    """Decide what a file holds.

    Parameters
    ----------
    path : str
        Named in the warning.
    values : array of float
        Of the first grid.
    text : str
        The file's titles and comments.
    quantity : str or None
        What the caller says; it counts.

    Warns
    -----
    UserWarning
        If values that would else be an electron density are negative by more than 1 % of their sum: the quantity is then ``unknown``.
    """
    if quantity is not None:
        return quantity
    named = quantity_named(text)
    if named not in (None, "electron_density"):
        return named
    share = negative_share(values)
    if share > MOST_NEGATIVE:
        message = f"{path}: {share:.1%} of the values' weight is negative, so this is no electron density; its quantity is 'unknown'"
        warnings.warn(f"{message} (if it is one after all, quantity='electron_density')", UserWarning, stacklevel=5)
        return "unknown"
    return "electron_density"


# --- units by the number of electrons ---------------------------------------------------------------------------------------------


def electron_counts(integral: float) -> dict[Unit, float]:
    """Return the electrons in either unit; `integral` is the mean of the file's numbers times the volume of the cell in Å³."""
    return {"e/bohr^3": integral / BOHR**3, "e/A^3": integral}


def _is_possible(n_electrons: float, protons: Sequence[int]) -> bool:
    most = (1 + EXCESS[0]) * sum(protons) + EXCESS[1]
    return 0.5 * len(protons) <= n_electrons <= most


def _is_whole(n_electrons: float) -> bool:
    return abs(n_electrons - round(n_electrons)) <= WHOLE[0] + WHOLE[1] * n_electrons


def _is_not_whole(n_electrons: float) -> bool:
    return abs(n_electrons - round(n_electrons)) > NOT_WHOLE


def _counts_text(integral: float, protons: Sequence[int]) -> str:
    counts = electron_counts(integral)
    atoms = f"; the {len(protons)} atoms have {sum(protons)} protons" if protons else "; there are no atoms to compare with"
    return f"{counts['e/bohr^3']:.6g} electrons if in e/bohr^3, {counts['e/A^3']:.6g} if in e/A^3{atoms}"


def check_own_unit(path: str, integral: float, own: Unit, protons: Sequence[int], valence: Sequence[float] = ()) -> None:
    """Warn where the number of electrons speaks against the unit that a format prescribes; the unit is kept all the same.

    The rule: if the file gives charges of the ions, and their sum is the number of electrons (within 1 %) in the format's unit, all is
    well; if it is so in the other unit, warn. Else warn if there are more electrons than protons (by more than 2 % and 2), or if they
    are a whole number in the other unit (to 0.001) and far from one in the format's own (0.05).

    Parameters
    ----------
    path : str
        Named in the warning.
    integral : float
        Mean of the file's numbers times the volume of the cell in Å³.
    own : {"e/A^3", "e/bohr^3"}
        The format's unit.
    protons : sequence of int
        Of each atom; nothing is checked without atoms.
    valence : sequence of float, optional
        Charge of each ion, where the file has it.

    Warns
    -----
    UserWarning
        With both numbers of electrons and the way out.
    """
    if not protons:
        return
    other: Unit = "e/A^3" if own == "e/bohr^3" else "e/bohr^3"
    counts = electron_counts(integral)
    doubtful = not _is_possible(counts[own], protons) and counts[own] > len(protons)  # too few are those of a band or a surface
    doubtful |= _is_possible(counts[other], protons) and _is_whole(counts[other]) and _is_not_whole(counts[own])
    if valence and min(valence) > 0:
        expected = sum(valence)
        fits = {unit: abs(count - expected) <= 0.01 * expected + 0.05 for unit, count in counts.items()}
        if fits[own]:
            return
        doubtful |= fits[other]
    if doubtful:
        message = f"{path}: {_counts_text(integral, protons)}; {own}, the unit of the format, is assumed"
        warnings.warn(f"{message}: if it is the other, unit='{other}'", UserWarning, stacklevel=5)


def is_times_volume(path: str, integral: float, volume: float, protons: Sequence[int]) -> bool:
    """Tell whether a cube that pymatgen wrote holds a density times the volume, as its Chgcar does, or one in e/bohr³.

    The rule: if there are no more electrons in e/bohr³ than protons (by more than 2 % and 2), or fewer than atoms, it is a cube as any
    other. If not, and the mean of the numbers alone is a possible number of electrons, it is a Chgcar's.

    Parameters
    ----------
    path, integral, protons
        As in :func:`check_own_unit`.
    volume : float
        Of the cell, Å³.

    Raises
    ------
    DensityFileError
        If it is neither, or could be in e/Å³ too.

    Warns
    -----
    UserWarning
        If it is a Chgcar's; with the number of electrons.
    """
    counts = electron_counts(integral)
    if not protons or _is_possible(counts["e/bohr^3"], protons) or counts["e/bohr^3"] <= len(protons):
        return False
    n_electrons = integral / volume
    fits = [n for n in (n_electrons, counts["e/A^3"]) if _is_possible(n, protons)]
    whole = [n for n in fits if _is_whole(n)]
    if (whole or fits) == [n_electrons]:
        message = f"{path}: pymatgen wrote this cube of a Chgcar, with the density times the volume: {n_electrons:.6g} electrons"
        warnings.warn(f"{message}; divided by the volume of {volume:.6g} Å³ (if it is not so, say unit=)", UserWarning, stacklevel=4)
        return True
    found = f"a cube by pymatgen, of {_counts_text(integral, protons)}, or {n_electrons:.6g} if times the volume, as in its Chgcar"
    raise file_error(path, found, "one of these to fit; say unit='e/bohr^3', unit='e/A^3' or quantity=, or read the CHGCAR itself")


def unit_by_count(path: str, integral: float, protons: Sequence[int]) -> Unit:
    """Choose the unit in which the number of electrons makes sense, for a format that prescribes none.

    The rule: a unit is possible if there are no more electrons than protons (by more than 2 % and 2) and at least one for every two
    atoms. If the number is whole (to 0.001) in one possible unit, and impossible or far from whole (0.05) in the other, it is that one.
    Else the only possible one is taken, or e/bohr³ if both or none are, with a warning.

    Parameters
    ----------
    path, integral, protons
        As in :func:`check_own_unit`.

    Warns
    -----
    UserWarning
        Where the unit is an assumption; with both numbers of electrons and the way out.
    """
    counts = electron_counts(integral)
    possible = [unit for unit, count in counts.items() if _is_possible(count, protons) and protons]
    whole = [unit for unit in possible if _is_whole(counts[unit])]
    if len(whole) == 1 and all(unit in whole or _is_not_whole(counts[unit]) for unit in possible):
        return whole[0]
    assumed: Unit = possible[0] if len(possible) == 1 else "e/bohr^3"
    message = f"{path}: no unit is stated: {_counts_text(integral, protons)}; {assumed} is assumed"
    warnings.warn(f"{message}; say unit='e/bohr^3' or unit='e/A^3' to be sure", UserWarning, stacklevel=5)
    return assumed
