"""The shipped model: what its answer may not depend on, and that it answers on real input."""

from __future__ import annotations

import numpy as np
import pytest

from matminer_ed3d import labels, prediction
from matminer_ed3d.density import Density
from matminer_ed3d.prediction import load_model
from matminer_ed3d.samples import make_sample


@pytest.fixture(scope="module")
def model():
    return load_model("default")


def proba(model, *sources):
    return model.estimator.predict_proba(list(sources))


def test_file_is_small_and_says_what_it_is(model):
    header = model.estimator.header_
    assert header["target"] == "space_group_number"
    assert {"preprocessing", "data", "protocol", "metrics", "citation", "package_version"} <= set(header)
    assert model.train_ids
    path = prediction.resources.files("matminer_ed3d") / "data" / "models" / "default.safetensors"
    assert path.stat().st_size < 16 * 2**20


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_doubled_cell_changes_nothing(model, crystals, axis):
    scaling = np.ones(3, int)
    scaling[axis] = 2
    for structure in crystals.values():
        plain, doubled = proba(model, structure, structure.make_supercell(scaling, in_place=False))
        np.testing.assert_allclose(doubled, plain, atol=2e-3)
        assert doubled.argmax() == plain.argmax()


def test_doubled_density_changes_nothing(model, crystals):
    for structure in crystals.values():
        density = Density.from_structure(structure, grid_spacing=0.4, method="band_limited")
        tiled = Density(density.lattice * np.array([1, 2, 1])[:, None], {"total": np.tile(density.channel("total"), (1, 2, 1))})
        plain, doubled = proba(model, density, tiled)
        np.testing.assert_allclose(doubled, plain, atol=2e-3)


def test_shifted_origin_changes_nothing(model, crystals, rng):
    for structure in crystals.values():
        sample = make_sample(structure, model.estimator.sample_options_)
        by_voxels = rng.integers(1, 5, 3) / np.array(sample.grid_shape)
        density = Density.from_structure(structure, grid_spacing=0.4, method="band_limited")
        shifted = [structure.copy(), structure.copy()]
        for copy, shift in zip(shifted, (by_voxels, rng.random(3)), strict=True):
            copy.translate_sites(list(range(len(copy))), shift)
        expected, *others = proba(model, structure, *shifted, density.shift_origin(by_voxels), density.shift_origin(rng.random(3)))
        for other in others[:2]:
            np.testing.assert_allclose(other, expected, atol=2e-3)
        np.testing.assert_allclose(others[2], others[3], atol=2e-3)


def test_order_of_sites_changes_nothing(model, crystals, rng):
    for structure in crystals.values():
        shuffled = structure.copy()
        shuffled._sites = [structure[i] for i in rng.permutation(len(structure))]
        plain, other = proba(model, structure, shuffled)
        np.testing.assert_allclose(other, plain, atol=2e-3)


def test_it_knows_textbook_crystals(model, crystals):
    predicted = model.estimator.predict(list(crystals.values()))
    right = [labels.crystal_system(int(n)) == system for n, system in zip(predicted, crystals, strict=True)]
    assert sum(right) >= 6, dict(zip(crystals, predicted.tolist(), strict=True))


def test_it_reads_a_real_chgcar(model, chgcar_path):
    answer = prediction.predict_file(chgcar_path, model)
    assert answer["space_group_number"] == 229
    assert answer["space_group_number_probability"] > 0.5
