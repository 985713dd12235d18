import bz2
import gzip
import lzma
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from matminer_ed3d.readers import binary
from matminer_ed3d.readers.binary import chosen_channels, density_unit, find_object, open_hdf5, plain_file, read_dataset
from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.readers.streams import open_stream
from matminer_ed3d.readers.units import BOHR

DATA = np.random.default_rng(0).bytes(100_000)


def test_a_plain_file_is_given_as_it_is(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(DATA)
    with plain_file(path) as place:
        assert place == path


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_is_inflated_for_a_while(tmp_path, compress):
    path = tmp_path / "any name"
    path.write_bytes(compress(DATA))
    with plain_file(path) as place:
        assert place.read_bytes() == DATA
    assert not place.exists()
    with pytest.raises(RuntimeError, match="reader"), plain_file(path) as place:
        raise RuntimeError("reader")
    assert not place.exists()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_damaged_data_name_the_file(tmp_path, compress):
    path = tmp_path / "x"
    path.write_bytes(compress(DATA)[:-20])
    with pytest.raises(DensityFileError, match=r"x: found damaged data"), plain_file(path):
        pass


def test_what_grows_too_much_is_refused_before_it_is_written(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(bytes(1 << 24)))
    monkeypatch.setattr(binary, "MOST_BYTES", 1 << 22)
    with pytest.raises(DensityFileError, match=r"more than 4194304 bytes"), plain_file(path):
        pass
    path.write_bytes(bytes(1 << 23))
    with pytest.raises(DensityFileError, match=r"8388608 bytes, expected at most"), plain_file(path):
        pass


def test_regular_files_only(tmp_path):
    places = [tmp_path, Path("/dev/zero")]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        places.append(tmp_path / "pipe")
    for place in places:
        with pytest.raises(DensityFileError, match=r"a regular file|a directory"), plain_file(place):
            pass
    for place in (tmp_path / "none", "a\0b"):
        with pytest.raises(DensityFileError, match=r"no such file|unreadable"), plain_file(place):
            pass


def test_channels_come_in_the_order_of_the_file(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    with open_stream(tmp_path / "x") as stream:
        assert chosen_channels(stream, ("total", "diff"), None) == ("total", "diff")
        assert chosen_channels(stream, ("total", "diff"), ("diff", "total")) == ("total", "diff")
    with pytest.raises(DensityFileError, match=r"the channels total, expected also diff"):
        chosen_channels(stream, ("total",), ("total", "diff"))


def test_units():
    assert density_unit("e/A^3", None, "electron_density") == 1
    assert density_unit("e/bohr^3", None, "electron_density") == density_unit("e/A^3", "e/bohr^3", "electron_density") == BOHR**-3
    with pytest.raises(ValueError, match="leave it out"):
        density_unit("e/A^3", "e/A^3", "potential")


# --- HDF5 --------------------------------------------------------------------------------------------------------------------------


def read(path: Path, name: str = "x") -> np.ndarray | None:
    with open_stream(path) as stream, open_hdf5(path, stream) as file:
        return read_dataset(file, name, stream)


@pytest.fixture
def h5(tmp_path):
    h5py = pytest.importorskip("h5py")
    return h5py, tmp_path / "x.h5"


@pytest.mark.parametrize("options", [{}, {"chunks": (10, 10)}, {"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}])
def test_datasets_of_every_storage_are_read(h5, options):
    h5py, path = h5
    values = np.random.default_rng(0).random((40, 50))
    with h5py.File(path, "w") as file:
        file.create_dataset("a/b/x", data=values, **options)
    np.testing.assert_array_equal(read(path, "a/b/x"), values)
    assert read(path, "a/c/x") is None
    with pytest.raises(DensityFileError, match="a group at a/b"):
        read(path, "a/b")


def test_links_and_other_files_are_not_followed(h5, tmp_path):
    h5py, path = h5
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.ones(10)
    (tmp_path / "raw").write_bytes(bytes(80))
    with h5py.File(path, "w") as file:
        file["real"] = np.ones(10)
        file["outside"] = h5py.ExternalLink("other.h5", "x")
        file["soft"] = h5py.SoftLink("/real")
        file.create_dataset("raw", (10,), "f8", external=[(str(tmp_path / "raw"), 0, 80)])
        layout = h5py.VirtualLayout((10,), "f8")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "x", (10,))
        file.create_virtual_dataset("virtual", layout)
        file["loop"] = file["/"]
    for name in ("outside", "soft"):
        with pytest.raises(DensityFileError, match="links are not followed"):
            read(path, name)
    for name in ("raw", "virtual"):
        with pytest.raises(DensityFileError, match="other files are not opened"):
            read(path, name)
    np.testing.assert_array_equal(read(path, "loop/loop/real"), np.ones(10))


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 1000, 1000)}, {"chunks": (1, 1000, 1000), "compression": "gzip"}])
def test_values_that_are_announced_and_not_stored_are_refused(h5, options):
    h5py, path = h5
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (100_000, 1000, 1000), "f8", **options)
    with pytest.raises(DensityFileError, match=r"x of shape \(100000, 1000, 1000\)"):
        read(path)


def test_strings_of_any_length_and_objects_are_refused(h5):
    h5py, path = h5
    with h5py.File(path, "w") as file:
        file["x"] = "text"
        file.create_dataset("fixed", data=np.array([b"Si", b"O "]))
    with pytest.raises(DensityFileError, match="fixed length"):
        read(path)
    assert read(path, "fixed").tolist() == [b"Si", b"O "]


def test_damaged_hdf5_names_the_file(h5):
    h5py, path = h5
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(10_000.0), compression="gzip")
    sound = path.read_bytes()
    path.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(DensityFileError, match=r"x\.h5: found damaged HDF5"):
        read(path)
    rng = np.random.default_rng(0)
    for _ in range(100):
        raw = bytearray(sound)
        for at in rng.integers(0, len(raw), 20):
            raw[at] = rng.integers(256)
        path.write_bytes(raw)
        with suppress(DensityFileError):
            read(path)


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'matminer_ed3d\[hdf5\]'"):
        read(path)


def test_an_object_below_a_dataset_is_none(h5):
    h5py, path = h5
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)
    with open_stream(path) as stream, open_hdf5(path, stream) as file:
        assert find_object(file, "x/y", stream) is None
