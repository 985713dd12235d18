import gzip
import itertools
import struct
import warnings
from contextlib import suppress

import gemmi
import numpy as np
import pytest

from matminer_ed3d.density import Density
from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.readers.kinds import kind_of
from matminer_ed3d.readers.units import BOHR
from matminer_ed3d.sources import as_density, read_density

CELL = (7.1, 8.3, 6.4, 90.0, 104.0, 90.0)
SHAPE = (12, 16, 20)
PERMUTATIONS = list(itertools.permutations((1, 2, 3)))


def crystal(group: str = "P 1 21/c 1", cell: tuple = CELL, shape: tuple = SHAPE) -> gemmi.FloatGrid:
    """A random positive map with the symmetry of `group`."""
    grid = gemmi.FloatGrid(*shape)
    grid.set_unit_cell(gemmi.UnitCell(*cell))
    grid.spacegroup = gemmi.SpaceGroup(group)
    grid.array[...] = np.random.default_rng(0).random(shape)
    grid.symmetrize_avg()
    return grid


def write(path, grid: gemmi.FloatGrid) -> None:
    map_ = gemmi.Ccp4Map()
    map_.grid = grid
    map_.update_ccp4_header()
    map_.write_ccp4_map(str(path))


def map_bytes(
    values, *, start=(0, 0, 0), sampling=None, axes=(1, 2, 3), cell=CELL, group=1, mode=2, order="<", origin=(0, 0, 0), records=b""
):
    """A map whose columns, rows and sections run along `axes`; `values` are (x, y, z), as is `start`."""
    shape = values.shape
    dtype = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}[mode]
    pick = [axis - 1 for axis in axes]
    header = bytearray(1024)
    struct.pack_into(order + "10i", header, 0, *(shape[a] for a in pick), mode, *(start[a] for a in pick), *(sampling or shape))
    struct.pack_into(order + "6f", header, 40, *cell)
    struct.pack_into(order + "3i", header, 64, *axes)
    struct.pack_into(order + "2i", header, 88, group, len(records))
    struct.pack_into(order + "3f", header, 196, *origin)
    header[208:212] = b"MAP "
    header[212:216] = b"DA\0\0" if order == "<" else b"\x11\x11\0\0"
    return bytes(header) + records + np.ascontiguousarray(values.transpose(pick[::-1]), order + dtype).tobytes()


@pytest.fixture
def values():
    return np.random.default_rng(1).random((5, 6, 7)).astype(np.float32)


def put(path, raw: bytes):
    path.write_bytes(raw)
    return path


# --- laws --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_what_gemmi_writes_is_read_to_the_bit(tmp_path, compress):
    grid = crystal()
    write(tmp_path / "x.ccp4", grid)
    put(tmp_path / "any name", compress((tmp_path / "x.ccp4").read_bytes()))
    density = read_density(tmp_path / "any name")
    np.testing.assert_array_equal(density.channels["total"], grid.array)
    np.testing.assert_allclose(density.lattice, np.array(grid.unit_cell.orth.mat.tolist()).T, rtol=0, atol=1e-12)
    assert density.lattice[0, 1] == density.lattice[0, 2] == density.lattice[1, 2] == 0
    assert density.n_electrons() == pytest.approx(float(grid.array.mean()) * grid.unit_cell.volume, rel=1e-6)
    assert density.quantity == "electron_density"
    assert density.structure is None
    assert as_density(tmp_path / "any name").n_electrons() == density.n_electrons()


