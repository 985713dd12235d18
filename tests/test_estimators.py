from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core.structure import Structure
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted

from matminer_ed3d import checkpoints, estimators
from matminer_ed3d.density import Density
from matminer_ed3d.estimators import PointNetClassifier, PointNetRegressor, SparseCNNClassifier, SparseCNNRegressor
from matminer_ed3d.representations import PointCloud, Sample, SparseTensor
from matminer_ed3d.samples import make_sample

FAST: dict[str, Any] = {
    "max_epochs": 5,
    "batch_size": 12,
    "learning_rate": 3e-3,
    "random_state": 0,
    "device": "cpu",
    "early_stopping": None,
}
ENOUGH = FAST | {"max_epochs": 16, "batch_size": 6, "learning_rate": 1e-2}  # to learn what there is to learn
CLASSIFIERS = (PointNetClassifier, SparseCNNClassifier)
ESTIMATORS = (*CLASSIFIERS, PointNetRegressor, SparseCNNRegressor)


def clouds(n_samples: int = 24) -> list[Sample]:
    """Thin spheres of radius 1 (even rows) and dense ones of radius 2 (odd rows)."""
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    for i in range(n_samples):
        directions = rng.standard_normal((16, 3))
        coords = (1 + i % 2) * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        feats = np.full((16, 1), [0.1, 3.0][i % 2], np.float32)
        samples.append(PointCloud(coords.astype(np.float32), feats, ("total",), 5 * np.eye(3)))
    return samples


def tensors(n_samples: int = 24) -> list[Sample]:
    """Cells of 4 x 4 x 4 voxels, full of small (even rows) or large (odd rows) densities."""
    rng = np.random.default_rng(0)
    coords = np.stack(np.unravel_index(np.arange(64), (4, 4, 4)), axis=1).astype(np.int32)
    scale = [0.1, 3.0]
    return [
        SparseTensor(coords, (scale[i % 2] * rng.random((64, 1))).astype(np.float32), ("total",), 0.5 * np.eye(3), (4, 4, 4))
        for i in range(n_samples)
    ]


def data(cls: type) -> tuple[list[Sample], np.ndarray]:
    X = clouds() if "PointNet" in cls.__name__ else tensors()
    return X, np.array(["one", "two"] * 12) if "Classifier" in cls.__name__ else np.array([1.5, 4.5] * 12)


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if "second" not in k} for entry in history]


# Real input -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def eight(crystals: dict[str, Structure]) -> tuple[list[Structure], list[str]]:
    """Two crystals, each in four slightly different cells."""
    structures, labels = [], []
    for system in ("cubic", "hexagonal"):
        for strain in (0.0, 0.01, 0.02, 0.03):
            structure = crystals[system].copy()
            structures.append(structure.apply_strain(strain, inplace=False))
            labels.append(system)
    return structures, labels


@pytest.mark.parametrize(
    "model",
    [
        PointNetClassifier(max_points=200, max_epochs=60, learning_rate=3e-3, validation_fraction=0.0, random_state=0, device="cpu"),
        SparseCNNClassifier(voxel_size=0.8, max_epochs=20, learning_rate=5e-3, validation_fraction=0.0, random_state=0, device="cpu"),
    ],
    ids=["pointnet", "sparse_cnn"],
)
def test_overfits_eight_structures(model: Any, eight: tuple[list[Structure], list[str]]) -> None:
    structures, labels = eight
    model = clone(model).fit(structures, labels)
    assert model.score(structures, labels) == 1.0
    assert model.predict(structures).tolist() == labels
    assert model.history_[-1]["train_loss"] < 0.5 * model.history_[0]["train_loss"]


def test_a_regressor_overfits_eight_structures(eight: tuple[list[Structure], list[str]]) -> None:
    structures, _ = eight
    volumes = [structure.volume / len(structure) for structure in structures]
    model = SparseCNNRegressor(voxel_size=0.8, max_epochs=80, learning_rate=1e-2, validation_fraction=0.0, random_state=0, device="cpu")
    assert model.fit(structures, volumes).score(structures, volumes) > 0.9


