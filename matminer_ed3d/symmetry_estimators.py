"""Classifiers by proof: the density's own symmetry as a scikit-learn classifier, alone or as the judge of another one's best answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float
from joblib import Parallel, delayed
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, ClassifierMixin

from matminer_ed3d import labels
from matminer_ed3d.sources import as_density, as_list
from matminer_ed3d.symmetry import DensitySymmetry, find_symmetry

if TYPE_CHECKING:
    from sklearn.utils import Tags

__all__ = ["TARGETS", "EvidenceGuidedClassifier", "SymmetryEvidenceClassifier", "SymmetryOptions", "symmetry_of"]

TARGETS = {"space_group": "space_group_number", "extinction_group": "extinction_group", "crystal_system": "crystal_system"}
"""What can be asked for, and what :mod:`matminer_ed3d.labels` calls it."""

STRUCTURE_D_MIN = 1.0  # Å; at it a structure's density is made, exactly
STRUCTURE_SPACING = 0.25  # Å; coarsest grid of it
OTHER = 1e-5  # probability that the group is none of the candidates, spread over all 230
LEAST_PROBABILITY = 1e-300  # of a candidate, so that it has a logarithm
TEMPERATURES = (0.02, 50.0)
WEIGHTS = (0.0, 10.0)

Evidence = TypeVar("Evidence", bound="SymmetryEvidenceClassifier")
Guided = TypeVar("Guided", bound="EvidenceGuidedClassifier")


@dataclass(frozen=True)
class SymmetryOptions:
    """How the symmetry of a source is looked for; see :func:`matminer_ed3d.symmetry.find_symmetry`."""

    symprec: float = 0.01
    channel: str = "total"
    d_min: float | None = None

    def check(self) -> None:
        """Refuse what has no meaning."""
        if not (np.isfinite(self.symprec) and self.symprec > 0):
            raise ValueError(f"`symprec` must be a positive distance in Å, got {self.symprec}")
        if self.d_min is not None and not self.d_min > 0:
            raise ValueError(f"`d_min` must be a positive resolution in Å, got {self.d_min}")


def symmetry_of(source: Any, options: SymmetryOptions | None = None) -> DensitySymmetry:
    """Find the symmetry of anything that holds a density, or of a structure by its promolecule.

    Parameters
    ----------
    source : Density, Structure, Chgcar, path or DensitySymmetry
        A structure is shown as its band-limited density at 1 Å, or at the `d_min` of the options; a DensitySymmetry passes through.
    options : SymmetryOptions, optional
        How to look.

    Raises
    ------
    ValueError
        If the source has no symmetry to find (a constant density), or a ready DensitySymmetry was found at another `symprec`.
    """
    options = options or SymmetryOptions()
    options.check()
    if isinstance(source, DensitySymmetry):
        if source.symprec != options.symprec:
            raise ValueError(f"expected a symmetry found at symprec {options.symprec}, got one at {source.symprec}; find it again")
        return source
    d_min = options.d_min or STRUCTURE_D_MIN
    density = as_density(source, method="band_limited", d_min=d_min, grid_spacing=min(STRUCTURE_SPACING, d_min / 2))
    return find_symmetry(density, symprec=options.symprec, channel=options.channel, d_min=options.d_min)


def _symmetry_of_row(row: Any, options: SymmetryOptions, number: int) -> DensitySymmetry:
    try:
        return symmetry_of(row, options)
    except (ValueError, TypeError, OSError, ArithmeticError, RuntimeError) as error:
        error.add_note(f"This was row {number} of `X`.")
        raise


def _symmetries(rows: Sequence[Any], options: SymmetryOptions, n_jobs: int | None) -> list[DensitySymmetry]:
    options.check()
    if n_jobs in (None, 1) or len(rows) == 1:
        return [_symmetry_of_row(row, options, i) for i, row in enumerate(rows)]
    # A Chgcar cannot be unpickled (pymatgen-core 2026.10).
    sent = ((as_density(row) if hasattr(row, "data_aug") else row) for row in rows)
    found: list[DensitySymmetry] = Parallel(n_jobs=n_jobs, backend="loky")(
        delayed(_symmetry_of_row)(row, options, i) for i, row in enumerate(sent)
    )
    return found


def _log_weights(symmetries: Sequence[DensitySymmetry]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Space groups of each row's candidates, and the logarithms of their probabilities."""
    return [
        (
            np.array([c.space_group_number for c in symmetry.candidates]),
            np.log([max(c.probability, LEAST_PROBABILITY) for c in symmetry.candidates]),
        )
        for symmetry in symmetries
    ]


