"""``symmetry_report`` and ``ed3d report``: the names of operations, the maps, the surface, and the page in a browser."""

from __future__ import annotations

import builtins
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spglib
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from matminer_ed3d import symmetry_report
from matminer_ed3d.cli import main
from matminer_ed3d.density import Density
from matminer_ed3d.symmetry import find_symmetry
from matminer_ed3d.symmetry.operations import image_of
from matminer_ed3d.symmetry.spectrum import spectrum_of
from matminer_ed3d.symmetry_report import isosurface, operation_symbol, residual_sections, triplet, write_report

pytest.importorskip("plotly")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SKEWED = Lattice.from_parameters(5.0, 5.6, 4.4, 72, 105, 118)
SALT = Structure(Lattice(5.6 * np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def figures_of(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize(
    ("hall_number", "wanted", "lattice"),
    [
        (432, {"1", "3_2"}, Lattice.hexagonal(5, 7)),  # P3_2
        (431, {"1", "3_1"}, Lattice.hexagonal(5, 7)),  # P3_1
        (350, {"1", "2_1", "4_1", "4_3"}, Lattice.tetragonal(5, 7)),  # P4_1: its inverse turns the other way
        (81, {"1", "2_1", "-1", "g"}, Lattice.monoclinic(5, 6, 7, 100)),  # P2_1/c
        (419, {"1", "2", "2_1", "-1", "m", "g", "4_2", "-4"}, Lattice.tetragonal(5, 3)),  # P4_2/mnm
        (462, {"1", "6", "3", "2"}, Lattice.hexagonal(5, 7)),  # P6
    ],
)
def test_operations_are_named_as_in_the_tables(hall_number: int, wanted: set[str], lattice: Lattice) -> None:
    made = spglib.get_symmetry_from_database(hall_number)
    symbols = {operation_symbol(w, t, lattice.matrix) for w, t in zip(made["rotations"], made["translations"], strict=True)}
    if hall_number == 350:  # an inverse is the same axis, and keeps its hand
        wanted = wanted - {"4_3"}
    assert symbols == wanted


def test_a_centred_lattice_makes_the_simplest_name() -> None:
    symmetry = find_symmetry(Density.from_structure(SALT))
    symbols = {operation_symbol(o.rotation, o.translation, symmetry.lattice) for o in symmetry.operations}
    assert symbols == {"1", "-1", "2", "3", "-3", "4", "-4", "m"}


def test_triplets_are_read_back_by_pymatgen() -> None:
    from pymatgen.core.operations import SymmOp

    made = spglib.get_symmetry_from_database(419)
    for w, t in zip(made["rotations"], made["translations"], strict=True):
        again = SymmOp.from_xyz_str(triplet(w, t))
        np.testing.assert_array_equal(again.rotation_matrix, w)
        np.testing.assert_allclose(again.translation_vector % 1, t % 1, atol=1e-12)


def test_the_map_is_the_residual_of_each_translation() -> None:
    density = Density.from_structure(SALT)
    symmetry = find_symmetry(density)
    spectrum = spectrum_of(density).in_basis(symmetry.basis)
    operation = symmetry.operations[5]
    residual = symmetry_report._residual_map(spectrum, operation.rotation)
    rows = spectrum.images(operation.rotation)
    for at in ((0, 0, 0), (3, 1, 2), (5, 0, 7)):
        image = image_of(spectrum, rows, np.array(at) / residual.shape)
        # rho(W x + t): F' = F(hW) exp(-2 pi i h.t) is compared with F
        difference = np.sum(spectrum.weights * abs(image - spectrum.coefficients) ** 2)
        wanted = difference / (2 * np.sum(spectrum.weights * abs(spectrum.coefficients) ** 2))
        assert residual[at] == pytest.approx(wanted, abs=1e-5)


def test_sections_go_through_the_best_translation(cif_path: Path) -> None:
    structure = Structure.from_file(cif_path)
    structure.translate_sites(range(len(structure)), [0.013, 0.127, 0.21])
    density = Density.from_structure(structure, grid_spacing=0.15)
    symmetry = find_symmetry(density)
    assert symmetry.space_group_number == 136
    _, sections = residual_sections(spectrum_of(density).in_basis(symmetry.basis), symmetry.operations)
    for operation, planes in zip(symmetry.operations, sections, strict=True):
        for plane in planes:
            ny, nx = map(int, plane["z"]["shape"].split(","))
            z = np.frombuffer(symmetry_report.base64.b64decode(plane["z"]["bdata"]), np.uint8).reshape(ny, nx)
            at = [round((p - start) / step) for p, (start, step) in zip(plane["peak"], (plane["x"], plane["y"]), strict=True)]
            assert z[at[1], at[0]] == z.min() == 0
            assert plane["x"][0] <= 0 <= 1 <= plane["x"][0] + (nx - 1) * plane["x"][1] + 1e-9
            coordinates = dict(zip(plane["axes"], [*plane["peak"], plane["fixed"]], strict=True))
            np.testing.assert_allclose([coordinates[a] for a in "abc"], operation.translation % 1)


def test_large_cells_get_coarser_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    density = Density.from_structure(SALT)
    symmetry = find_symmetry(density)
    spectrum = spectrum_of(density).in_basis(symmetry.basis)
    monkeypatch.setattr(symmetry_report, "FINE_SECTION", 4)
    fine, _ = residual_sections(spectrum, symmetry.operations[:2])
    monkeypatch.setattr(symmetry_report, "SECTION_BYTES", 1500)
    coarse, sections = residual_sections(spectrum, symmetry.operations[:2])
    assert coarse > fine
    assert sum(len(plane["z"]["bdata"]) for planes in sections for plane in planes) < 2200  # with their rims


@pytest.mark.parametrize("handedness", [1, -1])
def test_the_surface_of_a_ball_has_its_area_and_volume_and_no_hole(handedness: int) -> None:
    lattice = SKEWED.matrix * [[1], [1], [handedness]]
    points = np.stack(np.meshgrid(*[np.linspace(0, 1, 41)] * 3, indexing="ij"), axis=-1) - 0.5
    vertices, triangles = isosurface(-np.linalg.norm(points @ lattice, axis=-1), -1.2, lattice)
    vertices = vertices - lattice.sum(axis=0) / 2
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 1.2, atol=0.01)
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    assert 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() == pytest.approx(4 * np.pi * 1.2**2, rel=0.01)
    assert np.einsum("ij,ij->", a, np.cross(b, c)) / 6 == pytest.approx(handedness * 4 / 3 * np.pi * 1.2**3, rel=0.01)
    edges = np.concatenate([triangles[:, [i, j]] for i, j in ((0, 1), (1, 2), (2, 0))])
    assert {tuple(e) for e in edges} == {tuple(e) for e in edges[:, ::-1]}  # every edge is passed once in either sense
    assert len(edges) == len({tuple(e) for e in edges})


def test_no_surface_where_nothing_is_above() -> None:
    vertices, triangles = isosurface(np.zeros((4, 4, 4)), 1.0, np.eye(3))
    assert vertices.shape == (0, 3)
    assert triangles.shape == (0, 3)


def test_the_page_says_what_was_found_and_is_self_contained(chgcar_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(chgcar_path), "--out", str(out)]) == 0
    assert "Im-3m (229)" in capsys.readouterr().out
    page = out.read_text(encoding="utf-8")
    assert len(page.encode()) < 6e6
    for text in ("Im-3m (229)", "-I 4 2 3", "whole electrons", "0.01 Å", "m-3m", "extinction group"):
        assert text in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page.split("<script>")[0])
    figures = figures_of(page)
    assert len(figures["sections"]) == 48
    assert page.count("<option value=") == 48 + 3


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "<script>alert(1)<b>.cif"
    SALT.to(filename=str(tmp_path / "a.cif"))
    (tmp_path / "a.cif").rename(path)
    write_report(path, tmp_path / "a.html")
    write_report(Density.from_structure(SALT), tmp_path / "b.html", title="</title><script>alert(2)</script>$head")
    for name in ("a.html", "b.html"):
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page
    assert "$head" in page


