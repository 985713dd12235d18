"""matminer's contract on real dataframes, in one process and several, and scikit-learn's contract for transformers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
from matminer.featurizers.base import BaseFeaturizer, MultipleFeaturizer
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

from matminer_ed3d import featurizers, labels
from matminer_ed3d.density import Density
from matminer_ed3d.featurizers import DensityPointCloud, DensitySparseTensor, DensityStatistics, DensitySymmetryFeaturizer
from matminer_ed3d.readers.errors import DensityFileError
from matminer_ed3d.representations import PointCloud, SparseTensor
from matminer_ed3d.sources import as_density

CLASSES = (DensityPointCloud, DensitySparseTensor, DensityStatistics, DensitySymmetryFeaturizer)
NUMERIC = (DensityStatistics, DensitySymmetryFeaturizer)
LABELS = {
    DensityPointCloud: "density point cloud",
    DensitySparseTensor: "density sparse tensor",
    DensityStatistics: "total mean",
    DensitySymmetryFeaturizer: "symmetry n_operations",
}


def quick(cls, **params):
    """A featurizer with settings that make a row cheap."""
    return cls(**({"d_min": 2.0} if cls is DensityStatistics else {} if cls in NUMERIC else {"voxel_size": 0.5}), **params)


@pytest.fixture
def table(crystals):
    chosen = [crystals[system] for system in ("cubic", "hexagonal", "tetragonal", "orthorhombic")]
    return pd.DataFrame({"structure": chosen, "n_sites": [len(s) for s in chosen]}, index=[10, 11, 12, 13])


@pytest.fixture
def broken(table):
    """Rows 1 and 3 cannot be featurized."""
    table["structure"] = [table["structure"].iloc[0], "no/such/CHGCAR", table["structure"].iloc[2], float("nan")]
    return table


def assert_same_cell(first, second):
    if isinstance(first, float):
        assert first == second
    else:
        np.testing.assert_array_equal(first.coords, second.coords)
        np.testing.assert_array_equal(first.feats, second.feats)


def assert_same_frame(first, second):
    assert list(first.columns) == list(second.columns)
    for column in first.columns.difference(["structure"]):
        for a, b in zip(first[column], second[column], strict=True):
            assert_same_cell(a, b) if not isinstance(a, int) else None


# What they are


@pytest.mark.parametrize("cls", CLASSES)
def test_is_found_where_programs_look(cls):
    assert cls in BaseFeaturizer.__subclasses__()
    assert any("10.1038/s41524-024-01402-7" in citation for citation in cls().citations())
    assert cls().implementors() == ["matminer_ed3d developers"]
    assert cls().feature_labels()[0] == LABELS[cls]
    assert cls().n_jobs == 1


def test_module_loads_no_torch():
    code = "import sys, matminer_ed3d.featurizers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


@pytest.mark.parametrize("as_input", ["structure", "path", "density", "chgcar"])
def test_every_kind_of_input(as_input, nacl, chgcar_path):
    if as_input == "chgcar":
        from pymatgen.io.vasp.outputs import Chgcar

        source = Chgcar.from_file(str(chgcar_path))
    else:
        source = {"structure": nacl, "path": chgcar_path, "density": as_density(nacl)}[as_input]
    (cloud,) = quick(DensityPointCloud).featurize(source)
    (voxels,) = quick(DensitySparseTensor).featurize(source)
    assert isinstance(cloud, PointCloud)
    assert isinstance(voxels, SparseTensor)
    values = quick(DensityStatistics).featurize(source)
    assert np.isfinite(values).all()
    assert len(values) == len(quick(DensityStatistics).feature_labels())


def test_parameters_reach_the_sample(nacl, chgcar_path):
    paper = DensityPointCloud(channels=["total", "diff", "up", "down"], voxel_size=0.5, reduction="mean", max_points=100)
    (cloud,) = paper.featurize(chgcar_path)
    assert cloud.channels == ("total", "diff", "up", "down")
    assert cloud.n_points <= 100
    (voxels,) = DensitySparseTensor(voxel_size=0.5, d_min=1.0, cell="reduced", max_voxels=500, standardize=True).featurize(nacl)
    assert voxels.n_points <= 500
    (cubes,) = DensitySparseTensor(voxel_size=0.5, voxel_basis="cartesian").featurize(nacl)
    assert cubes.grid_shape is None


def test_statistics_do_not_depend_on_how_a_structure_is_given(quartz):
    from pymatgen.core.operations import SymmOp

    given = quick(DensityStatistics).featurize(quartz)
    moved = quartz.copy()
    moved.make_supercell([[1, 1, 0], [0, 1, 0], [0, 1, 2]])
    moved.translate_sites(range(len(moved)), [0.21, 0.37, 0.05])
    moved.apply_operation(SymmOp.from_axis_angle_and_translation([1, 2, 3], 40))
    moved.sort(key=lambda site: site.frac_coords[0])
    np.testing.assert_allclose(quick(DensityStatistics).featurize(moved), given, rtol=1e-6, atol=1e-9)


# Dataframes


def symmetry_numbers(source, **params):
    featurizer = DensitySymmetryFeaturizer(**params)
    return dict(zip(featurizer.feature_labels(), featurizer.featurize(source), strict=True))


def test_symmetry_numbers_are_those_of_the_crystal(quartz):
    """P3(2)21: three twofold axes, two threefold rotations, no inversion, in any cell."""
    numbers = symmetry_numbers(quartz)
    assert numbers["symmetry n_operations"] == 6
    assert {name.split()[-1]: n for name, n in numbers.items() if "n_operations " in name and n} == {"2": 3, "3": 2}
    assert max(numbers[f"symmetry residual {held}"] for held in "23") < 1e-6
    assert numbers["symmetry residual -1"] > 1e-3
    for never in ("4", "-4"):
        assert numbers[f"symmetry residual {never}"] == numbers[f"symmetry displacement {never}"] == 1.0
    assert numbers["symmetry probability trigonal"] == pytest.approx(1.0, abs=1e-3)
    assert numbers["symmetry margin subgroup"] > 3
    assert numbers["symmetry probability"] > 0.99
    supercell = quartz.copy()
    supercell.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    supercell.translate_sites(range(len(supercell)), [0.1, 0.2, 0.3])
    assert symmetry_numbers(supercell)["symmetry n_operations -1"] == 0
    assert symmetry_numbers(supercell)["symmetry n_operations"] == 6


def test_symmetry_numbers_are_finite(crystals, chgcar_path):
    out = DensitySymmetryFeaturizer().fit_transform([*crystals.values(), str(chgcar_path)])
    assert np.isfinite(out).all()
    names = DensitySymmetryFeaturizer().feature_labels()
    assert (np.abs(out[:, ["margin" in name for name in names]]) <= 100).all()
    systems = [f"symmetry probability {system}" for system in labels.CRYSTAL_SYSTEMS]
    assert out[:, [names.index(name) for name in systems]].sum(axis=1) == pytest.approx(np.ones(len(out)))
    assert [systems[i].split()[-1] for i in out[:-1, [names.index(name) for name in systems]].argmax(axis=1)] == list(crystals)


def test_symmetry_numbers_come_from_the_cache(nacl, tmp_path, monkeypatch):
    first = DensitySymmetryFeaturizer(cache=tmp_path).featurize(nacl)
    monkeypatch.setattr(featurizers, "find_symmetry", None)
    assert DensitySymmetryFeaturizer(cache=tmp_path).featurize(nacl) == first


@pytest.mark.parametrize("cls", CLASSES)
def test_dataframe(cls, table):
    featurizer = quick(cls)
    out = featurizer.featurize_dataframe(table, "structure", pbar=False)
    assert list(out.columns) == ["structure", "n_sites", *featurizer.feature_labels()]
    assert list(out.index) == [10, 11, 12, 13]
    assert list(table.columns) == ["structure", "n_sites"]
    for structure, row in zip(table["structure"], out[featurizer.feature_labels()].to_numpy(), strict=True):
        assert len(row) == len(featurizer.featurize(structure))
    if cls is DensityStatistics:
        assert all(dtype.kind == "f" for dtype in out.dtypes[featurizer.feature_labels()])


def test_dataframe_inplace_and_existing_column(table):
    featurizer = quick(DensityPointCloud)
    assert featurizer.featurize_dataframe(table, "structure", inplace=True, pbar=False) is None
    assert isinstance(table["density point cloud"].iloc[0], PointCloud)
    with pytest.raises(ValueError, match='"density point cloud" exists in input dataframe'):
        featurizer.featurize_dataframe(table, "structure", pbar=False)


def test_dataframe_multiindex(table):
    out = quick(DensityPointCloud).featurize_dataframe(table, "structure", multiindex=True, pbar=False)
    assert ("DensityPointCloud", "density point cloud") in out.columns
    again = quick(DensitySparseTensor).featurize_dataframe(out, ("Input Data", "structure"), multiindex=True, pbar=False)
    assert isinstance(again["DensitySparseTensor", "density sparse tensor"].iloc[3], SparseTensor)


def test_empty_dataframe_gets_the_columns(table):
    out = quick(DensityStatistics).featurize_dataframe(table.iloc[:0], "structure", pbar=False)
    assert len(out) == 0
    assert "total mean" in out.columns


@pytest.mark.parametrize("cls", CLASSES)
def test_two_processes_give_the_same(cls, table, broken):
    options = {"ignore_errors": True, "return_errors": True, "pbar": False}
    seeded = {} if cls in NUMERIC else {"random_state": 3}
    one, two = (quick(cls, n_jobs=n, **seeded).featurize_dataframe(broken, "structure", **options) for n in (1, 2))
    errors = f"{cls.__name__} Exceptions"
    for frame in (one, two):
        assert frame[errors].isna().tolist() == [True, False, True, False]
        assert "DensityFileError: no/such/CHGCAR" in frame[errors].iloc[1]
        assert "NaN" in frame[errors].iloc[3]
        assert frame[LABELS[cls]].map(lambda x: isinstance(x, float) and np.isnan(x)).tolist() == [False, True, False, True]
    assert_same_frame(one.iloc[[0, 2]].drop(columns=errors), two.iloc[[0, 2]].drop(columns=errors))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_first_error_is_raised_as_it_is(broken, n_jobs):
    with pytest.raises(DensityFileError, match="no/such/CHGCAR") as caught:
        quick(DensityPointCloud, n_jobs=n_jobs).featurize_dataframe(broken, "structure", pbar=False)
    assert "Row 1 of 4" in caught.value.__notes__[-1]


def test_return_errors_needs_ignore_errors(table):
    with pytest.raises(ValueError, match="ignore_errors=True"):
        quick(DensityPointCloud).featurize_many(table["structure"], return_errors=True)


def test_chgcars_go_to_other_processes(chgcar_path, nacl):
    from pymatgen.io.vasp.outputs import Chgcar

    rows = [Chgcar.from_file(str(chgcar_path)), nacl, Chgcar.from_file(str(chgcar_path))]
    one, two = (quick(DensityStatistics, n_jobs=n).featurize_many(rows, pbar=False) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_inputs_of_featurize_many(table):
    featurizer = quick(DensityStatistics)
    expected = featurizer.featurize_many(list(table["structure"]), pbar=False)
    for entries in (table["structure"], table[["structure"]], table[["structure"]].values, [(s,) for s in table["structure"]]):
        np.testing.assert_array_equal(featurizer.featurize_many(entries, pbar=False), expected)
    assert featurizer.featurize_many([]) == []
    with pytest.raises(TypeError, match=r"write \[X\]"):
        featurizer.featurize_many(table["structure"].iloc[0])


def test_column_of_failed_rows_only():
    rows = np.array([[float("nan")], [float("nan")]])
    out = quick(DensityStatistics).featurize_many(rows, ignore_errors=True, return_errors=True, pbar=False)
    assert np.isnan([row[:-1] for row in out]).all()
    assert all("NaN" in row[-1] for row in out)


class TwoArgumentError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class Failing(DensityPointCloud):
    """Fails in a chosen way."""

    kind: type[BaseException] = TwoArgumentError

    def featurize(self, x):
        raise TwoArgumentError("one", "two") if self.kind is TwoArgumentError else self.kind()


def test_exception_that_cannot_travel_says_the_same(nacl):
    with pytest.raises(TwoArgumentError, match="one two"):
        Failing().featurize_many([nacl, nacl], pbar=False)
    result = featurizers.attempt(Failing(), (nacl,))
    copy = pickle.loads(pickle.dumps(result))
    assert str(copy.error) == "TwoArgumentError: one two"
    assert "TwoArgumentError" in copy.traceback


def test_ctrl_c_is_no_failed_row(nacl):
    featurizer = Failing()
    featurizer.kind = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        featurizer.featurize_many([nacl], ignore_errors=True, pbar=False)


def test_progress_bar_counts_rows_that_are_done(table, monkeypatch):
    seen = []

    class Bar:
        def __init__(self, total, **settings):
            seen.append((total, settings))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

        def update(self):
            seen.append(finished[0])

    finished = [0]
    real = featurizers.attempt

    def counted(featurizer, entry):
        finished[0] += 1
        return real(featurizer, entry)

    monkeypatch.setattr(featurizers, "tqdm", Bar)
    monkeypatch.setattr(featurizers, "attempt", counted)
    quick(DensityPointCloud).featurize_many(table["structure"], pbar={"leave": False})
    assert seen == [(4, {"desc": "DensityPointCloud", "disable": False, "leave": False}), 1, 2, 3, 4]


def test_progress_bar_is_silent_on_request(table, capsys):
    quick(DensityPointCloud).featurize_many(table["structure"], pbar=False)
    assert capsys.readouterr().err == ""
    quick(DensityPointCloud).featurize_many(table["structure"])
    assert "4/4" in capsys.readouterr().err


# Randomness


def test_random_points_depend_on_the_row_and_the_seed_only(table):
    structures = list(table["structure"])
    seeded = quick(DensityPointCloud, random_state=5)
    clouds = [row[0] for row in seeded.featurize_many(structures, pbar=False)]
    backwards = [row[0] for row in seeded.featurize_many(structures[::-1], pbar=False)][::-1]
    for first, second in zip(clouds, backwards, strict=True):
        assert_same_cell(first, second)
    assert_same_cell(clouds[2], seeded.featurize(structures[2])[0])
    other = quick(DensityPointCloud, random_state=6).featurize(structures[2])[0]
    assert other.coords.shape != clouds[2].coords.shape or (other.coords != clouds[2].coords).any()


def test_no_seed_draws_afresh(nacl):
    featurizer = quick(DensityPointCloud, max_points=None)
    (first,), (second,) = featurizer.featurize_many([nacl, nacl], pbar=False)
    assert first.coords.shape != second.coords.shape or (first.coords != second.coords).any()


# scikit-learn


@pytest.mark.parametrize("cls", CLASSES)
def test_clone_pickle_and_parameters(cls):
    featurizer = cls(n_jobs=2, on_error="nan")
    for copy in (clone(featurizer), pickle.loads(pickle.dumps(featurizer)), cls(**featurizer.get_params())):
        assert copy.get_params() == featurizer.get_params()
        assert copy.n_jobs == 2
    featurizer.set_n_jobs(1)
    assert clone(featurizer).n_jobs == featurizer.get_params()["n_jobs"] == 1
    assert featurizer.set_params(n_jobs=3).n_jobs == 3


@pytest.mark.parametrize("cls", CLASSES)
def test_tags_are_those_of_a_transformer(cls):
    tags = get_tags(cls())
    assert tags.transformer_tags is not None
    assert not tags.requires_fit
    assert tags.input_tags.one_d_array


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("as_input", [list, lambda column: column, lambda column: column.to_frame(), lambda column: column.to_numpy()])
def test_transform_gives_a_two_dimensional_array(cls, as_input, table):
    featurizer = quick(cls)
    out = featurizer.fit_transform(as_input(table["structure"]))
    assert out.shape == (4, len(featurizer.feature_labels()))
    assert out.dtype == (float if cls in NUMERIC else object)
    assert list(featurizer.get_feature_names_out()) == featurizer.feature_labels()


def test_transform_raises_unless_told_otherwise(broken):
    with pytest.raises(DensityFileError, match="no/such/CHGCAR"):
        quick(DensityStatistics).fit_transform(broken["structure"])
    featurizer = quick(DensityStatistics, on_error="nan")
    with pytest.warns(RuntimeWarning, match=r"2 of 4 rows failed and are NaN, counted from 0: 1, 3; row 1: DensityFileError"):
        out = featurizer.fit_transform(broken["structure"])
    assert np.isnan(out).all(axis=1).tolist() == [False, True, False, True]


def test_empty_input_to_transform_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        DensityPointCloud().fit_transform([])


@pytest.mark.parametrize("cls", CLASSES)
def test_pandas_output(cls, table):
    out = quick(cls).set_output(transform="pandas").fit_transform(table["structure"])
    assert list(out.columns) == quick(cls).feature_labels()
    assert list(out.index) == [10, 11, 12, 13]


def test_pipeline_and_column_transformer(table):
    column = ColumnTransformer([("density", quick(DensityStatistics), "structure"), ("rest", "passthrough", ["n_sites"])])
    column.set_output(transform="pandas")
    model = make_pipeline(column, StandardScaler(), Ridge())
    model.fit(table, [1.0, 2.0, 3.0, 4.0])
    assert model[:-1].get_feature_names_out()[0] == "density__total mean"
    assert model.predict(table).shape == (4,)
    objects = ColumnTransformer([("cloud", quick(DensityPointCloud), ["structure"])]).fit_transform(table)
    assert objects.shape == (4, 1)
    assert isinstance(objects[0, 0], PointCloud)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search_over_a_featurizers_parameters(table, n_jobs):
    model = make_pipeline(quick(DensityStatistics, n_jobs=n_jobs), StandardScaler(), Ridge())
    search = GridSearchCV(model, {"densitystatistics__d_min": [2.0, 2.5]}, cv=2, scoring="neg_mean_absolute_error", error_score="raise")
    search.fit(table["structure"], [1.0, 2.0, 3.0, 4.0])
    assert search.best_estimator_.named_steps["densitystatistics"].n_jobs == n_jobs


def test_matminer_stacks_them(table):
    both = MultipleFeaturizer([quick(DensityStatistics), quick(DensityPointCloud)])
    both.set_n_jobs(1)
    out = both.featurize_dataframe(table, "structure", pbar=False, ignore_errors=True)
    assert isinstance(out["density point cloud"].iloc[0], PointCloud)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("featurizer", "message"),
    [
        (DensityPointCloud(on_error="ignore"), "`on_error` must be"),
        (DensityPointCloud(channels="total"), "tuple of names"),
        (DensityPointCloud(cell="primitive"), "`cell` must be"),
        (DensitySparseTensor(d_min=1.0), "`d_min` goes with"),
        (DensityPointCloud(channels=["total", "spin"]), "`channels` must be names among .* got 'spin'"),
        (DensitySparseTensor(channels=("totl",)), "`channels` must be names among .* got 'totl'"),
        (DensityStatistics(channels="total"), "tuple of names"),
        (DensityStatistics(channels=("totl",)), "names among"),
        (DensityStatistics(d_min=-1.0), "`d_min` must be positive"),
        (DensitySymmetryFeaturizer(symprec=0.0), "`symprec` must be a positive distance"),
        (DensitySymmetryFeaturizer(d_min=-1.0), "`d_min` must be a positive resolution"),
        (DensitySymmetryFeaturizer(channel="totl"), "names among .* got 'totl'"),
    ],
)
def test_odd_parameters_are_refused_by_fit(featurizer, message, nacl):
    with pytest.raises(ValueError, match=message):
        featurizer.fit([nacl])
    with pytest.raises(ValueError, match=message):
        featurizer.featurize_many([nacl], ignore_errors=True, pbar=False)
    with pytest.raises(ValueError, match=message):
        featurizer.featurize_wrapper((nacl,), ignore_errors=True)


def test_samples_and_densities_pass_through(nacl):
    (cloud,) = quick(DensityPointCloud).featurize(nacl)
    assert quick(DensityPointCloud).featurize(cloud)[0] is cloud
    density = Density.from_structure(nacl)
    assert quick(DensitySparseTensor).featurize(density)[0].n_points > 0


def test_no_deadlock_after_torch_ran_in_the_parent():
    code = """
        import torch
        from pymatgen.core import Lattice, Structure
        from matminer_ed3d.featurizers import DensityPointCloud
        torch.nn.Conv3d(1, 2, 3)(torch.zeros(1, 1, 8, 8, 8)).sum().backward()
        salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        rows = DensityPointCloud(voxel_size=0.5, n_jobs=2).featurize_many([salt] * 4, pbar=False)
        print(len(rows), rows[3][0].n_points > 0)
    """
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}  # threads as for a user
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "True"]