def _space_group_proba(weights: Sequence[tuple[np.ndarray, np.ndarray]], temperature: float) -> Float[np.ndarray, "n 230"]:
    proba = np.zeros((len(weights), 230))
    for row, (numbers, logs) in zip(proba, weights, strict=True):
        scaled = np.exp((logs - logs.max()) / temperature)
        np.add.at(row, numbers - 1, scaled / scaled.sum())
    return (1 - OTHER) * proba + OTHER / 230


@cache
def _classes(target: str) -> tuple[Any, ...]:
    return tuple(np.unique(labels.target_of(np.arange(1, 231), TARGETS[target])).tolist())


def _checked_labels(y: Any, n_rows: int, classes: np.ndarray, target: str) -> np.ndarray:
    """Columns of `classes` that the labels are."""
    if y is None:
        raise ValueError("fit requires y to be passed, but the target y is None")
    given = np.asarray(y, dtype=object).ravel().tolist()
    if len(given) != n_rows:
        raise ValueError(f"`y` must have one label for each of the {n_rows} rows of `X`, got {len(given)}")
    places = {label: i for i, label in enumerate(classes.tolist())}
    wrong = [label for label in given if label not in places]
    if wrong:
        raise ValueError(
            f"`y` must hold classes of {target!r}, such as {classes.tolist()[0]!r} and {classes.tolist()[-1]!r}, got {wrong[0]!r}"
        )
    return np.array([places[label] for label in given])


