"""The CHGCAR family: laws on small files written here, pymatgen as the oracle, two real files, and what goes wrong in the wild."""

from __future__ import annotations

import bz2
import gzip
import lzma
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matminer_ed3d.density import Density
from matminer_ed3d.readers import streams
from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.readers.streams import open_stream
from matminer_ed3d.readers.vasp import read_poscar, read_volumetric, structure_of

DATA = Path(__file__).parent / "data"
LATTICE = np.array([[3.0, 0.0, 0.0], [0.5, 4.0, 0.0], [0.0, -0.3, 5.0]])
SHAPE = (3, 4, 5)
HEADER = """a comment
 1.0
 3.0 0.0 0.0
 0.5 4.0 0.0
 0.0 -0.3 5.0
 Na Cl
 1 2
Direct
 0.0 0.0 0.0
 0.5 0.5 0.5
 0.25 0.75 0.1

"""
AUGMENTATION = """augmentation occupancies   1  7
  0.1E+00  0.2E+00  0.3E+00  0.4E+00  0.5E+00
  0.6E+00  0.7E+00
augmentation occupancies (imaginary part)   1  7
  0.1E+00  0.2E+00  0.3E+00  0.4E+00  0.5E+00
  0.8E+00  0.9E+00
augmentation occupancies   2  3
  0.1E+00  0.2E+00  0.3E+00
"""


def values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 9.0, SHAPE)


def grid_text(rho_times_volume: np.ndarray, per_line: int = 5) -> str:
    words = [f"{v:.11E}" for v in rho_times_volume.ravel(order="F")]
    lines = [" " + " ".join(words[i : i + per_line]) for i in range(0, len(words), per_line)]
    return " ".join(f"{n:4d}" for n in rho_times_volume.shape) + "\n" + "\n".join(lines) + "\n"


def chgcar_text(n_sets: int = 1, augmentation: bool = True, header: str = HEADER) -> str:
    moments = " 0.1E+01 0.2E+01 0.3E+01\n" if augmentation else ""
    blocks = [(moments if n else "") + grid_text(values(n)) + (AUGMENTATION if augmentation else "") for n in range(n_sets)]
    return header + "".join(blocks)


def read(path: Path) -> Density:
    with open_stream(path) as stream:
        return read_volumetric(stream)


def read_text(tmp_path: Path, text: str | bytes) -> Density:
    path = tmp_path / "CHGCAR"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path)


# --- laws ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", [True, False])
@pytest.mark.parametrize(("n_sets", "channels"), [(1, ["total"]), (2, ["total", "diff"]), (4, ["total", "diff_x", "diff_y", "diff_z"])])
def test_sets_become_channels_divided_by_the_volume_once(tmp_path, n_sets, channels, augmentation):
    density = read_text(tmp_path, chgcar_text(n_sets, augmentation))
    assert list(density.channels) == channels
    for n, name in enumerate(channels):
        np.testing.assert_allclose(density.channels[name] * density.volume, values(n), rtol=1e-11)
    np.testing.assert_allclose(density.lattice, LATTICE, rtol=0, atol=1e-12)
    assert density.n_electrons() == pytest.approx(values().mean(), rel=1e-11)
    assert [site.species_string for site in density.structure] == ["Na", "Cl", "Cl"]


@pytest.mark.parametrize("n_sets", [1, 2, 4])
def test_pymatgen_reads_the_same(tmp_path, n_sets):
    from pymatgen.io.vasp.outputs import Chgcar

    path = tmp_path / "CHGCAR"
    path.write_text(chgcar_text(n_sets))
    ours, theirs = read(path), Chgcar.from_file(path)
    for name, rho in ours.channels.items():
        np.testing.assert_allclose(rho, theirs.data[name] / ours.volume, rtol=1e-14)
    assert ours.structure.matches(theirs.structure)
    np.testing.assert_allclose(ours.structure.frac_coords, theirs.structure.frac_coords, atol=1e-12)


