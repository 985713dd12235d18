"""The package as a whole: import cost, public names, entry points, the README's code, the links and pages of the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import matminer_ed3d

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "matminer_ed3d"
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("*/*.md"))]
FEATURE_SIDE = [
    "density",
    "featurizers",
    "grids",
    "labels",
    "promolecule",
    "reduction",
    "representations",
    "samples",
    "sampling",
    "sources",
    "statistics",
]
NETWORK_SIDE = ["networks", "networks.registry", "sparse", "training"]


def run_python(code: str) -> str:
    """Run code in a fresh interpreter, without the shape checks of this one."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def public_modules() -> list[str]:
    """Every module of the package that has a page of its own in docs/api; a sub-package has one for all its modules."""
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    return sorted(name for name in names if not name.startswith("_"))


# The cost of an import


def test_import_takes_less_than_0_3_s():
    code = "import time; start = time.process_time(); import matminer_ed3d; print(time.process_time() - start)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.3


def test_import_loads_neither_torch_nor_pymatgen_nor_numpy():
    loaded = run_python("import sys, matminer_ed3d; print(*(m for m in ('torch', 'pymatgen', 'numpy', 'sklearn') if m in sys.modules))")
    assert loaded == ""


def test_feature_side_loads_no_torch():
    imports = "; ".join(f"import matminer_ed3d.{name}" for name in FEATURE_SIDE)
    assert run_python(f"import sys; {imports}; print('torch' in sys.modules)") == "False"


def test_network_side_loads_no_pymatgen():
    imports = "; ".join(f"import matminer_ed3d.{name}" for name in NETWORK_SIDE)
    assert run_python(f"import sys; {imports}; print(*(m for m in ('pymatgen', 'matminer') if m in sys.modules))") == ""


# Names


@pytest.mark.parametrize("name", matminer_ed3d.__all__)
def test_public_name_resolves_and_is_listed(name):
    assert getattr(matminer_ed3d, name) is not None
    assert name in dir(matminer_ed3d)


def test_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"'PointNet'; it has .*PointNetClassifier"):
        matminer_ed3d.PointNet  # noqa: B018


def test_version_is_that_of_the_metadata():
    assert matminer_ed3d.__version__ == version("matminer_ed3d")


def test_entry_points_of_the_file_are_installed_and_load():
    lines = (ROOT / "entry_points.txt").read_text(encoding="utf-8").splitlines()
    group = ""
    for line in filter(None, lines):
        if line.startswith("["):
            group = line.strip("[]")
            continue
        name = line.split("=")[0].strip()
        (found,) = [point for point in entry_points(group=group, name=name) if point.dist and point.dist.name == "matminer_ed3d"]
        assert callable(found.load())


def test_types_and_example_data_are_shipped(chgcar_path, cif_path):
    assert (PACKAGE / "py.typed").exists()
    assert chgcar_path.stat().st_size > 0
    assert cif_path.stat().st_size > 0


@pytest.mark.parametrize("module", public_modules())
def test_names_in_all_exist(module):
    loaded = import_module(f"matminer_ed3d.{module}")
    assert loaded.__doc__
    for name in getattr(loaded, "__all__", ()):
        assert hasattr(loaded, name), name


# The fixtures that every other test builds on


def test_crystals_have_their_system_and_group(crystals):
    from matminer_ed3d.labels import CRYSTAL_SYSTEMS, crystal_system, space_group_number

    assert tuple(crystals) == CRYSTAL_SYSTEMS
    numbers = {"triclinic": 2, "monoclinic": 14, "orthorhombic": 58, "tetragonal": 136, "trigonal": 154, "hexagonal": 186, "cubic": 225}
    for system, structure in crystals.items():
        assert crystal_system(structure) == system
        assert space_group_number(structure, symprec=0.01) == numbers[system]


# Documentation


def test_readme_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what it writes goes there
    blocks = code_blocks(ROOT / "README.md", "python")
    assert blocks
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "guide").glob("*.md")), ids=lambda path: path.name)
def test_guide_code_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}  # a page is read from top to bottom
    for block in code_blocks(path, "python"):
        exec(compile(block, path.name, "exec"), names)


def test_commands_in_the_texts_are_known(capsys):
    from matminer_ed3d.cli import main

    texts = [path.read_text(encoding="utf-8") for path in TEXTS]
    used = {found for text in texts for found in re.findall(r"(?:^\$ |`)ed3d ([a-z]+)([^`\n]*)", text, flags=re.MULTILINE)}
    assert {command for command, _ in used} >= {"predict", "info", "featurize", "train", "evaluate", "models"}
    for command, rest in used:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"ed3d {command}{rest}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_exist(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            assert (path.parent / target.split("#")[0]).exists(), target


def test_every_public_module_has_an_api_page():
    pages = {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} - {"index"}
    assert pages == set(public_modules())


def test_constraints_pin_every_direct_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line}
    wanted = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    assert {name for line in wanted if (name := re.split(r"[\[<>=]", line)[0].lower()) != project["name"].lower()} <= pinned