@pytest.mark.filterwarnings("ignore:.*no usable displacement:UserWarning")
def test_every_kind_of_input_gives_the_same_answer(nacl: Structure, quartz: Structure, chgcar_path: Path, tmp_path: Path) -> None:
    from pymatgen.io.vasp.outputs import Chgcar

    quartz.to(filename=str(tmp_path / "quartz.cif"))
    chgcar = Chgcar.from_file(str(chgcar_path))
    X: list[Any] = [nacl, Density.from_structure(quartz), tmp_path / "quartz.cif", chgcar, str(chgcar_path), Density.from_chgcar(chgcar)]
    model = PointNetClassifier(**FAST | {"max_epochs": 1}, max_points=64).fit(X, [0, 1, 1, 2, 2, 2])
    proba = model.predict_proba(X)
    np.testing.assert_allclose(proba[3:], np.broadcast_to(proba[3], (3, 3)), atol=1e-6)
    column = pd.Series(X, dtype=object)
    objects = np.empty(len(X), dtype=object)
    objects[:] = X
    for other in (tuple(X), column, column.to_frame("source"), objects, [[x] for x in X]):
        np.testing.assert_allclose(model.predict_proba(other), proba, atol=1e-6)
    np.testing.assert_allclose(clone(model).set_params(n_jobs=2).fit(X, [0, 1, 1, 2, 2, 2]).predict_proba(X), proba, atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(X[::-1])[::-1], proba, atol=1e-6)  # a row's answer does not depend on the others


# The contract with scikit-learn ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_parameters_are_stored_and_cloned(cls: type) -> None:
    model = cls(**FAST, channels=("total", "diff"))
    params = model.get_params()
    assert vars(model) == params
    assert set(params) >= {"architecture", "channels", "augmentations", "device", "random_state", "checkpoint_dir", "n_jobs"}
    assert clone(model).get_params() == params
    assert model.set_params(batch_size=3).batch_size == 3
    assert "Parameters" in cls.__doc__
    assert "{" + "shared}" not in cls.__doc__
    assert "history_" in cls.__doc__
    tags = get_tags(model)
    assert tags.input_tags.one_d_array
    assert not tags.input_tags.two_d_array
    assert is_classifier(model) != is_regressor(model)


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_unfitted(cls: type) -> None:
    with pytest.raises(NotFittedError):
        cls().predict(clouds(2))
    with pytest.raises(NotFittedError):
        cls().save("nowhere.safetensors")


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_a_seed_repeats_everything(cls: type) -> None:
    X, y = data(cls)
    state = torch.get_rng_state()
    one, two = cls(**FAST).fit(X, y), cls(**FAST).fit(X, y)
    assert without_seconds(one.history_) == without_seconds(two.history_)
    np.testing.assert_array_equal(one._outputs(X), two._outputs(X))
    other = cls(**FAST | {"random_state": 1}).fit(X, y)
    assert not np.array_equal(one._outputs(X), other._outputs(X))
    assert torch.equal(torch.get_rng_state(), state)
    assert not hasattr(one, "n_features_in_")


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_pickle_joblib_and_safetensors(cls: type, tmp_path: Path) -> None:
    X, y = data(cls)
    model = cls(**FAST).fit(X, y)
    joblib.dump(model, tmp_path / "model.joblib")
    model.save(tmp_path / "model.safetensors", metrics={"note": "a test"})
    others = [
        pickle.loads(pickle.dumps(model)),
        joblib.load(tmp_path / "model.joblib"),
        cls.load(tmp_path / "model.safetensors"),
        checkpoints.load_estimator(tmp_path / "model.safetensors"),
    ]
    for other in others:
        assert type(other) is cls
        np.testing.assert_array_equal(other.predict(X), model.predict(X))
        assert other.sample_options_ == model.sample_options_
    assert others[2].header_["metrics"] == {"note": "a test"}
    assert others[2].get_params()["learning_rate"] == 3e-3