@pytest.mark.parametrize(("name", "n_electrons", "shape"), [("CHGCAR_no_spin.gz", 8.0, (28, 28, 28)), ("CHGCAR_water", None, (3, 3, 2))])
def test_real_files_read_as_by_pymatgen(name, n_electrons, shape):
    from pymatgen.io.vasp.outputs import Chgcar

    ours, theirs = read(DATA / name), Chgcar.from_file(DATA / name)
    assert ours.grid_shape == shape
    np.testing.assert_allclose(ours.channels["total"], theirs.data["total"] / ours.volume, rtol=1e-14)
    if n_electrons is not None:
        assert ours.n_electrons() == pytest.approx(n_electrons, rel=1e-6)


def test_the_shipped_example_holds_its_valence_electrons_and_its_moment(chgcar_path):
    density = read(chgcar_path)
    assert density.n_electrons() == pytest.approx(8.0, rel=1e-6)
    assert density.n_electrons("diff") == pytest.approx(2.2725, abs=1e-3)


@pytest.mark.parametrize("per_line", [1, 5, 10, 1000])
def test_the_length_of_lines_does_not_matter(tmp_path, per_line):
    density = read_text(tmp_path, HEADER + grid_text(values(), per_line))
    np.testing.assert_allclose(density.channels["total"] * density.volume, values(), rtol=1e-11)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("suffix", ["", ".gz", ".txt"])
def test_compression_is_known_by_content(tmp_path, compress, suffix):
    path = tmp_path / f"CHGCAR{suffix}"
    path.write_bytes(compress(chgcar_text(2).encode()))
    np.testing.assert_allclose(read(path).channels["diff"] * read(path).volume, values(1), rtol=1e-11)


@pytest.mark.parametrize("piece", [1 << 8, 1 << 9, 1 << 20])
def test_the_size_of_pieces_does_not_matter(tmp_path, monkeypatch, piece):
    whole = read_text(tmp_path, chgcar_text(4))
    monkeypatch.setattr(streams, "PIECE", piece)
    again = read_text(tmp_path, chgcar_text(4))
    for name, rho in whole.channels.items():
        np.testing.assert_array_equal(again.channels[name], rho)


NUMBERS = st.floats(min_value=-1e150, max_value=1e150, allow_nan=False, width=64)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=40), style=st.sampled_from(["E", "D", "bare"]), piece=st.integers(32, 200))
def test_numbers_are_read_to_the_last_bit(tmp_path, monkeypatch, numbers, style, piece):
    def fortran(x: float) -> str:
        word = f"{x:.16E}"
        mantissa, exponent = word.split("E")
        if style == "bare" and len(exponent) == 4:
            return mantissa + exponent
        return word.replace("E", "E" if style == "bare" else style)

    monkeypatch.setattr(streams, "PIECE", piece)
    path = tmp_path / "numbers"
    path.write_text("\n".join(fortran(x) for x in numbers))
    with open_stream(path) as stream:
        np.testing.assert_array_equal(stream.read_values(len(numbers), "numbers"), numbers)


