"""VESTA's .grd, .pgrid and .ggrid: written here as their descriptions say, with cells and symmetry from gemmi."""

from __future__ import annotations

import gzip
import struct
import warnings

import numpy as np
import pytest

from matminer_ed3d.density import Density
from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.readers.units import BOHR
from matminer_ed3d.sources import what_is

CELL = (3.0, 4.0, 5.0, 80.0, 95.0, 105.0)
SHAPE = (3, 4, 5)


def positive(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 1.0, shape)


def grd_text(values: np.ndarray, title: str = "a map", cell: tuple[float, ...] = CELL) -> str:
    """As GSAS-II: one value a line, z fastest."""
    head = f"{title}\n" + " ".join(f"{x:9.5f}" for x in cell) + "\n " + " ".join(f"{n:3d}" for n in values.shape) + "\n"
    return head + "".join(f"{x!r}\n" for x in values.ravel().tolist())


def pgrid_header(
    shape: tuple[int, ...], n_stored: int, grid: int = 1, data: int = 0, order: str = "<", cell=CELL, n_values: int = 1
) -> bytes:
    return struct.pack(order + "4i80s8i6f", 3, 0, 0, 0, b"a title", grid, data, n_values, 3, *shape, n_stored, *cell)


def pgrid(values: np.ndarray, grid: int = 1, order: str = "<") -> bytes:
    return pgrid_header(values.shape, values.size, grid, 0, order) + values.ravel(order="F").astype(f"{order}f4").tobytes()


def read(tmp_path, raw, kind: str, **options) -> Density:
    path = tmp_path / "input"
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    assert what_is(path) == (kind, True)
    return Density.from_file(path, **options)


def expected_lattice(cell=CELL) -> np.ndarray:
    from pymatgen.core.lattice import Lattice

    return Lattice.from_parameters(*cell, vesta=True).matrix


def test_a_grd_reads(tmp_path):
    rho = positive()
    density = read(tmp_path, grd_text(rho), "grd")
    np.testing.assert_array_equal(density.channels["total"], rho)
    np.testing.assert_allclose(density.lattice, expected_lattice(), atol=1e-12)
    assert density.n_electrons() == pytest.approx(rho.mean() * density.volume, rel=1e-12)
    assert density.structure is None
    bohr = read(tmp_path, grd_text(rho), "grd", unit="e/bohr^3")
    assert bohr.n_electrons() == pytest.approx(density.n_electrons() / BOHR**3, rel=1e-12)
    np.testing.assert_array_equal(read(tmp_path, grd_text(rho).replace("\n", "\r\n"), "grd").channels["total"], rho)
    np.testing.assert_array_equal(read(tmp_path, gzip.compress(grd_text(rho).encode()), "grd").channels["total"], rho)


def test_end_points_of_a_grd_are_left_out_with_a_warning(tmp_path):
    rho = positive()
    with pytest.warns(UserWarning, match="end points are left out"):
        density = read(tmp_path, grd_text(np.pad(rho, [(0, 1)] * 3, mode="wrap")), "grd")
    np.testing.assert_array_equal(density.channels["total"], rho)


def test_a_difference_map_is_no_electron_density(tmp_path):
    with pytest.warns(UserWarning, match="negative"):
        assert read(tmp_path, grd_text(positive() - 0.5), "grd").quantity == "unknown"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace(" 80.00000", "180.00000"), ":2?.*angles between 0 and 180|lengths above 0"),
        (lambda text: text.replace("   3   4   5", "   0   4   5"), "a grid of 0 x 4 x 5"),
        (lambda text: text.replace("   3   4   5", "   3   4   6"), "end of the file after 60 of 72"),
        (lambda text: text.replace("   3   4   5", "   3   4   4"), ":52: found"),
        (lambda text: text.replace("   3   4   5", "   3   4   99999999"), "values announced"),
        (lambda text: text + "nonsense\n", r":64: found 'nonsense'"),
        (lambda text: text.replace(text.split()[30], "NaN"), r":\d+: found 'NaN'"),
    ],
)
def test_bad_grds_are_refused(tmp_path, change, reason):
    with pytest.raises(DensityFileError, match=reason):
        read(tmp_path, change(grd_text(positive())), "grd")


# --- binary ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [lambda raw: raw, gzip.compress])
def test_a_pgrid_of_the_whole_cell_reads(tmp_path, order, compress):
    rho = positive().astype("f4").astype(float)
    density = read(tmp_path, compress(pgrid(rho, order=order)), "pgrid")
    np.testing.assert_array_equal(density.channels["total"], rho)
    np.testing.assert_allclose(density.lattice, expected_lattice(), atol=1e-5)


def test_a_ggrid_loses_its_end_points(tmp_path):
    rho = positive().astype("f4").astype(float)
    np.testing.assert_array_equal(read(tmp_path, pgrid(np.pad(rho, [(0, 1)] * 3, mode="wrap"), grid=0), "pgrid").channels["total"], rho)
    with pytest.raises(DensityFileError, match="period of the cell"):
        read(tmp_path, pgrid(rho, grid=0), "pgrid")