@pytest.mark.parametrize(
    "labels", [[7, 225], [True, False], ["cubic", "trigonal"], np.array(["a", "b"], dtype=object)], ids=["int", "bool", "str", "object"]
)
def test_labels_of_any_kind_come_back(labels: Any, tmp_path: Path) -> None:
    X = clouds()
    y = [labels[i % 2] for i in range(24)]
    model = PointNetClassifier(**ENOUGH).fit(X, y)
    assert model.classes_.tolist() == sorted(labels)
    assert model.score(X, y) > 0.9
    proba = model.predict_proba(X)
    assert proba.shape == (24, 2)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(model.classes_[proba.argmax(axis=1)], model.predict(X))
    model.save(tmp_path / "m.safetensors")
    assert PointNetClassifier.load(tmp_path / "m.safetensors").predict(X).tolist() == model.predict(X).tolist()


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_cross_validation(n_jobs: int) -> None:
    X, y = data(PointNetClassifier)
    scores = cross_val_score(PointNetClassifier(**ENOUGH), X, y, cv=2, n_jobs=n_jobs)
    assert scores.shape == (2,)
    assert scores.mean() > 0.8


def test_cross_validation_of_a_regressor() -> None:
    X, y = data(SparseCNNRegressor)
    assert cross_val_score(SparseCNNRegressor(**ENOUGH), X, y, cv=2).mean() > 0.5


def test_grid_search_chooses_the_rate_that_learns() -> None:
    X, y = data(SparseCNNClassifier)
    search = GridSearchCV(SparseCNNClassifier(**FAST), {"learning_rate": np.array([1e-9, 1e-2])}, cv=2).fit(pd.Series(X, dtype=object), y)
    assert search.best_params_ == {"learning_rate": 1e-2}
    assert search.best_estimator_.score(X, y) > 0.8


@pytest.mark.filterwarnings("default")  # what scikit-learn's own estimators warn of is theirs
def test_calibration_voting_and_stacking() -> None:
    X, y = data(PointNetClassifier)
    model = PointNetClassifier(**ENOUGH)
    combined = [
        CalibratedClassifierCV(model, cv=2),
        VotingClassifier([("a", model), ("b", clone(model).set_params(random_state=1))], voting="soft"),
        StackingClassifier([("a", model)], final_estimator=LogisticRegression(), cv=2),
    ]
    for estimator in combined:
        proba = estimator.fit(X, y).predict_proba(X)
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        assert estimator.score(X, y) > 0.8


def test_pipeline_after_a_step_that_makes_rows_of_one() -> None:
    X, y = data(PointNetClassifier)
    rows = FunctionTransformer(lambda samples: [[sample] for sample in samples])  # what matminer's transform returns
    model = make_pipeline(rows, PointNetClassifier(**ENOUGH)).fit(X, y)
    assert model.score(X, y) > 0.9
    assert model[-1].predict_proba([[X[0]]]).shape == (1, 2)  # what matminer's StackedFeaturizer passes


def test_pipeline_after_our_featurizer(nacl: Structure, quartz: Structure) -> None:
    featurizers = pytest.importorskip("matminer_ed3d.featurizers")
    X, y = [nacl, quartz] * 3, [225, 154] * 3
    cloud = featurizers.DensityPointCloud(voxel_size=0.8, reduction="mean")
    model = make_pipeline(cloud, PointNetClassifier(**FAST | {"max_epochs": 40, "validation_fraction": 0.0})).fit(X, y)
    assert model.score(X, y) == 1.0


def test_sample_weight_decides_and_zero_removes() -> None:
    X, y = data(PointNetClassifier)
    wrong = np.where(y == "one", "two", "one")
    weights = np.r_[np.ones(24), np.zeros(24)]
    model = PointNetClassifier(**FAST)
    weighted = clone(model).fit(X + X, np.r_[y, wrong], sample_weight=weights)
    plain = clone(model).fit(X, y)
    np.testing.assert_array_equal(weighted.predict_proba(X), plain.predict_proba(X))
    scaled = clone(model).fit(X, y, sample_weight=np.full(24, 8.0))
    np.testing.assert_allclose(scaled.predict_proba(X), plain.predict_proba(X))
    uneven = clone(model).fit(X, y, sample_weight=np.where(y == "one", 20.0, 1.0))
    assert uneven.predict_proba(X)[:, 0].mean() > plain.predict_proba(X)[:, 0].mean()
    by_class = clone(model).set_params(class_weight={"one": 20.0, "two": 1.0}).fit(X, y)
    np.testing.assert_allclose(by_class.predict_proba(X), uneven.predict_proba(X))
    balanced = clone(model).set_params(class_weight="balanced").fit(X, y)
    np.testing.assert_allclose(balanced.predict_proba(X), plain.predict_proba(X))  # the classes are of equal size