# --- what VASP and people write -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("first", "0.12345678901-100", 0.12345678901e-100),
        ("first", "-.12345678901-100", -0.12345678901e-100),
        ("first", "0.25D+01", 2.5),
        ("first", "1e-400", 0.0),
        ("first", ".5", 0.5),
        ("first", "+3.", 3.0),
    ],
)
def test_fortran_numbers_are_read_exactly(tmp_path, old, new, value):
    rho = values()
    text = grid_text(rho).split("\n")
    words = text[1].split()
    words[1] = new
    text[1] = " ".join(words)
    density = read_text(tmp_path, HEADER + "\n".join(text))
    assert density.channels["total"][1, 0, 0] * density.volume == pytest.approx(value, rel=1e-15, abs=0)
    assert density.channels["total"][2, 0, 0] * density.volume == pytest.approx(rho[2, 0, 0], rel=1e-11)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace(" ", "\t"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n" * 50,
        lambda text: text.replace("Direct\n", "Selective dynamics\nDirect\n").replace("0.5 0.5 0.5\n", "0.5 0.5 0.5 T F T\n"),
        lambda text: text.replace("Na Cl", "Na_pv Cl"),
        lambda text: text.replace("Na Cl", "Na_pv/0a1b2c Cl/3d4e5f"),
        lambda text: text.replace("Na Cl", "Na/ Cl_"),
        lambda text: text.replace("Na Cl", "Na\n Cl").replace(" 1 2\n", " 1\n 2\n"),
        lambda text: text.replace("a comment", "").replace("Direct", "direct coordinates"),
        lambda text: text.replace("augmentation occupancies   2  3", "augmentation occupancies1002  3"),
        lambda text: text.replace("augmentation occupancies   2  3", "augmentation occupancies**** ***").replace("0.6E+00", "*******"),
        lambda text: text.replace(" 1.0\n 3.0 0.0 0.0\n 0.5 4.0 0.0\n 0.0 -0.3 5.0\n", " 0.5\n 6.0 0 0\n 1.0 8.0 0.0\n 0.0 -0.6 10.0\n"),
        lambda text: text.replace(" 1.0\n 3.0 0.0 0.0\n 0.5 4.0 0.0\n", " -60.0\n 3.0 0.0 0.0\n 0.5 4.0 0.0\n"),
        lambda text: text.replace(" 1.0\n 3.0 0.0 0.0\n 0.5 4.0 0.0\n 0.0 -0.3 5.0\n", " 0.5 2 0.1\n 6 0 0\n 1 2 0\n 0 -0.15 50\n"),
        lambda text: text.replace(" 1.0\n", " 1.00000000000000     \n"),
    ],
)
def test_other_spellings_of_the_same_file_read_the_same(tmp_path, change):
    usual, other = read_text(tmp_path, chgcar_text(2)), read_text(tmp_path, change(chgcar_text(2)))
    np.testing.assert_allclose(other.lattice, usual.lattice, rtol=0, atol=1e-12)
    for name, rho in usual.channels.items():
        np.testing.assert_allclose(other.channels[name], rho, rtol=1e-13)
    assert other.structure == usual.structure or other.structure.matches(usual.structure)
    np.testing.assert_allclose(other.structure.frac_coords, usual.structure.frac_coords, atol=1e-12)


@pytest.mark.parametrize("scale", ["1.0", "0.5", "2.0", "-480.0", "0.5 2 1.5"])
def test_cartesian_coordinates_scale_with_the_lattice(tmp_path, scale):
    direct = HEADER.replace(" 1.0\n", f" {scale}\n")
    cart_coords = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.75, 0.1]]) @ LATTICE
    rows = "\n".join(" ".join(f"{x:.12f}" for x in row) for row in cart_coords)
    cartesian = direct[: direct.index("Direct")] + "Cartesian\n" + rows + "\n\n"
    usual, other = (read_text(tmp_path, header + grid_text(values())) for header in (direct, cartesian))
    np.testing.assert_allclose(other.structure.frac_coords, usual.structure.frac_coords, atol=1e-9)


def test_a_left_handed_cell_has_a_positive_density(tmp_path):
    density = read_text(tmp_path, chgcar_text().replace(" 3.0 0.0 0.0", " -3.0 0.0 0.0"))
    assert density.n_electrons() == pytest.approx(values().mean(), rel=1e-11)


@pytest.mark.parametrize("comment", [b"caf\xe9", "Grüße".encode(), "wide".encode("utf-16-le"), b"1 1 1", b"   "])
def test_a_comment_may_hold_anything(tmp_path, comment):
    assert read_text(tmp_path, chgcar_text().encode().replace(b"a comment", comment)).grid_shape == SHAPE


def test_a_file_of_vasp_4_has_no_atoms_unless_its_comment_names_them(tmp_path):
    text = chgcar_text().replace(" Na Cl\n", "")
    with pytest.warns(UserWarning, match="CHGCAR:6: no line of element symbols.*not read"):
        assert read_text(tmp_path, text).structure is None
    with pytest.warns(UserWarning, match="its comment does"):
        assert read_text(tmp_path, text.replace("a comment", "K Br")).structure.composition.formula == "K1 Br2"
    with pytest.warns(UserWarning, match="not read"):
        assert read_text(tmp_path, text.replace("a comment", "K Br I")).structure is None


