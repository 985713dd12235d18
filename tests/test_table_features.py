"""Batches over folders: what a run leaves when it is cut, killed or repeated, and what it says of the files that fail."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from matminer_ed3d import table_features
from matminer_ed3d.featurizers import DensityPointCloud, DensitySparseTensor, DensityStatistics
from matminer_ed3d.samples import SampleOptions, make_sample
from matminer_ed3d.table_features import (
    NamedSource,
    input_paths,
    iter_samples,
    load_samples,
    named_sources,
    read_path_list,
    save_samples,
    save_statistics,
)


def poscar(a):
    return f"halite\n1.0\n{a} 0 0\n0 {a} 0\n0 0 {a}\nNa Cl\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n"


@pytest.fixture
def folder(tmp_path):
    """Twelve structures in two folders, two of them damaged, and a hidden file."""
    folder = tmp_path / "files"
    for number in range(12):
        path = folder / ("a" if number < 6 else "b") / f"{number:02d}.poscar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(poscar(3.0 + 0.1 * number) if number not in (3, 8) else "<html>")
    (folder / ".hidden").write_text("")
    return folder


@pytest.fixture
def voxels():
    return DensitySparseTensor(voxel_size=0.8)


@pytest.fixture
def errors():
    return []


@pytest.fixture
def save(folder, voxels, errors):
    """Save the samples of all files in the folder."""

    def save(out, featurizer=voxels, **options):
        errors.clear()
        sources = named_sources(input_paths([folder]))
        return save_samples(sources, featurizer, out, lambda name, error: errors.append((name, str(error))), **options)

    return save


def rows_of(out):
    names, samples = load_samples(out)
    assert len(set(names)) == len(names)
    return {name: (sample.coords.tobytes(), sample.feats.tobytes()) for name, sample in zip(names, samples, strict=True)}


def failures_in(path):
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "reason"]
    return dict(rows[1:])


# Inputs


def test_folders_are_walked_in_order(folder, tmp_path):
    (folder / "b" / "link.poscar").symlink_to(folder / "a" / "00.poscar")
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "b" / "out").mkdir()
    (folder / "b" / "out" / "part_00000.npz").write_text("")
    found = input_paths([tmp_path / "absent", folder], without=[folder / "b" / "out"])
    assert found[0] == str(tmp_path / "absent")
    assert found[1:] == sorted(str(path) for path in folder.rglob("*.poscar"))


def test_lists_of_paths(tmp_path, monkeypatch):
    import io

    (tmp_path / "list").write_text("one\n\n two with blanks \nthree")
    assert read_path_list(tmp_path / "list") == ["one", " two with blanks ", "three"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("four\n"))
    assert read_path_list("-") == ["four"]


# Runs


@pytest.mark.parametrize(("kind", "n_jobs"), [("file", 1), ("folder", 1), ("folder", 2)])
def test_all_but_the_damaged_are_there(save, folder, tmp_path, errors, n_jobs, kind):
    out = tmp_path / ("out.npz" if kind == "file" else "out")
    report = save(out, n_jobs=n_jobs, part_bytes=5000)
    assert (report.n_done, report.n_earlier, report.n_failed) == (10, 0, 2)
    names = [name for name, _ in iter_samples(out)]
    assert names == [path for path in input_paths([folder]) if Path(path).stem not in ("03", "08")]
    damaged = [str(folder / "a" / "03.poscar"), str(folder / "b" / "08.poscar")]
    assert [name for name, _ in errors] == damaged
    failures = failures_in(tmp_path / "out.npz.failures.csv" if kind == "file" else out / "failures.csv")
    assert list(failures) == damaged
    assert all("DensityFileError" in reason and "HTML" in reason for reason in failures.values())
    options = SampleOptions(kind="voxels", voxel_size=0.8, reduction="mean")
    for name, sample in iter_samples(out):
        expected = make_sample(name, options)
        np.testing.assert_array_equal(sample.coords, expected.coords)
        np.testing.assert_array_equal(sample.feats, expected.feats)
        np.testing.assert_array_equal(sample.voxel_basis, expected.voxel_basis)
        assert sample.grid_shape == expected.grid_shape
    if kind == "file":
        assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "out.npz", "out.npz.failures.csv"]
    else:
        assert len(list(out.glob("part_*.npz"))) > 2
        index = pd.read_csv(out / "index.csv")
        assert index["name"].tolist() == names


def test_equal_runs_write_equal_files(save, tmp_path):
    save(tmp_path / "one.npz", part_bytes=5000)
    save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_points_and_statistics(folder, tmp_path, errors):
    def complain(name, error):
        errors.append(name)

    sources = list(named_sources(input_paths([folder])))
    points = DensityPointCloud(voxel_size=0.8, random_state=0)
    save_samples(sources, points, tmp_path / "points", complain)
    save_samples(sources, points, tmp_path / "points.npz", complain)
    assert rows_of(tmp_path / "points") == rows_of(tmp_path / "points.npz")
    for name, sample in iter_samples(tmp_path / "points"):
        np.testing.assert_array_equal(sample.coords, points.featurize(name)[0].coords)

    statistics = DensityStatistics(d_min=2.0)
    for out in ("table", "table.csv", "table.parquet"):
        report = save_statistics(sources, statistics, tmp_path / out, complain, part_bytes=1500)
        assert (report.n_done, report.n_failed) == (10, 2)
    parts = sorted((tmp_path / "table").glob("part_*.parquet"))
    assert len(parts) > 1
    frames = [
        pd.read_parquet(parts),
        pd.read_csv(tmp_path / "table.csv", float_precision="round_trip"),
        pd.read_parquet(tmp_path / "table.parquet"),
    ]
    expected = [statistics.featurize(name) for name in frames[0]["name"]]
    for frame in frames:
        assert list(frame.columns) == ["name", *statistics.feature_labels()]
        assert frame.drop(columns="name").to_numpy().tolist() == expected


def test_a_path_given_twice_is_featurized_once(folder, voxels, tmp_path):
    path = folder / "a" / "00.poscar"
    assert save_samples(named_sources([path, path]), voxels, tmp_path / "out.npz", print).n_done == 1


def test_a_table_that_cannot_be_read_is_a_failure(folder, voxels, tmp_path):
    (folder / "bad.parquet").write_text("no table")
    report = save_samples(named_sources([folder / "bad.parquet", folder / "a" / "00.poscar"]), voxels, tmp_path / "out", lambda *_: None)
    assert (report.n_done, report.n_failed) == (1, 1)
    assert list(failures_in(tmp_path / "out" / "failures.csv")) == [str(folder / "bad.parquet")]


@pytest.mark.parametrize("out", ["out", "out.npz"])
def test_when_all_fail(voxels, tmp_path, out):
    with pytest.raises(ValueError, match="no source could be featurized, nothing is written to"):
        save_samples(named_sources([tmp_path / "absent"]), voxels, tmp_path / out, lambda *_: None)
    assert not (tmp_path / "out.npz").exists()
    assert not (tmp_path / "out.npz.parts").exists()
    assert len(list(tmp_path.rglob("*failures.csv"))) == 1


# Second runs


def test_a_second_run_makes_what_is_new_changed_or_failed(save, folder, tmp_path, errors, monkeypatch):
    out = tmp_path / "out"
    save(out, part_bytes=5000)
    (folder / "a" / "03.poscar").write_text(poscar(3.3))  # mended
    (folder / "b" / "new.poscar").write_text(poscar(4.5))
    (folder / "a" / "00.poscar").write_text(poscar(4.75))  # another size
    os.utime(folder / "b" / "10.poscar", (1, 1))
    (folder / "a" / "05.poscar").write_text("no more")  # was good, is not now
    made = []
    original = table_features._featurize_one
    monkeypatch.setattr(table_features, "_featurize_one", lambda f, source: made.append(Path(source).stem) or original(f, source))
    report = save(out, part_bytes=5000)
    assert made == ["00", "03", "05", "08", "10", "new"]
    assert (report.n_done, report.n_earlier, report.n_failed) == (11, 7, 2)
    assert {Path(name).stem for name, _ in errors} == {"05", "08"}
    assert set(failures_in(out / "failures.csv")) == {name for name, _ in errors}
    save(tmp_path / "afresh")
    assert rows_of(out) == rows_of(tmp_path / "afresh")
    (folder / "a" / "05.poscar").unlink()
    (folder / "b" / "08.poscar").unlink()
    made.clear()
    assert save(out).n_failed == 0
    assert not made
    assert not (out / "failures.csv").exists()


def test_a_folder_gathers_what_several_runs_bring(folder, voxels, tmp_path):
    for half in ("a", "b"):
        report = save_samples(named_sources(input_paths([folder / half])), voxels, tmp_path / "out", lambda *_: None)
        assert (report.n_done, report.n_earlier) == (5, 0)
    assert len(rows_of(tmp_path / "out")) == 10


def test_a_file_holds_the_sources_of_its_run_alone(folder, voxels, tmp_path):
    def cut(paths):
        yield from named_sources(paths)
        raise KeyboardInterrupt

    out = tmp_path / "out.npz"
    with pytest.raises(KeyboardInterrupt):
        save_samples(cut(input_paths([folder / "a"])), voxels, out, lambda *_: None, part_bytes=1)
    assert list(tmp_path.glob("out.npz.parts/part_*.npz"))
    kept = input_paths([folder / "a"])[0]
    report = save_samples(named_sources([kept, *input_paths([folder / "b"])]), voxels, out, lambda *_: None)
    assert (report.n_done, report.n_earlier) == (6, 1)
    assert {Path(name).parent.name for name in load_samples(out)[0] if name != kept} == {"b"}


def test_sources_without_a_file_are_made_anew(nacl, voxels, tmp_path):
    source = NamedSource("halite", nacl, "halite")
    for _ in range(2):
        report = save_samples([source], voxels, tmp_path / "out", print)
        assert (report.n_done, report.n_earlier) == (1, 0)
    assert list(rows_of(tmp_path / "out")) == ["halite"]


def test_other_options_are_refused(save, tmp_path):
    save(tmp_path / "out")
    before = rows_of(tmp_path / "out")
    with pytest.raises(ValueError, match=r"other options made \(voxel_size 0.8 there, 0.9 now\); choose another `out`, or .*--no-resume"):
        save(tmp_path / "out", DensitySparseTensor(voxel_size=0.9))
    assert rows_of(tmp_path / "out") == before
    save(tmp_path / "out", DensitySparseTensor(voxel_size=0.9), resume=False)
    assert rows_of(tmp_path / "out") != before
    save(tmp_path / "out", DensitySparseTensor(voxel_size=0.9, n_jobs=2, cache=tmp_path / "cache"))  # these change no number


def test_a_folder_of_somebody_else_is_refused(save, folder):
    for options in ({}, {"resume": False}):
        with pytest.raises(ValueError, match="is not empty and holds no options"):
            save(folder, **options)
    assert len(list(folder.rglob("*.poscar"))) == 12
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize("out", ["out.csv", "out.parquet", "out.txt"])
def test_other_endings_are_refused(save, tmp_path, out):
    with pytest.raises(ValueError, match=r"must end in \.npz for samples, or be a folder"):
        save(tmp_path / out)


def test_two_runs_at_once_are_refused(save, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        seen = []

        def other():
            with pytest.raises(ValueError, match="another run is writing to"):
                save(tmp_path / "out")
            seen.append(1)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=30)
    assert seen
    assert save(tmp_path / "out").n_done == 10


def test_a_damaged_part_is_named(save, tmp_path):
    save(tmp_path / "out")
    part = tmp_path / "out" / "part_00000.npz"
    part.write_bytes(part.read_bytes()[:1000])
    for read in (save, load_samples):
        with pytest.raises(ValueError, match=r"part_00000.npz: found no samples, or damaged ones .*; delete it and run again"):
            read(tmp_path / "out")
    part.unlink()
    assert save(tmp_path / "out").n_earlier == 0
    assert len(rows_of(tmp_path / "out")) == 10
    with pytest.raises(FileNotFoundError, match="found no part_00000"):
        load_samples(tmp_path)


# Kills

RUN = """
import sys, time
from matminer_ed3d import table_features
from matminer_ed3d.featurizers import DensitySparseTensor
folder, out, n_jobs = sys.argv[1:]
table_features.PART_ROWS = 3
original = table_features._featurize_one
def slow(featurizer, source):
    if source.endswith("09.poscar"):
        print("there", flush=True)
        time.sleep(600)
    return original(featurizer, source)
