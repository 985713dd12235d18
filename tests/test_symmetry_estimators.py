"""The density's own symmetry as a classifier, and as the judge of another one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from matminer_ed3d import labels, symmetry_estimators
from matminer_ed3d.density import Density
from matminer_ed3d.sources import as_density
from matminer_ed3d.symmetry import find_symmetry
from matminer_ed3d.symmetry_estimators import EvidenceGuidedClassifier, SymmetryEvidenceClassifier, SymmetryOptions, symmetry_of

SYSTEMS = ("monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
NUMBERS = {"monoclinic": 14, "orthorhombic": 58, "tetragonal": 136, "trigonal": 154, "hexagonal": 186, "cubic": 225}


@pytest.fixture(scope="module")
def found(_built_crystals):
    """Each crystal's symmetry, looked for once."""
    return {system: symmetry_of(_built_crystals[system].get_primitive_structure()) for system in SYSTEMS}


class Network:
    """Gives rutile to the wrong group, by a little."""

    classes_ = np.array([225, 14, 58, 136])
    proba = np.array([0.05, 0.05, 0.5, 0.4])

    def __init__(self):
        self.seen = []

    def predict_proba(self, rows):
        self.seen += rows
        return np.tile(self.proba, (len(rows), 1))


def changed(symmetry, probabilities):
    """The same symmetry with other probabilities of its first candidates."""
    from dataclasses import replace

    candidates = [replace(c, probability=p) for c, p in zip(symmetry.candidates, probabilities, strict=False)]
    return replace(symmetry, candidates=tuple(candidates))


# SymmetryEvidenceClassifier


@pytest.mark.parametrize(("target", "n_classes"), [("space_group", 230), ("extinction_group", 101), ("crystal_system", 7)])
def test_unfitted_it_tells_every_target(found, target, n_classes):
    model = SymmetryEvidenceClassifier(target)
    check_is_fitted(model)
    rows = list(found.values())
    expected = labels.target_of(list(NUMBERS.values()), symmetry_estimators.TARGETS[target])
    assert model.predict(rows).tolist() == expected.tolist()
    assert model.score(rows, expected) == 1.0
    proba = model.predict_proba(rows)
    assert proba.shape == (len(rows), n_classes)
    assert model.classes_.tolist() == sorted(model.classes_.tolist())
    assert proba.sum(axis=1) == pytest.approx(np.ones(len(rows)))
    assert proba.min() > 0


def test_probabilities_are_those_of_the_search(found):
    proba = SymmetryEvidenceClassifier().predict_proba([found["tetragonal"]])[0]
    assert proba == pytest.approx(found["tetragonal"].space_group_proba(), abs=2 * symmetry_estimators.OTHER)


@pytest.fixture(scope="module")
def nearly_cubic():
    """A perovskite whose titanium leaves its place by a little more each time, through the distance that still counts as symmetry."""
    rows = []
    for shift in np.linspace(0.003, 0.008, 6):  # Å
        cell = Structure.from_spacegroup(221, Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]])
        cell.translate_sites([1], [0, 0, shift / 3.9])
        rows.append(symmetry_of(cell))
    return rows


def test_the_targets_agree_where_it_is_doubtful(nearly_cubic):
    assert {row.space_group_number for row in nearly_cubic} == {99, 221}
    assert min(row.probability for row in nearly_cubic) < 0.7
    for target, name in symmetry_estimators.TARGETS.items():
        expected = labels.target_of([row.space_group_number for row in nearly_cubic], name)
        assert SymmetryEvidenceClassifier(target).predict(nearly_cubic).tolist() == expected.tolist()


def test_conjugate_subgroups_do_not_count_the_same_doubt_twice(nearly_cubic):
    for row in nearly_cubic:
        for relation in ("subgroup", "supergroup"):
            weights = [np.exp(-c.log_evidence) for c in row.candidates if c.relation == relation]
            assert sum(weights) <= 1 + 1e-9
        assert row.candidates[0].relation == "found"


def test_structures_densities_and_paths_give_the_same(tetragonal_sources):
    assert SymmetryEvidenceClassifier(n_jobs=2).predict(tetragonal_sources).tolist() == [136] * len(tetragonal_sources)