def test_fit_resumes_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matminer_ed3d.training import loop

    X, y = data(PointNetClassifier)
    whole = PointNetClassifier(**FAST).fit(X, y)
    model = PointNetClassifier(**FAST, checkpoint_dir=tmp_path)
    forward, calls = loop._forward, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(loop, "_forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    monkeypatch.undo()
    np.testing.assert_array_equal(model.fit(X, y).predict_proba(X), whole.predict_proba(X))
    assert without_seconds(model.history_) == without_seconds(whole.history_)
    with pytest.raises(ValueError, match="int as `random_state`"):
        clone(model).set_params(random_state=None).fit(X, y)


def test_checkpointing_fits_the_same() -> None:
    X, y = tensors(12), ["a", "b"] * 6
    options = FAST | {"max_epochs": 2, "validation_fraction": 0.0}
    plain, checkpointing = (SparseCNNClassifier(checkpointing=on, **options).fit(X, y) for on in (False, True))
    assert any(getattr(module, "checkpointing", False) for module in checkpointing.module_.modules())
    np.testing.assert_array_equal(checkpointing.predict_proba(X), plain.predict_proba(X))


def test_defaults_follow_the_architecture() -> None:
    assert PointNetClassifier()._sample_options().voxel_size == 0.5
    assert PointNetClassifier()._sample_options().max_points == 4096
    assert SparseCNNClassifier()._sample_options().max_points is None
    for cls in ESTIMATORS:
        paper, other = cls(architecture="paper")._sample_options(), cls()._sample_options()
        assert other.reduction == "mean"
        assert (paper.voxel_size, paper.max_points) == (0.25, "paper")
        assert paper.reduction == "random"
        chosen = cls(architecture="paper", voxel_size=0.4, max_points=None, reduction="mean")._sample_options()
        assert (chosen.voxel_size, chosen.max_points, chosen.reduction) == (0.4, None, "mean")
    for cls in (SparseCNNClassifier, SparseCNNRegressor):
        other, paper = cls()._sample_options(), cls(architecture="paper")._sample_options()
        assert (other.voxel_basis, paper.voxel_basis) == ("lattice", "cartesian")
        cut = cls(architecture="paper", cell="reduced", d_min=1.0)._sample_options()  # voxels of a resolution are along the lattice
        cut.check()
        assert cut.voxel_basis == "lattice"
        with pytest.raises(ValueError, match="voxel_basis='lattice'"):
            cls(architecture="paper", cell="reduced", d_min=1.0, voxel_basis="cartesian")._sample_options().check()


def test_header_says_what_the_weights_are_for(tmp_path: Path) -> None:
    X = tensors()
    y = np.array([225, 194] * 12)
    model = SparseCNNClassifier(**FAST | {"learning_rate": np.float64(0.01)}, class_weight={225: 1.0, 194: 2.0}).fit(X, y)
    model.save(tmp_path / "m.safetensors", target="space_group_number", data="a test", dtype="float16")
    header = checkpoints.read_header(tmp_path / "m.safetensors")
    assert header["classes"] == [194, 225]
    assert header["target"] == "space_group_number"
    assert header["preprocessing"]["kind"] == "voxels"
    assert "random_state" not in header["params"]
    json.dumps(header)
    with pytest.raises(ValueError, match="labels of 'crystal_system'"):
        model.save(tmp_path / "m2.safetensors", target="crystal_system")
    np.testing.assert_allclose(SparseCNNClassifier.load(tmp_path / "m.safetensors").predict_proba(X), model.predict_proba(X), atol=0.02)


# Clear errors ---------------------------------------------------------------------------------------------------------


def test_what_fit_refuses() -> None:
    X, y = data(PointNetClassifier)
    model = PointNetClassifier(**FAST)
    bad: list[tuple[Any, Any, Any, str]] = [
        ([], [], None, "at least one"),
        (X, y[:-1], None, "each of the 24 rows of `X`, got 23"),
        (X, None, None, "y is None"),
        (X, ["one"] * 24, None, "at least two classes, got one class"),
        (X, [*y[:-1], None], None, r"None or NaN in rows \[23\]"),
        (X, [*y[:-1], float("nan")], None, r"None or NaN in rows \[23\]"),
        (X, pd.Series([*y[:-1], pd.NA], dtype="string"), None, r"None or NaN in rows \[23\]"),
        (X, y, np.where(y == "one", 1.0, 0.0), "one class: .*among the rows of a weight above zero"),
        (X, np.linspace(0, 1, 24), None, "continuous"),
        ([*X[:3], float("nan"), *X[4:]], y, None, r"NaN in 1 rows, the first \[3\]; a featurizer"),
        ([*X[:3], None, *X[4:]], y, None, r"the first \[3\]"),
        (X, y, np.ones(3), r"`sample_weight` must be \(24,\)"),
        (X, y, -np.ones(24), "at least 0"),
        (X, y, np.r_[np.ones(23), np.nan], "finite"),
        (pd.DataFrame({"a": X, "b": X}), y, None, "one column"),
    ]
    for inputs, labels, weights, message in bad:
        with pytest.raises(ValueError, match=message):
            clone(model).fit(inputs, labels, sample_weight=weights)
    with pytest.raises(TypeError, match=r"got a single one"):
        model.fit(X[0], y)
    with pytest.raises(ValueError, match="row 1 of `X`"):  # mixed kinds
        model.fit([X[0], tensors(1)[0]], ["a", "b"])
    with pytest.raises(TypeError, match="row 1 of `X`"):
        model.fit([X[0], 3], ["a", "b"])
    periodic, other = tensors(2)
    assert isinstance(other, SparseTensor)
    with pytest.raises(ValueError, match="`voxel_basis`"):
        SparseCNNClassifier(**FAST).fit([periodic, replace(other, grid_shape=None)], [0, 1])
    with pytest.raises(ValueError, match=r"`y` must be finite.*rows \[0\]"):
        PointNetRegressor(**FAST).fit(X, [np.inf] * 1 + [1.0] * 23)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_epochs": 0}, "`max_epochs` must be"),
        ({"learning_rate": -1.0}, "`learning_rate` must be"),
        ({"precision": "fp8"}, "`precision` must be"),
        ({"augmentations": ("flip",)}, "`augmentations` must be"),
        ({"architecture": "huge"}, "`architecture`"),
        ({"cell": "giant"}, "`cell` must be"),
        ({"device": "abacus"}, "`device` must be"),
        ({"class_weight": "fair"}, "class_weight"),
        ({"class_weight": {"one": 0.0, "two": 0.0}}, "at least two classes, got no class"),
        ({"class_weight": {"one": 0.0, "two": 1.0}}, "at least two classes, got one class"),
        ({"class_weight": {"one": -1.0, "two": 1.0}}, "`class_weight` must be finite"),
        ({"channels": "total"}, r"`channels` must be a tuple of names, got the string 'total'; write \('total',\)"),
        ({"augmentations": "noise"}, r"`augmentations` must be a tuple of names, got the string 'noise'"),
        ({"max_epochs": 1.5}, r"`max_epochs` must be an integer, got 1\.5"),
        ({"batch_size": "8"}, "`batch_size` must be an integer, got '8'"),
        ({"learning_rate": "fast"}, "`learning_rate` must be a number"),
        ({"early_stopping": 2.5}, "`early_stopping` must be None or an integer"),
        ({"voxel_size": "0.25"}, r"`voxel_size` must be a number in Å or 'auto', got '0\.25'"),
        ({"max_points": 10.5}, "`max_points` must be an integer"),
        ({"max_points": "all"}, "`max_points` must be an integer"),
        ({"threshold": None}, "`threshold` must be a number"),
    ],
)
def test_parameters_are_checked_in_fit_only(params: dict[str, Any], message: str) -> None:
    X, y = data(PointNetClassifier)
    model = PointNetClassifier(**FAST | params)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)