def test_a_poscar_reads_as_by_pymatgen(tmp_path, crystals):
    from pymatgen.io.vasp.inputs import Poscar

    for structure in crystals.values():
        path = tmp_path / "POSCAR"
        path.write_text(Poscar(structure).get_str(significant_figures=12))
        with open_stream(path) as stream:
            ours = structure_of(read_poscar(stream))
        theirs = Poscar.from_file(path).structure
        assert ours.species == theirs.species
        np.testing.assert_allclose(ours.frac_coords, theirs.frac_coords, atol=1e-12)
        np.testing.assert_allclose(ours.lattice.matrix, theirs.lattice.matrix, atol=1e-12)


# --- what is refused, and where --------------------------------------------------------------------------------------------------


def with_word(word: str, line: int = 3, place: int = 2) -> str:
    """Replace a number of the grid: row `line` (from 1), word `place` (from 0)."""
    lines = grid_text(values()).split("\n")
    words = lines[line].split()
    words[place] = word
    lines[line] = " ".join(words)
    return HEADER + "\n".join(lines)


@pytest.mark.parametrize(
    "word",
    ["NaN", "Infinity", "1e400", "1D400", "****", "word", "1,5", "0x10", "1.5.5", "0.1E+02-.2E+02", "1.0\0", "1_0", "--1", "1e", "²"],
)
def test_a_word_that_is_no_number_is_named_with_its_line(tmp_path, word):
    with pytest.raises(DensityFileError, match=r"CHGCAR:16: found .*, expected a number") as caught:
        read_text(tmp_path, with_word(word))
    assert "number 13 of 60" in str(caught.value)


@pytest.mark.parametrize("piece", [1 << 8, 1 << 20])
@pytest.mark.parametrize("line", [1, 6, 12])
def test_the_line_is_right_in_every_piece(tmp_path, monkeypatch, piece, line):
    monkeypatch.setattr(streams, "PIECE", piece)
    with pytest.raises(DensityFileError, match=rf"CHGCAR:{13 + line}: found 'x'"):
        read_text(tmp_path, with_word("x", line=line))


