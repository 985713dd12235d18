"""The cache on disk under two processes at once, kills at any moment and damage; downloads from a server that misbehaves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matminer_ed3d import cache as cache_module
from matminer_ed3d.cache import DiskCache, download, sha256_of_file

KEY = {"what": "squares", "options": {"n": 3, "channels": ["total"]}}
ARRAYS = {"coords": np.arange(6, dtype=np.int32).reshape(2, 3), "feats": np.array([[0.1], [np.pi]], dtype=np.float32)}


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache")


def assert_same(found, expected=ARRAYS):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def files_in(folder, pattern):
    return sorted(path for path in Path(folder).rglob(pattern) if path.is_file())


def started(code, *arguments):
    """A process that runs `code`; returns when it has printed its first line."""
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


# Entries


def test_what_is_put_is_got_bit_by_bit(cache):
    odd = {
        **ARRAYS,
        "scalar": np.array(2.5),
        "empty": np.empty((0, 3), dtype=np.int64),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "special": np.array([np.nan, -0.0, np.inf, 5e-324]),
    }
    assert cache.get(KEY) is None
    cache.put(KEY, odd)
    found = cache.get(KEY)
    assert_same(found, odd)
    assert found["special"].tobytes() == odd["special"].tobytes()


def test_an_entry_is_made_once(cache):
    calls = []

    def make():
        calls.append(1)
        return ARRAYS

    assert_same(cache.get_or_make(KEY, make))
    assert_same(cache.get_or_make(KEY, make))
    assert len(calls) == 1
    assert files_in(cache.folder, "*.lock") == files_in(cache.folder, ".*.tmp") == []


def test_an_error_is_not_kept(cache):
    def fail():
        raise ValueError("no density")

    with pytest.raises(ValueError, match="no density"):
        cache.get_or_make(KEY, fail)
    assert_same(cache.get_or_make(KEY, lambda: ARRAYS))


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5), max_size=5))
@settings(max_examples=20, deadline=None)
def test_names_are_safe_and_do_not_depend_on_the_order(key):
    path = DiskCache("folder").path_of(key)
    assert path.relative_to("folder").as_posix() == path.relative_to("folder").as_posix().lower()
    assert [len(part) for part in path.relative_to("folder").parts] == [2, 62 + len(".entry")]
    assert path == DiskCache("folder").path_of(dict(reversed(key.items())))


def test_keys_that_differ_have_names_that_differ(cache):
    keys = [{}, {"a": 1}, {"a": "1"}, {"a": [1]}, {"A": 1}, {"a": None}, {"a": True}, {"b": 1}, {"a": {"a": 1}}, {"a": "../../etc/passwd"}]
    assert len({cache.path_of(key) for key in keys}) == len(keys)
    assert cache.path_of({"a": np.float64(0.25), "b": (1, 2)}) == cache.path_of({"a": 0.25, "b": [1, 2]})
    for wrong in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises((TypeError, ValueError)):
            cache.path_of(wrong)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "of another key", "longer"])
def test_a_damaged_entry_is_made_anew_with_a_warning(cache, damage):
    cache.put(KEY, ARRAYS)
    path = cache.path_of(KEY)
    content = path.read_bytes()
    if damage == "of another key":
        cache.put({"other": 1}, {"values": np.zeros(3)})
        content = cache.path_of({"other": 1}).read_bytes()
    changed = {"cut": content[:-5], "flipped": content[:-3] + b"X" + content[-2:], "empty": b"", "longer": content + b"\0"}
    path.write_bytes(changed.get(damage, content))
    with pytest.warns(RuntimeWarning, match=r"\.entry: the cache entry is damaged"):
        assert cache.get(KEY) is None
    with pytest.warns(RuntimeWarning, match="made anew"):
        assert_same(cache.get_or_make(KEY, lambda: ARRAYS))
    assert_same(cache.get(KEY))


def test_nothing_in_an_entry_is_unpickled(cache):
    with pytest.raises(TypeError, match="must hold numbers"):
        cache.put(KEY, {"values": np.array([object()])})
    assert cache.get(KEY) is None


def test_a_folder_that_cannot_be_written_to_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write to the cache .*file.*choose another folder"):
        DiskCache(tmp_path / "file").get_or_make(KEY, lambda: ARRAYS)


def test_a_full_disk_says_so_and_leaves_the_older_entry(cache, monkeypatch):
    import errno

    cache.put(KEY, ARRAYS)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device; make room"):
        cache.put(KEY, {"other": np.zeros(2)})
    monkeypatch.undo()
    assert_same(cache.get(KEY))
    assert files_in(cache.folder, ".*.tmp") == []


def test_a_read_only_folder_still_gives_its_entries(cache, monkeypatch):
    cache.put(KEY, ARRAYS)

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    for name in ("replacing", "FileLock"):
        monkeypatch.setattr(cache_module, name, refuse)
    assert_same(cache.get_or_make(KEY, refuse))


# Several processes

MAKE_SLOWLY = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from matminer_ed3d.cache import DiskCache
    folder, log = sys.argv[1:3]
    def make():
        with open(log, "a") as file:
            file.write("made\\n")
        time.sleep(0.5)
        return {"values": np.arange(100_000.0)}
    print("ready", flush=True)
    for n in range(3):
        found = DiskCache(folder).get_or_make({"n": n}, make)
        assert found["values"].sum() == 4999950000.0
"""