@pytest.fixture
def tetragonal_sources(crystals, cif_path):
    structure = crystals["tetragonal"]
    supercell = structure.copy()
    supercell.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    return [structure, supercell, as_density(structure, method="band_limited", d_min=1.0), str(cif_path)]


def test_fit_only_calibrates(found):
    """Rows whose answers are too sure by a known factor: a temperature undoes it."""
    rng = np.random.default_rng(0)
    symmetry = found["tetragonal"]
    numbers = [c.space_group_number for c in symmetry.candidates[:2]]
    true = rng.uniform(0.5, 0.95, 300)
    y = [numbers[0] if rng.random() < p else numbers[1] for p in true]
    odds = 3.0 * np.log(true / (1 - true))
    rows = [changed(symmetry, (1 / (1 + np.exp(-o)), 1 / (1 + np.exp(o)))) for o in odds]
    model = SymmetryEvidenceClassifier()
    before = model.predict(rows)
    assert model.fit(rows, y) is model
    assert model.temperature_ == pytest.approx(3.0, rel=0.35)
    assert (model.predict(rows) == before).all()
    assert model.predict_proba(rows)[:, numbers[0] - 1] == pytest.approx(true, abs=0.1)
    sure = SymmetryEvidenceClassifier(temperature=1.0).fit(rows, y)
    assert sure.predict_proba(rows)[:, numbers[0] - 1] == pytest.approx([row.candidates[0].probability for row in rows], abs=1e-4)


def test_where_every_answer_is_right_the_temperature_stays_near_1(found):
    model = SymmetryEvidenceClassifier("crystal_system").fit(list(found.values()), list(found))
    assert 0.5 < model.temperature_ < 2.0


@pytest.mark.parametrize(
    ("params", "y", "message"),
    [
        ({}, [0], "`y` must hold classes of 'space_group'"),
        ({}, [231], "`y` must hold classes"),
        ({}, [float("nan")], "`y` must hold classes"),
        ({"target": "crystal_system"}, ["rhombohedral"], "such as 'cubic' and 'trigonal', got 'rhombohedral'"),
        ({}, [1, 2], "one label for each of the 1 rows"),
        ({}, None, "target y is None"),
        ({"target": "space_group_number"}, [136], "`target` must be one of"),
        ({"symprec": 0.0}, [136], "`symprec` must be"),
        ({"d_min": -1.0}, [136], "`d_min` must be"),
        ({"temperature": 0.0}, [136], "`temperature` must be"),
    ],
)
def test_what_makes_no_sense_is_refused(found, params, y, message):
    with pytest.raises(ValueError, match=message):
        SymmetryEvidenceClassifier(**params).fit([found["tetragonal"]], y)


def test_a_density_without_symmetry_to_find_is_named(nacl):
    flat = Density(lattice=4.0 * np.eye(3), channels={"total": np.ones((16, 16, 16))})
    with pytest.raises(ValueError, match="constant") as caught:
        SymmetryEvidenceClassifier().predict([nacl, flat])
    assert "row 1 of `X`" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match="must be a list"):
        SymmetryEvidenceClassifier().predict(nacl)


def test_a_ready_symmetry_of_another_symprec_is_refused(found):
    with pytest.raises(ValueError, match=r"symprec 0\.1, got one at 0\.01"):
        SymmetryEvidenceClassifier(symprec=0.1).predict([found["cubic"]])


def test_structures_are_seen_at_1_angstrom(crystals):
    density = as_density(crystals["cubic"], method="band_limited", d_min=1.0)
    seen, expected = symmetry_of(crystals["cubic"]), find_symmetry(density)
    assert (seen.d_min, seen.noise) == (expected.d_min, expected.noise)
    assert symmetry_of(crystals["cubic"], SymmetryOptions(d_min=1.5)).d_min >= 1.5