@pytest.mark.parametrize("axes", PERMUTATIONS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_axes_and_bytes_in_any_order(tmp_path, values, axes, order):
    path = put(tmp_path / "x", map_bytes(values, axes=axes, order=order))
    np.testing.assert_array_equal(read_density(path).channels["total"], values)


@pytest.mark.parametrize("axes", PERMUTATIONS)
def test_gemmi_reads_the_axes_alike(tmp_path, values, axes):
    path = put(tmp_path / "x", map_bytes(values, axes=axes, start=(1, 2, 3)))
    oracle = gemmi.read_ccp4_map(str(path), setup=True)
    np.testing.assert_array_equal(read_density(path).channels["total"], oracle.grid.array)


@pytest.mark.parametrize("mode", [0, 1, 2, 6, 12])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_mode_of_real_numbers(tmp_path, mode, order):
    values = np.random.default_rng(2).integers(0, 127, (5, 6, 7))
    path = put(tmp_path / "x", map_bytes(values, mode=mode, order=order))
    np.testing.assert_array_equal(read_density(path).channels["total"], values)


def test_the_old_mark_of_mrc_is_known_and_the_word_in_a_text_is_none(tmp_path, values):
    raw = bytearray(map_bytes(values))
    raw[208:212] = b"MAP\0"
    np.testing.assert_array_equal(read_density(put(tmp_path / "x", bytes(raw))).channels["total"], values)
    assert kind_of(b"#".ljust(207) + b"\nMAP of\ndata_x\n") != "ccp4"


def test_a_wrong_machine_stamp_changes_nothing(tmp_path, values):
    raw = bytearray(map_bytes(values, order=">"))
    raw[212:216] = b"DA\0\0"
    np.testing.assert_array_equal(read_density(put(tmp_path / "x", bytes(raw))).channels["total"], values)


@pytest.mark.parametrize(
    "group", ["P -1", "P 1 21/c 1", "P 21 21 21", "C 1 2 1", "P 1 1 21/b", "I 41/a m d:2", "R 3:H", "F m -3 m", "P 61 2 2"]
)
def test_an_asymmetric_unit_fills_the_cell(tmp_path, group):
    cells = {"I": (6, 6, 9, 90, 90, 90), "R": (6, 6, 9, 90, 90, 120), "F": (6, 6, 6, 90, 90, 90)}
    cell = (6, 6, 9, 90, 90, 120) if group.startswith("P 6") else cells.get(group[0], (7, 8, 6, 90, 90, 90))
    whole = crystal(group, cell, (24, 24, 24))
    expected = np.array(whole.array, dtype=float)
    map_ = gemmi.Ccp4Map()
    map_.grid = whole
    map_.update_ccp4_header()
    map_.set_extent(gemmi.find_asu_brick(whole.spacegroup).get_extent())
    map_.write_ccp4_map(str(tmp_path / "asu.ccp4"))
    assert (tmp_path / "asu.ccp4").stat().st_size < 4 * expected.size
    density = read_density(tmp_path / "asu.ccp4")
    assert density.grid_shape == expected.shape
    np.testing.assert_allclose(density.channels["total"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axes", [(3, 1, 2), (2, 1, 3)])
def test_a_block_of_an_asymmetric_unit_in_any_order_from_any_point(tmp_path, axes):
    whole = np.array(crystal().array)
    for start in ((0, 0, 0), (3, -4, 21)):
        block = np.roll(whole, [-s for s in start], (0, 1, 2))[:, : SHAPE[1] // 4 + 1, :]
        raw = map_bytes(block, start=start, sampling=SHAPE, axes=axes, group=14)
        np.testing.assert_allclose(read_density(put(tmp_path / "x", raw)).channels["total"], whole, rtol=0, atol=1e-6)


def test_the_first_point_may_be_anywhere(tmp_path, values):
    for start in ((1, 2, 3), (-1, 0, 0), (50, -60, 7), (2**31 - 1, -(2**31), 0)):
        path = put(tmp_path / "x", map_bytes(values, start=start))
        np.testing.assert_array_equal(read_density(path).channels["total"], np.roll(values, start, (0, 1, 2)))


def test_the_origin_of_mrc_2014_counts_where_no_first_point_is_given(tmp_path, values):
    step = np.array((5.0, 6.0, 7.0)) / values.shape
    cell = (5, 6, 7, 90, 90, 90)
    path = put(tmp_path / "x", map_bytes(values, cell=cell, origin=np.array((1, -2, 3)) * step))
    np.testing.assert_array_equal(read_density(path).channels["total"], np.roll(values, (1, -2, 3), (0, 1, 2)))
    put(path, map_bytes(values, cell=cell, origin=np.array((1, -2, 3)) * step, start=(1, 0, 0)))
    np.testing.assert_array_equal(read_density(path).channels["total"], np.roll(values, 1, 0))
    put(path, map_bytes(values, cell=cell, origin=(0.4, 0, 0)))
    with pytest.warns(UserWarning, match="on no point of its grid"):
        np.testing.assert_array_equal(read_density(path).channels["total"], values)


def test_a_map_of_more_than_the_cell_must_repeat_itself(tmp_path, values):
    extended = np.pad(values, [(0, 1), (2, 3), (0, 9)], mode="wrap")
    path = put(tmp_path / "x", map_bytes(extended, sampling=values.shape, start=(0, -2, 0)))
    np.testing.assert_array_equal(read_density(path).channels["total"], values)
    extended[-1, 0, 0] += 0.5
    with pytest.raises(DensityFileError, match="a cell further"):
        read_density(put(path, map_bytes(extended, sampling=values.shape, start=(0, -2, 0))))


def test_a_whole_cell_is_taken_as_it_is_whatever_its_symmetry_claims(tmp_path, values):
    np.testing.assert_array_equal(read_density(put(tmp_path / "x", map_bytes(values, group=225))).channels["total"], values)


def test_a_box_of_a_microscope_is_a_crystal_of_p1(tmp_path):
    values = np.random.default_rng(3).random((8, 8, 8)).astype(np.float32)
    density = read_density(put(tmp_path / "x.mrc", map_bytes(values, cell=(8, 8, 8, 90, 90, 90), group=0)))
    np.testing.assert_array_equal(density.lattice, 8 * np.eye(3))


def test_options(tmp_path, values):
    path = put(tmp_path / "x", map_bytes(values))
    total = read_density(path).channels["total"]
    np.testing.assert_allclose(read_density(path, unit="e/bohr^3").channels["total"], total / BOHR**3, rtol=1e-14)
    assert list(read_density(path, channels=("total",)).channels) == ["total"]
    potential = read_density(path, quantity="potential")
    assert potential.quantity == "potential"
    np.testing.assert_array_equal(potential.channels["total"], total)
    with pytest.raises(DensityFileError, match="the channels total, expected also diff"):
        read_density(path, channels=("total", "diff"))
    with pytest.raises(ValueError, match="leave it out"):
        read_density(path, quantity="potential", unit="e/A^3")


def test_without_f000_the_map_is_read_with_a_warning(tmp_path, values):
    density_map = put(tmp_path / "x", map_bytes(values - values.mean()))
    with pytest.warns(UserWarning, match=r"F\(000\) is missing") as caught:
        density = Density.from_file(density_map)
    assert len(caught) == 1
    np.testing.assert_allclose(density.channels["total"], values - values.mean(), rtol=0, atol=1e-7)
    assert density.quantity == "electron_density"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_density(density_map, quantity="unknown")


# --- what is no map ----------------------------------------------------------------------------------------------------------------


def edit(raw: bytes, at: int, *words: int) -> bytes:
    out = bytearray(raw)
    struct.pack_into(f"<{len(words)}i", out, at, *words)
    return bytes(out)


SOUND = map_bytes(np.random.default_rng(1).random((5, 6, 7)).astype(np.float32))
HOLE = np.ones((5, 6, 7), np.float32)
HOLE[1, 2, 3] = np.nan
BAD = {
    "header cut short": (SOUND[:500], "header of 500 bytes"),
    "values cut short": (SOUND[:-1], r"1864 for 5 x 6 x 7 values of mode 2 \(float32\); is it complete"),
    "no values": (SOUND[:1024], "is it complete"),
    "two files in one": (SOUND + SOUND, "what is the rest"),
    "gigantic": (edit(SOUND, 0, 2**31 - 1, 2**31 - 1, 2**31 - 1), "is it complete"),
    "wraps int64": (edit(SOUND, 0, 2**22, 2**21, 2**21), "is it complete"),
    "no columns": (edit(SOUND, 0, 0), "at least one along each axis"),
    "negative": (edit(SOUND, 0, -5, -6, 7), "at least one along each axis"),
    "no sampling": (edit(SOUND, 28, 0, 0, 0), "at least one along each axis"),
    "gigantic cell": (edit(edit(SOUND, 88, 225), 28, 2**31 - 1, 2**31 - 1, 2**31 - 1), "at most"),
    "large cell": (edit(edit(SOUND, 88, 225), 28, 700, 700, 700), r"0\.0% of the cell, in space group F m -3 m"),
    "axis twice": (edit(SOUND, 64, 1, 1, 3), "MAPC, MAPR, MAPS"),
    "no axes": (edit(SOUND, 64, 0, 0, 0), "MAPC, MAPR, MAPS"),
    "Fourier transform": (edit(SOUND, 12, 4), r"mode 4 \(complex numbers, a Fourier transform\)"),
    "unknown mode": (edit(SOUND, 12, 99), r"mode 99 \(unknown\)"),
    "symmetry records without end": (edit(SOUND, 92, 2**31 - 1), "symmetry records"),
    "symmetry records of negative length": (edit(SOUND, 92, -80), "symmetry records"),
    "no cell": (edit(SOUND, 40, 0, 0, 0), "span a cell"),
    "flat cell": (map_bytes(HOLE, cell=(5, 5, 5, 90, 90, 0)), "span a cell"),
    "impossible angles": (map_bytes(HOLE, cell=(5, 5, 5, 10, 170, 20)), "span a cell"),
    "NaN cell": (map_bytes(HOLE, cell=(5, 5, float("nan"), 90, 90, 90)), "span a cell"),
    "NaN": (map_bytes(HOLE), "1 of 210 values that are not finite"),
    "infinity": (map_bytes(np.where(np.isnan(HOLE), -np.inf, HOLE)), "1 of 210 values that are not finite"),
    "a part of the cell": (map_bytes(np.ones((5, 3, 7)), sampling=(5, 6, 14)), r"25\.0% of the cell, in space group P 1"),
    "a part with symmetry": (
        map_bytes(np.ones((12, 7, 20)), sampling=SHAPE, start=(0, 5, 0), group=14),
        r"% of the cell, space group P 1 21/c 1",
    ),
    "too small a part": (map_bytes(np.ones((12, 2, 20)), sampling=SHAPE, group=14), r"12\.5% of the cell, in space group P 1 21/c 1"),
    "mates that differ": (
        map_bytes(np.random.default_rng(0).random((12, 9, 20)), sampling=SHAPE, group=14),
        "between mates of space group P 1 21/c 1",
    ),
    "a grid that does not fit": (map_bytes(np.ones((7, 5, 7)), sampling=(7, 7, 7), group=14), "a grid that fits space group P 1 21/c 1"),
    "unknown space group": (map_bytes(np.ones((7, 5, 7)), sampling=(7, 7, 7), group=999), "space group 999"),
    "other operations": (
        map_bytes(np.ones((8, 5, 8)), sampling=(8, 8, 8), group=14, records=b"x,y,z".ljust(80) + b"-x,-y,-z".ljust(80)),
        "another than number 14",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("read", [read_density, as_density])
def test_bad_maps_name_the_file_and_what_is_wrong(tmp_path, case, read):
    raw, reason = BAD[case]
    with pytest.raises(DensityFileError, match=rf"bad\.map: found .*{reason}"):
        read(put(tmp_path / "bad.map", raw))


def test_no_damage_makes_another_error(tmp_path):
    rng = np.random.default_rng(0)
    sound = map_bytes(np.array(crystal().array)[:, :5], sampling=SHAPE, group=14, records=b"x,y,z".ljust(80))
    for _ in range(300):
        raw = bytearray(sound)
        for at in rng.integers(0, 260, rng.integers(1, 4)):
            raw[at] = rng.choice([0, 1, 2, 127, 128, 255, rng.integers(256)])
        with warnings.catch_warnings(), suppress(DensityFileError):
            warnings.simplefilter("ignore")
            read_density(put(tmp_path / "x", bytes(raw)))