def test_processes_at_once_do_not_do_the_same_work(tmp_path):
    processes = [started(MAKE_SLOWLY, tmp_path / "cache", tmp_path / "log") for _ in range(4)]
    for process in processes:
        process.stdout.close()
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "log").read_text().count("made") == 3
    assert len(files_in(tmp_path / "cache", "*.entry")) == 3
    assert files_in(tmp_path / "cache", "*.lock") == files_in(tmp_path / "cache", ".*.tmp") == []


def test_a_kill_while_it_makes_an_entry_loses_nothing(cache):
    code = """
        import json, sys, time
        from matminer_ed3d.cache import DiskCache
        def make():
            print("making", flush=True)
            time.sleep(600)
        DiskCache(sys.argv[1]).get_or_make(json.loads(sys.argv[2]), make)
    """
    cache.put({"another": 1}, ARRAYS)
    process = started(code, cache.folder, json.dumps(KEY))
    waited = []

    def wait():
        waited.append(cache.get_or_make(KEY, lambda: ARRAYS))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    assert not waited  # the lock is held
    kill(process)
    thread.join(timeout=20)
    assert_same(waited[0])
    assert_same(cache.get(KEY))
    assert_same(cache.get({"another": 1}))


def test_a_kill_in_the_middle_of_a_write_loses_nothing(cache):
    code = """
        import json, os, sys, time
        import numpy as np
        from matminer_ed3d.cache import DiskCache
        def stop(descriptor):  # all is written, nothing has its name yet
            print("written", flush=True)
            time.sleep(600)
        os.fsync = stop
        DiskCache(sys.argv[1]).get_or_make(json.loads(sys.argv[2]), lambda: {"values": np.zeros(1_000_000)})
    """
    process = started(code, cache.folder, json.dumps(KEY))
    kill(process)
    (left,) = files_in(cache.folder, ".*.tmp")
    assert left.stat().st_size > 8_000_000
    assert cache.get(KEY) is None
    assert_same(cache.get_or_make(KEY, lambda: ARRAYS))
    assert cache.clean() == 0  # too young to be sure
    assert cache.clean(max_age=-1.0) == 1
    assert files_in(cache.folder, ".*.tmp") == []
    assert_same(cache.get(KEY))


def test_kills_at_random_moments_leave_whole_entries_only(cache):
    code = """
        import sys
        import numpy as np
        from matminer_ed3d.cache import DiskCache
        print("ready", flush=True)
        for n in range(100_000):
            DiskCache(sys.argv[1]).put({"n": n % 50}, {"values": np.full(50_000, float(n % 50))})
    """
    for seconds in (0.05, 0.11, 0.17, 0.23):
        process = started(code, cache.folder)
        time.sleep(seconds)
        kill(process)
    found = [cache.get({"n": n}) for n in range(50)]  # a damaged one would warn, which is an error here
    assert any(entry is not None for entry in found)
    for n, entry in enumerate(found):
        if entry is not None:
            assert_same(entry, {"values": np.full(50_000, float(n))})


def test_old_leftovers_go_once_a_day_and_held_locks_stay(cache):
    from filelock import FileLock

    cache.put(KEY, ARRAYS)
    folder = cache.path_of(KEY).parent
    old = time.time() - 2 * cache_module.STALE
    names = (".0123456789abcdef.tmp", "free.lock", "held.lock")
    for name in names:
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (old, old))
    with FileLock(folder / "held.lock"):
        os.utime(folder / "held.lock", (old, old))
        cache.put(KEY, ARRAYS)
        assert all((folder / name).exists() for name in names)  # cleaned today already
        os.utime(cache.folder / "cleaned", (old, old))
        cache.put(KEY, ARRAYS)
        assert [(folder / name).exists() for name in names] == [False, False, True]
    assert_same(cache.get(KEY))


