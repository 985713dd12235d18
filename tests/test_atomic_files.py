"""``replacing``: the old file or the whole new one, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from matminer_ed3d.atomic_files import replacing

OLD, NEW = b"old " * 1000, b"new " * 2000


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with replacing(path) as file:
        file.write(NEW)
        file.flush()
        assert path.read_bytes() == OLD
    assert path.read_bytes() == NEW
    assert names(tmp_path) == ["file"]


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    with replacing(str(tmp_path / "a" / "b" / "file")) as file:
        file.write(NEW)
    assert (tmp_path / "a" / "b" / "file").read_bytes() == NEW


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there_before", [True, False])
def test_after_an_exception_the_old_file_stays_and_nothing_else(tmp_path: Path, error: type[BaseException], there_before: bool) -> None:
    path = tmp_path / "file"
    if there_before:
        path.write_bytes(OLD)

    def write() -> None:
        with replacing(path) as file:
            file.write(NEW)
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ["file"] * there_before
    assert not there_before or path.read_bytes() == OLD


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(OLD)
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as file:
        file.write(NEW)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == NEW
    assert names(tmp_path) == ["link", "real"]


def test_permissions_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    path.chmod(0o640)
    with replacing(path) as file:
        file.write(NEW)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_read_only_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everything
    with pytest.raises(PermissionError, match="read-only"), replacing(path):
        pass
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["file"]


def test_the_longest_name_is_written(tmp_path: Path) -> None:
    with replacing(tmp_path / ("x" * 255)) as file:
        file.write(NEW)
    assert names(tmp_path) == ["x" * 255]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(FileExistsError, match="must be a regular file or none yet"), replacing(path):
        pass
    assert names(tmp_path) == ["thing"]


def test_a_reader_beside_many_writers_finds_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([ord("a") + n]) * 200_000 for n in range(4)]
    path.write_bytes(contents[0])
    done = threading.Event()

    def write(content: bytes) -> None:
        for _ in range(15):
            with replacing(path) as file:
                for start in range(0, len(content), 50_000):
                    file.write(content[start : start + 50_000])

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    found: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            found.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert found <= set(contents)
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    code = (
        "import os, signal, sys\n"
        "from matminer_ed3d.atomic_files import replacing\n"
        "with replacing(sys.argv[1]) as file:\n"
        "    file.write(b'half')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    status = subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode
    assert status == -signal.SIGKILL
    assert path.read_bytes() == OLD
    with replacing(path) as file:  # what the dead left behind is in nobody's way
        file.write(NEW)
    assert path.read_bytes() == NEW