def test_what_predict_refuses() -> None:
    X, y = data(PointNetClassifier)
    model = PointNetClassifier(**FAST).fit(X, y)
    cloud = X[0]
    with pytest.raises(ValueError, match=r"channels \('total',\), got \('diff',\)"):
        model.predict([replace(cloud, channels=("diff",))])
    with pytest.raises(ValueError, match="expected a PointCloud, got a SparseTensor"):
        model.predict(tensors(1))
    with pytest.raises(ValueError, match="at least one"):
        model.predict([])
    with pytest.raises(ValueError, match="holds a PointNetClassifier, not a PointNetRegressor"):
        _load_as_another(model)


def test_a_fit_that_fails_leaves_nothing_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matminer_ed3d import training

    for cls in ESTIMATORS:
        X, y = data(cls)
        cls(**FAST | {"max_epochs": 1}).fit(X, y).save(tmp_path / "m.safetensors")
        model = cls.load(tmp_path / "m.safetensors")
        model.predict(X[:2])

        def diverge(*args: Any, **options: Any) -> Any:
            raise FloatingPointError("the loss is nan")

        with monkeypatch.context() as patch:
            patch.setattr(training, "train", diverge)
            with pytest.raises(FloatingPointError):
                model.fit(X, [*y[:-1], y[0]])
        with pytest.raises(NotFittedError):
            model.predict(X)
        with pytest.raises(NotFittedError):
            check_is_fitted(model)
        assert not hasattr(model, "header_")


