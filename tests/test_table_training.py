from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matminer_ed3d import featurizers, table_training
from matminer_ed3d.representations import PointCloud, SparseTensor
from matminer_ed3d.samples import make_sample


@pytest.mark.parametrize(
    ("family", "kind", "parameters"),
    [
        ("sparse_cnn", SparseTensor, {"architecture": "crystal", "d_min": 1.5}),
        ("sparse_cnn", SparseTensor, {"voxel_size": 1.0}),
        ("pointnet", PointCloud, {"voxel_size": 1.0}),
    ],
)
def test_a_second_run_reads_its_samples(
    family: str, kind: type, parameters: dict[str, Any], crystals: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    structures = [crystals["cubic"], crystals["tetragonal"]]
    estimator = table_training.build_estimator(family, regression=False, random_state=3, max_epochs=1, device="cpu", **parameters)
    made = table_training.cached_samples(estimator, structures, tmp_path)
    options = estimator._sample_options()
    for sample, structure in zip(made, structures, strict=True):
        assert isinstance(sample, kind)
        np.testing.assert_array_equal(sample.feats, make_sample(structure, options, 3).feats)

    def fail(*arguments: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(featurizers, "make_sample", fail)
    again = table_training.cached_samples(estimator, structures, tmp_path)
    for one, two in zip(made, again, strict=True):
        np.testing.assert_array_equal(one.coords, two.coords)
        np.testing.assert_array_equal(one.feats, two.feats)
    monkeypatch.undo()
    estimator.fit(again, ["a", "b"])  # they are what the estimator takes


def test_train_on_table_keeps_samples_where_it_is_told(crystals: dict[str, Any], tmp_path: Path) -> None:
    structures = [crystals["cubic"], crystals["tetragonal"]]
    rows = table_training.TrainingRows(["x", "y"], structures, np.array([225, 136]), [])
    estimator = table_training.build_estimator("sparse_cnn", regression=False, voxel_size=1.0, random_state=0, max_epochs=1, device="cpu")
    cache = tmp_path / "cache"
    table_training.train_on_table(estimator, rows, "space_group", tmp_path / "m.safetensors", data=None, protocol=None, cache=cache)
    assert len(list(cache.rglob("*.entry"))) == 2
