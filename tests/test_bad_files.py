"""What goes wrong in the wild: every kind of damage in every text format has one outcome, within 60 s and 1 GB.

The sections follow the rows of the specification; what is read is compared with the numbers that the files were made of.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import sys
import tarfile
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from bad_files import (
    AUGMENTATION,
    CIF,
    COMPRESS,
    INNER,
    JSON,
    LATTICE,
    LINUX,
    POSCAR,
    SHAPE,
    TEXT,
    VOLUME,
    ccp4,
    chgcar,
    chgcar_set,
    examine,
    nested,
    pgrid,
    poscar_record,
    repeated,
    words,
)

from matminer_ed3d.density import Density
from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.sources import as_density, read_structure

FORMATS = TEXT | JSON
MOST_SECONDS, MOST_MEGABYTES = 60, 1000


def truth(changed: float = 0.55) -> np.ndarray:
    out = (np.arange(24) + 1).reshape(SHAPE) / 4
    out[INNER] = changed
    return out


def line_of(text: str, needle: str) -> int:
    return next(n for n, line in enumerate(text.split("\n"), 1) if needle in line.split(" "))


def write(tmp_path: Path, text: str | bytes, name: str = "input") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(tmp_path: Path, text: str | bytes, name: str) -> Density:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these grids are not those of their atoms, and readers say so
        return Density.from_file(write(tmp_path, text), **dict(FORMATS[name].options))


def refused(tmp_path: Path, text: str | bytes, name: str, line: int | None = None) -> str:
    """Read what must be refused, and return the message, which names the file, the line, what was found and what was expected."""
    with pytest.raises(DensityFileError) as caught:
        read(tmp_path, text, name)
    message = str(caught.value)
    place = str(tmp_path / "input")
    assert message.startswith(f"{place}:" if line is None else f"{place}:{line}: "), message
    assert "found" in message
    assert "expected" in message
    return message


@pytest.fixture(params=FORMATS)
def any_format(request):
    return request.param


@pytest.fixture(params=TEXT)
def text_format(request):
    return request.param


@pytest.fixture(params=JSON)
def json_format(request):
    return request.param


def test_the_sound_file_reads(tmp_path, any_format):
    density = read(tmp_path, FORMATS[any_format].text(words()), any_format)
    np.testing.assert_allclose(density.channels["total"], truth() * FORMATS[any_format].factor, rtol=1e-9)
    np.testing.assert_allclose(density.lattice, LATTICE, rtol=1e-9, atol=1e-9)
    assert density.quantity == "electron_density"


# --- exponent of three digits without E, D exponents, underflow to 0: read exactly ----------------------------------------------------

EXACT = {
    "three digits without E, negative": ("0.12345678901-100", 0.12345678901e-100),
    "three digits without E, positive": ("0.12345678901+100", 0.12345678901e100),
    "three digits without E, a negative number": ("-.12345678901-101", -0.12345678901e-101),
    "D exponent": ("0.12345678901D+01", 0.12345678901e1),
    "d exponent": ("0.12345678901d-01", 0.12345678901e-1),
    "D exponent of three digits": ("0.12345678901D-100", 0.12345678901e-100),
    "underflow to 0": ("0.12345678901E-999", 0.0),
    "underflow to 0 without E": ("0.12345678901-999", 0.0),
    "denormal": ("0.12345678901-310", 0.12345678901e-310),
    "negative": ("-0.12345678901E-03", -0.12345678901e-3),
    "no digit before the point": (".12345678901E-03", 0.12345678901e-3),
    "no digit after the point": ("1.E-03", 1e-3),
    "integer": ("2", 2.0),
    "plus": ("+0.25", 0.25),
}


@pytest.mark.parametrize("case", EXACT)
def test_read_exactly(tmp_path, text_format, case):
    word, value = EXACT[case]
    density = read(tmp_path, FORMATS[text_format].text(words(word)), text_format)
    np.testing.assert_allclose(density.channels["total"], truth(value) * FORMATS[text_format].factor, rtol=1e-15, atol=1e-322)


@pytest.mark.parametrize(("word", "value"), [("1E-400", 0.0), ("1e-3", 1e-3), ("2", 2.0), ("-0.25E+1", -2.5), ("4.9e-324", 4.9e-324)])
def test_read_exactly_in_json(tmp_path, json_format, word, value):
    density = read(tmp_path, FORMATS[json_format].text(words(word)), json_format)
    np.testing.assert_allclose(density.channels["total"], truth(value) * FORMATS[json_format].factor, rtol=1e-15, atol=1e-322)


# --- NaN, Infinity, overflow, ****, words, decimal comma, hex, merged numbers, two decimal points, extra values: error + line ----------

NO_NUMBER = {
    "NaN": "NaN",
    "-nan": "-nan",
    "Infinity": "Infinity",
    "inf": "-inf",
    "overflow": "0.1E+400",
    "overflow without E": "0.1+400",
    "stars": "*" * 12,
    "word": "banana",
    "unit": "0.5e/A",
    "decimal comma": "0,5",
    "hex": "0x1F",
    "hex float": "0x1.8p1",
    "merged": "0.12345E+01-0.12345E+01",
    "merged without E": "0.12345-0.12345",
    "merged after three digits": "0.12345-1000.12345",
    "two decimal points": "0.12.5",
    "two exponents": "0.1E+01E+01",
    "exponent without digits": "0.1E",
    "exponent without digits, D": "0.1D+",
    "sign alone": "-",
    "two signs": "--0.5",
    "point alone": ".",
    "underscore": "1_0",
    "quote": "'0.5'",
    "null byte": "0.5\0",
    "Arabic digits": "٠.٥",
    "minus of typography": "\u22120.5",
    "no-break space": "0.5\u00a00.5",
}


@pytest.mark.parametrize("case", NO_NUMBER)
def test_no_number(tmp_path, text_format, case):
    text = FORMATS[text_format].text(words(NO_NUMBER[case]))
    refused(tmp_path, text, text_format, line_of(text, NO_NUMBER[case]))


NO_JSON_NUMBER = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1E+400",
    "null",
    "true",
    '"0.5"',
    "{}",
    "[0.5]",
    "[]",
    "0,5",
    "0x1F",
    "0.1-100",
    "1 2",
    ".",
    "",
    "1_0",
    "1D+00",
]


@pytest.mark.parametrize("word", NO_JSON_NUMBER)
def test_no_number_in_json(tmp_path, json_format, word):
    refused(tmp_path, FORMATS[json_format].text(words(word)), json_format)


def test_a_missing_number(tmp_path, text_format):
    refused(tmp_path, FORMATS[text_format].text(words("")), text_format)


def test_an_extra_number(tmp_path, text_format):
    text = FORMATS[text_format].text(words("0.5 0.5"))
    refused(tmp_path, text, text_format)


@pytest.mark.parametrize("extra", ["0.5", "0.5 0.5 0.5 0.5 0.5", "banana"])
@pytest.mark.parametrize("where", ["same line", "next line"])
def test_extra_values_at_the_end(tmp_path, text_format, extra, where):
    last = words()[-1, -1, -1]
    text = FORMATS[text_format].text(words()).replace(AUGMENTATION, "")
    head, _, tail = text.rpartition(last if text_format != "xsf" else words()[0, 0, 0])
    last = text[len(head) : len(text) - len(tail)]
    text = head + last + (" " if where == "same line" else "\n ") + extra + tail
    refused(tmp_path, text, text_format)


# --- second grid of other size, 3 or 5 sets, truncated grid, two files in one: error + line --------------------------------------------


@pytest.mark.parametrize("n_sets", [3, 5, 6])
def test_sets_that_are_neither_one_nor_two_nor_four(tmp_path, n_sets):
    refused(tmp_path, POSCAR + "\n" + chgcar_set(words()) * n_sets, "CHGCAR")
    refused(tmp_path, POSCAR + "\n" + chgcar_set(words(), "") * n_sets, "CHGCAR")


@pytest.mark.parametrize("augmentation", [AUGMENTATION, ""])
def test_a_second_grid_of_another_size(tmp_path, augmentation):
    second = chgcar_set(words()[:, :2], augmentation)
    text = POSCAR + "\n" + chgcar_set(words(), augmentation) + second
    refused(tmp_path, text, "CHGCAR", 1 + text.count("\n", 0, text.rindex(second)))


def test_a_truncated_grid(tmp_path, any_format):
    whole = FORMATS[any_format].text(words())
    inner = whole.index("5.5E-01")
    for end in (inner - 1, inner + 3, inner + len("5.5E-01") + 1):
        refused(tmp_path, whole[:end], any_format)


def test_a_grid_that_misses_its_last_value(tmp_path):
    text = POSCAR + "\n" + chgcar_set(words(), "")
    refused(tmp_path, text[: text.rindex(words()[-1, -1, -1])], "CHGCAR")
    both = POSCAR + "\n" + chgcar_set(words(), "") * 2
    refused(tmp_path, both[: both.rindex(words()[-1, -1, -1])], "CHGCAR")


def test_two_files_in_one(tmp_path, any_format):
    text = FORMATS[any_format].text(words())
    refused(tmp_path, text + ("" if text.endswith("\n") else "\n") + text, any_format)


def test_two_chgcars_in_one_are_known_by_the_line(tmp_path):
    text = chgcar(words())
    refused(tmp_path, text + text, "CHGCAR", text.count("\n") + 1)


# --- zero or four dimensions, dimensions that need more bytes than the file can hold, dimensions that wrap int64: refuse ----------------

COUNTS = {
    "zero": ("0", "3", "4"),
    "all zero": ("0", "0", "0"),
    "negative": ("2", "-3", "4"),
    "two": ("2", "12"),
    "four": ("2", "3", "2", "2"),
    "more than the file holds": ("2000", "2000", "2000"),
    "a little more than the file holds": ("20", "30", "40"),
    "wrap int32": ("65536", "65536", "1"),
    "wrap int64": ("4294967296", "4294967296", "1"),
    "wrap int64 to the right number": ("18446744073709551618", "3", "4"),
    "wrap int64 thrice": ("9223372036854775808", "9223372036854775808", "9223372036854775808"),
    "wrap to less": ("6148914691236517206", "3", "1"),
    "not whole": ("2.0", "3.0", "4.0"),
    "5000 digits": ("9" * 5000, "1", "1"),
    "50000 digits": ("9" * 50_000, "1", "1"),
    "one point": ("1", "1", "1"),
    "transposed": ("4", "3", "3"),
}
HEAD_OF_COUNTS = {"CHGCAR": "   2    3    4\n", "xsf": " 3 4 5\n", "grd": " 2 3 4\n"}


@pytest.mark.skipif(not LINUX, reason="limits a process by the means of Linux")
@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.parametrize("name", ["CHGCAR", "cube", "xsf", "grd"])
def test_dimensions(tmp_path, name, case):
    text = FORMATS[name].text(words()).replace(AUGMENTATION, "")
    counts = COUNTS[case]
    if name == "cube":
        if len(counts) != 3 or case == "negative":
            pytest.skip("one count stands on each line of a cube, and its sign is the unit's")
        lines = text.split("\n")
        for n, count in enumerate(counts):
            lines[3 + n] = " " + count + lines[3 + n][2:]
        changed = "\n".join(lines)
    else:
        assert text.count(HEAD_OF_COUNTS[name]) == 1
        changed = text.replace(HEAD_OF_COUNTS[name], " " + " ".join(counts) + "\n")
    limited(write(tmp_path, changed), "read_density")


def limited(path: Path, door: str, match: str = "") -> str:
    """Read what must be refused within the limits, and return the message."""
    outcome = examine(door, path, MOST_SECONDS)
    assert outcome.kind == "DensityFileError", outcome
    assert outcome.seconds < MOST_SECONDS
    assert outcome.megabytes < MOST_MEGABYTES, outcome
    assert outcome.text.startswith(str(path)), outcome
    assert "found" in outcome.text
    assert "expected" in outcome.text
    assert match in outcome.text
    return outcome.text


BINARY = {"ccp4": ccp4, "pgrid": pgrid}


@pytest.mark.parametrize("name", BINARY)
def test_sound_binary_files(tmp_path, name):
    density = Density.from_file(write(tmp_path, BINARY[name]()), quantity="electron_density", unit="e/A^3")
    np.testing.assert_allclose(density.channels["total"], (np.arange(24) + 1).reshape(SHAPE) / 4, rtol=1e-7)
    np.testing.assert_allclose(density.lattice, LATTICE, atol=1e-6)


BINARY_COUNTS = {
    "zero": (0, 3, 4),
    "negative": (2, -3, 4),
    "two negative": (2, -3, -4),
    "more than the file holds": (1000, 1000, 1000),
    "a little more than the file holds": (2, 3, 5),
    "less than the file holds": (2, 3, 3),
    "wrap int32": (65536, 65536, 1),
    "wrap int64": (2**31 - 1, 2**31 - 1, 2**31 - 1),
    "wrap int64 to 0": (2**30, 2**30, 16),
}


@pytest.mark.skipif(not LINUX, reason="limits a process by the means of Linux")
@pytest.mark.parametrize("case", BINARY_COUNTS)
@pytest.mark.parametrize("name", BINARY)
def test_dimensions_of_binary_files(tmp_path, name, case):
    limited(write(tmp_path, BINARY[name](counts=BINARY_COUNTS[case])), "read_density")
    limited(write(tmp_path, gzip.compress(BINARY[name](counts=BINARY_COUNTS[case]))), "read_density")


@pytest.mark.skipif(not LINUX, reason="limits a process by the means of Linux")
@pytest.mark.parametrize("name", BINARY)
def test_other_damage_of_binary_files(tmp_path, name):
    make = BINARY[name]
    values = truth()
    bad = [make()[:-4], make()[:200], make()[: 1024 if name == "ccp4" else 152], make() + make()]
    bad += [make(cell=cell) for cell in [(0, 3, 4, 90, 90, 90), (np.nan, 3, 4, 90, 90, 90), (2, 3, 4, 90, 90, 180), (-2, 3, 4, 90, 90, 90)]]
    bad += [make(cell=(2, 3, 4, 120, 120, 120)), make(cell=(np.inf, 3, 4, 90, 90, 90)), make(cell=(1e30, 1e30, 1e30, 90, 90, 90))]
    for wrong in (np.nan, np.inf, -np.inf):
        values[INNER] = wrong
        bad.append(make(values=values))
    if name == "ccp4":
        bad += [make(n_symmetry=2**31 - 1), make(n_symmetry=-80), make(mode=4), make(mode=77)]
    for raw in bad:
        limited(write(tmp_path, raw), "read_density")


@pytest.mark.skipif(not LINUX, reason="limits a process by the means of Linux")
@pytest.mark.parametrize("compression", ["gz", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bz2", "xz"))])
@pytest.mark.parametrize("name", BINARY)
def test_bombs_of_binary_files(tmp_path, name, compression):
    for counts in (SHAPE, (512, 512, 512)):
        raw = repeated(COMPRESS[compression], BINARY[name](counts=counts), bytes(MIB), 512)
        limited(write(tmp_path, raw), "read_density")


JAGGED = {
    "zero": "[]",
    "empty rows": "[[[], []], [[], []]]",
    "one dimension": "[1.0, 2.0, 3.0]",
    "two dimensions": "[[1.0, 2.0], [3.0, 4.0]]",
    "four dimensions": "[[[[1.0, 2.0]]]]",
    "ragged": "[[[1.0, 2.0], [3.0]], [[1.0, 2.0], [3.0, 4.0]]]",
    "ragged to the same number": "[[[1.0, 2.0], [3.0]], [[4.0], [1.0, 3.0]]]",
    "ragged planes": "[[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]]",
    "a number among rows": "[[[1.0, 2.0], 5.0], [[1.0, 2.0], [3.0, 4.0]]]",
    "not closed": "[[[1.0, 2.0]]",
    "text": '"[[[1.0]]]"',
    "null": "null",
    "missing comma": "[[[1.0 2.0]]]",
    "two commas": "[[[1.0,, 2.0]]]",
    "trailing comma": "[[[1.0, 2.0,]]]",
    "brackets the wrong way": "]]]1.0[[[",
}


@pytest.mark.parametrize("case", JAGGED)
def test_dimensions_of_json(tmp_path, json_format, case):
    refused(tmp_path, FORMATS[json_format].text(words()).replace(nested(words()), JAGGED[case]), json_format)


# --- spin, non-collinear, augmentation of any kind, moment rows, doubled newlines, extra blank lines: read -----------------------------

AUGMENTATIONS = {
    "none": "",
    "usual": AUGMENTATION,
    "index of four digits": AUGMENTATION.replace("   1  7", "1000  7"),
    "index without room": AUGMENTATION.replace("   1  7", "****  7"),
    "index grown together": AUGMENTATION.replace("occupancies   1  7", "occupancies1000  7"),
    "number without room": AUGMENTATION.replace("   1  7", "   1***"),
    "index and number without room": AUGMENTATION.replace("   1  7", "*******"),
    "stars among the occupancies": AUGMENTATION.replace("0.3E+00", "*******"),
    "imaginary part": AUGMENTATION + AUGMENTATION.replace("occupancies", "occupancies (imaginary part)"),
    "exponent of three digits": AUGMENTATION.replace("0.3E+00", "0.3-100"),
    "no occupancies": "augmentation occupancies   1   0\n",
    "all in one line": AUGMENTATION.replace("0.5E+00\n", "0.5E+00"),
}
MOMENTS = {
    "none": "",
    "one row": "  0.1000E+01  0.2000E+01  0.3000E+01\n",
    "without E": "  0.1000-100  0.2000+100  0.3000D+01\n",
    "stars": "  ********** 0.2000E+01  0.3000E+01\n",
    "two rows": "  0.1E+01  0.2E+01\n  0.3E+01\n",
}


@pytest.mark.parametrize("moments", MOMENTS)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("n_sets", [1, 2, 4])
def test_sets_augmentation_and_moments(tmp_path, n_sets, augmentation, moments):
    grids = [words(f"{n + 1}.0") for n in range(n_sets)]
    text = POSCAR + "\n" + MOMENTS[moments].join(chgcar_set(grid, AUGMENTATIONS[augmentation]) for grid in grids)
    density = read(tmp_path, text, "CHGCAR")
    assert list(density.channels) == {1: ["total"], 2: ["total", "diff"], 4: ["total", "diff_x", "diff_y", "diff_z"]}[n_sets]
    for n, rho in enumerate(density.channels.values()):
        np.testing.assert_allclose(rho, truth(n + 1) / VOLUME, rtol=1e-14)


LAYOUTS = {
    "doubled newlines": lambda text: text.replace("\n", "\n\n"),
    "doubled newlines of Windows": lambda text: text.replace("\n", "\r\r\n"),
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "CR": lambda text: text.replace("\n", "\r"),
    "BOM": lambda text: "\ufeff" + text,
    "tabs": lambda text: text.replace(" ", "\t"),
    "wide": lambda text: text.replace(" ", "   "),
    "blank lines at the end": lambda text: text + "\n \n\t\n" * 50,
    "blanks at the ends of lines": lambda text: text.replace("\n", "  \n"),
    "no newline at the end": lambda text: text.rstrip("\n"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, text_format, layout):
    if layout.startswith("doubled") and text_format in ("cube", "grd", "xsf"):
        pytest.skip("the place of a line has a meaning in its head")
    text = LAYOUTS[layout](FORMATS[text_format].text(words()))
    density = read(tmp_path, text, text_format)
    np.testing.assert_allclose(density.channels["total"], truth() * FORMATS[text_format].factor, rtol=1e-9)


@pytest.mark.parametrize("between", ["\n", "\n\n\n", "  \n\t\n"])
def test_extra_blank_lines_between_the_parts(tmp_path, between):
    text = between.join([POSCAR, chgcar_set(words(), AUGMENTATION), MOMENTS["one row"], chgcar_set(words("2.0"), AUGMENTATION), ""])
    density = read(tmp_path, text, "CHGCAR")
    np.testing.assert_allclose(density.channels["diff"], truth(2) / VOLUME, rtol=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_a_poscar_and_a_cif(tmp_path, layout):
    poscar = read_structure(write(tmp_path, LAYOUTS[layout](POSCAR), "POSCAR"))
    np.testing.assert_allclose(poscar.frac_coords[2], [0.25, 0.75, 0.1])
    if layout != "doubled newlines of Windows":
        salt = read_structure(write(tmp_path, LAYOUTS[layout](CIF), "salt.cif"))
        assert salt.composition.as_dict() == {"Na": 2.0, "Cl": 1.0}


# --- VASP 4 header without symbols: read the density, warn, never invent elements --------------------------------------------------------


def test_vasp_4(tmp_path):
    text = chgcar(words()).replace(" Na Cl\n", "")
    with pytest.warns(UserWarning, match=r"input:\d+: .*VASP 4"):
        density = Density.from_file(write(tmp_path, text))
    assert density.structure is None
    np.testing.assert_allclose(density.channels["total"], truth() / VOLUME, rtol=1e-14)


@pytest.mark.parametrize(
    ("comment", "symbols"),
    [
        ("Na Cl", ["Na", "Cl", "Cl"]),
        ("NaCl2", None),
        ("Na", None),
        ("Na Cl O", None),
        ("Na Xx", None),
        ("na cl", None),
        ("K is high", None),
    ],
)
def test_vasp_4_with_a_comment(tmp_path, comment, symbols):
    text = chgcar(words()).replace(" Na Cl\n", "").replace("a comment", comment)
    with pytest.warns(UserWarning, match=r"VASP 4"):
        density = Density.from_file(write(tmp_path, text))
    found = None if density.structure is None else [site.specie.symbol for site in density.structure]
    assert found == symbols
    if symbols is None:
        path = write(tmp_path, text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(DensityFileError, match="symbols"):
                read_structure(path)


# --- POTCAR suffixes and hashes, selective dynamics, Cartesian, scale factors, left-handed cells, odd comments: read --------------------

HEADS = {
    "suffix": (" Na Cl\n", " Na_pv Cl_h\n"),
    "hash": (" Na Cl\n", " Na_pv/0123456789abc Cl/0123456789abc\n"),
    "suffix with a point": (" Na Cl\n", " Na_pv.52 Cl.5\n"),
    "selective dynamics": ("Direct\n 0.0 0.0 0.0\n", "Selective dynamics\nDirect\n 0.0 0.0 0.0 T F T\n"),
    "Cartesian": ("Direct\n 0.0 0.0 0.0\n 0.5 0.5 0.5\n 0.25 0.75 0.1", "Cartesian\n 0 0 0\n 1.0 1.5 2.0\n 0.5 2.25 0.4"),
    "negative scale": (" 1.0\n", " -24.0\n"),
    "three scales": (" 1.0\n 2.0 0.0 0.0\n 0.0 3.0 0.0\n 0.0 0.0 4.0", " 2.0 1.0 4.0\n 1.0 0.0 0.0\n 0.0 3.0 0.0\n 0.0 0.0 1.0"),
    "Fortran numbers": (" 0.0 0.0 4.0\n", " 0.0-100 0.0D+00 4.0D+00\n"),
    "labels after the coordinates": (" 0.0 0.0 0.0\n 0.5 0.5 0.5\n", " 0.0 0.0 0.0 Na\n 0.5 0.5 0.5 Cl\n"),
    "Latin-1 comment": ("a comment", b"caf\xe9 \xc5"),
    "UTF-16 comment": ("a comment", "Grüße".encode("utf-16")),
    "UTF-8 comment": ("a comment", "Grüße Å".encode()),
    "empty comment": ("a comment", ""),
    "comment of numbers": ("a comment", "1 2 3"),
    "comment like JSON": ("a comment", '{"@class": "Chgcar"}'),
    "comment like a CIF": ("a comment", "data_NaCl"),
    "comment like HTML": ("a comment", "<html>"),
}


@pytest.mark.parametrize("case", HEADS)
def test_heads(tmp_path, case):
    old, new = HEADS[case]
    text = chgcar(words()).encode()
    assert text.count(old.encode()) == 1
    text = text.replace(old.encode(), new if isinstance(new, bytes) else new.encode())
    density = read(tmp_path, text, "CHGCAR")
    np.testing.assert_allclose(density.channels["total"], truth() / VOLUME, rtol=1e-14)
    np.testing.assert_allclose(density.lattice, LATTICE, atol=1e-12)
    assert [site.specie.symbol for site in density.structure] == ["Na", "Cl", "Cl"]
    np.testing.assert_allclose(density.structure.frac_coords, [[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.75, 0.1]], atol=1e-12)


def test_a_left_handed_cell(tmp_path):
    text = chgcar(words()).replace(" 2.0 0.0 0.0\n 0.0 3.0 0.0\n", " 0.0 3.0 0.0\n 2.0 0.0 0.0\n")
    density = read(tmp_path, text, "CHGCAR")
    assert np.linalg.det(density.lattice) == pytest.approx(-VOLUME)
    np.testing.assert_allclose(density.channels["total"], truth() / VOLUME, rtol=1e-14)


# --- more coordinates or symbols than counts, unknown element, zero volume, NaN lattice or coordinate, scale 0: error + line ------------

BAD_HEADS = {
    "more coordinates than counts": (" 1 2\n", " 1 1\n", 11),
    "fewer coordinates than counts": (" 1 2\n", " 1 3\n", None),
    "more symbols than counts": (" Na Cl\n", " Na Cl O\n", None),
    "more counts than symbols": (" 1 2\n", " 1 1 1\n", 7),
    "unknown element": (" Na Cl\n", " Na Xx\n", 6),
    "unknown element with a suffix": (" Na Cl\n", " Na_pv Qq_pv\n", 6),
    "vacancy": (" Na Cl\n", " Na Vac\n", 6),
    "small letters": (" Na Cl\n", " na cl\n", 6),
    "zero volume": (" 0.0 0.0 4.0\n", " 2.0 3.0 0.0\n", None),
    "zero vector": (" 0.0 0.0 4.0\n", " 0.0 0.0 0.0\n", None),
    "NaN lattice": (" 0.0 0.0 4.0\n", " 0.0 0.0 NaN\n", 5),
    "infinite lattice": (" 0.0 0.0 4.0\n", " 0.0 0.0 Infinity\n", 5),
    "overflowing lattice": (" 0.0 0.0 4.0\n", " 0.0 0.0 4.0E+400\n", 5),
    "lattice of 1e300": (" 0.0 0.0 4.0\n", " 0.0 0.0 4.0E+300\n", None),
    "scale of 1e200": (" 1.0\n", " 1.0E+200\n", None),
    "merged lattice": (" 0.0 0.0 4.0\n", " 0.0 0.0-4.0\n", 5),
    "stars in the lattice": (" 0.0 0.0 4.0\n", " 0.0 0.0 ****\n", 5),
    "NaN coordinate": (" 0.5 0.5 0.5\n", " 0.5 NaN 0.5\n", 10),
    "infinite coordinate": (" 0.5 0.5 0.5\n", " 0.5 0.5 inf\n", 10),
    "coordinate with a decimal comma": (" 0.5 0.5 0.5\n", " 0.5 0,5 0.5\n", 10),
    "two coordinates": (" 0.5 0.5 0.5\n", " 0.5 0.5\n", 10),
    "scale 0": (" 1.0\n", " 0.0\n", 2),
    "scale NaN": (" 1.0\n", " NaN\n", 2),
    "two scales": (" 1.0\n", " 1.0 1.0\n", 2),
    "no atoms": (" 1 2\n", " 0 0\n", 7),
    "negative count": (" 1 2\n", " 1 -2\n", None),
    "a count of 20 digits": (" 1 2\n", " 1 " + "2" * 20 + "\n", None),
    "a count of 5000 digits": (" 1 2\n", " 1 " + "2" * 5000 + "\n", None),
    "no mode": ("Direct\n", "", 8),
    "unknown mode": ("Direct\n", "Fractional\n", 8),
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_bad_heads(tmp_path, case):
    old, new, line = BAD_HEADS[case]
    text = chgcar(words())
    assert text.count(old) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(tmp_path, text.replace(old, new), "CHGCAR", line)


@pytest.mark.parametrize("case", BAD_HEADS)
def test_bad_heads_of_a_poscar(tmp_path, case):
    old, new, line = BAD_HEADS[case]
    if case == "more coordinates than counts":
        pytest.skip("velocities may follow the atoms of a POSCAR")
    with pytest.raises(DensityFileError) as caught:
        read_structure(write(tmp_path, POSCAR.replace(old, new)))
    assert str(caught.value).startswith(f"{tmp_path}/input:" + ("" if line is None or case.startswith("fewer") else f"{line}: "))


GENERAL_HEADS = {
    "cube, zero volume": ("cube", 5, " 3 0.0 0.0 0.0"),
    "cube, NaN lattice": ("cube", 5, " 3 0.0 NaN 0.0"),
    "cube, word in the lattice": ("cube", 5, " 3 0.0 one 0.0"),
    "cube, overflowing lattice": ("cube", 5, " 3 0.0 1.0E+400 0.0"),
    "cube, NaN coordinate": ("cube", 7, " 11 11.0 0.0 NaN 0.0"),
    "cube, unknown element": ("cube", 7, " 311 11.0 0.0 0.0 0.0"),
    "cube, more atoms than lines": ("cube", 3, " 2 0.0 0.0 0.0"),
    "cube, 20 digits of atoms": ("cube", 3, " " + "9" * 20 + " 0.0 0.0 0.0"),
    "cube, 5000 digits of atoms": ("cube", 3, " " + "9" * 5000 + " 0.0 0.0 0.0"),
    "cube, NaN origin": ("cube", 3, " 1 0.0 NaN 0.0"),
    "xsf, zero volume": ("xsf", 4, " 0.0 0.0 0.0"),
    "xsf, NaN lattice": ("xsf", 4, " 0.0 NaN 0.0"),
    "xsf, word in the lattice": ("xsf", 4, " 0.0 one 0.0"),
    "xsf, unknown element": ("xsf", 8, " Qq 0.0 0.0 0.0"),
    "xsf, element of number 311": ("xsf", 8, " 311 0.0 0.0 0.0"),
    "xsf, NaN coordinate": ("xsf", 8, " 11 0.0 NaN 0.0"),
    "xsf, more atoms than lines": ("xsf", 7, " 2 1"),
    "xsf, 5000 digits of atoms": ("xsf", 7, " " + "9" * 5000 + " 1"),
    "xsf, zero volume of the grid": ("xsf", 14, " 0.0 0.0 0.0"),
    "xsf, NaN in the grid's lattice": ("xsf", 14, " 0.0 NaN 0.0"),
    "grd, zero cell": ("grd", 2, " 2.0 0.0 4.0 90.0 90.0 90.0"),
    "grd, NaN cell": ("grd", 2, " 2.0 NaN 4.0 90.0 90.0 90.0"),
    "grd, negative cell": ("grd", 2, " 2.0 -3.0 4.0 90.0 90.0 90.0"),
    "grd, impossible angles": ("grd", 2, " 2.0 3.0 4.0 90.0 90.0 200.0"),
    "grd, angles of a flat cell": ("grd", 2, " 2.0 3.0 4.0 120.0 120.0 120.0"),
    "grd, angles that close no cell": ("grd", 2, " 2.0 3.0 4.0 20.0 20.0 90.0"),
    "grd, five numbers": ("grd", 2, " 2.0 3.0 4.0 90.0 90.0"),
}


@pytest.mark.parametrize("case", GENERAL_HEADS)
def test_bad_heads_of_other_formats(tmp_path, case):
    name, line, new = GENERAL_HEADS[case]
    lines = FORMATS[name].text(words()).split("\n")
    lines[line - 1] = new
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DensityFileError, match=r"input.*found.*expected"):
            Density.from_file(write(tmp_path, "\n".join(lines)))


JSON_LATTICES = [
    "[[2,0,0],[0,3,0]]",
    "[[2,0,0],[0,3,0],[2,3,0]]",
    "[[2,0,0],[0,3,0],[0,0,NaN]]",
    "[[2,0,0],[0,3,0],[0,0,null]]",
    "null",
    '"x"',
    "[]",
    "{}",
]


@pytest.mark.parametrize("lattice", [*JSON_LATTICES, "[[2,0,0],[0,3,0],[0,0,1e999]]", "[[2,0,0],[0,3,0],[0,0]]", "3"])
def test_bad_lattices_in_json(tmp_path, json_format, lattice):
    text = FORMATS[json_format].text(words())
    sound = json.dumps(LATTICE.tolist())
    assert text.count(sound) == 1
    refused(tmp_path, text.replace(sound, lattice), json_format)


# --- .gz/.bz2/.xz by content whatever the suffix: read; truncated or corrupt ones, bad checksum: error + file ---------------------------


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".txt"])
@pytest.mark.parametrize("compression", ["plain", *COMPRESS])
def test_compression_by_content(tmp_path, any_format, compression, suffix):
    raw = FORMATS[any_format].text(words()).encode()
    path = write(tmp_path, COMPRESS[compression](raw) if compression != "plain" else raw, "input" + suffix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        density = Density.from_file(path, **dict(FORMATS[any_format].options))
    np.testing.assert_allclose(density.channels["total"], truth() * FORMATS[any_format].factor, rtol=1e-9)


DAMAGE = {
    "truncated": lambda raw: raw[: len(raw) // 2],
    "without its last bytes": lambda raw: raw[:-3],
    "only its first bytes": lambda raw: raw[:12],
    "corrupt": lambda raw: (
        raw[: len(raw) // 2] + bytes(b ^ 0x55 for b in raw[len(raw) // 2 : len(raw) // 2 + 20]) + raw[len(raw) // 2 + 20 :]
    ),
    "corrupt head": lambda raw: raw[:8] + b"\xff" * 8 + raw[16:],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("compression", COMPRESS)
def test_damaged_archives(tmp_path, any_format, compression, damage):
    raw = DAMAGE[damage](COMPRESS[compression](FORMATS[any_format].text(words()).encode()))
    refused(tmp_path, raw, any_format)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("text", [POSCAR, CIF], ids=["POSCAR", "CIF"])
def test_damaged_archives_of_structures(tmp_path, text, compression):
    for damage in DAMAGE.values():
        with pytest.raises(DensityFileError, match="input"):
            read_structure(write(tmp_path, damage(COMPRESS[compression](text.encode()))))


def test_a_bad_checksum(tmp_path, any_format):
    raw = bytearray(gzip.compress(FORMATS[any_format].text(words()).encode()))
    raw[-8] ^= 1
    refused(tmp_path, bytes(raw), any_format)
    raw[-8] ^= 1
    raw[-1] ^= 1  # the length
    refused(tmp_path, bytes(raw), any_format)


def test_a_bad_checksum_beyond_one_piece(tmp_path):
    """A value that changed under a sound deflate stream, in a file of several pieces."""
    import struct
    import zlib

    grid = np.full((60, 60, 60), "0.12345678901E+01", dtype=object)
    text = (POSCAR + "\n" + chgcar_set(grid, "")).encode()
    packed = zlib.compressobj(1, wbits=-15)
    body = packed.compress(text) + packed.flush()
    raw = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + struct.pack("<II", zlib.crc32(text) ^ 1, len(text))
    refused(tmp_path, raw, "CHGCAR")


# --- empty, blank, binary, an HTML page, an LFS pointer, a tar inside gzip: error that says which ---------------------------------------


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("CHGCAR")
        content = chgcar(words()).encode()
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


OTHERS = {
    "empty": (b"", "empty"),
    "blank": (b" \n\t\r\n" * 400, "blank"),
    "binary": (bytes(range(256)) * 40, "binary"),
    "null bytes": (bytes(4000), "binary"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n", "HTML"),
    "HTML without doctype": (b"\n <HTML lang='en'>\n<body>404</body></html>\n", "HTML"),
    "XML": (b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>\n", "XML"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n", "LFS"),
    "tar": (_tar(), "tar"),
    "zip": (b"PK\x03\x04" + bytes(500), "zip"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(range(256)), "compressed"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "PDF"),
}


@pytest.mark.parametrize("compression", ["plain", *COMPRESS])
@pytest.mark.parametrize("case", OTHERS)
def test_what_is_something_else(tmp_path, case, compression):
    raw, name = OTHERS[case]
    path = write(tmp_path, raw if compression == "plain" else COMPRESS[compression](raw))
    for door in (Density.from_file, as_density, read_structure):
        with pytest.raises(DensityFileError, match=name) as caught:
            door(path)
        assert str(path) in str(caught.value)


def test_gzip_inside_gzip(tmp_path):
    raw = gzip.compress(gzip.compress(chgcar(words()).encode()))
    message = refused(tmp_path, raw, "CHGCAR")
    assert "compressed" in message or "binary" in message


def test_a_pickle_is_never_opened(tmp_path):
    import pickle

    path = write(tmp_path, pickle.dumps(truth()), "CHGCAR.pkl")
    for door in (Density.from_file, as_density, read_structure):
        with pytest.raises(DensityFileError):
            door(path)


# --- bombs, /dev/zero, FIFOs: bounded refusal within seconds; regular files only -------------------------------------------------------

MIB = 1 << 20
BLANKS = {
    "newlines": b"\n" * MIB,
    "blanks": b" " * MIB,
    "CRLF": b"\r\n" * (MIB // 2),
    "zeros": b" 0.0" * (MIB // 4),
    "digits": b"1" * MIB,
    "null bytes": bytes(MIB),
    "short rows": b"0\n" * (MIB // 2),
}
STARTS = {
    "nothing": b"",
    "POSCAR": POSCAR.encode(),
    "POSCAR before its atoms": POSCAR[: POSCAR.index(" 0.5 0.5")].encode(),
    "CHGCAR within its grid": chgcar(words())[: chgcar(words()).index("5.5E-01")].encode(),
    "CHGCAR": chgcar(words()).encode(),
    "CHGCAR of as many values as the archive could hold": POSCAR.encode() + b"\n 600 650 650\n",
    "CHGCAR within augmentation": (POSCAR + "\n" + chgcar_set(words(), "augmentation occupancies  1  999999999\n")).encode(),
    "cube": TEXT["cube"].text(words()).encode(),
    "cube within its head": TEXT["cube"].text(words())[:40].encode(),
    "xsf": TEXT["xsf"].text(words()).encode(),
    "xsf within its grid": TEXT["xsf"].text(words())[:-120].encode(),
    "grd": TEXT["grd"].text(words()).encode(),
    "Chgcar JSON within its grid": JSON["Chgcar JSON"].text(words())[: JSON["Chgcar JSON"].text(words()).index("5.5E-01")].encode(),
    "Chgcar JSON": JSON["Chgcar JSON"].text(words()).encode(),
    "Density JSON": JSON["Density JSON"].text(words())[:200].encode(),
    "structure JSON": json.dumps(poscar_record())[:-1].encode(),
    "CIF": CIF.encode(),
    "CIF within a loop": CIF[: CIF.index(" Cl1")].encode(),
    "CIF within a quoted text": (CIF + ";\n").encode(),
}
BOMBS = [("nothing", "newlines", compression) for compression in COMPRESS]
QUICK = (
    "CHGCAR within its grid",
    "CHGCAR of as many values as the archive could hold",
    "cube",
    "xsf within its grid",
    "grd",
    "CIF",
    "structure JSON",
)
BOMBS += [(start, "newlines", "gz") for start in (*QUICK, "Chgcar JSON within its grid")]
BOMBS += [("CHGCAR", "short rows", "gz"), ("CHGCAR within augmentation", "short rows", "gz"), ("nothing", "digits", "gz")]
MORE = [("nothing", blank, compression) for blank in BLANKS for compression in COMPRESS]
MORE += [(start, blank, "gz") for start in STARTS for blank in BLANKS]
BOMBS += [pytest.param(*bomb, marks=pytest.mark.slow) for bomb in dict.fromkeys(MORE) if bomb not in BOMBS]
# Where nothing but white space follows a whole file, it may also be read, if that stays within the limits.
WHOLE = {"POSCAR", "CHGCAR", "cube", "xsf", "grd", "Chgcar JSON", "CIF"}


@pytest.mark.skipif(not LINUX, reason="limits a process by the means of Linux")
@pytest.mark.parametrize(("start", "blank", "compression"), BOMBS)
def test_bombs_of_512_mb(tmp_path, start, blank, compression):
    raw = repeated(COMPRESS[compression], STARTS[start], BLANKS[blank], 512)
    assert len(raw) < 2 * MIB
    path = write(tmp_path, raw, "input." + compression)
    doors = ["read_structure"] if "CIF" in start or start.startswith(("POSCAR", "structure")) else ["read_density"]
    for door in doors:
        outcome = examine(door, path, MOST_SECONDS)
        allowed = ("DensityFileError", "read") if start in WHOLE and blank in ("newlines", "blanks", "CRLF") else ("DensityFileError",)
        if start == "POSCAR":  # velocities may follow, which are not read
            allowed = ("DensityFileError", "read")
        assert outcome.kind in allowed, outcome
        assert outcome.megabytes < MOST_MEGABYTES, outcome
        assert outcome.seconds < MOST_SECONDS / 2, outcome
        assert outcome.kind == "read" or outcome.text.startswith(str(path)), outcome


def test_a_bomb_in_one_gzip_member(tmp_path):
    import zlib

    packed = zlib.compressobj(1, wbits=31)
    raw = b"".join(packed.compress(b"\n" * MIB) for _ in range(512)) + packed.flush()
    limited(write(tmp_path, raw, "CHGCAR.gz"), "read_density")


@pytest.mark.skipif(not LINUX, reason="has no /dev/zero")
@pytest.mark.parametrize("door", ["read_density", "as_density", "read_structure"])
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom", "link", "fifo", "socket", "directory"])
def test_regular_files_only(tmp_path, door, device):
    path = Path(device) if device.startswith("/") else tmp_path / device
    with socket.socket(socket.AF_UNIX) as server:
        if device == "link":
            path.symlink_to("/dev/zero")
        elif device == "fifo":
            os.mkfifo(path)
        elif device == "socket":
            os.chdir(tmp_path)
            server.bind("socket")
        elif device == "directory":
            path.mkdir()
        limited(path, door, "regular file" if device != "directory" else "a directory")


ENORMOUS = {
    # what: (door, text)
    "one line of digits": ("read_density", lambda: "7" * 20_000_000),
    "one line of digits in a header": ("read_density", lambda: "a\n1.0\n" + "7" * 20_000_000),
    "one line of words": ("read_density", lambda: "word " * 4_000_000),
    "a second line of 60000 digits": ("read_density", lambda: "a\n" + "1" * 60_000 + "x\n"),
    "a second line of many digits": ("read_density", lambda: "a\n" + ("1" * 9_000 + " ") * 7 + "x\n"),
    "a second line of 60000 blanks": ("read_density", lambda: "a\n" + " " * 60_000 + "x\n"),
    "rows of 15000 digits": ("read_density", lambda: "a\n" + ("1" * 15_000 + "x\n") * 4),
    "a scale of 60000 digits": ("read_density", lambda: POSCAR.replace(" 1.0\n", " " + "1" * 60_000 + "x\n")),
    "a vector of 3000 digits": ("read_density", lambda: POSCAR.replace(" 2.0 0.0 0.0\n", " " + "1" * 3_000 + "x 0.0 0.0\n")),
    "a coordinate of 60000 digits": ("read_density", lambda: POSCAR.replace(" 0.5 0.5 0.5\n", " 0.5 0.5 " + "1" * 60_000 + "x\n")),
    "a symbol of 60000 letters": ("read_density", lambda: POSCAR.replace(" Na Cl", " Na " + "C" * 60_000)),
    "moments of 60000 digits": ("read_density", lambda: chgcar(words()) + "1" * 60_000 + "x\n"),
    "moments without end": ("read_density", lambda: chgcar(words()) + " 0.5 0.5 0.5\n" * 2_000_000),
    "a value of a million digits": ("read_density", lambda: chgcar(words("1" * 1_000_000 + "x"))),
    "a value of 60000 digits": ("read_density", lambda: chgcar(words("1" * 60_000 + "x"))),
    "many values of 1000 digits": ("read_density", lambda: POSCAR + "\n 2 3 4\n" + rows_of_digits(1000)),
    "values of 60000 minus signs": ("read_density", lambda: chgcar(words("-" * 60_000))),
    "values of 60000 points": ("read_density", lambda: chgcar(words("1." * 30_000))),
    "a comment of 20 MB in a cube": ("read_density", lambda: "x" * 20_000_000 + TEXT["cube"].text(words())),
    "a value of 60000 digits in a cube": ("read_density", lambda: TEXT["cube"].text(words("1" * 60_000 + "x"))),
    "a cell of 60000 digits in a cube": (
        "read_density",
        lambda: TEXT["cube"].text(words()).replace(" 2 1.", " 2 " + "1" * 60_000 + ".", 1),
    ),
    "60000 blanks in a cube": ("read_density", lambda: TEXT["cube"].text(words()).replace(" 2 1.", " 2 " + " " * 60_000 + "x", 1)),
    "a keyword of 20 MB in an XSF": ("read_density", lambda: "CRYSTAL\n" + "P" * 20_000_000),
    "comments of 20 MB in an XSF": ("read_density", lambda: "# x\n" * 5_000_000 + TEXT["xsf"].text(words())[:-100]),
    "a value of 60000 digits in an XSF": ("read_density", lambda: TEXT["xsf"].text(words("1" * 60_000 + "x"))),
    "atoms without end in an XSF": (
        "read_density",
        lambda: "CRYSTAL\nPRIMVEC\n 1 0 0\n 0 1 0\n 0 0 1\nPRIMCOORD\n 9000000 1\n" + " 1 0 0 0\n" * 500_000,
    ),
    "a value of 60000 digits in a .grd": ("read_density", lambda: TEXT["grd"].text(words("1" * 60_000 + "x"))),
    "a cell of 60000 digits in a .grd": (
        "read_density",
        lambda: TEXT["grd"].text(words()).replace(" 2.0 3.0", " " + "1" * 60_000 + " 3.0", 1),
    ),
    "deep nesting": ("read_structure", lambda: "[" * 5_000_000),
    "deep nesting, closed": ("read_structure", lambda: "[" * 1_000_000 + "]" * 1_000_000),
    "deep objects": ("read_structure", lambda: '{"a":' * 1_000_000),
    "deep properties": (
        "read_structure",
        lambda: json.dumps(poscar_record()).replace('"properties": {}', '"properties": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    ),
    "properties 900 deep": (
        "read_structure",
        lambda: json.dumps(poscar_record()).replace('"properties": {}', '"properties": {"a": ' + "[" * 900 + "]" * 900 + "}"),
    ),
    "deep nesting in a Chgcar": ("read_density", lambda: JSON["Chgcar JSON"].text(words("[" * 1_000_000 + "]" * 1_000_000))),
    "deep nesting before the grid": (
        "read_density",
        lambda: JSON["Chgcar JSON"].text(words()).replace('"comment": "NaCl2"', '"comment": ' + "[" * 1_000_000 + "]" * 1_000_000),
    ),
    "deep nesting in a Density": ("read_density", lambda: JSON["Density JSON"].text(words("[" * 1_000_000 + "]" * 1_000_000))),
    "an integer of a million digits": ("read_structure", lambda: json.dumps(poscar_record()).replace("0.75", "7" * 1_000_000)),
    "an integer of a million digits in a Chgcar": ("read_density", lambda: JSON["Chgcar JSON"].text(words("7" * 1_000_000))),
    "a string of 20 MB": ("read_density", lambda: '{"@class": "Chgcar", "poscar": "' + "\\\\" * 10_000_000),
    "a string of escaped quotes": ("read_density", lambda: '{"@class": "Chgcar", "poscar": "' + '\\"' * 10_000_000),
    "many keys": ("read_density", lambda: '{"@class": "Chgcar", ' + ", ".join(f'"{n}": {{}}' for n in range(200_000)) + "}"),
    "a CIF of 300000 operations": ("read_structure", lambda: CIF.replace(" 'x, y, z'\n", " 'x, y, z'\n" * 300_000)),
    "a CIF of different operations": (
        "read_structure",
        lambda: CIF.replace(" 'x, y, z'\n", "".join(f" 'x+{n}/100003, y, z'\n" for n in range(100_000))),
    ),
    "a CIF of many operations and atoms": (
        "read_structure",
        lambda: CIF.replace(" 'x, y, z'\n", "".join(f" 'x+{n}/193, y+{n % 7}/7, z'\n" for n in range(192))).replace(
            " Na1 Na", "".join(f" C{n} C 0.{n:05d} 0.2 0.{n * 7 % 100_000:05d} 1.0 0.01\n" for n in range(2000)) + " Na1 Na"
        ),
    ),
    "a CIF of 300000 atoms": (
        "read_structure",
        lambda: CIF + "".join(f" C{n} C 0.{n:06d} 0.2 0.3 1.0 0.01\n" for n in range(300_000)),
    ),
    "a CIF of a million numbers": ("read_structure", lambda: CIF + "loop_\n_a\n_b\n" + "1.0 2.0\n" * 1_000_000),
    "a CIF of an operation of 60000 letters": ("read_structure", lambda: CIF.replace("-x, -y, -z", "-x, -y, -z" + "+x" * 30_000)),
    "a CIF of an operation of 60000 digits": ("read_structure", lambda: CIF.replace("-x, -y, -z", "-x+" + "1" * 60_000 + "/3, -y, -z")),
    "a CIF that divides by zero": ("read_structure", lambda: CIF.replace("-x, -y, -z", "-x+1/0, -y, -z")),
    "a CIF of a number of 60000 digits": ("read_structure", lambda: CIF.replace("0.4 0.1", "1" * 60_000 + " 0.1")),
    "a CIF of a coordinate of 1e300": ("read_structure", lambda: CIF.replace("0.4 0.1", "1e300 0.1")),
    "a CIF of a coordinate of 1e999": ("read_structure", lambda: CIF.replace("0.4 0.1", "1e999 0.1")),
    "a CIF of a cell of 1e200": ("read_structure", lambda: CIF.replace("_cell_length_a 4.0", "_cell_length_a 1e200")),
    "a CIF of a cell of 1e-200": ("read_structure", lambda: CIF.replace("_cell_length_a 4.0", "_cell_length_a 1e-200")),
    "a CIF of one label of 20 MB": ("read_structure", lambda: CIF.replace("Na1", "N" * 20_000_000)),
    "a CIF of quotes": ("read_structure", lambda: CIF + "'" * 200_000),
    "a CIF of semicolons": ("read_structure", lambda: CIF + "\n;" * 200_000),
    "a CIF of brackets": ("read_structure", lambda: CIF + "(" * 200_000),
    "comments of 20 MB before a CIF": ("read_structure", lambda: "# x\n" * 5_000_000),
    "blanks of 60000 before nothing": ("read_structure", lambda: " " * 60_000 + "d"),
}
# What is enormous there is not looked at, or has a meaning.
MAY_READ = {"properties 900 deep", "deep nesting before the grid", "a CIF of a million numbers",
            "a comment of 20 MB in a cube"}  # fmt: skip


def rows_of_digits(n_digits: int) -> str:
    return (" " + "1" * n_digits + "x\n") * 24


@pytest.mark.skipif(not LINUX, reason="limits a process by the means of Linux")
@pytest.mark.parametrize("case", ENORMOUS)
def test_enormous_things(tmp_path, case):
    door, make = ENORMOUS[case]
    path = write(tmp_path, make())
    if case not in MAY_READ:
        limited(path, door)
        return
    outcome = examine(door, path, MOST_SECONDS)
    assert outcome.kind in ("read", "DensityFileError"), outcome
    assert outcome.megabytes < MOST_MEGABYTES, outcome


# --- JSON null among values; JSON that names a module: error; never imported ------------------------------------------------------------


def test_json_that_names_a_module(tmp_path, monkeypatch, json_format):
    """Whatever class a JSON names, wherever it names it, its module is not imported, and the numbers are not those of the class."""
    write(tmp_path, "raise SystemExit('imported')\n", "trap_of_json.py")
    monkeypatch.syspath_prepend(tmp_path)
    trap = {"@module": "trap_of_json", "@class": "Trap", "@version": "1"}
    text = FORMATS[json_format].text(words())
    for old, new in [
        (nested(words()), json.dumps(trap)),
        ('"dtype": "float64", "data": ' + nested(words()), '"dtype": "object", "data": ' + json.dumps(trap)),
        (
            '"@module": "numpy", "@class": "array", "dtype": "float64", "data": ' + nested(words()),
            '"@module": "trap_of_json", "@class": "array"',
        ),
    ]:
        assert old in text
        refused(tmp_path, text.replace(old, new), json_format)
    for old in ('"structure": null', '"comment": "NaCl2"', '"data_aug": null'):
        if old in text:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with suppress(DensityFileError):
                    read(tmp_path, text.replace(old, old.split(":")[0] + ": " + json.dumps(trap)), json_format)
    assert "trap_of_json" not in sys.modules


@pytest.mark.parametrize("where", ["lattice", "site", "species", "properties", "whole"])
def test_structure_json_that_names_a_module(tmp_path, monkeypatch, where):
    write(tmp_path, "raise SystemExit('imported')\n", "trap_of_json.py")
    monkeypatch.syspath_prepend(tmp_path)
    trap = {"@module": "trap_of_json", "@class": "Trap", "@version": "1"}
    record = poscar_record()
    if where == "lattice":
        record["lattice"] |= trap
    elif where == "site":
        record["sites"][0] |= trap
    elif where == "species":
        record["sites"][0]["species"][0] |= trap
    elif where == "properties":
        record["sites"][0]["properties"] = {"magmom": trap}
    else:
        record |= trap
    path = write(tmp_path, json.dumps(record))
    with suppress(DensityFileError):
        assert [site.specie.symbol for site in read_structure(path)] == ["Na", "Cl", "Cl"]
    assert "trap_of_json" not in sys.modules


BAD_STRUCTURES = {
    "null coordinate": ("0.75", "null"),
    "NaN coordinate": ("0.75", "NaN"),
    "infinite coordinate": ("0.75", "1e999"),
    "two coordinates": ("0.25, 0.75, 0.1", "0.25, 0.75"),
    "four coordinates": ("0.25, 0.75, 0.1", "0.25, 0.75, 0.1, 0.1"),
    "text coordinate": ("0.75", '"0.75"x'),
    "unknown element": ('"element": "Na"', '"element": "Xx"'),
    "null element": ('"element": "Na"', '"element": null'),
    "negative occupancy": ('"occu": 1', '"occu": -1'),
    "occupancy above one": ('"occu": 1', '"occu": 1.5'),
    "null occupancy": ('"occu": 1', '"occu": null'),
    "NaN occupancy": ('"occu": 1', '"occu": NaN'),
    "null lattice": ("[2.0, 0.0, 0.0]", "[2.0, null, 0.0]"),
    "zero volume": ("[2.0, 0.0, 0.0]", "[0.0, 0.0, 0.0]"),
    "infinite lattice": ("[2.0, 0.0, 0.0]", "[2e999, 0.0, 0.0]"),
    "no sites": ('"sites": [', '"sites": [], "others": ['),
    "sites of null": ('"sites": [', '"sites": null, "others": ['),
    "not closed": ("]}", "]"),
    "two documents": ('"@class": "Structure"', '"@class": "Structure"}{'),
}


@pytest.mark.parametrize("case", BAD_STRUCTURES)
def test_bad_structure_json(tmp_path, case):
    old, new = BAD_STRUCTURES[case]
    text = json.dumps(poscar_record())
    assert old in text
    with pytest.raises(DensityFileError, match=r"input.*found.*expected"):
        read_structure(write(tmp_path, text.replace(old, new)))


# --- CIF: unknown element, dummy site, negative occupancy or > 1, ? coordinates, zero cell, no atoms: error -----------------------------

BAD_CIFS = {
    "unknown element": (" Na1 Na", " Xq1 Xq"),
    "dummy site": (" Na1 Na", " Dum1 Dum"),
    "dummy site named X": (" Na1 Na", " X1 X"),
    "vacancy": (" Na1 Na", " Va1 Va"),
    "negative occupancy": ("0.7 0.5", "0.7 -0.5"),
    "occupancy above one": ("0.7 0.5", "0.7 1.5"),
    "occupancy of infinity": ("0.7 0.5", "0.7 1e999"),
    "? coordinate": ("0.4 0.1 0.7", "0.4 ? 0.7"),
    ". coordinate": ("0.4 0.1 0.7", "0.4 . 0.7"),
    "NaN coordinate": ("0.4 0.1 0.7", "0.4 nan 0.7"),
    "word for a coordinate": ("0.4 0.1 0.7", "0.4 one 0.7"),
    "decimal comma": ("0.4 0.1 0.7", "0.4 0,1 0.7"),
    "zero cell": ("_cell_length_a 4.0", "_cell_length_a 0"),
    "negative cell": ("_cell_length_a 4.0", "_cell_length_a -4.0"),
    "? cell": ("_cell_length_a 4.0", "_cell_length_a ?"),
    "NaN cell": ("_cell_length_a 4.0", "_cell_length_a nan"),
    "angle of 0": ("_cell_angle_beta 90", "_cell_angle_beta 0"),
    "angle of 180": ("_cell_angle_beta 90", "_cell_angle_beta 180"),
    "angle of 200": ("_cell_angle_beta 90", "_cell_angle_beta 200"),
    "no cell": ("_cell_length_a 4.0\n", ""),
    "no atoms": (CIF[CIF.index(" Na1") :], ""),
    "no table of atoms": (CIF[CIF.rindex("loop_") :], ""),
    "a row cut short": (" 0.5 0.020", ""),
    "operation of words": ("-x, -y, -z", "-x, -y, banana"),
    "operation of two": ("-x, -y, -z", "-x, -y"),
    "operation that is singular": ("-x, -y, -z", "x, x, z"),
}


@pytest.mark.parametrize("door", [as_density, read_structure])
@pytest.mark.parametrize("case", BAD_CIFS)
def test_bad_cifs(tmp_path, case, door):
    old, new = BAD_CIFS[case]
    assert CIF.count(old) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DensityFileError, match=r"input\.cif.*found.*expected"):
            door(write(tmp_path, CIF.replace(old, new), "input.cif"))


# --- CIF: B missing, 0 or ?: the stated default and a warning ---------------------------------------------------------------------------

NO_B = {
    "missing": CIF.replace(" _atom_site_U_iso_or_equiv\n", "").replace(" 0.010\n", "\n").replace(" 0.020\n", "\n"),
    "0": CIF.replace(" 0.010\n", " 0\n").replace(" 0.020\n", " 0.0\n"),
    "?": CIF.replace(" 0.010\n", " ?\n").replace(" 0.020\n", " ?\n"),
    ".": CIF.replace(" 0.010\n", " .\n").replace(" 0.020\n", " .\n"),
    "negative": CIF.replace(" 0.010\n", " -0.01\n").replace(" 0.020\n", " -0.02\n"),
    "B of 0": CIF.replace("U_iso", "B_iso").replace(" 0.010\n", " 0\n").replace(" 0.020\n", " 0.0\n"),
    "0 for one atom": CIF.replace(" 0.010\n", " 0.0063325739776461\n").replace(" 0.020\n", " 0\n"),
}


@pytest.mark.parametrize("case", NO_B)
def test_the_default_displacement(tmp_path, case):
    """The density is that of the same atoms with the stated default, B = 0.5 Å² (U = B / 8 pi^2), written out."""
    u_default = " 0.0063325739776461\n"
    stated = as_density(write(tmp_path, CIF.replace(" 0.010\n", u_default).replace(" 0.020\n", u_default), "stated.cif"))
    with pytest.warns(UserWarning, match=r"0\.5 Å²") as caught:
        density = as_density(write(tmp_path, NO_B[case], "input.cif"))
    assert len(caught) == 1
    assert "input.cif" in str(caught[0].message) or case == "missing"
    np.testing.assert_allclose(density.channels["total"], stated.channels["total"], rtol=1e-6, atol=1e-9)
