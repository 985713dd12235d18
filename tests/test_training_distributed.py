"""Two processes on the CPU: the same training as in one, and the same after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import OPTIONS, clouds, network, same_weights, train, without_seconds

from matminer_ed3d import tensor_files
from matminer_ed3d.training import TrainingOptions

# 16 samples of equal size in batches of 5: shares are unequal, and the last batch of one sample leaves a process without any.
LIMITED = replace(OPTIONS, augmentations=("rotation",), ema_decay=0.9, max_points_per_batch=100, devices=2)
WEIGHTS = np.linspace(0.5, 1.5, 21)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def run(options: TrainingOptions, folder: Path | None = None, on_epoch: Any = None) -> Any:
    """Train on 21 clouds, 16 of which are learned from: (network, history)."""
    samples, targets = clouds(21)
    module = network()
    history = train(module, samples, targets, WEIGHTS, options=options, checkpoint_dir=folder, on_epoch=on_epoch, validation=np.arange(5))
    return module, history


def wait(entry: dict[str, Any]) -> None:
    """Give the test the time to kill after the third epoch."""
    if entry["epoch"] == 2:
        time.sleep(600)


@pytest.fixture(scope="module")
def whole() -> Any:
    """An uninterrupted run of two processes."""
    pytest.importorskip("lightning_fabric")
    environment = dict(os.environ)
    result = run(LIMITED)
    assert os.environ == environment
    return result


def test_two_processes_train_as_one(whole: Any) -> None:
    two, history = whole
    one, expected = run(replace(LIMITED, devices=1))
    for found, wanted in zip(history, expected, strict=True):
        assert found["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-5)
        assert found["val_loss"] == pytest.approx(wanted["val_loss"], rel=1e-5)
    for a, b in zip(two.state_dict().values(), one.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_training_distributed as test
if __name__ == "__main__":
    test.run(test.LIMITED, Path({folder!r}), test.wait)
"""


def test_killed_processes_are_resumed_to_the_same_result(tmp_path: Path, whole: Any) -> None:
    script = tmp_path / "script.py"
    folder = tmp_path / "checkpoints"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    process = subprocess.Popen([sys.executable, script], env=ENVIRONMENT, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    n_done = 0
    while n_done < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
        for path in folder.glob("*.safetensors"):
            n_done = len(tensor_files.read_header(path)["history"])
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert n_done == 3
    assert len(list(folder.glob("*.safetensors"))) == 1  # written by one process only
    resumed, resumed_history = run(LIMITED, folder)
    uninterrupted, history = whole
    assert without_seconds(resumed_history) == without_seconds(history)
    assert resumed_history[2]["seconds"] == tensor_files.read_header(next(folder.glob("*.safetensors")))["history"][2]["seconds"]
    assert same_weights(resumed, uninterrupted)


@pytest.mark.slow
def test_divergence_in_two_processes_is_the_same_error() -> None:
    pytest.importorskip("lightning_fabric")
    samples, targets = clouds(8)
    module = network()
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="lower `learning_rate`"):
        train(module, samples, targets, options=replace(OPTIONS, devices=2))


def test_without_fabric_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ImportError, match=r"pip install 'matminer_ed3d\[distributed\]'"):
        run(LIMITED)


def test_one_process_does_not_load_fabric() -> None:
    code = "import sys; import matminer_ed3d.training; print('lightning_fabric' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
