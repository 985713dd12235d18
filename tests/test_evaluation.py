"""Evaluation: the right rows, the right labels beside the right probabilities, and no training row in silence."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

from matminer_ed3d import conditions, controls, datasets, evaluation, labels, protocols, scores
from matminer_ed3d.density import Density
from matminer_ed3d.prediction import SymmetryModel
from matminer_ed3d.samples import SampleOptions

SMALL = ("cubic", "hexagonal", "tetragonal", "orthorhombic", "trigonal")


def row_of(structure, row_id, number):
    return {
        "id": row_id,
        "formula": structure.composition.reduced_formula,
        "n_sites": len(structure),
        "lattice": structure.lattice.matrix.ravel().tolist(),
        "numbers": list(structure.atomic_numbers),
        "frac": structure.frac_coords.ravel().tolist(),
        "sg_symprec_01": number,
        "sg_symprec_001": number,
    }


def write(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def rows(crystals):
    """60 crystals of five space groups, each of its own volume per primitive cell."""
    made = []
    for i in range(60):
        structure = crystals[SMALL[i % 5]].get_primitive_structure()
        structure.scale_lattice(structure.volume * (1 + 0.002 * i))
        made.append(row_of(structure, f"mp-{i}", labels.space_group_number(structure)))
    return made


@pytest.fixture
def path(tmp_path, rows):
    return write(tmp_path / "structures.parquet", rows)


class VolumeOracle:
    """Knows every crystal of a table by the volume of its primitive cell: any row out of place shows as a wrong answer."""

    sample_options_ = SampleOptions(kind="voxels", voxel_size=1.0, reduction="mean", cell="reduced", d_min=2.0)
    classes_ = np.array([58, 136, 154, 186, 225])

    def __init__(self, rows, confidence=0.9):
        self.volumes = np.array([abs(np.linalg.det(np.reshape(row["lattice"], (3, 3)))) for row in rows])
        self.numbers = np.array([row["sg_symprec_01"] for row in rows])
        self.confidence = confidence
        self.n_seen = 0

    def predict_proba(self, samples):
        self.n_seen += len(samples)
        proba = []
        for sample in samples:
            nearest = np.abs(self.volumes - abs(np.linalg.det(sample.lattice))).argmin()
            proba.append(np.where(self.classes_ == self.numbers[nearest], self.confidence, (1 - self.confidence) / 4))
        return np.array(proba)


def oracle(rows, train_ids=None):
    return SymmetryModel("oracle", VolumeOracle(rows), "space_group_number", train_ids)


@pytest.mark.parametrize("protocol", ["primitive", "blind"])
@pytest.mark.parametrize("shown", [{}, {"noise": 0.05, "d_min": 1.2}])
def test_an_oracle_scores_one(path, rows, protocol, shown):
    result = evaluation.evaluate(path, oracle(rows), protocol=protocol, control_rows=0, progress=False, limit=20, **shown)
    assert result["n"] == 20
    assert result["n_failed"] == 0
    for target in ("space_group", "extinction_group", "crystal_system"):
        assert (
            result[target]["top1_counting_failures"]
            == result[target]["top1"]
            == result[target]["top3"]
            == result[target]["macro_f1"]
            == 1.0
        )
        assert result[target]["controls"] is None
        assert result[target]["controls_reason"] == "switched off"
        assert result[target]["ece"] == pytest.approx(0.1)
    assert result["space_group"]["top1_up_to_enantiomorph"] == 1.0
    assert {name for name, recall in result["crystal_system"]["per_class_recall"].items() if recall == 1.0} == set(SMALL)
    assert json.loads(json.dumps(result)) == result


def test_controls_are_reported_beside_each_target(path, rows):
    result = evaluation.evaluate(path, oracle(rows), "crystal_system", protocol="conventional", progress=False)
    assert "space_group" not in result
    scored = result["crystal_system"]
    assert tuple(scored["controls"]) == controls.CONTROLS
    assert all(set(control) == {"top1", "macro_f1"} for control in scored["controls"].values())
    assert result["controls_fitted_on"].startswith("5-fold cross-validation")
    assert scored["metric_misleads"]["n"] == round(result["n"] * (1 - scored["controls"]["metric"]["top1"]))


def test_controls_are_fitted_on_training_rows_where_the_table_has_them(path, rows, monkeypatch):
    monkeypatch.setattr(evaluation, "MIN_TRAINING_ROWS", 30)
    monkeypatch.setattr(controls, "MIN_ROWS", 30)
    train_ids = frozenset(row["id"] for row in rows[:40])
    result = evaluation.evaluate(path, oracle(rows, train_ids), "crystal_system", progress=False)
    assert result["n"] == 20
    assert result["controls_fitted_on"].startswith("40 rows that the model was trained")
    assert result["crystal_system"]["controls"]["metric"]["top1"] == 1.0


def test_rows_seen_in_training_are_left_out_or_announced(path, rows):
    train_ids = frozenset(row["id"] for row in rows[:40])
    model = oracle(rows, train_ids)
    unseen = evaluation.evaluate(path, model, control_rows=0, progress=False, protocol="primitive")
    assert (unseen["n"], unseen["n_seen_in_training"], unseen["seen_rows"]) == (20, 40, "left out")
    assert model.estimator.n_seen == 20
    everything = evaluation.evaluate(path, model, control_rows=0, progress=False, split="all", protocol="primitive")
    assert (everything["n"], everything["n_seen_in_training"], everything["seen_rows"]) == (60, 40, "evaluated")
    unknown = evaluation.evaluate(path, oracle(rows), control_rows=0, progress=False, limit=3)
    assert unknown["training_ids_known"] is False
    with pytest.raises(ValueError, match=r"no row is eligible .*60 of them seen"):
        evaluation.evaluate(path, oracle(rows, frozenset(row["id"] for row in rows)), progress=False)


@pytest.mark.parametrize("split", ["test", "prototype_test"])
def test_named_splits_are_those_of_the_shipped_models(path, rows, split):
    sides = protocols.assign_split(*([row[name] for row in rows] for name in ("id", "formula", "sg_symprec_01")))
    expected = int((sides == split).sum())
    if expected == 0:
        with pytest.raises(ValueError, match="no row is eligible"):
            evaluation.evaluate(path, oracle(rows), control_rows=0, progress=False, split=split)
    else:
        assert evaluation.evaluate(path, oracle(rows), control_rows=0, progress=False, split=split)["n"] == expected


def test_one_bad_row_never_stops_the_run(tmp_path, rows):
    bad = [dict(rows[0], id=f"bad-{i}") for i in range(6)]
    bad[0]["lattice"] = [0.0] * 9
    bad[1]["frac"] = bad[1]["frac"][:-1]
    bad[2]["numbers"] = [0] * len(bad[2]["numbers"])
    bad[3]["lattice"] = None
    bad[4]["frac"] = [float("nan")] * len(bad[4]["frac"])
    bad[5].update(frac=[0.0] * 6, numbers=[11, 11])  # atoms overlap: spglib finds nothing
    path = write(tmp_path / "bad.parquet", [*bad[:3], *rows[:5], *bad[3:]])
    result = evaluation.evaluate(path, oracle(rows), control_rows=0, progress=False)
    assert (result["n"], result["n_failed"]) == (5, 6)
    assert result["space_group"]["top1"] == 1.0
    for target in ("space_group", "extinction_group", "crystal_system"):
        assert result[target]["top1_counting_failures"] == pytest.approx(5 / 11)
    assert sorted(row["id"] for row in result["failures"]["rows"]) == [row["id"] for row in bad]
    assert all(row["reason"] for row in result["failures"]["rows"])


def test_all_rows_bad_is_a_result_without_scores(tmp_path, rows):
    path = write(tmp_path / "bad.parquet", [dict(rows[0], lattice=[0.0] * 9)])
    result = evaluation.evaluate(path, oracle(rows), progress=False)
    assert (result["n"], result["n_failed"], result["space_group"]) == (0, 1, None)


def test_a_sample_that_the_model_refuses_costs_only_itself(path, rows):
    class Picky(VolumeOracle):
        def predict_proba(self, samples):
            if any(abs(abs(np.linalg.det(sample.lattice)) - self.volumes[7]) < 1e-6 for sample in samples):
                raise RuntimeError("out of memory")
            return super().predict_proba(samples)

    model = SymmetryModel("picky", Picky(rows), "space_group_number")
    result = evaluation.evaluate(path, model, control_rows=0, progress=False)
    assert (result["n"], result["n_failed"]) == (59, 1)
    assert result["failures"]["rows"] == [{"id": "mp-7", "reason": "RuntimeError: out of memory"}]
    assert result["space_group"]["top1"] == 1.0


def test_labels_are_computed_where_the_table_has_none(tmp_path, rows):
    for row in rows:
        del row["sg_symprec_01"]
        row["sg_symprec_001"] = 0
    unlabelled = write(tmp_path / "unlabelled.parquet", rows)
    known = [dict(row, sg_symprec_01=number) for row, number in zip(rows, [225, 186, 136, 58, 154] * 12, strict=True)]
    for symprec in (0.1, 0.01):
        result = evaluation.evaluate(unlabelled, oracle(known), control_rows=0, progress=False, symprec=symprec, limit=10)
        assert result["space_group"]["top1"] == 1.0


def test_workers_and_row_order_change_nothing(tmp_path, path, rows):
    options = {"control_rows": 0, "progress": False, "noise": 0.2, "split": "all"}
    first = evaluation.evaluate(path, oracle(rows), **options)
    assert evaluation.evaluate(path, oracle(rows), n_jobs=2, **options) == first
    turned = write(tmp_path / "structures.parquet", rows[::-1])
    again = evaluation.evaluate(turned, oracle(rows), **options)
    assert again["space_group"] == first["space_group"]


def test_shown_density_has_the_noise_and_resolution_asked_for(nacl):
    shown = conditions.Conditions("primitive", d_min=1.5)
    clean = conditions.shown_source(nacl, shown, np.random.default_rng(0))
    assert isinstance(clean, Density)
    assert clean.n_electrons() == pytest.approx(4 * (11 + 17), rel=1e-3)
    assert (clean.grid_spacing <= 0.25 + 1e-9).all()
    coefficients = np.fft.fftn(clean.channels["total"])
    q = np.stack(np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in clean.grid_shape], indexing="ij"), -1) / nacl.lattice.a
    assert np.abs(coefficients[np.linalg.norm(q, axis=-1) > 1 / 1.5 + 1e-6]).max() < 1e-6 * np.abs(coefficients).max()
    noisy = conditions.add_noise(clean, 0.2, np.random.default_rng(0))
    difference = noisy.channels["total"] - clean.channels["total"]
    assert difference.std() / clean.channels["total"].std() == pytest.approx(0.2, rel=0.05)
    assert conditions.shown_source(nacl, conditions.Conditions("primitive"), np.random.default_rng(0)) is nacl


@pytest.mark.parametrize("options", [{}, {"noise": 0.1}, {"d_min": 1.5}, {"protocol": "conventional", "n_jobs": 2}], ids=str)
def test_evidence_takes_the_options_of_every_model(path, options):
    result = evaluation.evaluate(path, "evidence", control_rows=0, progress=False, limit=5, **options)
    assert (result["n"], result["n_failed"], result["model"]) == (5, 0, "evidence")
    assert result["training_ids_known"] is True
    assert result["n_seen_in_training"] == 0
    for target in ("space_group", "extinction_group", "crystal_system"):
        assert result[target]["top1"] == 1.0


def test_a_bad_row_costs_the_evidence_only_itself(tmp_path, rows):
    path = write(tmp_path / "bad.parquet", [dict(rows[0], id="bad", lattice=[0.0] * 9), *rows[:3]])
    result = evaluation.evaluate(path, "evidence", "crystal_system", control_rows=0, progress=False, symprec=0.01)
    assert (result["n"], result["n_failed"]) == (3, 1)
    assert result["crystal_system"]["top1"] == 1.0


def test_figures_of_merit_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    classes = np.arange(5)
    proba = rng.dirichlet(np.ones(5), 300)
    y = np.array([rng.choice(5, p=p) for p in proba])
    predicted = proba.argmax(1)
    for top in (1, 3):
        assert scores.top_k_accuracy(y, proba, classes, top) == pytest.approx(top_k_accuracy_score(y, proba, k=top, labels=classes))
    assert scores.macro_f1(y, predicted) == pytest.approx(f1_score(y, predicted, average="macro"))
    recall = scores.per_class_recall(y, predicted, classes)
    assert np.mean(list(recall.values())) == pytest.approx(balanced_accuracy_score(y, predicted))
    # Labels drawn from the probabilities: calibrated by construction, up to the noise of 300 rows.
    assert scores.expected_calibration_error(predicted == y, proba.max(1)) < 0.12


def test_calibration_error_of_known_cases():
    assert scores.expected_calibration_error(np.array([True, True]), np.array([1.0, 1.0])) == 0.0
    assert scores.expected_calibration_error(np.array([False, False]), np.array([1.0, 1.0])) == 1.0
    assert scores.expected_calibration_error(np.array([True, False]), np.array([0.8, 0.8])) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "standard"}, "`protocol` must be one of"),
        ({"symprec": 0.2}, "`symprec` must be one of"),
        ({"noise": -1.0}, "`noise`"),
        ({"d_min": 0.0}, "`d_min`"),
        ({"split": "train"}, "`split` must be one of"),
        ({"targets": "bravais"}, "`targets` must be 'all' or one of"),
        ({"seed": -1}, "`seed`"),
        ({"limit": 0}, "`limit` must be at least 1"),
    ],
)
def test_wrong_options_are_refused(path, rows, options, message):
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(path, oracle(rows), progress=False, **options)


def test_a_coarse_model_cannot_tell_the_fine_target(path, rows):
    class Systems(VolumeOracle):
        classes_ = np.array(labels.CRYSTAL_SYSTEMS)

        def predict_proba(self, samples):
            return np.full((len(samples), 7), 1 / 7)

    model = SymmetryModel("systems", Systems(rows), "crystal_system")
    result = evaluation.evaluate(path, model, control_rows=0, progress=False, limit=5)
    assert "crystal_system" in result
    assert "space_group" not in result
    with pytest.raises(ValueError, match="use another model or target"):
        evaluation.evaluate(path, model, "space_group", progress=False)


def test_tables_that_are_none(tmp_path, rows):
    with pytest.raises(FileNotFoundError, match="no such file"):
        datasets.read_structures(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="expected a parquet file"):
        datasets.read_structures(tmp_path / "text.parquet")
    without = write(tmp_path / "without.parquet", [{k: v for k, v in row.items() if k not in ("frac", "numbers")} for row in rows])
    with pytest.raises(ValueError, match=r"column\(s\) numbers, frac missing"):
        datasets.read_structures(without)
    plain = write(tmp_path / "plain.parquet", [{k: v for k, v in row.items() if k != "formula"} for row in rows])
    with pytest.raises(ValueError, match=r"column\(s\) formula"):
        evaluation.evaluate(plain, oracle(rows), split="test", progress=False)


def test_training_ids_round_trip(tmp_path):
    ids = ["mp-3", "mp-149", "mvc-12", "mp-007", "mp-99999999999", "mp-3", "α"]
    datasets.save_train_ids(tmp_path / "m.train_ids.npz", ids)
    loaded = datasets.load_train_ids(tmp_path / "m.train_ids.npz")
    assert loaded == set(ids)
    assert datasets.seen_in_training(["mp-149", "mp-7", "mp-007"], loaded).tolist() == [True, False, True]
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    with pytest.raises(ValueError, match="list of training ids"):
        datasets.load_train_ids(tmp_path / "other.npz")