def test_a_ready_sample_of_another_preprocessing_is_refused() -> None:
    X, y = data(SparseCNNClassifier)
    sample = X[0]
    assert isinstance(sample, SparseTensor)
    model = SparseCNNClassifier(**FAST | {"max_epochs": 1}).fit(X, y)
    strangers = {
        r"row 1 of `X`|`voxel_basis` 'lattice', got a SparseTensor in open space.*DensitySparseTensor\(": replace(sample, grid_shape=None),
        r"voxels of about 0\.5 Å.*got a mean edge of 1\.5 Å": replace(sample, voxel_basis=1.5 * np.eye(3)),
        r"got a mean edge of 0\.1 Å": replace(sample, voxel_basis=0.1 * np.eye(3)),
    }
    for message, stranger in strangers.items():
        with pytest.raises(ValueError, match=message):
            model.predict([sample, stranger])
    model.predict([replace(sample, voxel_basis=0.7 * np.eye(3)), replace(sample, voxel_basis=0.35 * np.eye(3))])
    with pytest.raises(ValueError, match=r"`voxel_basis` 'cartesian', got a periodic SparseTensor \(4, 4, 4\)"):
        SparseCNNClassifier(**FAST, voxel_basis="cartesian").fit(X, y)


def test_the_shipped_preprocessing_takes_its_own_samples_and_no_raw_ones(crystals: dict[str, Structure]) -> None:
    model = SparseCNNClassifier(cell="reduced", d_min=1.0, voxel_size=0.5, max_voxels=2048, threshold=-100.0, standardize=True, **FAST)
    options = model._sample_options()
    model.sample_options_ = options
    rng = np.random.default_rng(0)
    for structure in crystals.values():
        sample = make_sample(structure, options)
        assert isinstance(sample, SparseTensor)
        noisy = replace(sample, feats=(sample.feats + 0.3 * rng.standard_normal(sample.feats.shape)).astype(np.float32))
        model._samples([sample, noisy], rng=None)
        raw = make_sample(structure, replace(options, standardize=False))
        with pytest.raises(ValueError, match=r"expected a standardized total .*got mean [\d.]+ and rms.*standardize=True"):
            model._samples([raw], rng=None)
    large = make_sample(crystals["monoclinic"].make_supercell([3, 3, 3], in_place=False), replace(options, max_voxels=60))
    model._samples([large], rng=None)  # `max_voxels` enlarges voxels
    flat = SparseTensor(np.zeros((1, 3), np.int32), np.zeros((1, 1), np.float32), ("total",), 0.5 * np.eye(3), (1, 1, 1))
    model._samples([flat], rng=None)