BAD = {
    "two numbers for one": (lambda t: with_word("1.0 2.0", line=12, place=4), "CHGCAR:25: found .* after the last of the 60"),
    "one number short": (lambda t: with_word("", line=12, place=4), "end of the file after 59 of 60"),
    "cut in the grid": (lambda t: t[: t.index("augmentation") - 100], "of 60 values .*is the file complete"),
    "cut in a number's place": (lambda t: t[: t.index("   5\n") + 5], "after 0 of 60"),
    "cut in the augmentation": (lambda t: t[: t.index("  0.6E+00")], "CHGCAR:26: found 2 of 7 augmentation occupancies missing"),
    "no grid": (lambda t: HEADER, "end of the file, expected the grid's three counts"),
    "header only": (lambda t: t[:30], "expected lattice vector"),
    "another grid": (lambda t: t + "   3   4   6\n", r"CHGCAR:\d+: found a set on a grid of \(3, 4, 6\)"),
    "three sets": (lambda t: chgcar_text(3), "found 3 sets"),
    "five sets": (lambda t: chgcar_text(5), "found a fifth set"),
    "two files in one": (lambda t: t + t, "two files in this one"),
    "two files in one, no augmentation": (lambda t: chgcar_text(1, False) * 2, "two files in this one"),
    "zero counts": (lambda t: t.replace("   3    4    5", "   3    0    5"), "counts of at least 1"),
    "four counts": (lambda t: t.replace("   3    4    5", "   3    4    5    1"), "expected the grid's three counts"),
    "counts beyond the file": (lambda t: t.replace("   3    4    5", " 3000 4000 5000"), "CHGCAR:13: found 60000000000 values announced"),
    "counts beyond int64": (lambda t: t.replace("   3    4    5", " 99999999999 99999999999 5"), "values announced"),
    "unknown element": (lambda t: t.replace("Na Cl", "Na Zz"), "CHGCAR:6: found species 'Zz'"),
    "more symbols than counts": (lambda t: t.replace("Na Cl", "Na Cl Br"), "numbers of atoms for 3 species"),
    "more counts than symbols": (lambda t: t.replace("Na Cl", "Na"), "2 numbers of atoms for 1 species"),
    "no atoms": (lambda t: t.replace("\n 1 2\n", "\n 0 0\n"), "found no atoms"),
    "more atoms than counts": (lambda t: t.replace("\n 1 2\n", "\n 1 1\n"), "CHGCAR:11: found .*expected the grid's"),
    "fewer atoms than counts": (lambda t: t.replace("\n 1 2\n", "\n 1 3\n"), "expected the grid's three counts|coordinates of atom 4 of 4"),
    "no mode": (lambda t: t.replace("Direct\n", ""), "CHGCAR:8: found .*expected 'Direct' or 'Cartesian'"),
    "scale 0": (lambda t: t.replace(" 1.0\n", " 0.0\n"), "CHGCAR:2: found scale"),
    "two scales": (lambda t: t.replace(" 1.0\n", " 1.0 2.0\n"), "CHGCAR:2: found scale"),
    "flat cell": (lambda t: t.replace(" 0.0 -0.3 5.0", " 3.5 4.0 0.0"), "CHGCAR:5: found a cell of volume"),
    "NaN lattice": (lambda t: t.replace(" 0.0 -0.3 5.0", " 0.0 NaN 5.0"), "CHGCAR:5: found .*NaN.*expected lattice vector c"),
    "NaN coordinate": (lambda t: t.replace(" 0.5 0.5 0.5", " 0.5 NaN 0.5"), "CHGCAR:10: .*atom 2 of 3"),
    "merged lattice": (lambda t: t.replace(" 0.0 -0.3 5.0", " 0.0-0.3 5.0"), "CHGCAR:5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_by_line_and_reason(tmp_path, case):
    change, reason = BAD[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DensityFileError, match=reason):
            read_text(tmp_path, change(chgcar_text()))


# --- what the numbers are -------------------------------------------------------------------------------------------------------


def read_as(tmp_path: Path, name: str, n_sets: int, numbers: np.ndarray, **options) -> Density:
    path = tmp_path / name
    path.write_text(HEADER + grid_text(numbers) * n_sets)
    with open_stream(path) as stream:
        return read_volumetric(stream, **options)


RIPPLES = np.where(np.arange(60).reshape(SHAPE) % 7 == 0, -1.0, 100.0)
POTENTIAL = np.random.default_rng(1).normal(-8.0, 7.0, SHAPE)
DIFFERENCE = np.random.default_rng(1).normal(0.0, 3.0, SHAPE)


@pytest.mark.parametrize(
    ("numbers", "name", "quantity"),
    [
        (values(), "x", "electron_density"),
        (RIPPLES, "x", "electron_density"),
        (values() / 10, "x", "elf"),
        (values() / 10, "ELFCAR.gz", "elf"),
        (values() / 10, "PARCHG", "electron_density"),
        (values() / 10, "AECCAR0", "electron_density"),
        (values() / 1000, "x", "unknown"),
        (values() / 10, "LOCPOT", "unknown"),
        (0 * values(), "x", "unknown"),
        (POTENTIAL, "x", "potential"),
        (-values(), "x", "potential"),
        (-values(), "CHGCAR", "unknown"),
        (POTENTIAL, "CHGCAR_diff", "unknown"),
        (DIFFERENCE, "CHGCAR", "unknown"),
        (np.abs(DIFFERENCE) - 1.0, "x", "unknown"),
        (np.abs(DIFFERENCE) - 1.0, "LOCPOT", "potential"),
        (values(), "LOCPOT", "potential"),
        (values(), "run1_ELFCAR.txt", "unknown"),
        (values(), "TAUCAR", "unknown"),
    ],
)
def test_the_numbers_tell_the_quantity_and_the_name_what_they_leave_open(tmp_path, numbers, name, quantity):
    density = read_as(tmp_path, name, 1, numbers)
    assert density.quantity == quantity
    divisor = density.volume if quantity == "electron_density" else 1.0
    np.testing.assert_allclose(density.channels["total"] * divisor, numbers, rtol=1e-11)
    told = read_as(tmp_path, name, 1, numbers, quantity="electron_density")
    np.testing.assert_allclose(told.channels["total"] * told.volume, numbers, rtol=1e-11)


@pytest.mark.parametrize(("n_sets", "names"), [(1, ["total"]), (2, ["up", "down"]), (4, ["total", "diff_x", "diff_y", "diff_z"])])
def test_two_sets_of_a_potential_are_the_two_spins(tmp_path, n_sets, names):
    assert list(read_as(tmp_path, "x", n_sets, POTENTIAL).channels) == names


def test_channels_can_be_chosen(tmp_path):
    path = tmp_path / "CHGCAR"
    path.write_text(chgcar_text(2) + "nonsense")
    with open_stream(path) as stream:
        total = read_volumetric(stream, channels=("total",))
    assert list(total.channels) == ["total"]
    np.testing.assert_allclose(total.channels["total"] * total.volume, values(0), rtol=1e-11)
    path.write_text(chgcar_text(4))
    for channels, error, reason in [
        (("total", "diff"), DensityFileError, "no channel 'diff', expected one of total, diff_x, diff_y, diff_z"),
        (("diff_x",), ValueError, "must hold 'total'"),
        ("total", ValueError, "sequence of names"),
        ((), ValueError, "sequence of names"),
    ]:
        with open_stream(path) as stream, pytest.raises(error, match=reason):
            read_volumetric(stream, channels=channels)
    with open_stream(path) as stream:
        assert list(read_volumetric(stream, channels=["diff_y", "total"]).channels) == ["total", "diff_y"]
    with open_stream(path) as stream, pytest.raises(ValueError, match="`unit` must be left out"):
        read_volumetric(stream, unit="e/A^3")


def test_gzip_members_may_follow_one_another_and_nothing_else(tmp_path):
    text = chgcar_text(2).encode()
    path = tmp_path / "CHGCAR.gz"
    whole = gzip.compress(text[:700]) + gzip.compress(text[700:])
    for tail in (b"", b"\0" * 512):
        path.write_bytes(whole + tail)
        np.testing.assert_array_equal(read(path).channels["diff"], read_text(tmp_path, text).channels["diff"])
    wrong_checksum = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for bad in (whole + b"garbage", whole[:-4] + b"\0\0\0\0", wrong_checksum, whole + gzip.compress(b" " * 99)[:-9]):
        path.write_bytes(bad)
        with pytest.raises(DensityFileError, match=r"CHGCAR\.gz: found damaged data"):
            read(path)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:-3], lambda raw: raw[:60] + b"\xff" * 20 + raw[80:]])
def test_damaged_archives_are_refused(tmp_path, compress, damage):
    path = tmp_path / "CHGCAR.x"
    path.write_bytes(damage(compress(chgcar_text().encode())))
    with pytest.raises(DensityFileError, match=r"CHGCAR\.x"):
        read(path)


def test_bombs_are_refused_in_bounded_memory(tmp_path):
    for start in (b"", HEADER.encode(), (HEADER + "   3    4    5\n").encode(), chgcar_text().encode()):
        path = tmp_path / "bomb.gz"
        path.write_bytes(gzip.compress(start + b"\n" * (1 << 26)))
        with pytest.raises(DensityFileError, match=r"bomb\.gz"):
            read(path)
    path.write_bytes(gzip.compress(b"1" * (1 << 26)))
    with pytest.raises(DensityFileError, match="a line of more than"):
        read(path)


def test_a_fast_failure_takes_no_memory_for_a_grid_that_is_not_there(tmp_path):
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(DensityFileError, match="announced"):
        read_text(tmp_path, chgcar_text().replace("   3    4    5", " 2000 2000 2000"))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
