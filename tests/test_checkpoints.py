from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from matminer_ed3d import checkpoints, tensor_files
from matminer_ed3d.samples import SampleOptions

WEIGHTS = {"layer.weight": torch.linspace(-3, 3, 12).reshape(3, 4), "layer.steps": torch.tensor([7])}


def header(**changes: Any) -> dict[str, Any]:
    base = {
        "estimator": "PointNetClassifier",
        "params": {"architecture": "small"},
        "classes": ["cubic", "hexagonal"],
        "target": "crystal_system",
        "preprocessing": SampleOptions().as_dict(),
    }
    return {**base, **changes}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_weights_and_header_come_back(path: Path) -> None:
    checkpoints.save_checkpoint(path, WEIGHTS, header(metrics={"top1": 0.5}))
    read, tensors = checkpoints.load_checkpoint(path)
    assert read["format_version"] == checkpoints.FORMAT_VERSION
    assert set(read) >= {"package_version", "estimator", "params", "classes", "target", "preprocessing", "metrics"}
    assert read["classes"] == ["cubic", "hexagonal"]
    assert read == checkpoints.read_header(path)
    for name, value in WEIGHTS.items():
        assert torch.equal(tensors[name], value)


def test_float16_halves_the_file_and_reads_back_as_float32(tmp_path: Path) -> None:
    weights = {"w": torch.randn(100, 100, generator=torch.Generator().manual_seed(0))}
    sizes = []
    for dtype in ("float32", "float16"):
        checkpoints.save_checkpoint(tmp_path / dtype, weights, header(), dtype=dtype)
        sizes.append((tmp_path / dtype).stat().st_size)
        assert checkpoints.load_checkpoint(tmp_path / dtype)[1]["w"].dtype == torch.float32
    assert sizes[1] < 0.6 * sizes[0]
    np.testing.assert_allclose(checkpoints.load_checkpoint(tmp_path / "float16")[1]["w"], weights["w"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_weights_that_do_not_fit_are_refused_and_nothing_is_written(path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"'w' is not finite when stored as float16"):
        checkpoints.save_checkpoint(path, {"w": torch.tensor([value])}, header(), dtype="float16")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version must be 1, got 99"),
        ({"estimator": "os.system"}, "`estimator` must be one of"),
        ({"target": "colour"}, "`target` must be None or one of"),
        ({"classes": ["cubic", "hexagonalish"]}, "labels of 'crystal_system', got .*hexagonalish"),
        ({"target": "space_group_number", "classes": [1, 231]}, "got .231."),
        ({"target": "extinction_group", "classes": [0, 5]}, "got .0."),
        ({"preprocessing": {**SampleOptions().as_dict(), "blur": 1}}, "missing or unknown: .'blur'"),
        ({"preprocessing": {"kind": "points"}}, "missing or unknown: .*'voxel_size'"),
        ({"colour": 1}, "unknown .'colour'"),
    ],
)
def test_a_header_unknown_here_is_refused(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):  # when it is written by us
        checkpoints.save_checkpoint(path, WEIGHTS, header(**changes))
    tensor_files.write(path, WEIGHTS, header(**{"format_version": 1, "package_version": "0", **changes}))  # or comes from elsewhere
    for read in (checkpoints.load_checkpoint, checkpoints.read_header, checkpoints.load_estimator):
        with pytest.raises(ValueError, match=message):
            read(path)


def test_a_missing_header_key_is_named(path: Path) -> None:
    incomplete = header()
    del incomplete["preprocessing"]
    with pytest.raises(ValueError, match=r"missing .'preprocessing'"):
        checkpoints.save_checkpoint(path, WEIGHTS, incomplete)


def test_what_is_no_weight_file_is_refused(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found none at"):
        checkpoints.load_checkpoint(path)
    save_file(WEIGHTS, path)
    with pytest.raises(ValueError, match="no 'matminer_ed3d' header"):
        checkpoints.load_checkpoint(path)
    checkpoints.save_checkpoint(path, WEIGHTS, header())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load_checkpoint(path)


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_never_executed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    path.write_bytes(pickle.dumps({"w": Bomb()}))
    torch_file = path.with_suffix(".pt")
    torch.save({"w": Bomb()}, torch_file)
    for file in (path, torch_file):
        with pytest.raises(ValueError, match="no safetensors file"):
            checkpoints.load_checkpoint(file)
    assert not Path("exploded").exists()


def test_a_failed_write_keeps_the_old_file(path: Path) -> None:
    checkpoints.save_checkpoint(path, WEIGHTS, header())
    before = path.read_bytes()
    with pytest.raises(TypeError, match="JSON"):
        checkpoints.save_checkpoint(path, WEIGHTS, header(metrics={"top1": object()}))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_every_shipped_model_can_be_listed_and_loaded() -> None:
    models = checkpoints.list_pretrained()
    assert set(models) == set(checkpoints.pretrained_paths())
    for name, read in models.items():
        assert checkpoints.pretrained_paths()[name].stat().st_size < 16e6
        model = checkpoints.load_pretrained(name)
        assert type(model).__name__ == read["estimator"]
        assert read["classes"] == model.classes_.tolist()
    with pytest.raises(ValueError, match="must be one of the shipped models"):
        checkpoints.load_pretrained("no-such-model")


def test_headers_are_read_without_torch(path: Path) -> None:
    checkpoints.save_checkpoint(path, WEIGHTS, header())
    code = f"import sys; from matminer_ed3d import checkpoints; checkpoints.read_header({str(path)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