class SymmetryEvidenceClassifier(ClassifierMixin, BaseEstimator):
    """Symmetry by proof: what :func:`matminer_ed3d.symmetry.find_symmetry` finds, as a classifier.

    It needs no training: ``predict`` and ``predict_proba`` work before ``fit``, which only calibrates the probabilities.

    Parameters
    ----------
    target : {"space_group", "extinction_group", "crystal_system"}
        What to tell.
    symprec : float
        Largest displacement in Å that counts as symmetry.
    d_min : float, optional
        Resolution in Å; by default what the search needs.
    temperature : float, optional
        The logarithms of the candidates' probabilities are divided by it; by default what ``fit`` found, else 1.
    n_jobs : int or None
        Processes; -1 is one per core.

    Attributes
    ----------
    classes_ : (n_classes,) array
        All classes of the target, sorted: 230 numbers, 101 groups or 7 names. There before ``fit``.
    temperature_ : float
        What ``fit`` found.

    Notes
    -----
    A group that is no candidate (neither the one found, nor a maximal subgroup nor a minimal supergroup) has a share of
    1e-5 / 230. The three targets agree: each answers with what was found, as all subgroups share one prior probability, and so do all
    supergroups, and together they do not outweigh it; only at a temperature above 1 might they.
    """

    def __init__(
        self,
        target: str = "space_group",
        symprec: float = 0.01,
        d_min: float | None = None,
        temperature: float | None = None,
        n_jobs: int | None = 1,
    ) -> None:
        self.target = target
        self.symprec = symprec
        self.d_min = d_min
        self.temperature = temperature
        self.n_jobs = n_jobs

    @property
    def classes_(self) -> np.ndarray:
        """All classes of the target, sorted."""
        self._check()
        return np.array(_classes(self.target))

    @property
    def sample_options_(self) -> SymmetryOptions:
        """How the symmetry of each row is looked for."""
        return SymmetryOptions(symprec=self.symprec, d_min=self.d_min)

    def fit(self: Evidence, X: Any, y: Any) -> Evidence:
        """Calibrate: find the temperature that makes the labels most probable.

        Parameters
        ----------
        X : list, Series, 1-D object array or one-column DataFrame
            Densities, Structures, Chgcars, paths or ready DensitySymmetry objects; held-out data of the kind that will be predicted.
        y : (n_samples,) array-like
            Labels of the target.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a label is no class of the target, or see :meth:`predict_proba`.

        Notes
        -----
        The log loss is minimised with a standard normal prior on the logarithm of the temperature, which keeps it near 1 where every
        answer is right and the data set no limit. A `temperature` that was given stays.
        """
        rows = as_list(X)
        places = _checked_labels(y, len(rows), self.classes_, self.target)
        weights = _log_weights(_symmetries(rows, self.sample_options_, self.n_jobs))

        def loss(log_temperature: float) -> float:
            proba = self._coarsened(_space_group_proba(weights, float(np.exp(log_temperature))))
            return float(-np.log(proba[np.arange(len(rows)), places]).sum() + 0.5 * log_temperature**2)

        self.temperature_ = float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n n_classes"]:
        """Return the probability of every class; columns in the order of ``classes_``, rows sum to 1.

        Raises
        ------
        ValueError, TypeError, OSError
            That of the first row without a symmetry to find, with a note that names the row.
        """
        temperature = self._check()
        weights = _log_weights(_symmetries(as_list(X), self.sample_options_, self.n_jobs))
        return self._coarsened(_space_group_proba(weights, temperature))

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of every row; errors as :meth:`predict_proba`."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _coarsened(self, proba: Float[np.ndarray, "n 230"]) -> Float[np.ndarray, "n n_classes"]:
        return labels.coarsen_proba(proba, np.arange(1, 231), TARGETS[self.target])[0]

    def _check(self) -> float:
        """Refuse parameters that have no meaning; return the temperature."""
        if self.target not in TARGETS:
            raise ValueError(f"`target` must be one of {tuple(TARGETS)}, got {self.target!r}")
        temperature = getattr(self, "temperature_", 1.0) if self.temperature is None else self.temperature
        if not (np.isfinite(temperature) and temperature > 0):
            raise ValueError(f"`temperature` must be positive, got {temperature}")
        return float(temperature)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        return _tags(super().__sklearn_tags__())