table_features._featurize_one = slow
sources = table_features.named_sources(table_features.input_paths([folder]))
table_features.save_samples(sources, DensitySparseTensor(voxel_size=0.8), out, lambda *_: None, n_jobs=int(n_jobs))
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_run_is_completed_by_the_next(save, folder, tmp_path, kind):
    out = tmp_path / ("out.npz" if kind == "file" else "out")
    parts = tmp_path / "out.npz.parts" if kind == "file" else out
    process = subprocess.Popen([sys.executable, "-c", RUN, folder, out, "1"], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(list(parts.glob("part_*.npz"))) == 2
    assert len(rows_of(parts)) == 6
    assert not (tmp_path / "out.npz").exists()
    report = save(out)
    assert (report.n_done, report.n_earlier, report.n_failed) == (10, 6, 2)
    save(tmp_path / "afresh.npz")
    assert rows_of(out) == rows_of(tmp_path / "afresh.npz")
    assert list(rows_of(out)) == list(rows_of(tmp_path / "afresh.npz"))


class Killer(DensitySparseTensor):
    """Dies as of too little memory where it meets a certain file."""

    def featurize(self, x):
        if Path(x).stem == "04":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().featurize(x)


def test_a_process_that_dies_costs_its_source_only(save, folder, tmp_path, errors):
    started = time.monotonic()
    report = save(tmp_path / "out", Killer(voxel_size=0.8), n_jobs=2)
    assert (report.n_done, report.n_failed) == (9, 3)
    reasons = {Path(name).stem: reason for name, reason in errors}
    assert set(reasons) == {"03", "04", "08"}
    assert "was killed" in reasons["04"]
    assert time.monotonic() - started < 120


# The featurizers' cache


@pytest.mark.parametrize("cls", [DensityPointCloud, DensitySparseTensor, DensityStatistics])
def test_the_cache_changes_no_number_and_is_asked_first(cls, folder, crystals, chgcar_path, tmp_path, monkeypatch):
    from matminer_ed3d import featurizers
    from matminer_ed3d.sources import as_density

    options = {"d_min": 2.0} if cls is DensityStatistics else {"voxel_size": 0.8, "random_state": 0}
    rows = [folder / "a" / "00.poscar", str(chgcar_path), crystals["cubic"], crystals["trigonal"], as_density(crystals["cubic"])]
    plain = pd.DataFrame(cls(**options).featurize_many(rows, pbar=False))
    cached = cls(**options, cache=tmp_path / "cache")
    first = pd.DataFrame(cached.featurize_many(rows, pbar=False))

    def refuse(*args, **kwargs):
        raise AssertionError("it is in the cache")

    monkeypatch.setattr(featurizers, "make_sample", refuse)
    monkeypatch.setattr(featurizers.statistics, "density_statistics", refuse)
    second = pd.DataFrame(cached.featurize_many(rows, pbar=False))
    for a, b, c in zip(plain.to_numpy().ravel(), first.to_numpy().ravel(), second.to_numpy().ravel(), strict=True):
        if cls is DensityStatistics:
            assert a == b == c
        else:
            for other in (b, c):
                assert type(other) is type(a)
                assert other.channels == a.channels
                for name in ("coords", "feats", "lattice"):
                    np.testing.assert_array_equal(getattr(other, name), getattr(a, name))
    with pytest.raises(AssertionError):
        cls(**{**options, "channels": ("diff",)}, cache=tmp_path / "cache").featurize(rows[0])


def test_a_run_that_was_cut_goes_on_from_the_cache(folder, tmp_path, monkeypatch):
    table = pd.DataFrame({"path": input_paths([folder / "a"])})
    featurizer = DensitySparseTensor(voxel_size=0.8, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="HTML"):  # the fourth row
        featurizer.featurize_dataframe(table, "path", pbar=False)
    from matminer_ed3d import featurizers

    made = []
    monkeypatch.setattr(featurizers, "make_sample", lambda x, *args: made.append(Path(x).stem) or make_sample(x, *args))
    out = featurizer.featurize_dataframe(table, "path", ignore_errors=True, pbar=False)
    assert made == ["03", "04", "05"]
    assert out["density sparse tensor"].notna().tolist() == [True, True, True, False, True, True]


def test_the_cache_sees_what_changes(folder, nacl, tmp_path):
    featurizer = DensitySparseTensor(voxel_size=0.8, cache=tmp_path / "cache")
    path = folder / "a" / "00.poscar"

    def mean(source):
        return featurizer.featurize(source)[0].feats.mean()

    before = mean(path)
    path.write_text(poscar(3.9))
    assert mean(path) != before
    values = [mean(nacl)]
    charged = nacl.copy()
    charged.replace(0, "K")
    moved = nacl.copy()
    moved.translate_sites([0], [0.01, 0, 0])
    values += [featurizer.featurize(structure)[0].feats.tobytes() for structure in (nacl, charged, moved)]
    assert len(set(values)) == 4


def test_the_cache_takes_no_fresh_draws(nacl, tmp_path):
    drawing = DensityPointCloud(voxel_size=0.8, cache=tmp_path)
    for use in (lambda: drawing.fit([nacl]), lambda: drawing.featurize(nacl)):
        with pytest.raises(ValueError, match="set `random_state`, or reduction='mean'"):
            use()
    assert DensityPointCloud(voxel_size=0.8, reduction="mean", cache=tmp_path).featurize(nacl)[0].n_points > 0


def test_a_file_that_changes_while_it_is_read_is_not_kept(folder, tmp_path, monkeypatch):
    from matminer_ed3d import featurizers

    path = folder / "a" / "00.poscar"

    def write_and_make(x, *args):
        path.write_text(poscar(4.123))
        return make_sample(x, *args)

    featurizer = DensitySparseTensor(voxel_size=0.8, cache=tmp_path / "cache")
    monkeypatch.setattr(featurizers, "make_sample", write_and_make)
    with pytest.raises(ValueError, match="found another content than at the beginning"):
        featurizer.featurize(path)
    assert not list((tmp_path / "cache").rglob("*.entry"))


def test_sources_that_are_none_say_so_with_a_cache_too(tmp_path):
    featurizer = DensityStatistics(cache=tmp_path / "cache")
    for wrong, message in ((tmp_path / "absent", "absent"), (float("nan"), "NaN"), (tmp_path, "directory|folder|regular")):
        with pytest.raises(ValueError, match=message):
            featurizer.featurize(wrong)


# The command


def test_command(folder, tmp_path, capsys):
    from matminer_ed3d.cli import main

    (tmp_path / "list").write_text(str(folder / "b"))
    command = ["featurize", str(folder / "a"), "--files-from", str(tmp_path / "list"), "--featurizer", "voxels", "--voxel-size", "0.8"]
    command += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--failures", str(tmp_path / "failed.csv")]
    for says in ("10 of voxels written to", "10 of voxels written to {}, 10 of them by an earlier run; 2 failed"):
        assert main(command) == 1
        captured = capsys.readouterr()
        assert says.format(tmp_path / "out") in captured.out
        assert captured.err.count("\n") == 2
    assert len(failures_in(tmp_path / "failed.csv")) == 2
    assert main([*command, "--channels", "total,diff"]) == 1
    assert "['total'] there, ['total', 'diff'] now" in capsys.readouterr().err
    assert main([*command, "--channels", "total,diff", "--no-resume"]) == 1
    assert "10 of voxels written" in capsys.readouterr().out
    assert main(["featurize", "--out", str(tmp_path / "x.csv")]) == 1
    assert "nothing to featurize" in capsys.readouterr().err
