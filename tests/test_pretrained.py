"""The shipped model: what its answer may not depend on, and that it answers on real input."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core.structure import Structure

from matminer_ed3d import labels, prediction
from matminer_ed3d.density import Density
from matminer_ed3d.prediction import load_model
from matminer_ed3d.samples import make_sample

DATA = Path(__file__).parent / "data"
RECORDS = json.loads((DATA / "mp_labels.json").read_text(encoding="utf-8"))["structures"]


def structure_of(record: dict) -> Structure:
    return Structure(np.reshape(record["lattice"], (3, 3)), record["numbers"], np.reshape(record["frac"], (-1, 3)))


SMALL = [record for record in RECORDS if len(record["numbers"]) <= 24]
every_structure = pytest.mark.parametrize("structure", [structure_of(r) for r in SMALL], ids=[r["id"] for r in SMALL])


@pytest.fixture(scope="module")
def model():
    return load_model("default")


def logits(model, *sources):
    """Scores before the softmax, which does not hide a change; less their mean, which means nothing."""
    outputs = model.estimator._outputs(list(sources))
    return outputs - outputs.mean(axis=1, keepdims=True)


def assert_same_answer(outputs):
    np.testing.assert_allclose(outputs[1:], np.broadcast_to(outputs[0], outputs[1:].shape), atol=0.02)
    np.testing.assert_array_equal(outputs[1:].argmax(axis=1), outputs[0].argmax())


def test_the_file_is_small_and_says_what_it_is(model):
    header = model.estimator.header_
    assert header["target"] == "space_group_number"
    assert {"preprocessing", "data", "protocol", "metrics", "citation", "package_version"} <= set(header)
    assert len(model.train_ids) == header["data"]["n_samples"]
    path = files("matminer_ed3d") / "data" / "models" / "default.safetensors"
    assert path.stat().st_size < 16 * 2**20


@every_structure
def test_a_doubled_cell_changes_nothing(model, structure):
    doubled = [structure.make_supercell(np.diag(scaling), in_place=False) for scaling in ([2, 1, 1], [1, 2, 1], [1, 1, 2])]
    assert_same_answer(logits(model, structure, *doubled))


@every_structure
def test_the_order_of_sites_changes_nothing(model, structure):
    order = np.random.default_rng(0).permutation(len(structure))
    assert_same_answer(logits(model, structure, Structure.from_sites([structure[i] for i in order])))


@every_structure
def test_the_origin_changes_nothing(model, structure):
    rng = np.random.default_rng(1)
    grid_shape = make_sample(structure, model.estimator.sample_options_).grid_shape
    moved = [structure.copy(), structure.copy()]
    for copy, shift in zip(moved, (rng.integers(1, 5, 3) / np.array(grid_shape), rng.random(3)), strict=True):
        copy.translate_sites(list(range(len(copy))), shift)
    assert_same_answer(logits(model, structure, *moved))


@every_structure
def test_the_density_answers_as_its_structure(model, structure):
    density = Density.from_structure(structure, grid_spacing=0.4, method="band_limited")
    tiled = Density(density.lattice * np.array([1, 2, 1])[:, None], {"total": np.tile(density.channel("total"), (1, 2, 1))})
    outputs = logits(model, structure, density, tiled, density.shift_origin([0.3, 0.1, 0.7]))
    assert_same_answer(outputs)


def test_it_knows_most_of_a_sample_of_the_materials_project(model):
    # Most of these 28 were in the training set: this shows that weights, classes and preprocessing belong together, not how good it is.
    # Half were chosen because their two labels differ: such a crystal lies at the edge of a tolerance, and either is an answer.
    predicted = model.estimator.predict([structure_of(record) for record in RECORDS])
    right = [number in (record["symprec_01"], record["symprec_001"]) for number, record in zip(predicted, RECORDS, strict=True)]
    assert np.mean(right) > 0.9
    clear = [hit for hit, record in zip(right, RECORDS, strict=True) if record["symprec_01"] == record["symprec_001"]]
    assert np.mean(clear) > 0.9


def test_it_knows_textbook_crystals(model, crystals):
    predicted = model.estimator.predict(list(crystals.values()))
    right = [labels.crystal_system(int(n)) == system for n, system in zip(predicted, crystals, strict=True)]
    assert sum(right) >= 6, dict(zip(crystals, predicted.tolist(), strict=True))


def test_it_reads_a_real_chgcar(model, chgcar_path):
    answer = prediction.predict_file(chgcar_path, model)
    assert answer["space_group_number"] == 229
    assert answer["space_group_number_probability"] > 0.5
