"""``file_info`` and ``ed3d info``: what a file holds, and the checks that find what does not fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from matminer_ed3d.cli import main
from matminer_ed3d.density import Density
from matminer_ed3d.file_info import file_info, readable
from matminer_ed3d.sources import DensityFileError

CELL = 4.0 * np.eye(3)
NEON = Structure(Lattice(CELL), ["Ne"], [[0, 0, 0]])


def failed(answer: dict[str, Any]) -> list[str]:
    return [check["name"] for check in answer["checks"] if not check["ok"]]


def neon(n_electrons: float = 10.0, shape: tuple[int, int, int] = (16, 16, 16), structure: Structure | None = NEON) -> Density:
    density = Density.from_structure(NEON, grid_shape=shape, method="mean")
    total = density.channels["total"] * (n_electrons / density.n_electrons())
    return Density(CELL, {"total": total}, structure)


def info_of(density: Density, folder: Path, name: str = "CHGCAR") -> dict[str, Any]:
    density.to_file(folder / name)
    return file_info(folder / name)


def test_the_shipped_chgcar(chgcar_path: Path) -> None:
    answer = file_info(chgcar_path)
    assert answer["file"] == str(chgcar_path)
    assert answer["format"] == "POSCAR or volumetric file of VASP"
    assert (answer["quantity"], answer["unit"]) == ("electron_density", "e/Å³")
    assert answer["grid_shape"] == [28, 28, 28]
    assert answer["n_electrons"] == pytest.approx(8.0, abs=1e-4)
    assert list(answer["channels"]) == ["total", "diff"]
    assert answer["channels"]["diff"]["integral"] == pytest.approx(2.2725, abs=1e-3)
    assert answer["n_protons"] == 26
    assert answer["structure"]["formula"] == "Fe"
    assert answer["structure"]["space_group_number"] == 229
    np.testing.assert_allclose(answer["lattice"]["angles"], 109.4712, atol=1e-3)
    assert failed(answer) == []
    assert answer["remarks"] == []


def test_the_shipped_cif(cif_path: Path) -> None:
    answer = file_info(cif_path)
    assert answer["format"] == "CIF"
    assert "quantity" not in answer
    assert answer["structure"]["atoms_per_cell"] == {"Ti": 2.0, "O": 4.0}
    assert answer["structure"]["space_group_symbol"] == "P42/mnm"
    assert answer["lattice"]["volume"] == pytest.approx(62.42, abs=0.01)
    assert failed(answer) == []


@pytest.mark.parametrize("name", ["chgcar_path", "cif_path"])
def test_an_answer_is_json(name: str, request: pytest.FixtureRequest) -> None:
    answer = file_info(request.getfixturevalue(name))
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_a_good_density_passes_every_check(tmp_path: Path) -> None:
    answer = info_of(neon(), tmp_path)
    assert failed(answer) == []
    assert "all electrons" in readable(answer)
    assert {check["name"] for check in answer["checks"]} == {
        "finite values",
        "no negative density",
        "whole electrons",
        "electrons and nuclei",
        "fine grid",
        "even grid",
        "atoms apart",
    }


@pytest.mark.parametrize(
    ("density", "names"),
    [
        (neon(7.6), ["whole electrons"]),
        (neon(0.3), ["whole electrons"]),
        (neon(64 * 10.0), ["electrons and nuclei"]),  # density times volume, not divided
        (neon(shape=(8, 16, 16)), ["fine grid", "even grid"]),
        (neon(structure=Structure(Lattice(CELL), ["He"] * 5, [[0.2 * n, 0, 0.05] for n in range(5)])), []),
        (neon(structure=Structure(Lattice(CELL), ["He"] * 5, [[0.1 * n, 0, 0.05] for n in range(5)])), ["atoms apart"]),
    ],
)
def test_what_does_not_fit_is_found(density: Density, names: list[str], tmp_path: Path) -> None:
    assert failed(info_of(density, tmp_path)) == names


def test_negative_weight_is_found(tmp_path: Path) -> None:
    density = neon()
    total = density.channels["total"].copy()
    total[:, :, 7] -= 0.05
    answer = info_of(dataclasses.replace(density, channels={"total": total}), tmp_path)
    assert "no negative density" in failed(answer)


@pytest.mark.parametrize(("share", "names"), [(0.5, []), (1.0, []), (1.2, ["spin within density"])])
@pytest.mark.parametrize("channels", [("diff",), ("diff_x", "diff_y", "diff_z")])
def test_more_spin_than_electrons_is_found(share: float, names: list[str], channels: tuple[str, ...], tmp_path: Path) -> None:
    density = neon()
    total = density.channels["total"]
    spin = {name: -share * total / np.sqrt(len(channels)) for name in channels}
    answer = info_of(dataclasses.replace(density, channels={"total": total, **spin}), tmp_path)
    assert failed(answer) == names


@pytest.mark.parametrize(("quantity", "name", "unit"), [("potential", "LOCPOT", "eV"), ("elf", "ELFCAR", "1")])
def test_another_quantity_has_no_electrons(tmp_path: Path, quantity: Any, name: str, unit: str) -> None:
    values = neon().channels["total"]
    values = values / values.max() if quantity == "elf" else -values
    answer = info_of(dataclasses.replace(neon(), channels={"total": values}, quantity=quantity), tmp_path, name)
    assert (answer["quantity"], answer["unit"], answer["n_electrons"]) == (quantity, unit, None)
    assert "integral" not in next(iter(answer["channels"].values()))
    assert not {check["name"] for check in answer["checks"]} & {"whole electrons", "electrons and nuclei"}
    assert unit in readable(answer)


def test_a_map_has_no_atoms(tmp_path: Path) -> None:
    answer = info_of(neon(), tmp_path, "a.ccp4")
    assert answer["structure"] is None
    assert answer["n_protons"] is None
    assert answer["n_electrons"] == pytest.approx(10.0, rel=1e-6)
    assert "none in the file" in readable(answer)


def test_a_warning_of_the_reader_becomes_a_remark(tmp_path: Path) -> None:
    path = tmp_path / "POSCAR"
    path.write_text("no symbols\n1.0\n4 0 0\n0 4 0\n0 0 4\n1\nDirect\n0 0 0\n\n2 2 2\n" + "10.0 " * 8 + "\n")
    answer = file_info(path)
    assert len(answer["remarks"]) == 1
    assert "no line of element symbols (VASP 4)" in answer["remarks"][0]
    assert "remarks" in readable(answer)


def test_disorder_and_displacements_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "alloy.cif"
    path.write_text(
        "data_alloy\n_cell_length_a 4\n_cell_length_b 4\n_cell_length_c 4\n_cell_angle_alpha 90\n_cell_angle_beta 90\n"
        "_cell_angle_gamma 90\n"
        "_space_group_name_H-M_alt 'P 1'\nloop_\n_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n"
        "_atom_site_fract_z\n_atom_site_occupancy\n_atom_site_U_iso_or_equiv\n"
        "Cu1 Cu 0 0 0 0.75 0.01\nAu1 Au 0 0 0 0.25 0.01\nCu2 Cu 0.5 0.5 0.5 1 0.02\n"
    )
    answer = file_info(path)
    structure = answer["structure"]
    assert structure["atoms_per_cell"] == {"Cu": 1.75, "Au": 0.25}
    assert structure["n_disordered_sites"] == 1
    assert structure["n_isotropic_displacements"] == 2
    assert "2 isotropic, 0 anisotropic" in readable(answer)


def test_a_bad_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DensityFileError, match="no such file"):
        file_info(tmp_path / "none")


# The command


def test_the_command_does_the_rest_when_one_fails(
    tmp_path: Path, chgcar_path: Path, cif_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    bad.write_text("<html>")
    assert main(["info", str(chgcar_path), str(bad), str(cif_path)]) == 1
    out, err = capsys.readouterr()
    assert "integral 8 e" in out
    assert "P42/mnm" in out
    assert len(err.splitlines()) == 1
    assert err.startswith(f"ed3d: {bad}: found an HTML")


def test_the_command_prints_json_lines(chgcar_path: Path, cif_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", str(chgcar_path), str(cif_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [json.loads(line)["format"] for line in out.splitlines()] == ["POSCAR or volumetric file of VASP", "CIF"]


def test_lines_fit_a_terminal(chgcar_path: Path) -> None:
    lines = readable(file_info(chgcar_path)).splitlines()
    assert max(map(len, lines[1:])) <= 130