def test_scikit_learns_manners(found):
    model = SymmetryEvidenceClassifier("crystal_system", symprec=0.02, n_jobs=2)
    assert clone(model).get_params() == model.get_params()
    assert not get_tags(model).requires_fit
    fitted = SymmetryEvidenceClassifier().fit([found["cubic"]], [225])
    assert pickle.loads(pickle.dumps(fitted)).temperature_ == fitted.temperature_


# EvidenceGuidedClassifier


def test_evidence_turns_a_close_answer(found):
    network = Network()
    rows = [found["tetragonal"]]
    guided = EvidenceGuidedClassifier(network)
    assert guided.predict(rows).tolist() == [136]
    assert network.seen == rows
    assert guided.classes_.tolist() == network.classes_.tolist()
    proba = guided.predict_proba(rows)
    assert proba.sum() == pytest.approx(1.0)
    assert proba.argmax() == 3
    assert guided.score(rows, [136]) == 1.0


def test_weight_0_and_top_1_change_nothing(found):
    for guided in (EvidenceGuidedClassifier(Network(), weight=0.0), EvidenceGuidedClassifier(Network(), top=1)):
        assert guided.predict_proba([found["tetragonal"]])[0] == pytest.approx(Network.proba)


def test_only_the_top_is_ranked_anew(found):
    proba = EvidenceGuidedClassifier(Network(), top=2).predict_proba([found["cubic"], found["tetragonal"]])
    assert proba[:, :2] == pytest.approx(np.full((2, 2), 0.05))  # the evidence of halite's 225 is not asked
    assert proba[:, 2:].sum(axis=1) == pytest.approx([0.9, 0.9])
    by_hand = Network.proba[2:] * SymmetryEvidenceClassifier().predict_proba([found["tetragonal"]])[0, [57, 135]]
    assert proba[1, 2:] == pytest.approx(0.9 * by_hand / by_hand.sum())


def test_fit_finds_the_weight(found):
    rows = [found["tetragonal"]] * 4
    assert not hasattr(EvidenceGuidedClassifier(Network()).fit(rows, [136] * 4), "weight_")
    trusting = EvidenceGuidedClassifier(Network(), weight=None).fit(rows, [136] * 4)
    doubting = EvidenceGuidedClassifier(Network(), weight=None).fit(rows, [58] * 4)
    assert doubting.weight_ < 0.1 < 0.5 < trusting.weight_
    assert trusting.predict(rows).tolist() == [136] * 4


def test_target_of_the_classifier_is_told_or_asked(found):
    class Systems(Network):
        classes_ = np.array(["cubic", "hexagonal", "tetragonal"])
        proba = np.array([0.4, 0.3, 0.3])

    class Groups(Network):
        classes_ = np.array([2, 54, 100])
        proba = np.array([0.4, 0.3, 0.3])

    rows = [found["tetragonal"]]
    assert EvidenceGuidedClassifier(Systems()).predict(rows).tolist() == ["tetragonal"]
    with pytest.raises(ValueError, match="could be space groups or extinction groups"):
        EvidenceGuidedClassifier(Groups()).predict(rows)
    told = EvidenceGuidedClassifier(Groups(), evidence=SymmetryEvidenceClassifier("extinction_group"))
    assert told.predict(rows).tolist() == [54]
    recorded = Groups()
    recorded.header_ = {"target": "extinction_group"}
    assert EvidenceGuidedClassifier(recorded).predict(rows).tolist() == [54]


@pytest.mark.parametrize(("params", "message"), [({"top": 0}, "`top` must be"), ({"weight": -1.0}, "`weight` must be")])
def test_odd_parameters_of_the_guided_are_refused(found, params, message):
    guided = EvidenceGuidedClassifier(Network(), **params)
    with pytest.raises(ValueError, match=message):
        guided.predict([found["cubic"]])
    with pytest.raises(ValueError, match=message):
        guided.fit([found["cubic"]], [225])


def test_a_frozen_classifier_survives_clone(found):
    frozen = FrozenEstimator(SymmetryEvidenceClassifier().fit([found["cubic"]], [225]))
    guided = clone(EvidenceGuidedClassifier(frozen, weight=2.0))
    assert guided.weight == 2.0
    assert guided.predict([found["cubic"]]).tolist() == [225]