def test_who_waits_too_long_works_on_its_own(cache, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr(cache_module, "LOCK_TIMEOUT", 0.1)
    path = cache.path_of(KEY)
    path.parent.mkdir(parents=True)
    with FileLock(path.with_suffix(".lock"), thread_local=False):
        thread = threading.Thread(target=cache.get_or_make, args=(KEY, lambda: ARRAYS))
        thread.start()
        thread.join(timeout=20)
        assert path.with_suffix(".lock").exists()
    assert_same(cache.get(KEY))


# Downloads

CONTENT = bytes(range(256)) * 1000
ELSEWHERE = {"to_file": "file:///etc/passwd", "to_ftp": "ftp://127.0.0.1/a"}
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves by the path what the tests need; counts the requests."""

    def do_GET(self):
        self.server.requests.append(self.path)
        n_before = self.server.requests.count(self.path) - 1
        what = self.path.split("?")[0].rsplit("/", 1)[-1]
        if what == "absent":
            self.send_error(404)
        elif what == "busy" and n_before < 2:
            self.send_error(503)
        elif what == "html":
            self.answer(b"<html>log in</html>", content_type="text/html; charset=utf-8")
        elif what == "cut" or (what == "cut_once" and not n_before):
            self.answer(CONTENT[:1000], length=len(CONTENT))
        elif what in ELSEWHERE:
            self.send_response(302)
            self.send_header("Location", ELSEWHERE[what])
            self.end_headers()
        elif what == "endless":
            self.answer(CONTENT, length=None)
        else:
            self.answer(CONTENT)

    def answer(self, content, length=-1, content_type="application/octet-stream"):
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        if length is not None:
            self.send_header("Content-Length", str(len(content) if length == -1 else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("checksum", [None, SHA256, SHA256.upper()])
def test_a_file_is_fetched_once(server, tmp_path, checksum):
    for _ in range(2):
        path = download(f"{server.url}/a/CHGCAR.gz", tmp_path, sha256=checksum)
        assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert path.name.endswith("-CHGCAR.gz")
    assert sha256_of_file(path) == SHA256


@pytest.mark.parametrize("damage", ["file", "record", "no record"])
def test_a_file_that_was_damaged_since_is_fetched_again(server, tmp_path, damage):
    path = download(f"{server.url}/a", tmp_path)
    record = path.with_name(path.name + ".sha256")
    if damage == "file":
        path.write_bytes(CONTENT[:-1])
    elif damage == "record":
        record.write_text("0" * 64)
    else:
        record.unlink()
    assert download(f"{server.url}/a", tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_names_are_safe(server, tmp_path):
    urls = [
        f"{server.url}/{end}" for end in ("a", "A", "b/a", "a?x=1", "..%2f..%2fetc%2fpasswd", "%2e%2e", "CON", "ü%00.cif", "", "x" * 300)
    ]
    urls[7] = f"{server.url}/%C3%BC%00.cif"
    paths = [download(url, tmp_path) for url in urls]
    assert len({path.name.lower() for path in paths}) == len(urls)
    for path in paths:
        assert path.parent == tmp_path
        assert len(path.name) <= 120
        assert set(path.name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


@pytest.mark.parametrize(
    ("what", "options", "error", "message", "n_requests"),
    [
        ("absent", {}, OSError, "answered 404", 1),
        ("busy", {"n_attempts": 2}, OSError, "answered 503 Service Unavailable, in 2 attempts", 2),
        ("html", {}, ValueError, "HTML page", 1),
        ("cut", {"n_attempts": 3}, OSError, "connection ended after 1000 of 256000 bytes, in 3 attempts", 3),
        ("to_file", {}, OSError, "'file:///etc/passwd' is not allowed", 1),
        ("to_ftp", {}, ValueError, "must begin with http", 1),
        ("whole", {"max_bytes": 1000}, ValueError, "found 256000 bytes, expected at most 1000", 1),
        ("endless", {"max_bytes": 1000}, ValueError, "found more than 1000 bytes", 1),
        ("whole", {"sha256": "0" * 64}, ValueError, f"found a file with SHA-256 {SHA256}, expected 0000", 1),
        ("whole", {"sha256": "0"}, ValueError, "64 hexadecimal digits", 0),
        ("whole", {"n_attempts": 0}, ValueError, "at least 1", 0),
    ],
)
def test_what_is_not_the_file_leaves_no_file(server, tmp_path, what, options, error, message, n_requests):
    with pytest.raises(error, match=message):
        download(f"{server.url}/{what}", tmp_path, backoff=0.01, **options)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    assert len(server.requests) == n_requests


@pytest.mark.parametrize("what", ["busy", "cut_once"])
def test_what_passes_is_tried_again(server, tmp_path, what):
    assert download(f"{server.url}/{what}", tmp_path, backoff=0.01).read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "/etc/passwd", "http:///file", "http://host/a b"])
def test_other_urls_are_refused(tmp_path, url):
    with pytest.raises(ValueError, match="must begin with http"):
        download(url, tmp_path)


def test_no_server(tmp_path, server):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="no connection"):
            download(f"http://127.0.0.1:{taken.getsockname()[1]}/a", tmp_path, n_attempts=2, backoff=0.01)


def test_two_at_once_fetch_once(server, tmp_path):
    threads = [threading.Thread(target=download, args=(f"{server.url}/a", tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(server.requests) == 1
