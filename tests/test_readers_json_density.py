"""Densities in JSON: pymatgen and monty write them; every spelling reads the same; nothing foreign is imported or believed."""

from __future__ import annotations

import gzip
import json
import sys

import numpy as np
import pytest
from monty.json import MontyEncoder

from matminer_ed3d.density import Density
from matminer_ed3d.readers import json_density
from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.readers.json_density import read_chgcar_json, read_density_json
from matminer_ed3d.readers.streams import open_stream
from matminer_ed3d.sources import read_density

SHAPE = (4, 3, 5)


def values(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 9.0, SHAPE) * 10.0 ** rng.integers(-9, 9, SHAPE)


@pytest.fixture
def chgcar(nacl):
    from pymatgen.io.vasp.inputs import Poscar
    from pymatgen.io.vasp.outputs import Chgcar

    return Chgcar(Poscar(nacl), {"total": values(0), "diff": values(1) - 3.0}, data_aug={"total": {"1": np.arange(3.0)}, "diff": {}})


def read(tmp_path, record, reader=read_chgcar_json, **options):
    path = tmp_path / "x.json"
    path.write_bytes(record if isinstance(record, bytes) else json.dumps(record, cls=MontyEncoder).encode())
    with open_stream(path) as stream:
        return reader(stream, **options)


def lists(record):
    """Plain nested lists in place of MontyEncoder's arrays."""
    record = json.loads(json.dumps(record, cls=MontyEncoder))
    record["data"] = {name: array["data"] for name, array in record["data"].items()}
    return record