def test_a_broken_symmetry_is_among_the_operations(tmp_path: Path) -> None:
    structure = SALT.copy()
    structure.translate_sites([1], [0.02, 0.0, 0.0])
    symmetry = write_report(Density.from_structure(structure), tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert symmetry.space_group_number != 225
    assert "<td>broken</td>" in page
    assert (
        len(figures_of(page)["sections"])
        == page.count("<td>holds</td>") + page.count("<td>broken</td>") + page.count("<td>far from it</td>")
        == 48
    )


def test_wrong_wishes_are_one_line(
    tmp_path: Path, cif_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "a.cif"
    shutil.copy(cif_path, copy)
    assert main(["report", str(copy), "--out", str(copy)]) == 1
    assert "would replace the file" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none"), "--out", str(tmp_path / "a.html")]) == 1
    assert main(["report", str(copy), "--symprec", "-1", "--out", str(tmp_path / "a.html")]) == 1
    assert "--symprec" in capsys.readouterr().err
    real = builtins.__import__

    def without_plotly(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_plotly)
    assert main(["report", str(copy), "--out", str(tmp_path / "a.html")]) == 1
    assert "pip install 'matminer_ed3d[report]'" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_a_browser_draws_the_page(cif_path: Path, tmp_path: Path) -> None:
    write_report(cif_path, tmp_path / "a.html")
    page = (tmp_path / "a.html").as_uri()
    options = ["--headless", "--no-sandbox", "--enable-unsafe-swiftshader", "--virtual-time-budget=15000", "--dump-dom"]
    answer = subprocess.run(
        [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", page], capture_output=True, text=True, timeout=120
    )
    dom = answer.stdout
    for name in ("surface", "evidence", "section"):
        drawn = dom[dom.index(f'<div id="{name}"') :][:3000]
        assert "js-plotly-plot" in drawn
        assert "svg-container" in drawn
    assert "Uncaught" not in answer.stderr