class EvidenceGuidedClassifier(ClassifierMixin, BaseEstimator):
    """A classifier whose best answers are ranked anew by the density's own symmetry.

    Among the `top` most probable classes of a row, ``log p = log p_classifier + weight * log p_evidence``; they share the
    probability that they had together, and the others keep theirs. So the answer is always one of the classifier's own `top`.

    Parameters
    ----------
    classifier : fitted classifier
        Of space groups, extinction groups or crystal systems; needs ``classes_`` and ``predict_proba``, and takes what
        holds a density (no ready samples). ``clone`` makes an unfitted copy of it; :class:`sklearn.frozen.FrozenEstimator` keeps it.
    evidence : SymmetryEvidenceClassifier, optional
        Of the same target; its ``n_jobs`` counts. By default one of the classifier's target, where that can be told: from the header
        of the file that it came from, from names of crystal systems, or from numbers above 101.
    top : int
        How many classes of each row to rank anew.
    weight : float
        Of the evidence; 0 changes nothing.

    Attributes
    ----------
    classes_ : (n_classes,) array
        Those of the classifier, in its order.
    weight_ : float
        What ``fit`` found.
    """

    def __init__(
        self, classifier: Any, evidence: SymmetryEvidenceClassifier | None = None, top: int = 5, weight: float | None = 1.0
    ) -> None:
        self.classifier = classifier
        self.evidence = evidence
        self.top = top
        self.weight = weight

    @property
    def classes_(self) -> np.ndarray:
        """Those of the classifier."""
        return np.asarray(self.classifier.classes_)

    def fit(self: Guided, X: Any, y: Any) -> Guided:
        """With ``weight=None``, find the weight that makes the labels most probable; else there is nothing to learn.

        Parameters
        ----------
        X : list, Series, 1-D object array or one-column DataFrame
            Held-out Densities, Structures, Chgcars or paths; the classifier should not have seen them.
        y : (n_samples,) array-like
            Labels among ``classes_``.
        """
        rows = as_list(X)
        places = _checked_labels(y, len(rows), self.classes_, "the classifier")
        if self.weight is not None:
            self._check()
            return self
        proba, evidence = self._both(rows)

        def loss(weight: float) -> float:
            ranked = _ranked_anew(proba, evidence, self.top, weight)[np.arange(len(rows)), places]
            return float(-np.log(np.maximum(ranked, LEAST_PROBABILITY)).sum() + 0.5 * (weight - 1) ** 2)

        self.weight_ = float(minimize_scalar(loss, bounds=WEIGHTS, method="bounded").x)
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n n_classes"]:
        """Return the probability of every class; columns in the order of ``classes_``, rows sum to 1.

        Raises
        ------
        ValueError, TypeError, OSError
            That of the first row which the classifier refuses, or which has no symmetry to find.
        """
        weight = self._check()
        return _ranked_anew(*self._both(as_list(X)), self.top, weight)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of every row; errors as :meth:`predict_proba`."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _both(self, rows: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities of the classifier and of the evidence, in the order of ``classes_``."""
        self._check()
        judge = self.evidence if self.evidence is not None else SymmetryEvidenceClassifier(_target_of(self.classifier))
        columns = _checked_labels(self.classes_, len(self.classes_), judge.classes_, judge.target)
        proba = np.asarray(self.classifier.predict_proba(rows), dtype=float)
        return proba, judge.predict_proba(rows)[:, columns]

    def _check(self) -> float:
        if self.top < 1:
            raise ValueError(f"`top` must be at least 1, got {self.top}")
        weight = getattr(self, "weight_", 1.0) if self.weight is None else self.weight
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"`weight` must be 0 or more, got {weight}")
        return float(weight)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self.classifier, "classes_")

    def __sklearn_tags__(self) -> Tags:
        return _tags(super().__sklearn_tags__())


def _ranked_anew(proba: Float[np.ndarray, "n k"], evidence: Float[np.ndarray, "n k"], top: int, weight: float) -> Float[np.ndarray, "n k"]:
    """Share the probability of each row's `top` best classes anew."""
    ranked = proba.copy()
    order = np.argsort(-proba, axis=1, kind="stable")[:, :top]
    best = np.take_along_axis(proba, order, axis=1)
    logs = np.log(np.maximum(best, LEAST_PROBABILITY)) + weight * np.log(np.take_along_axis(evidence, order, axis=1))
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    shares *= best.sum(axis=1, keepdims=True) / shares.sum(axis=1, keepdims=True)
    np.put_along_axis(ranked, order, shares, axis=1)
    return ranked


def _target_of(classifier: Any) -> str:
    """Target of a classifier; refuses numbers that could be space groups or extinction groups."""
    recorded = (getattr(classifier, "header_", None) or {}).get("target")
    classes = np.asarray(classifier.classes_)
    for target, name in TARGETS.items():
        if recorded == name:
            return target
    if classes.dtype.kind in "UO":
        return "crystal_system"
    if classes.max() > len(_classes("extinction_group")):
        return "space_group"
    raise ValueError(
        "the classifier's classes could be space groups or extinction groups; say which: "
        "EvidenceGuidedClassifier(classifier, evidence=SymmetryEvidenceClassifier(target='space_group'))"
    )


def _tags(tags: Tags) -> Tags:
    tags.input_tags.one_d_array = True
    tags.input_tags.two_d_array = False
    tags.no_validation = True
    tags.requires_fit = False
    return tags