SPELLINGS = {
    "as monty writes": lambda r: json.dumps(r, cls=MontyEncoder),
    "compact": lambda r: json.dumps(r, cls=MontyEncoder, separators=(",", ":")),
    "indented": lambda r: json.dumps(r, cls=MontyEncoder, indent=1),
    "sorted": lambda r: json.dumps(r, cls=MontyEncoder, sort_keys=True),
    "reversed": lambda r: json.dumps(dict(reversed(r.items())), cls=MontyEncoder),
    "lists": lambda r: json.dumps(lists(r)),
    "wrapped": lambda r: json.dumps({"task": "mp-1", "data": r, "note": 'a "data": [[[1]]] in text'}, cls=MontyEncoder),
    "orjson": lambda r: json.dumps(json.loads(json.dumps(r, cls=MontyEncoder)), separators=(",", ":")),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_a_chgcar_reads_bit_by_bit(tmp_path, monkeypatch, chgcar, spelling, piece):
    monkeypatch.setattr(json_density, "PIECE", piece)
    density = read(tmp_path, SPELLINGS[spelling](chgcar.as_dict()).encode())
    assert list(density.channels) == ["total", "diff"]
    for name, rho in density.channels.items():
        np.testing.assert_array_equal(rho, chgcar.data[name] / chgcar.structure.volume)
    assert density.structure.matches(chgcar.structure)
    assert density.quantity == "electron_density"


def test_the_fast_way_reads_what_json_reads(chgcar):
    for separators in ((",", ":"), (", ", ": ")):
        text = json.dumps(values(3).tolist(), separators=separators).encode()
        np.testing.assert_array_equal(json_density._regular_grid(text, 0, len(text)), values(3))


def test_text_without_end_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(json_density, "LONGEST_REST", 1000)
    path = tmp_path / "x.json"
    path.write_text('{"data_aug": {}, "poscar": {}, "data": {"total": [[[' + "1," * 1000)
    with pytest.raises(DensityFileError, match=r"x\.json: found \d+ bytes of JSON besides complete grids, expected at most 1000"):
        read_density(path)


def test_it_is_found_by_content(tmp_path, chgcar):
    path = tmp_path / "mp-1.json.gz"
    path.write_bytes(gzip.compress(json.dumps(chgcar.as_dict(), cls=MontyEncoder).encode()))
    total = read_density(path, channels=["total"])
    assert list(total.channels) == ["total"]
    np.testing.assert_array_equal(total.channels["total"], chgcar.data["total"] / chgcar.structure.volume)


def test_other_classes_name_their_quantity(tmp_path, chgcar):
    record = chgcar.as_dict()
    potential = read(tmp_path, record | {"@class": "Locpot"})
    assert potential.quantity == "potential"
    np.testing.assert_array_equal(potential.channels["down"], chgcar.data["diff"])
    assert read(tmp_path, record | {"@class": "Elfcar"}).quantity == "elf"
    assert read(tmp_path, record, quantity="unknown").quantity == "unknown"
    record["data"] = {"total": np.random.default_rng(0).uniform(0, 1, SHAPE)}
    assert read(tmp_path, record | {"@class": "VolumetricData"}).quantity == "elf"


def test_a_non_collinear_chgcar_has_no_derived_channel(tmp_path, chgcar):
    record = chgcar.as_dict()
    record["data"] = {name: values(n) for n, name in enumerate(["total", "diff_x", "diff_y", "diff_z", "diff"])}
    assert list(read(tmp_path, record).channels) == ["total", "diff_x", "diff_y", "diff_z"]


def test_a_module_in_the_file_is_never_imported(tmp_path, chgcar):
    record = lists(chgcar.as_dict()) | {"@module": "antigravity", "extra": {"@module": "antigravity", "@class": "x"}}
    record["poscar"]["@module"] = "antigravity"
    record["poscar"]["structure"]["@module"] = "antigravity"
    assert read(tmp_path, record).quantity == "electron_density"
    assert "antigravity" not in sys.modules


def one_word(word):
    def change(text):
        first = json.dumps(values(0)[1, 2, 3].item())
        assert text.count(first) == 1
        return text.replace(first, word)

    return change


BAD = {
    "null": (one_word("null"), r"x\.json:1: found 'null' at byte \d+, expected a finite number of channel 'total'"),
    "NaN": (one_word("NaN"), "found 'NaN' at byte"),
    "Infinity": (one_word("-Infinity"), "found '-Infinity' at byte"),
    "overflow": (one_word("1e999"), "found '1e999' at byte"),
    "true": (one_word("true"), "found 'true'"),
    "word": (one_word("abc"), "found 'abc'"),
    "bare exponent": (one_word("0.1-100"), "found '0.1-100'"),
    "two numbers": (one_word("1.0 2.0"), "grid for channel 'total' that is none"),
    "two numbers and an empty cell": (one_word("1.0 2.0, "), "found|grid for channel 'total' that is none"),
    "nothing": (one_word(""), "grid for channel 'total' that is none"),
    "one more": (one_word("1.0, 2.0"), "grid for channel 'total' that is none.*lists of equal length"),
    "a list": (one_word("[1.0]"), "grid for channel 'total' that is none"),
    "a text": (one_word('"1.0"'), "no grid|not JSON|shape|found"),
    "a dict": (one_word("{}"), "no grid|not JSON|shape|found"),
    "cut": (lambda text: text[: len(text) // 2], "not JSON"),
    "deep": (lambda text: '{"poscar": ' + "[" * 100_000, "not JSON"),
    "no total": (lambda text: text.replace('"total"', '"sum"'), "JSON of something else"),
    "no poscar": (lambda text: text.replace('"poscar"', '"poscars"'), "JSON of something else"),
    "no structure": (lambda text: text.replace('"structure"', '"structures"'), "expected JSON of a pymatgen Structure"),
    "a flat grid": (lambda text: text.replace("[[[", "[[").replace("]]]", "]]"), "no grid|not JSON|none"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_bad_files_are_refused_by_reason(tmp_path, chgcar, case, separators):
    change, reason = BAD[case]
    chgcar.data["diff"] = values(1) - 3.0
    text = json.dumps(lists(chgcar.as_dict()), separators=separators)
    with pytest.raises(DensityFileError, match=reason):
        read(tmp_path, change(text).encode())


def test_shapes_must_agree(tmp_path, chgcar):
    record = chgcar.as_dict()
    record["data"] = {"total": values(0), "diff": values(1)[:2]}
    with pytest.raises(DensityFileError, match="different shapes"):
        read(tmp_path, record)


def test_options_that_make_no_sense_are_refused(tmp_path, chgcar):
    with pytest.raises(ValueError, match="`unit` must be left out"):
        read(tmp_path, chgcar.as_dict(), unit="e/A^3")
    with pytest.raises(ValueError, match="sequence of names"):
        read(tmp_path, chgcar.as_dict(), channels="total")
    with pytest.raises(ValueError, match="must hold 'total'"):
        read(tmp_path, chgcar.as_dict(), channels=["diff"])
    with pytest.raises(DensityFileError, match="no channel 'up', expected one of total, diff"):
        read(tmp_path, chgcar.as_dict(), channels=["up"])


@pytest.mark.parametrize("with_atoms", [True, False])
def test_a_density_comes_back_from_its_json(tmp_path, nacl, with_atoms):
    density = Density(nacl.lattice.matrix, {"total": values(0), "diff": values(1)}, nacl if with_atoms else None, True)
    again = read(tmp_path, density.as_dict(), read_density_json)
    np.testing.assert_array_equal(again.lattice, density.lattice)
    assert list(again.channels) == ["total", "diff"]
    for name, rho in density.channels.items():
        np.testing.assert_array_equal(again.channels[name], rho)
    assert again.is_voxel_mean
    assert (again.structure is not None) == with_atoms
    orbital = Density(nacl.lattice.matrix, {"real": values(0) - 3.0}, quantity="orbital")
    (tmp_path / "orbital").write_text(json.dumps(orbital.as_dict()))
    assert read_density(tmp_path / "orbital").quantity == "orbital"
    assert list(read(tmp_path, density.as_dict(), read_density_json, channels=["total"]).channels) == ["total"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lattice": [[1, 0, 0], [0, 1, 0], [1, 1, 0]]}, "no lattice"),
        ({"lattice": "x"}, "no lattice"),
        ({"channels": {}}, "JSON of something else"),
        ({"channels": {"up": values(0).tolist()}}, "no density"),
        ({"channels": {"total": [1.0]}}, "no grid for channel 'total'"),
        ({"quantity": "charge"}, "quantity 'charge'"),
        ({"structure": {"sites": []}}, "Structure"),
    ],
)
def test_bad_densities_are_refused(tmp_path, nacl, change, reason):
    record = Density(nacl.lattice.matrix, {"total": values(0)}).as_dict()
    with pytest.raises(DensityFileError, match=reason):
        read(tmp_path, record | change, read_density_json)
