"""Controls: what a baseline scores that sees no density, so that a model's accuracy can be read against it.

``majority``
    The most frequent class of the training rows.
``metric``
    A tree model on the lattice metric: of the conventional cell with its centring letter under the protocol ``conventional``,
    of the cell as given under ``primitive``, of the Niggli-reduced primitive cell under ``blind``.
``volume``
    A tree model on the volume of that cell alone.
``composition``
    A tree model on the element fractions.

The tree model is scikit-learn's histogram gradient boosting for the 7 crystal systems and a random forest for the many
classes of the finer targets.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from matminer_ed3d import protocols

__all__ = ["CONTROLS", "control_features", "control_predictions", "fit_predict", "metric_features", "stack_features"]

CONTROLS = ("majority", "metric", "volume", "composition")
CENTRINGS = "PABCIFR"
MAX_TRAINING_ROWS = 24_000
MIN_ROWS = 50  # below this a fitted baseline says nothing
N_FOLDS = 5
N_TREES, TREES_AT_ONCE = 60, 10  # a forest over 230 classes is large in memory: it is grown and dropped in parts

Features = dict[str, Float[np.ndarray, "..."]]


def metric_features(lattice: Float[np.ndarray, "3 3"], centring: str = "") -> Float[np.ndarray, " n"]:
    """Describe a lattice metric to a tree, which can split on single numbers only.

    Lengths (Å), angles (degrees), their ratios and differences, the volume (Å³), the quotients by which a Niggli cell shows
    its Bravais type (2 b.c / b² and the like; International Tables A, table 3.1.3.1), and the centring letter as 7 flags
    (all 0 where unknown).
    """
    metric = lattice @ lattice.T
    (a2, b2, _), bc, ac, ab = np.diag(metric), metric[1, 2], metric[0, 2], metric[0, 1]
    lengths = np.sqrt(np.diag(metric))
    angles = np.degrees(
        np.arccos(np.clip([bc / (lengths[1] * lengths[2]), ac / (lengths[0] * lengths[2]), ab / (lengths[0] * lengths[1])], -1, 1))
    )
    ratios = [lengths[1] / lengths[0], lengths[2] / lengths[0], lengths[2] / lengths[1]]
    differences = [angles[1] - angles[0], angles[2] - angles[0], angles[2] - angles[1]]
    niggli = [
        2 * abs(bc) / b2,
        2 * abs(ac) / a2,
        2 * abs(ab) / a2,
        2 * abs(bc + ac + ab) / (a2 + b2),
        abs(bc) / a2,
        abs(bc) / a2 - abs(ac) / a2,
    ]
    flags = [float(letter == centring) for letter in CENTRINGS]
    return np.array([*lengths, *angles, *ratios, *differences, *niggli, abs(np.linalg.det(lattice)), *flags])


def control_features(cell: protocols.Cell, protocol: str, symprec: float = 0.1) -> Features:
    """Return what each control sees of one structure.

    Parameters
    ----------
    cell : (lattice, frac_coords, atomic numbers)
        The structure as given.
    protocol : {"conventional", "primitive", "blind"}
        Decides whose metric and volume are shown.
    symprec : float
        Tolerance in Å of the conventional or primitive cell.

    Raises
    ------
    ValueError
        If spglib finds no such cell.
    """
    numbers = cell[2]
    centring = ""
    if protocol == "conventional":
        cell, centring = protocols.conventional_cell(cell, symprec)
    elif protocol == "blind":
        cell = protocols.niggli_cell(cell, symprec)
    fractions = np.bincount(numbers, minlength=119)[1:119] / len(numbers)
    metric = metric_features(cell[0], centring)
    return {"metric": metric, "volume": np.array([abs(np.linalg.det(cell[0]))]), "composition": fractions}


def stack_features(rows: list[Features]) -> Features:
    """Turn the features of single structures into one (n_rows, n_features) array a control."""
    return {name: np.stack([row[name] for row in rows]) for name in ("metric", "volume", "composition")}


def fit_predict(x_train: np.ndarray, y_train: np.ndarray, x: np.ndarray, target: str, seed: int = 0, n_jobs: int = 1) -> np.ndarray:
    """Fit the tree model of a target and predict other rows.

    Parameters
    ----------
    x_train, x : (n_train, n_features) and (n, n_features) float
    y_train : (n_train,) labels
    target : {"crystal_system", "extinction_group", "space_group_number"}
        Gradient boosting for the system, a random forest for the others.
    seed, n_jobs : int
        Of scikit-learn.

    Returns
    -------
    (n,) labels
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

    classes = np.unique(y_train)
    if len(classes) == 1:
        return np.repeat(classes, len(x))
    if target == "crystal_system":
        booster = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.2, max_bins=127, early_stopping=False, random_state=seed)
        return booster.fit(x_train, y_train).predict(x)
    proba = np.zeros((len(x), len(classes)))
    for part in range(N_TREES // TREES_AT_ONCE):
        forest = RandomForestClassifier(TREES_AT_ONCE, random_state=seed * 1000 + part, n_jobs=n_jobs)
        proba += forest.fit(x_train, y_train).predict_proba(x)
    return classes[proba.argmax(axis=1)]


def _majority(y_train: np.ndarray, n: int) -> np.ndarray:
    values, counts = np.unique(y_train, return_counts=True)
    return np.repeat(values[[counts.argmax()]], n)


def _predict(control: str, train: Features, y_train: np.ndarray, rows: Features, target: str, seed: int, n_jobs: int) -> np.ndarray:
    if control == "majority":
        return _majority(y_train, len(rows["volume"]))
    return fit_predict(train[control], y_train, rows[control], target, seed, n_jobs)


def control_predictions(
    features: Features,
    y: np.ndarray,
    target: str,
    train: tuple[Features, np.ndarray] | None = None,
    seed: int = 0,
    n_jobs: int = 1,
) -> dict[str, np.ndarray] | None:
    """Predict with each of the four controls the rows that a model was scored on.

    Parameters
    ----------
    features : dict of (n, n_features) arrays
        Of the evaluated rows, as :func:`stack_features` makes them.
    y : (n,) labels
        Their labels; used for the cross-validation only.
    target : str
        See :func:`fit_predict`.
    train : (features, labels), optional
        Rows to fit on; without them, 5-fold cross-validation over the evaluated rows.
    seed, n_jobs : int
        Of the folds and the tree models.

    Returns
    -------
    dict or None
        Predicted labels of each control; None with fewer than 50 rows to fit on.
    """
    from sklearn.model_selection import KFold

    n = len(y)
    if (n if train is None else len(train[1])) < MIN_ROWS:
        return None
    if train is not None:
        return {control: _predict(control, *train, features, target, seed, n_jobs) for control in CONTROLS}
    predicted = {control: np.empty_like(y) for control in CONTROLS}
    for fit_rows, test_rows in KFold(N_FOLDS, shuffle=True, random_state=seed).split(np.arange(n)):
        fold = {name: values[fit_rows] for name, values in features.items()}
        held_out = {name: values[test_rows] for name, values in features.items()}
        for control in CONTROLS:
            predicted[control][test_rows] = _predict(control, fold, y[fit_rows], held_out, target, seed, n_jobs)
    return predicted