def test_voxels_refuse_a_rotation_that_does_nothing() -> None:
    for cls in (SparseCNNClassifier, SparseCNNRegressor):
        with pytest.raises(ValueError, match=r"no effect; take 'permutation'.*use PointNet"):
            cls(**FAST, augmentations=("origin_shift", "rotation")).fit(*data(cls))


def test_a_prediction_holds_a_bounded_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data(PointNetClassifier)
    model = PointNetClassifier(**FAST | {"max_epochs": 1}).fit(X, y)
    whole = model.predict_proba(X)
    monkeypatch.setattr(estimators, "ROWS_AT_ONCE", 2)
    model.set_params(batch_size=4)
    make, held = type(model)._samples, []

    def counted(self: Any, rows: list[Any], **options: Any) -> Any:
        held.append(len(rows))
        return make(self, rows, **options)

    monkeypatch.setattr(PointNetClassifier, "_samples", counted)
    np.testing.assert_allclose(model.predict_proba(X[:21]), whole[:21], atol=1e-6)
    assert held == [8, 8, 5]
    with pytest.raises(TypeError, match="row 20 of `X`"):
        model.predict([*X[:20], 3])


def _load_as_another(model: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "m.safetensors")
        PointNetRegressor.load(Path(folder) / "m.safetensors")


# scikit-learn's own checks --------------------------------------------------------------------------------------------
# They want 2-D arrays, so these subclasses, of the tests only, turn a row of numbers into a cloud of one point per column.


class _RowsAsClouds:
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        from sklearn.utils.validation import validate_data

        X, y = validate_data(self, X, y, y_numeric=is_regressor(self))
        self.center_, self.spread_ = X.mean(axis=0), X.std(axis=0) + 1e-9
        return super().fit(self._clouds(X), y, sample_weight)  # type: ignore[misc]

    def _outputs(self, X: Any) -> np.ndarray:
        from sklearn.utils.validation import check_is_fitted, validate_data

        check_is_fitted(self, "module_")
        return super()._outputs(self._clouds(validate_data(self, X, reset=False)))  # type: ignore[misc]

    def _clouds(self, X: np.ndarray) -> list[Sample]:
        X = (X - self.center_) / self.spread_
        columns = np.arange(X.shape[1], dtype=np.float32)
        place = np.stack([np.cos(columns), np.sin(columns), 0.3 * columns], axis=1)
        return [
            PointCloud((place * (3 + np.tanh(row))[:, None]).astype(np.float32), row[:, None].astype(np.float32), ("total",), np.eye(3))
            for row in X
        ]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = False
        tags.no_validation = False
        return tags


class RowsClassifier(_RowsAsClouds, PointNetClassifier):
    pass


class RowsRegressor(_RowsAsClouds, PointNetRegressor):
    pass


ROUNDING = "float32 sums run in another order in a batch of another size: answers agree to 1e-6, not to 1e-7"
EXPECTED = {
    "check_methods_subset_invariance": ROUNDING,
    "check_methods_sample_order_invariance": ROUNDING,
    "check_sample_weight_equivalence_on_dense_data": "a sample of weight 2 is drawn once per epoch, not twice: batches differ",
}
CHECKED = {"max_epochs": 4, "learning_rate": 5e-3, "batch_size": 16, "validation_fraction": 0.0, "random_state": 0, "device": "cpu"}


@pytest.mark.usefixtures("as_user")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@parametrize_with_checks(
    [RowsClassifier(**CHECKED), RowsRegressor(**CHECKED | {"max_epochs": 10})],
    expected_failed_checks=lambda estimator: EXPECTED,
    xfail_strict=False,
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    if check.keywords.get("readonly_memmap"):
        pytest.skip("the same check on memory-mapped arrays: rows become clouds first")
    check(estimator)


def test_all_estimators_are_named_in_the_checkpoint_table() -> None:
    assert set(checkpoints.ESTIMATORS) == set(estimators.__all__)