def asymmetric_unit(
    name: str, shape: tuple[int, int, int], by_columns: bool, order: str = "<", half: bool = False
) -> tuple[bytes, np.ndarray]:
    """A .pgrid of random values at the first point of each orbit, and the whole grid, by gemmi."""
    import gemmi

    cell = {"c": (4.0, 4.0, 4.0, 90, 90, 90), "t": (4.0, 4.0, 5.0, 90, 90, 90), "h": (4.0, 4.0, 5.0, 90, 90, 120)}[name[-1]]
    group = gemmi.find_spacegroup_by_name(name[:-1])
    operations = group.operations()
    owner = np.full(shape, -1)
    chosen = list(operations.sym_ops)
    if half:  # the others are their inverses
        chosen = [op for n, op in enumerate(chosen) if all(op.rot != [[-x for x in row] for row in other.rot] for other in chosen[:n])]
    records, values = [], np.random.default_rng(1).uniform(0.1, 1.0, np.prod(shape)).astype("f4")
    for at in range(owner.size):
        point = np.array(np.unravel_index(at, shape, order="F"))
        if owner[tuple(point)] >= 0:
            continue
        for op in operations:
            image = np.array(op.apply_to_xyz((point / shape).tolist())) * shape
            owner[tuple(np.round(image).astype(int) % shape)] = at
        records.append((at, values[at]))
    raw = pgrid_header(shape, len(records), data=1, order=order, cell=cell)
    centrings = [np.array(c) * shape // 24 for c in operations.cen_ops]
    raw += struct.pack(order + "3i", len(chosen), int(half), len(centrings))
    for op in chosen:
        matrix = np.array(op.rot) // 24
        raw += struct.pack(
            order + "12i", *(matrix.T if by_columns else matrix).ravel().tolist(), *(np.array(op.tran) * shape // 24).tolist()
        )
    for centring in centrings:
        raw += struct.pack(order + "3i", *centring.tolist())
    for at, value in records:
        raw += struct.pack(order + "if", at, value)
    return raw, values[owner].astype(float)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize(
    ("name", "shape", "half"),
    [
        ("P 1c", (3, 4, 5), False),
        ("P 42t", (8, 8, 12), False),
        ("I 4/mt", (6, 6, 4), True),
        ("P 31 2 1h", (6, 6, 9), False),
        ("P 63/m m ch", (6, 6, 4), True),
        ("F d -3 mc", (8, 8, 8), False),
    ],
)
def test_an_asymmetric_unit_fills_the_cell(tmp_path, name, shape, half, by_columns):
    import gemmi

    raw, rho = asymmetric_unit(name, shape, by_columns, half=half)
    density = read(tmp_path, raw, "pgrid")
    np.testing.assert_array_equal(density.channels["total"], rho)
    grid = gemmi.FloatGrid(rho.astype("f4"))
    grid.spacegroup = gemmi.find_spacegroup_by_name(name[:-1])
    grid.symmetrize_max()
    np.testing.assert_array_equal(np.array(grid.array), rho)  # gemmi finds that symmetry in it


def test_an_asymmetric_unit_that_could_be_either_enantiomorph_is_refused(tmp_path):
    """With its matrices transposed, P 41 is P 43, and both fill the cell."""
    with pytest.raises(DensityFileError, match="in one way"):
        read(tmp_path, asymmetric_unit("P 41t", (8, 8, 12), False)[0], "pgrid")


def test_an_asymmetric_unit_with_a_value_too_few_or_too_many_is_refused(tmp_path):
    raw, _ = asymmetric_unit("P 41t", (8, 8, 12), False)
    n_stored = (8 * 8 * 12) // 4
    header = len(pgrid_header((1, 1, 1), 1))
    with pytest.raises(DensityFileError, match="in one way"):
        read(tmp_path, raw[: header - 28] + struct.pack("<i", n_stored - 1) + raw[header - 24 : -8], "pgrid")
    with pytest.raises(DensityFileError, match="in one way"):
        read(tmp_path, raw[:-8] + struct.pack("<if", 1, 0.5), "pgrid")


BAD = {
    "truncated": (lambda raw: raw[:-4], "is it complete"),
    "longer": (lambda raw: raw + bytes(4), "what is the rest"),
    "two values a point": (lambda raw: pgrid_header(SHAPE, 60, n_values=2) + raw[152:] * 2, "2 values at each point"),
    "gigantic": (lambda raw: pgrid_header((2**30, 2**30, 2**30), 60) + raw[152:], "at most"),
    "NaN": (lambda raw: raw[:-4] + struct.pack("<f", float("nan")), "1 of 60 values that are not finite"),
    "flat cell": (lambda raw: pgrid_header(SHAPE, 60, cell=(3, 4, 5, 120, 120, 120)) + raw[152:], "close a cell"),
    "NaN cell": (lambda raw: pgrid_header(SHAPE, 60, cell=(3, 4, float("nan"), 90, 90, 90)) + raw[152:], "finite"),
    "asymmetric without symmetry": (lambda raw: pgrid_header(SHAPE, 60, data=1), "symmetry operations"),
    "asymmetric of zeros": (lambda raw: pgrid_header(SHAPE, 60, data=1) + bytes(1000), "0 symmetry operations"),
    "asymmetric, too large": (lambda raw: pgrid_header(SHAPE, 60, data=1) + bytes(100_000), "no more than"),
    "asymmetric .ggrid": (lambda raw: pgrid_header(SHAPE, 60, grid=0, data=1) + bytes(1000), "not documented"),
    "asymmetric, no values": (lambda raw: pgrid_header(SHAPE, 0, data=1) + struct.pack("<3i", 1, 0, 1), "0 values"),
    "negative number of values": (lambda raw: pgrid_header(SHAPE, -5, data=1) + struct.pack("<3i", 1, 0, 1), "-5 values"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pgrids_are_refused(tmp_path, case):
    change, reason = BAD[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DensityFileError, match=reason) as caught:
            read(tmp_path, change(pgrid(positive())), "pgrid")
    assert str(tmp_path / "input") in str(caught.value)
