"""Controls: what a baseline without a density scores."""

from __future__ import annotations

import numpy as np
import pytest

from matminer_ed3d import controls, labels, protocols


def cell_of(structure):
    return structure.lattice.matrix, structure.frac_coords, np.array(structure.atomic_numbers)


def test_metric_of_a_blind_cell_depends_on_the_crystal_alone(crystals):
    """The control of `blind` sees the Niggli cell: no rotation, origin or basis change may reach it."""
    for structure in crystals.values():
        expected = controls.control_features(cell_of(structure), "blind", 0.01)
        shown = protocols.apply_protocol(structure, "blind", rng=5, symprec=0.01)
        got = controls.control_features(cell_of(shown), "blind", 0.01)
        assert np.sort(got["metric"][:3]) == pytest.approx(np.sort(expected["metric"][:3]), abs=1e-6)
        assert got["volume"] == pytest.approx(expected["volume"])
        assert got["composition"] == pytest.approx(expected["composition"])


def test_conventional_metric_shows_the_leak(nacl):
    features = controls.control_features(cell_of(nacl.get_primitive_structure()), "conventional")
    assert features["metric"][:6] == pytest.approx([nacl.lattice.a] * 3 + [90.0] * 3)
    assert features["metric"][-7:].tolist() == [float(letter == "F") for letter in controls.CENTRINGS]
    assert features["volume"][0] == pytest.approx(nacl.volume)


def test_primitive_metric_is_the_cell_as_given(quartz):
    quartz.make_supercell([1, 1, 2])
    features = controls.control_features(cell_of(quartz), "primitive")
    assert features["metric"][:3] == pytest.approx(quartz.lattice.abc)
    assert features["metric"][3:6] == pytest.approx(quartz.lattice.angles)
    assert not features["metric"][-7:].any()
    assert features["composition"][[7, 13]] == pytest.approx([2 / 3, 1 / 3])
    assert features["composition"].sum() == pytest.approx(1.0)


def table(n, rng):
    """Rows whose crystal system is in the metric, whose group is in the composition, and nothing in the volume."""
    cubic = rng.random(n) < 0.7
    second = rng.random(n) < 0.5
    numbers = np.where(cubic, np.where(second, 225, 221), np.where(second, 139, 123))
    features = {
        "metric": np.stack([4.0 + rng.random(n), np.where(cubic, 1.0, 1.3)], axis=1),
        "volume": rng.random((n, 1)),
        "composition": np.stack([second, rng.random(n)], axis=1).astype(float),
    }
    return features, numbers


@pytest.mark.parametrize("with_training_rows", [True, False])
def test_controls_find_what_is_there_and_nothing_else(with_training_rows):
    rng = np.random.default_rng(0)
    features, numbers = table(400, rng)
    train_features, train_numbers = table(600, rng)
    for target in ("crystal_system", "space_group_number"):
        y = labels.target_of(numbers, target)
        train = (train_features, labels.target_of(train_numbers, target)) if with_training_rows else None
        predicted = controls.control_predictions(features, y, target, train)
        top1 = {name: float((p == y).mean()) for name, p in predicted.items()}
        assert tuple(top1) == controls.CONTROLS
        if target == "crystal_system":
            assert top1["metric"] == 1.0
            assert top1["majority"] == pytest.approx(0.7, abs=0.06)
            assert top1["volume"] < 0.75
        else:
            assert top1["metric"] == pytest.approx(0.5, abs=0.1)
            assert top1["majority"] == pytest.approx(0.35, abs=0.06)
            assert top1["composition"] == pytest.approx(0.6, abs=0.12)


def test_few_rows_give_no_control():
    features, numbers = table(controls.MIN_ROWS - 1, np.random.default_rng(0))
    assert controls.control_predictions(features, numbers, "space_group_number") is None


def test_one_class_is_no_error():
    x = np.random.default_rng(0).random((60, 2))
    assert set(controls.fit_predict(x, np.full(60, "cubic"), x, "crystal_system")) == {"cubic"}


def test_same_seed_same_predictions():
    features, numbers = table(200, np.random.default_rng(0))
    first, second = (controls.control_predictions(features, numbers, "space_group_number", seed=3) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in controls.CONTROLS)
