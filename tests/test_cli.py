"""The command: files and tables in, answers out, one line for what fails."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from matminer_ed3d import cli, datasets, labels, prediction, table_features
from matminer_ed3d.estimators import PointNetClassifier, SparseCNNClassifier
from matminer_ed3d.promolecule import density_from_structure
from matminer_ed3d.symmetry import Operation

SMALL = ("cubic", "hexagonal", "tetragonal", "orthorhombic", "trigonal")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, _built_crystals):
    """A model of five space groups, trained for a moment: its answers are answers, not good ones."""
    structures = [_built_crystals[system] for system in SMALL] * 2
    numbers = [labels.space_group_number(structure) for structure in structures]
    model = SparseCNNClassifier(
        architecture="small", voxel_size=1.0, max_epochs=1, validation_fraction=0.0, early_stopping=None, random_state=0
    )
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    model.fit(structures, numbers).save(path, target="space_group_number")
    return str(path)


@pytest.fixture
def table(tmp_path, crystals):
    rows = []
    for i in range(12):
        structure = crystals[SMALL[i % 5]].get_primitive_structure()
        rows.append(
            {
                "id": f"mp-{i}",
                "formula": structure.composition.reduced_formula,
                "n_sites": len(structure),
                "lattice": structure.lattice.matrix.ravel().tolist(),
                "numbers": list(structure.atomic_numbers),
                "frac": structure.frac_coords.ravel().tolist(),
                "sg_symprec_01": labels.space_group_number(structure),
                "sg_symprec_001": labels.space_group_number(structure, 0.01),
                "band_gap": None if i == 3 else float(i),
            }
        )
    path = tmp_path / "structures.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# predict


def test_predict_json_is_one_consistent_object_a_file(capsys, model_path, chgcar_path, cif_path):
    status, out, err = run(capsys, "predict", chgcar_path, cif_path, "--model", model_path, "--top", 2, "--json")
    assert (status, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["file"] for answer in answers] == [str(chgcar_path), str(cif_path)]
    for answer in answers:
        number = answer["space_group_number"]
        assert answer["space_group_symbol"] == labels.space_group_symbol(number)
        assert answer["crystal_system"] in labels.CRYSTAL_SYSTEMS
        assert answer["extinction_group_symbol"] == labels.extinction_group_symbol(answer["extinction_group"])
        for target in labels.TARGETS:
            assert len(answer["top"][target]) == 2
            best, second = answer["top"][target]
            assert best[target] == answer[target]
            assert best["probability"] == answer[f"{target}_probability"] >= second["probability"] > 0


def test_coarser_probabilities_are_sums(model_path, cif_path):
    model = prediction.load_model(model_path)
    proba = model.estimator.predict_proba([str(cif_path)])[0]
    answer = prediction.predict_file(cif_path, model, top=7)
    for target in labels.TARGETS:
        of_class = labels.target_of(model.estimator.classes_, target)
        for entry in answer["top"][target]:
            assert entry["probability"] == pytest.approx(proba[of_class == entry[target]].sum(), abs=1e-12)
        assert sum(entry["probability"] for entry in answer["top"][target]) == pytest.approx(1.0)
    assert prediction.predict_many([cif_path], model, top=7) == [answer]


def test_an_extinction_group_model_tells_the_system():
    proba = np.array([[0.1, 0.2, 0.7]])
    groups = [labels.extinction_group(number) for number in (1, 225, 221)]
    values, classes = prediction.target_proba(proba, groups, "extinction_group", "crystal_system")
    assert dict(zip(classes.tolist(), values[0].tolist(), strict=True)) == pytest.approx({"triclinic": 0.1, "cubic": 0.9})
    with pytest.raises(ValueError, match="use a model of a finer target"):
        prediction.target_proba(proba, groups, "extinction_group", "space_group_number")


def test_predict_for_people_names_system_group_and_symbol(capsys, model_path, cif_path):
    status, out, _ = run(capsys, "predict", cif_path, "--model", model_path, "--top", 1, "--no-evidence")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == str(cif_path)
    assert [line.split("  ")[1] for line in lines[1:]] == ["crystal system", "extinction group", "space group"]
    assert all(line.endswith(" %") for line in lines[1:])


def test_predict_prints_the_evidence_beside_the_model(capsys, model_path, cif_path, chgcar_path):
    status, out, err = run(capsys, "predict", cif_path, chgcar_path, "--model", model_path, "--top", 1)
    assert (status, err) == (0, "")
    rutile, iron = out.split(str(chgcar_path))
    assert "evidence of the density itself" in rutile.splitlines()[1]
    assert "136  P42/mnm" in rutile.splitlines()[4][48:]
    assert "229  Im-3m" in iron  # no class of the model
    assert "  they disagree on the " in iron
    assert "space group" in iron.splitlines()[-1]


def test_predict_json_has_an_evidence_object(capsys, model_path, chgcar_path):
    status, out, _ = run(capsys, "predict", chgcar_path, "--model", model_path, "--json", "--explain")
    assert status == 0
    evidence = json.loads(out, parse_constant=pytest.fail)["evidence"]
    assert (evidence["space_group_number"], evidence["hall_number"], evidence["centring"]) == (229, 529, "I")
    assert evidence["crystal_system"] == evidence["top"]["crystal_system"][0]["crystal_system"] == "cubic"
    assert evidence["disagrees_on"][-1] == "space_group_number"
    assert len(evidence["operations"]) == evidence["n_operations"] == 48
    assert sum(operation["order"] == -1 for operation in evidence["operations"]) == 1
    assert all(operation["residual"] < 1e-3 for operation in evidence["operations"])
    assert evidence["candidates"][0]["space_group_number"] == 229
    status, out, _ = run(capsys, "predict", chgcar_path, "--model", model_path, "--json")
    assert "operations" not in json.loads(out)["evidence"]
    status, out, _ = run(capsys, "predict", chgcar_path, "--model", model_path, "--json", "--no-evidence")
    assert "evidence" not in json.loads(out)


def test_explain_lists_operations_and_candidates(capsys, model_path, cif_path):
    status, out, _ = run(capsys, "predict", cif_path, "--model", "evidence", "--explain", "--top", 1)
    assert status == 0
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if "operations that hold" in line)
    assert lines[start + 1].split()[:4] == ["1", "x,", "y,", "z"]
    assert sum(line.startswith(("    ", "     ")) and ", " in line for line in lines[start:]) >= 16
    assert any(line.split()[:3] == ["136", "P42/mnm", "found"] for line in lines)
    status, _, err = run(capsys, "predict", cif_path, "--model", model_path, "--explain", "--no-evidence")
    assert (status, len(err.splitlines())) == (1, 1)


def test_explain_says_what_operations_do_to_the_magnetisation(capsys, tmp_path, chgcar_path):
    status, out, _ = run(capsys, "predict", chgcar_path, "--model", "evidence", "--explain")
    assert status == 0
    assert "magnetic space group 229.140 (BNS), type 1" in out.splitlines()[-1]
    assert out.endswith("operations 48 even\n")
    cell = Structure(Lattice.tetragonal(3.0, 6.0), ["Fe", "Fe"], [[0, 0, 0], [0, 0, 0.5]])
    density = density_from_structure(cell, method="band_limited", d_min=1.0, b_iso=4.0)
    one = density_from_structure(
        Structure(cell.lattice, ["Fe"], [[0, 0, 0]]), grid_shape=density.grid_shape, method="band_limited", d_min=1.0
    )
    up = one.channel("total")
    density = replace(density, channels={"total": density.channel("total"), "diff": up - np.roll(up, up.shape[2] // 2, 2)})
    density.to_file(tmp_path / "CHGCAR")
    status, out, _ = run(capsys, "predict", tmp_path / "CHGCAR", "--model", "evidence", "--explain", "--json")
    spin = json.loads(out, parse_constant=pytest.fail)["evidence"]["spin"]
    assert (status, spin["magnetic_type"], spin["is_collinear"]) == (0, 4, True)
    assert Counter(operation["parity"] for operation in spin["operations"]) == {"even": 16, "odd": 16, "broken": 64}
    status, out, _ = run(capsys, "predict", tmp_path / "CHGCAR", "--model", "evidence", "--explain")
    lines = [line.split() for line in out.splitlines()]
    assert any(line[:4] == ["1", "x,", "y,", "z+1"] and line[-1] == "odd" for line in lines)
    assert sum(len(line) > 1 and line[-1] in ("odd", "broken") and line[0] != "magnetisation:" for line in lines) == 80
    status, out, _ = run(capsys, "predict", tmp_path / "CHGCAR", "--model", "evidence", "--json")
    assert "spin" not in json.loads(out)


def test_a_density_without_evidence_still_has_an_answer(capsys, tmp_path, model_path):
    (tmp_path / "CHGCAR").write_text("Si\n1.0\n4 0 0\n0 4 0\n0 0 4\nSi\n1\nDirect\n0 0 0\n\n8 8 8\n" + "1.0 " * 512 + "\n")
    status, out, _ = run(capsys, "predict", tmp_path / "CHGCAR", "--model", model_path)
    assert status == 0
    assert "no evidence: the density is constant" in out.splitlines()[-1]


def test_xyz_triplets():
    def operation(rotation, translation):
        return Operation(np.array(rotation), np.array(translation), 0.0, 0.0, 0.0, 0.0, 0.0)

    assert prediction.xyz_triplet(operation([[0, -1, 0], [1, -1, 0], [0, 0, 1]], [0, 1 - 1e-9, 2 / 3])) == "-y, x-y, z+2/3"
    assert prediction.xyz_triplet(operation(-np.eye(3, dtype=int), [0.2, 0.1234, 0.5])) == "-x+1/5, -y+0.1234, -z+1/2"


def test_an_unreadable_file_costs_one_line_and_the_others_run(capsys, tmp_path, model_path, cif_path):
    (tmp_path / "empty.cif").write_text("")
    (tmp_path / "CHGCAR").write_text("Si\n1.0\n4 0 0\n0 4 0\n0 0 4\nSi\n1\nDirect\n0 0 0\n\n2 2 2\n1.0 2.0\n")
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    bad = [tmp_path / "absent.cif", tmp_path / "empty.cif", tmp_path / "CHGCAR", tmp_path / "noise.bin", tmp_path]
    status, out, err = run(capsys, "predict", bad[0], cif_path, *bad[1:], cif_path, "--model", model_path, "--json")
    assert status == 1
    assert [json.loads(line)["file"] for line in out.splitlines()] == [str(cif_path)] * 2
    lines = err.splitlines()
    assert len(lines) == len(bad)
    for path, line in zip(bad, lines, strict=True):
        assert line.startswith(f"ed3d: {path}: ")
        assert len(line) > len(f"ed3d: {path}: ") + 5


def test_an_unknown_model_is_one_line(capsys, tmp_path, cif_path):
    for name in ("no-such-model", tmp_path / "absent.safetensors"):
        status, out, err = run(capsys, "predict", cif_path, "--model", name)
        assert (status, out) == (1, "")
        assert str(name) in err
        assert err.count("\n") == 1


def test_a_model_of_no_symmetry_target_is_refused(capsys, tmp_path, crystals, cif_path):
    model = PointNetClassifier(max_epochs=1, max_points=50, validation_fraction=0.0, early_stopping=None, random_state=0)
    path = tmp_path / "other.safetensors"
    model.fit([crystals["cubic"], crystals["tetragonal"]] * 2, ["salt", "ore"] * 2).save(path)
    status, _, err = run(capsys, "predict", cif_path, "--model", path)
    assert status == 1
    assert "expected a classifier of one of" in err


# featurize


@pytest.mark.parametrize("kind", ["points", "voxels"])
def test_featurize_samples_round_trip(capsys, tmp_path, table, cif_path, kind):
    out = tmp_path / "samples.npz"
    status, printed, err = run(
        capsys,
        "featurize",
        cif_path,
        table,
        tmp_path / "absent.cif",
        "--featurizer",
        kind,
        "--voxel-size",
        0.8,
        "--max-points",
        100,
        "--out",
        out,
    )
    assert status == 1
    assert err.count("\n") == 1
    assert "absent.cif" in err
    assert printed.startswith("13 of")
    names, samples = table_features.load_samples(out)
    assert names == [str(cif_path), *(f"mp-{i}" for i in range(12))]
    assert all(0 < sample.n_points <= 100 for sample in samples)
    volume = abs(np.linalg.det(samples[0].lattice))
    assert volume == pytest.approx(62.4, abs=0.5)  # rutile


def test_featurize_statistics(capsys, tmp_path, table, cif_path):
    import pandas as pd

    for ending in ("csv", "parquet"):
        out = tmp_path / f"statistics.{ending}"
        status, _, err = run(capsys, "featurize", table, cif_path, "--out", out)
        assert (status, err) == (0, "")
        frame = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
        assert frame["name"].tolist() == [*(f"mp-{i}" for i in range(12)), str(cif_path)]
        assert frame.shape[1] > 5
        assert np.isfinite(frame.drop(columns="name").to_numpy(float)).all()


@pytest.mark.parametrize(("kind", "out"), [("points", "x.csv"), ("statistics", "x.npz")])
def test_featurize_refuses_an_ending_that_does_not_fit(capsys, tmp_path, cif_path, kind, out):
    status, _, err = run(capsys, "featurize", cif_path, "--featurizer", kind, "--out", tmp_path / out)
    assert status == 1
    assert "must end in" in err


def test_featurize_statistics_takes_channels_and_no_sampling_option(capsys, tmp_path, cif_path):
    import pandas as pd

    columns = {}
    for channels in ("total", "total,up"):
        out = tmp_path / f"{channels}.csv"
        assert run(capsys, "featurize", cif_path, "--channels", channels, "--out", out)[0] == 0
        columns[channels] = set(pd.read_csv(out).columns)
    assert columns["total"] < columns["total,up"]
    for option in (["--voxel-size", 0.3], ["--threshold", 0], ["--seed", 0], ["--max-points", 5], ["--reduction", "mean"]):
        status, _, err = run(capsys, "featurize", cif_path, "--out", tmp_path / "x.csv", *option)
        assert status == 1
        assert f"statistics does not take {option[0]}; leave it out" in err
    samples = ["--featurizer", "points", "--voxel-basis", "lattice", "--out", tmp_path / "x.npz"]
    assert "points does not take --voxel-basis" in run(capsys, "featurize", cif_path, *samples)[2]


# train and evaluate


def test_train_then_evaluate_then_predict(capsys, tmp_path, table, cif_path):
    model = tmp_path / "own.safetensors"
    options = ["--epochs", 1, "--voxel-size", 1.0, "--batch-size", 4]
    status, _, err = run(capsys, "train", table, "--target", "space_group", "--model-out", model, "--split", "all", "--limit", 8, *options)
    assert status == 0, err
    seen = datasets.load_train_ids(prediction.train_ids_path(model))
    assert len(seen) == 8

    out = tmp_path / "scores.json"
    status, printed, err = run(capsys, "evaluate", table, "--model", model, "--protocol", "primitive", "--json", out)
    assert status == 0, err
    result = json.loads(out.read_text())
    assert (result["n"], result["n_seen_in_training"], result["protocol"], result["split"]) == (4, 8, "primitive", "unseen")
    for target in cli.TARGETS:
        assert {"top1", "top3", "macro_f1", "ece", "controls"} <= set(result[target])
        assert result[target]["controls"] is None
        assert "fewer than" in result[target]["controls_reason"]
    assert "8 rows that the model has seen in training were left out" in printed

    status, printed, _ = run(capsys, "evaluate", table, "--model", model, "--target", "crystal_system", "--split", "all", "--limit", 3)
    assert status == 0
    assert json.loads(printed)["crystal_system"]["per_class_recall"]

    assert run(capsys, "predict", cif_path, "--model", model)[0] == 0


def test_train_a_regressor_on_a_column(capsys, tmp_path, table):
    model = tmp_path / "gap.safetensors"
    options = ["--family", "pointnet", "--epochs", 1, "--max-points", 60, "--split", "all"]
    status, _, err = run(capsys, "train", table, "--target", "band_gap", "--model-out", model, *options)
    assert status == 0, err
    assert "11 structures" in err  # one has no band gap
    status, _, err = run(capsys, "evaluate", table, "--model", model)
    assert status == 1
    assert "expected a classifier" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "TABLE", "--target", "colour", "--model-out", "x.safetensors"], "or a column of"),
        (["train", "TABLE", "--target", "space_group", "--model-out", "x.pickle", "--split", "all"], "must end in .safetensors"),
        (["train", "TABLE", "--target", "formula", "--model-out", "x.safetensors", "--split", "all"], "a column of numbers, got 'formula'"),
        (
            ["train", "TABLE", "--target", "band_gap", "--model-out", "x.safetensors", "--family", "pointnet", "--d-min", "1"],
            "'pointnet' has no parameter 'd_min'; it belongs to the family 'sparse_cnn'",
        ),
        (["train", "absent.parquet", "--target", "space_group", "--model-out", "x.safetensors"], "no such file"),
        (["evaluate", "absent.parquet", "--model", "MODEL"], "no such file"),
        (["evaluate", "TABLE", "--model", "MODEL", "--noise", "-1"], "`noise`"),
        (["evaluate", "TABLE", "--model", "MODEL", "--json", "/no/such/folder/x.json"], "no such folder"),
    ],
)
def test_what_cannot_run_is_one_line(capsys, table, model_path, arguments, message):
    status, _, err = run(capsys, *({"TABLE": table, "MODEL": model_path}.get(a, a) for a in arguments))
    assert status == 1
    assert message in err
    assert err.splitlines()[-1].startswith("ed3d: ")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FloatingPointError("the loss is nan"), "ed3d: FloatingPointError: the loss is nan"),
        (RuntimeError("CUDA is\nbroken"), "ed3d: RuntimeError: CUDA is broken"),
        (KeyError("density"), "ed3d: KeyError: 'density'"),
        (MemoryError(), "ed3d: MemoryError"),
        (ValueError("a name"), "ed3d: a name"),
    ],
)
def test_what_breaks_underway_is_one_line(capsys, monkeypatch, error, line):
    from matminer_ed3d import checkpoints

    def broken():
        raise error

    monkeypatch.setattr(checkpoints, "list_pretrained", broken)
    assert run(capsys, "models") == (1, "", line + "\n")


def test_train_makes_the_shipped_model_s_samples(capsys, tmp_path, table, monkeypatch):
    from matminer_ed3d import table_training

    made = []
    monkeypatch.setattr(table_training, "train_on_table", lambda estimator, *args, **header: made.append((estimator, header)))
    arguments = ["train", table, "--target", "space_group", "--model-out", tmp_path / "m.safetensors", "--split", "all"]
    plain = ["--standardize", "--max-voxels", 99, "--threshold", -9, "--reduction", "mean", "--voxel-basis", "lattice"]
    plain += ["--multiple-of", 2, "--ema-decay", 0.9, "--weight-decay", 0.1, "--cell", "reduced", "--d-min", 2]
    for options in ([], ["--architecture", "crystal"], ["--architecture", "crystal", "--d-min", 0.8, "--no-standardize"], plain):
        assert run(capsys, *arguments, *options)[0] == 0
    small, crystal, sharper, named = (estimator.get_params() for estimator, _ in made)
    default = SparseCNNClassifier().get_params()
    names = ("cell", "d_min", "voxel_size", "max_voxels", "threshold", "standardize", "reduction", "voxel_basis", "weight_decay")
    assert {name: small[name] for name in names} == {name: default[name] for name in names}
    assert tuple(crystal[name] for name in names[:6]) == ("reduced", 1.0, 0.5, 2048, -100.0, True)
    assert tuple(sharper[name] for name in names[:6]) == ("reduced", 0.8, 0.5, 2048, -100.0, False)
    assert tuple(named[name] for name in names) == ("reduced", 2.0, "auto", 99, -9.0, True, "mean", "lattice", 0.1)
    assert (named["multiple_of"], named["ema_decay"]) == (2, 0.9)
    for estimator, _ in made:
        estimator._sample_options().check()
    assert "as the table gives it" in made[0][1]["protocol"]["cell"]
    as_given = table_training.build_estimator("sparse_cnn", regression=False, architecture="crystal", cell="as_given")
    as_given._sample_options().check()
    assert as_given.d_min is None


def test_wrong_usage_is_argparse_s():
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["evaluate", "x.parquet", "--protocol", "standard"])
    assert exit_info.value.code == 2


# models and the process


def test_models_lists_what_is_shipped(capsys):
    from matminer_ed3d.checkpoints import list_pretrained

    status, out, _ = run(capsys, "models", "--json")
    assert status == 0
    assert set(json.loads(out)) == set(list_pretrained())
    assert run(capsys, "models")[0] == 0


def test_models_says_what_each_was_trained_on(capsys, monkeypatch):
    from matminer_ed3d import checkpoints

    header = {"estimator": "SparseCNNClassifier", "params": {"architecture": "crystal"}, "target": "space_group_number", "classes": [1, 2]}
    header |= {"data": {"table": "t.parquet", "n_rows": 5}, "protocol": "blind cells", "metrics": {"test": {"top1": 0.81234, "n": [3, 4]}}}
    monkeypatch.setattr(checkpoints, "list_pretrained", lambda: {"a": header, "b": header | {"metrics": None}})
    assert run(capsys, "models")[1].splitlines()[:5] == [
        "a: SparseCNNClassifier, crystal, space_group_number, 2 classes",
        "  trained on: table t.parquet, n_rows 5",
        "  protocol:   blind cells",
        "  metrics:    test {top1 0.8123, n 3 4}",
        "b: SparseCNNClassifier, crystal, space_group_number, 2 classes",
    ]
    assert "  metrics:    not recorded" in run(capsys, "models")[1]


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys; from matminer_ed3d import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'pymatgen', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert time.perf_counter() - start < 5
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("predict", "featurize", "train", "evaluate", "models"):
        assert command in done.stdout


def test_as_a_process(model_path, cif_path, tmp_path):
    command = [sys.executable, "-m", "matminer_ed3d", "predict", str(cif_path), str(tmp_path / "absent"), "--model", model_path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert json.loads(done.stdout)["file"] == str(cif_path)
    assert done.stderr.splitlines() == [f"ed3d: {tmp_path / 'absent'}: {done.stderr.strip().rsplit(': ', 1)[1]}"]
