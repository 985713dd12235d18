"""``PointNetClassifier``, ``SparseCNNClassifier`` and their regressors: scikit-learn's manners over sampling, networks and the loop.

X is a list, Series, 1-D object array or one-column DataFrame of Structures, Chgcars, Densities, paths or ready samples; nothing here
makes an array of it. torch is imported when it is needed, so that workers which only sample do not pay for it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from joblib import Parallel, delayed
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from matminer_ed3d import checkpoints, grids
from matminer_ed3d.representations import PointCloud, Sample, SparseTensor
from matminer_ed3d.samples import SampleOptions, make_sample
from matminer_ed3d.sources import as_density, as_list

if TYPE_CHECKING:
    from sklearn.utils import Tags

    from matminer_ed3d.training import TrainingOptions

__all__ = ["PointNetClassifier", "PointNetRegressor", "SparseCNNClassifier", "SparseCNNRegressor"]

# What "auto" is. The paper's architecture takes the paper's sampling. The others take voxels of 0.5 Å, which make an eighth of the
# points: a batch of 32 cells then has some 30,000 of them, which two CPU cores train on in about a second. A cap keeps the densest
# points only, so it lies where it rarely bites (4,096 points of 0.5 Å fill 512 Å³), and voxels have none. Means teach more than random
# points (docs/results.md, "sampling").
AUTO: dict[tuple[str, str], dict[str, Any]] = {
    ("points", "paper"): {"voxel_size": 0.25, "max_points": "paper", "reduction": "random"},
    ("voxels", "paper"): {"voxel_size": 0.25, "max_points": "paper", "reduction": "random", "voxel_basis": "cartesian"},
    ("points", "other"): {"voxel_size": 0.5, "max_points": 4096, "reduction": "mean"},
    ("voxels", "other"): {"voxel_size": 0.5, "max_points": None, "reduction": "mean", "voxel_basis": "lattice"},
}
# Of "auto" where `d_min` is set: such voxels are exact, along the lattice, and capped by `max_voxels`.
RESOLVED = {"reduction": "mean", "voxel_basis": "lattice", "max_points": None}
FITTED = ("module_", "classes_", "target_scale_", "history_", "sample_options_", "header_")
ROWS_AT_ONCE = 16  # batches whose samples are held at once in a prediction
RUN_ONLY = (
    "backend",
    "checkpointing",
    "device",
    "devices",
    "random_state",
    "checkpoint_dir",
    "n_jobs",
    "verbose",
)  # parameters of a run, not of what it learned

_SHARED_PARAMETERS = """\
    channels : tuple of str
        Channels of the density; the paper's four are ``("total", "diff", "up", "down")``. Ready samples must have these.
    voxel_size : float or "auto"
        Edge of a voxel in Å. ``auto``: 0.25 (the paper's) for ``architecture="paper"``, else 0.5.
    reduction : {"random", "mean", "auto"}
        One random grid point of each voxel, or its mean density. ``auto``: ``random`` for ``architecture="paper"`` without
        `d_min`, else ``mean``.
    threshold : float
        Points below this density (e/Å³) are left out.
    max_points : int, "paper", None or "auto"
        Keep the densest points up to this many. ``auto``: the paper's cap for ``architecture="paper"``; else 4096 points, and all voxels.
    cell : {"as_given", "reduced"}
        Sample the cell as given, or the density's own primitive Niggli cell.{family_parameters}
    max_epochs, batch_size, max_points_per_batch, learning_rate, weight_decay, lr_schedule, validation_fraction, early_stopping
        As in :class:`matminer_ed3d.training.TrainingOptions`.
    augmentations, noise_level, ema_decay, precision, device, devices
        As there; ``device="auto"`` is a GPU where there is one, and `precision` is that of ``fit``: answers are computed in float32. With
        `devices` above 1, `fit` starts processes: a script then needs ``if __name__ == "__main__":``.
    random_state : int, RandomState or None
        An int makes ``fit`` repeatable.
    checkpoint_dir : path or None
        ``fit`` writes its state here after every epoch, and the same ``fit`` (data, parameters) goes on from it after an interruption.
        Needs an int as `random_state`.
    n_jobs : int or None
        Processes that make samples.
    verbose : int
        1 shows a progress bar.{task_parameters}

    Attributes
    ----------{task_attributes}
    module_ : torch.nn.Module
        The trained network.
    history_ : list of dict
        One entry per epoch: ``epoch``, ``train_loss``, ``val_loss``, ``val_score``, ``learning_rate``, ``seconds``,
        ``samples_per_second``, ``points_per_second``.
    sample_options_ : SampleOptions
        How ``fit`` made its samples, and ``predict`` makes them. Ready samples must be made so: what their voxels show to be made
        in another way is refused.
"""
_VOXEL_PARAMETERS = """
    voxel_basis : {"lattice", "cartesian", "auto"}
        Voxels along the lattice, whose neighbours wrap round the cell, or the paper's cubes in open space. ``auto``: ``cartesian``
        for ``architecture="paper"`` without `d_min`, else ``lattice``.
    multiple_of, d_min, max_voxels, standardize
        As in :class:`matminer_ed3d.samples.SampleOptions`.
    backend : {"auto", "torch", "triton", "minkowski", "spconv"}
        What computes the sparse convolutions; the weights are the same for all.
    checkpointing : bool
        Keep only the inputs of each block of the network for the gradient, and compute the rest again: less memory, more time."""
_CLASSIFIER_PARAMETERS = """
    class_weight : dict, "balanced" or None
        Weight of each class in the loss, times `sample_weight`.
    class_balance, label_smoothing : float
        As in :class:`matminer_ed3d.training.TrainingOptions`.
    hierarchical : bool
        Teach crystal system, extinction group and space group at once (:mod:`matminer_ed3d.networks.hierarchical_head`). The labels
        must then be space group numbers."""
_REGRESSOR_PARAMETERS = """
    loss : {"squared_error", "absolute_error"}
        What to minimise; targets are scaled to mean 0 and standard deviation 1 inside."""
_CLASSIFIER_ATTRIBUTES = """
    classes_ : (n_classes,) array
        Labels, sorted; the order of the columns of ``predict_proba``."""
_REGRESSOR_ATTRIBUTES = """
    target_scale_ : (float, float)
        Mean and standard deviation of the training targets."""

Cls = TypeVar("Cls", bound=type)
Estimator = TypeVar("Estimator", bound="_Estimator")  # typing.Self is refused by the shape checks of the test run


def _with_parameters(cls: Cls) -> Cls:
    """Fill the parameters that the four classes share into the docstring of one."""
    classifier = issubclass(cls, ClassifierMixin)
    parts = {
        "    {shared}\n": _SHARED_PARAMETERS,
        "{family_parameters}": _VOXEL_PARAMETERS if issubclass(cls, _SparseCNN) else "",
        "{task_parameters}": _CLASSIFIER_PARAMETERS if classifier else _REGRESSOR_PARAMETERS,
        "{task_attributes}": _CLASSIFIER_ATTRIBUTES if classifier else _REGRESSOR_ATTRIBUTES,
    }
    for token, text in parts.items():
        cls.__doc__ = (cls.__doc__ or "").replace(token, text)
    return cls


class _Estimator(BaseEstimator):
    """What the four estimators share; parameters are documented in the public classes."""

    family: ClassVar[str]
    kind: ClassVar[type[Sample]]

    architecture: str
    channels: tuple[str, ...]
    voxel_size: float | str
    reduction: str
    threshold: float
    max_points: int | str | None
    cell: str
    max_epochs: int
    batch_size: int
    max_points_per_batch: int | None
    learning_rate: float
    weight_decay: float
    lr_schedule: str
    validation_fraction: float
    early_stopping: int | None
    augmentations: tuple[str, ...]
    noise_level: float
    ema_decay: float | None
    precision: str
    device: str
    devices: int
    random_state: Any
    checkpoint_dir: str | os.PathLike[str] | None
    n_jobs: int | None
    verbose: int

    module_: Any
    history_: list[dict[str, Any]]
    sample_options_: SampleOptions

    def _store(self, parameters: dict[str, Any]) -> None:
        """Take over the arguments of ``__init__`` (its ``locals()``) as attributes, unchanged."""
        for name in parameters.keys() - {"self", "__class__"}:
            setattr(self, name, parameters[name])

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        target: str | None = None,
        data: Any = None,
        protocol: Any = None,
        metrics: Any = None,
        citation: Any = None,
        dtype: str = "float32",
    ) -> None:
        """Write the fitted estimator to one safetensors file, which :meth:`load` and ``load_estimator`` read.

        Parameters
        ----------
        path : path
            Usually ends in ``.safetensors``.
        target : str, optional
            What `classes_` are, where they are one of ``labels.TARGETS``; ``ed3d predict`` needs it.
        data, protocol, metrics, citation : JSON, optional
            Written into the header for readers.
        dtype : {"float32", "float16"}
            float16 halves the file and keeps 3 digits of each weight.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        """
        check_is_fitted(self, "module_")
        classes = self.classes_.tolist() if isinstance(self, ClassifierMixin) else None
        extra = {"data": data, "protocol": protocol, "metrics": metrics, "citation": citation}
        header = {
            "estimator": type(self).__name__,
            "params": {name: _plain(value) for name, value in self.get_params(deep=False).items() if name not in RUN_ONLY},
            "classes": classes,
            "target": target,
            "preprocessing": self.sample_options_.as_dict(),
            "target_scale": getattr(self, "target_scale_", None),
            **{name: value for name, value in extra.items() if value is not None},
        }
        checkpoints.save_checkpoint(path, self.module_.state_dict(), header, dtype=dtype)

    @classmethod
    def load(cls: type[Estimator], path: str | os.PathLike[str]) -> Estimator:
        """Read a file that :meth:`save` wrote; nothing in it is executed.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        estimator
            Fitted, with the header of the file as ``header_``.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is damaged, of another class, or made by a version whose labels, parameters or preprocessing are unknown here.
        """
        header, tensors = checkpoints.load_checkpoint(path)
        if header["estimator"] != cls.__name__:
            raise ValueError(f"{os.fspath(path)} holds a {header['estimator']}, not a {cls.__name__}; use load_estimator(path)")
        unknown = set(header["params"]) - set(cls._get_param_names())
        if unknown:
            raise ValueError(f"{os.fspath(path)}: `params` must be parameters of {cls.__name__}, got also {sorted(unknown)}")
        estimator = cls(**{name: _tuples(value) for name, value in header["params"].items()})
        estimator.sample_options_ = SampleOptions(**{name: _tuples(value) for name, value in header["preprocessing"].items()})
        estimator.header_ = header
        estimator.history_ = []
        estimator._restore_targets(header)
        estimator.module_ = estimator._build_network(0)
        try:
            estimator.module_.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(
                f"{os.fspath(path)}: the weights are not those of its architecture {estimator.architecture!r}: {error}"
            ) from error
        estimator.module_.eval()
        return estimator

    def _fit(self: Estimator, rows: list[Any], targets: np.ndarray, weights: np.ndarray, loss: str) -> Estimator:
        """Sample, build, train. `targets` and `weights` are checked; samples of weight 0 are left out."""
        from matminer_ed3d import training

        seed = int(check_random_state(self.random_state).randint(2**31))
        training_options = self._training_options(seed)
        self.sample_options_ = self._sample_options()
        self.sample_options_.check()
        kept = np.flatnonzero(weights > 0)
        module = self._build_network(seed)  # before the samples: a wrong architecture shows at once
        samples = self._samples([rows[i] for i in kept], rng=np.random.default_rng([seed, 2]), row_numbers=kept)
        self.history_ = training.train(
            module,
            samples,
            targets[kept],
            weights[kept] / weights[kept].mean(),
            loss,
            training_options,
            checkpoint_dir=self.checkpoint_dir,
            verbose=self.verbose,
        )
        self.module_ = module
        return self

    def _outputs(self, X: Any) -> np.ndarray:
        """Return what the network says: (n_samples, n_outputs) float64."""
        check_is_fitted(self, "module_")
        from matminer_ed3d import training
        from matminer_ed3d.sparse.convolution import set_backend

        set_backend(self.module_, getattr(self, "backend", "auto"))
        rows = _rows(X)
        step = ROWS_AT_ONCE * self.batch_size  # samples are large and rows need not be: never all samples at once
        outputs = []
        for start in range(0, len(rows), step):
            numbers = np.arange(start, min(start + step, len(rows)))
            samples = self._samples(rows[start : start + step], rng=None, row_numbers=numbers)
            outputs.append(
                training.network_outputs(
                    self.module_,
                    samples,
                    batch_size=self.batch_size,
                    max_points_per_batch=self.max_points_per_batch,
                    device=self.device,
                )
            )
        return np.concatenate(outputs).astype(np.float64)

    def _training_options(self, seed: int) -> TrainingOptions:
        from matminer_ed3d import training

        if self.checkpoint_dir is not None and not isinstance(self.random_state, Integral):
            raise ValueError(
                f"`checkpoint_dir` needs an int as `random_state`, got {self.random_state!r}: a resumed fit must repeat the same draws"
            )
        names = training.TrainingOptions.__dataclass_fields__
        given = {name: value for name, value in self.get_params(deep=False).items() if name in names}
        augmentations = _names("augmentations", self.augmentations)
        if self.kind is SparseTensor and "rotation" in augmentations:
            raise ValueError(
                f"`augmentations` of {type(self).__name__} must not name 'rotation', got {augmentations}: voxel indices do not turn, so it "
                "has no effect; take 'permutation' or 'basis_change', turn the structures yourself, or use PointNet"
            )
        return training.TrainingOptions(seed=seed, **{**given, "augmentations": augmentations})

    def _sample_options(self) -> SampleOptions:
        kind: Any = "points" if self.kind is PointCloud else "voxels"
        given = {name: value for name, value in self.get_params(deep=False).items() if name in SampleOptions.__dataclass_fields__}
        auto = AUTO[kind, "paper" if self.architecture == "paper" else "other"]
        if given.get("d_min") is not None:
            auto = auto | RESOLVED
        for name, value in auto.items():
            if isinstance(given[name], str) and given[name] == "auto":
                given[name] = value
        _check_numbers(given)
        return SampleOptions(kind=kind, **{**given, "channels": _names("channels", self.channels)})

    def _samples(self, rows: list[Any], rng: np.random.Generator | None, row_numbers: np.ndarray | None = None) -> list[Sample]:
        """Make a sample of every row; without `rng` every row draws from the same seed, so a prediction depends on its row only."""
        numbers = np.arange(len(rows)) if row_numbers is None else row_numbers
        seeds = np.zeros(len(rows), int) if rng is None else rng.integers(2**31, size=len(rows))
        n_jobs = self.n_jobs or 1
        sent = rows if n_jobs == 1 else map(_picklable, rows)
        calls = (
            delayed(_make_row)(row, self.sample_options_, int(seed), int(n)) for row, seed, n in zip(sent, seeds, numbers, strict=True)
        )
        samples: list[Sample] = Parallel(n_jobs=n_jobs, backend="loky")(calls)
        return samples

    def _build_network(self, seed: int) -> Any:
        from matminer_ed3d import training
        from matminer_ed3d.networks.blocks import set_checkpointing
        from matminer_ed3d.networks.registry import build_network
        from matminer_ed3d.sparse.convolution import set_backend

        channels, outputs, numbers = len(self.sample_options_.channels), self._n_outputs(), self._space_group_numbers()
        network = training.seeded_network(lambda: build_network(self.family, self.architecture, channels, outputs, numbers), seed)
        set_backend(network, getattr(self, "backend", "auto"))
        set_checkpointing(network, getattr(self, "checkpointing", False))
        return network

    def _n_outputs(self) -> int:
        raise NotImplementedError

    def _space_group_numbers(self) -> list[int] | None:
        """Return what the outputs of a hierarchical classifier are; None for all others."""
        return None

    def _restore_targets(self, header: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _forget(self) -> None:
        """Drop what an earlier fit has learned, so that a fit that fails leaves no mixture of two."""
        for name in FITTED:
            self.__dict__.pop(name, None)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "module_")

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the network as it is on a CPU, so that a machine without a GPU can read it."""
        state: dict[str, Any] = dict(super().__getstate__())
        if "module_" in state:
            state["module_"] = copy.deepcopy(state["module_"]).cpu()
        return state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags


class _Classifier(ClassifierMixin, _Estimator):
    class_weight: Mapping[Any, float] | str | None
    class_balance: float
    label_smoothing: float
    hierarchical: bool
    classes_: np.ndarray

    def fit(self: Estimator, X: Any, y: Any, sample_weight: Any = None) -> Estimator:
        """Train on crystals and their labels.

        Parameters
        ----------
        X : list, Series, 1-D object array or one-column DataFrame
            Structures, Chgcars, Densities, paths or ready samples.
        y : (n_samples,) array-like
            Labels: strings, integers or booleans, of at least two classes.
        sample_weight : (n_samples,) array-like, optional
            Weights in the loss; only their ratios count, and rows of weight 0 are left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            On an empty `X`, lengths that differ, a missing label or row (named), one class only, or a parameter out of range.
        """
        self._forget()
        rows = _rows(X)
        labels = _targets(y, len(rows))
        check_classification_targets(labels)
        classes, targets = np.unique(labels, return_inverse=True)
        weights = _weights(sample_weight, len(labels))
        if self.class_weight is not None:
            weights = weights * compute_sample_weight(self.class_weight, labels)
            if not np.isfinite(weights).all() or weights.min() < 0:
                raise ValueError(f"`class_weight` must be finite and at least 0, got {self.class_weight!r}")
        seen = np.unique(targets[weights > 0])
        if len(seen) < 2:
            found = f"one class: {classes[seen[0]]!r}" if len(seen) else "no class"
            where = f" among the rows of a weight above zero; the rows hold {len(classes)} classes" if len(classes) > len(seen) else ""
            raise ValueError(f"`y` must hold at least two classes, got {found}{where}")
        self.classes_ = classes
        return self._fit(rows, targets.astype(np.int64), weights, "cross_entropy")

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of every class, (n_samples, n_classes); columns in the order of ``classes_``, rows sum to 1."""
        proba: np.ndarray = softmax(self._outputs(X), axis=1)
        return proba

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of every row."""
        outputs = self._outputs(X)
        return self.classes_[outputs.argmax(axis=1)]

    def _n_outputs(self) -> int:
        return len(self.classes_)

    def _space_group_numbers(self) -> list[int] | None:
        if not self.hierarchical:
            return None
        classes = self.classes_.tolist()
        if not all(type(n) is int and 1 <= n <= 230 for n in classes):
            raise ValueError(f"`hierarchical` needs space group numbers (1 to 230) as labels, got {classes[:5]}")
        return classes

    def _restore_targets(self, header: Mapping[str, Any]) -> None:
        self.classes_ = np.array(header["classes"])


class _Regressor(RegressorMixin, _Estimator):
    loss: str
    target_scale_: tuple[float, float]

    def fit(self: Estimator, X: Any, y: Any, sample_weight: Any = None) -> Estimator:
        """Train on crystals and numbers.

        Parameters
        ----------
        X : list, Series, 1-D object array or one-column DataFrame
            Structures, Chgcars, Densities, paths or ready samples.
        y : (n_samples,) array-like of float
            One finite number for each.
        sample_weight : (n_samples,) array-like, optional
            Weights in the loss; only their ratios count, and rows of weight 0 are left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            On an empty `X`, lengths that differ, a missing target or row (named), or a parameter out of range.
        """
        self._forget()
        if self.loss not in ("squared_error", "absolute_error"):
            raise ValueError(f"`loss` must be 'squared_error' or 'absolute_error', got {self.loss!r}")
        rows = _rows(X)
        values = _targets(y, len(rows)).astype(np.float64)
        infinite = np.flatnonzero(~np.isfinite(values))
        if len(infinite):
            raise ValueError(f"`y` must be finite, got inf or NaN in rows {infinite[:10].tolist()}; drop these rows")
        weights = _weights(sample_weight, len(values))
        mean = float(np.average(values, weights=weights))
        scale = float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
        self.target_scale_ = (mean, scale or 1.0)
        return self._fit(rows, ((values - mean) / self.target_scale_[1]).astype(np.float32), weights, self.loss)

    def predict(self, X: Any) -> np.ndarray:
        """Return one number for every row, (n_samples,)."""
        outputs = self._outputs(X)
        mean, scale = self.target_scale_
        return mean + scale * outputs[:, 0]

    def _n_outputs(self) -> int:
        return 1

    def _restore_targets(self, header: Mapping[str, Any]) -> None:
        mean, scale = header["target_scale"]
        self.target_scale_ = (mean, scale)


class _PointNet(_Estimator):
    family: ClassVar[str] = "pointnet"
    kind: ClassVar[type[Sample]] = PointCloud


class _SparseCNN(_Estimator):
    family: ClassVar[str] = "sparse_cnn"
    kind: ClassVar[type[Sample]] = SparseTensor

    voxel_basis: str
    multiple_of: int
    d_min: float | None
    max_voxels: int | None
    standardize: bool
    backend: str
    checkpointing: bool


@_with_parameters
class PointNetClassifier(_Classifier, _PointNet):
    """Classify crystals by a PointNet on their electron density as a point cloud.

    Parameters
    ----------
    architecture : {"small", "paper"}
        ``paper`` is that of Kim et al., npj Comput. Mater. 10 (2024), doi 10.1038/s41524-024-01402-7; ``small`` trains on two CPU cores.
    {shared}

    Examples
    --------
    >>> from matminer_ed3d.estimators import PointNetClassifier
    >>> model = PointNetClassifier(max_epochs=20, augmentations=("origin_shift", "rotation"), random_state=0)
    """

    def __init__(
        self,
        *,
        architecture: str = "small",
        channels: tuple[str, ...] = ("total",),
        voxel_size: float | str = "auto",
        reduction: str = "auto",
        threshold: float = 0.0,
        max_points: int | str | None = "auto",
        cell: str = "as_given",
        max_epochs: int = 30,
        batch_size: int = 32,
        max_points_per_batch: int | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        lr_schedule: str = "cosine",
        validation_fraction: float = 0.1,
        early_stopping: int | None = 5,
        augmentations: tuple[str, ...] = (),
        noise_level: float = 0.05,
        ema_decay: float | None = None,
        precision: str = "float32",
        device: str = "auto",
        devices: int = 1,
        random_state: Any = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        n_jobs: int | None = 1,
        verbose: int = 0,
        class_weight: Mapping[Any, float] | str | None = None,
        class_balance: float = 0.0,
        label_smoothing: float = 0.0,
        hierarchical: bool = False,
    ) -> None:
        self._store(locals())


@_with_parameters
class PointNetRegressor(_Regressor, _PointNet):
    """Predict a number for each crystal by a PointNet on its electron density as a point cloud.

    Parameters
    ----------
    architecture : {"small", "paper"}
        ``paper`` is that of Kim et al., npj Comput. Mater. 10 (2024), doi 10.1038/s41524-024-01402-7; ``small`` trains on two CPU cores.
    {shared}

    Examples
    --------
    >>> from matminer_ed3d.estimators import PointNetRegressor
    >>> model = PointNetRegressor(loss="absolute_error", random_state=0)
    """

    def __init__(
        self,
        *,
        architecture: str = "small",
        channels: tuple[str, ...] = ("total",),
        voxel_size: float | str = "auto",
        reduction: str = "auto",
        threshold: float = 0.0,
        max_points: int | str | None = "auto",
        cell: str = "as_given",
        max_epochs: int = 30,
        batch_size: int = 32,
        max_points_per_batch: int | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        lr_schedule: str = "cosine",
        validation_fraction: float = 0.1,
        early_stopping: int | None = 5,
        augmentations: tuple[str, ...] = (),
        noise_level: float = 0.05,
        ema_decay: float | None = None,
        precision: str = "float32",
        device: str = "auto",
        devices: int = 1,
        random_state: Any = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        n_jobs: int | None = 1,
        verbose: int = 0,
        loss: str = "squared_error",
    ) -> None:
        self._store(locals())


@_with_parameters
class SparseCNNClassifier(_Classifier, _SparseCNN):
    """Classify crystals by a sparse convolutional network on their electron density as voxels.

    Parameters
    ----------
    architecture : {"small", "convnext", "paper", "crystal"}
        ``paper`` is that of Kim et al., npj Comput. Mater. 10 (2024), doi 10.1038/s41524-024-01402-7, and takes the paper's sampling
        where a parameter is ``auto``; ``small`` trains on two CPU cores, and so does ``convnext``, of ConvNeXt-like blocks; ``crystal`` is
        the shipped model's network.
    {shared}

    Examples
    --------
    >>> from matminer_ed3d.estimators import SparseCNNClassifier
    >>> model = SparseCNNClassifier(voxel_size=0.5, augmentations=("permutation", "noise"), random_state=0)
    """

    def __init__(
        self,
        *,
        architecture: str = "small",
        channels: tuple[str, ...] = ("total",),
        voxel_size: float | str = "auto",
        reduction: str = "auto",
        threshold: float = 0.0,
        max_points: int | str | None = "auto",
        cell: str = "as_given",
        voxel_basis: str = "auto",
        multiple_of: int = 1,
        d_min: float | None = None,
        max_voxels: int | None = None,
        standardize: bool = False,
        max_epochs: int = 30,
        batch_size: int = 32,
        max_points_per_batch: int | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        lr_schedule: str = "cosine",
        validation_fraction: float = 0.1,
        early_stopping: int | None = 5,
        augmentations: tuple[str, ...] = (),
        noise_level: float = 0.05,
        ema_decay: float | None = None,
        precision: str = "float32",
        device: str = "auto",
        devices: int = 1,
        backend: str = "auto",
        checkpointing: bool = False,
        random_state: Any = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        n_jobs: int | None = 1,
        verbose: int = 0,
        class_weight: Mapping[Any, float] | str | None = None,
        class_balance: float = 0.0,
        label_smoothing: float = 0.0,
        hierarchical: bool = False,
    ) -> None:
        self._store(locals())


@_with_parameters
class SparseCNNRegressor(_Regressor, _SparseCNN):
    """Predict a number for each crystal by a sparse convolutional network on its electron density as voxels.

    Parameters
    ----------
    architecture : {"small", "convnext", "paper", "crystal"}
        ``paper`` is that of Kim et al., npj Comput. Mater. 10 (2024), doi 10.1038/s41524-024-01402-7, and takes the paper's sampling
        where a parameter is ``auto``; ``small`` trains on two CPU cores, and so does ``convnext``, of ConvNeXt-like blocks; ``crystal`` is
        the shipped model's network.
    {shared}

    Examples
    --------
    >>> from matminer_ed3d.estimators import SparseCNNRegressor
    >>> model = SparseCNNRegressor(channels=("total", "diff", "up", "down"), random_state=0)
    """

    def __init__(
        self,
        *,
        architecture: str = "small",
        channels: tuple[str, ...] = ("total",),
        voxel_size: float | str = "auto",
        reduction: str = "auto",
        threshold: float = 0.0,
        max_points: int | str | None = "auto",
        cell: str = "as_given",
        voxel_basis: str = "auto",
        multiple_of: int = 1,
        d_min: float | None = None,
        max_voxels: int | None = None,
        standardize: bool = False,
        max_epochs: int = 30,
        batch_size: int = 32,
        max_points_per_batch: int | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        lr_schedule: str = "cosine",
        validation_fraction: float = 0.1,
        early_stopping: int | None = 5,
        augmentations: tuple[str, ...] = (),
        noise_level: float = 0.05,
        ema_decay: float | None = None,
        precision: str = "float32",
        device: str = "auto",
        devices: int = 1,
        backend: str = "auto",
        checkpointing: bool = False,
        random_state: Any = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        n_jobs: int | None = 1,
        verbose: int = 0,
        loss: str = "squared_error",
    ) -> None:
        self._store(locals())


def _rows(X: Any) -> list[Any]:
    """Make a list of the inputs, and refuse rows that an earlier step has lost."""
    rows: list[Any] = as_list(X)
    missing = [i for i, row in enumerate(rows) if row is None or isinstance(row, float) or type(row).__name__ == "NAType"]
    if missing:
        raise ValueError(
            f"`X` must hold a crystal in every row, got None or NaN in {len(missing)} rows, the first {missing[:10]}; a featurizer "
            "marks so what failed: featurizer.featurize_many(inputs, ignore_errors=True, return_errors=True) says why"
        )
    return rows


def _targets(y: Any, n_rows: int) -> np.ndarray:
    """Make a 1-D array of labels or numbers, one for each row and none missing."""
    if y is None:
        raise ValueError("fit requires y to be passed, but the target y is None")
    raw = np.asarray(y, dtype=object)  # as given: beside strings, NaN would become the label 'nan'
    given: list[Any] = raw.ravel().tolist() if raw.ndim else []
    missing = [i for i, value in enumerate(given) if value is None or type(value).__name__ == "NAType" or value != value]
    if missing:
        raise ValueError(f"`y` must not be missing, got None or NaN in rows {missing[:10]}; drop these rows")
    values: np.ndarray = column_or_1d(y, warn=True)
    if len(values) != n_rows:
        raise ValueError(f"`y` must have one label for each of the {n_rows} rows of `X`, got {len(values)}")
    return values


def _names(parameter: str, names: Any) -> tuple[str, ...]:
    """Make a tuple of names; a plain string would come apart into its letters."""
    if isinstance(names, str):
        raise ValueError(f"`{parameter}` must be a tuple of names, got the string {names!r}; write ({names!r},)")
    return tuple(names)


def _check_numbers(given: Mapping[str, Any]) -> None:
    """Refuse sampling parameters of a wrong type, such as a number in quotes; their ranges are checked by SampleOptions."""
    words: dict[str, tuple[Any, ...]] = {"max_points": (None, "paper"), "d_min": (None,), "max_voxels": (None,)}
    kinds: tuple[tuple[str, Any, str], ...] = (
        ("voxel_size", Real, "a number in Å or 'auto'"),
        ("threshold", Real, "a number"),
        ("d_min", Real, "a number in Å or None"),
        ("max_points", Integral, "an integer, 'paper', None or 'auto'"),
        ("multiple_of", Integral, "an integer"),
        ("max_voxels", Integral, "an integer or None"),
    )
    for name, kind, expected in kinds:
        value = given.get(name, 1)
        if (value is None or isinstance(value, str)) and value in words.get(name, ()):
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"`{name}` must be {expected}, got {value!r}")


def _check_ready(sample: SparseTensor, options: SampleOptions) -> None:
    """Refuse a ready sample whose voxels show that it was made by other options than `options`."""
    featurizer = f"make it with DensitySparseTensor({', '.join(f'{k}={v!r}' for k, v in options.as_dict().items() if k != 'kind')})"
    periodic = options.voxel_basis == "lattice"
    if periodic != (sample.grid_shape is not None):
        found = "a SparseTensor in open space (grid_shape None)" if periodic else f"a periodic SparseTensor {sample.grid_shape}"
        raise ValueError(f"expected a sample of `voxel_basis` {options.voxel_basis!r}, got {found}; {featurizer}")
    basis = sample.voxel_basis
    edge, wanted = float(np.linalg.norm(basis, axis=1).mean()), float(options.voxel_size)
    if sample.grid_shape is not None and sample.lattice is not None:  # counts are whole, and multiples of `multiple_of`
        shape = np.array(grids.coarse_grid_shape(sample.lattice, options.voxel_size, options.multiple_of))
        wanted = float((np.linalg.norm(sample.lattice, axis=1) / shape).mean())
    if edge < wanted / 2 or (edge > 2 * wanted and options.max_voxels is None):  # `max_voxels` makes voxels larger, never smaller
        raise ValueError(
            f"expected voxels of about {wanted:.3g} Å (`voxel_size` {options.voxel_size}), got a mean edge of {edge:.3g} Å; {featurizer}"
        )
    if options.standardize and "total" in sample.channels and sample.n_points == np.prod(sample.grid_shape or 0):
        total = sample.feats[:, sample.channels.index("total")].astype(np.float64)
        mean, rms = float(total.mean()), float(np.sqrt(np.mean((total - total.mean()) ** 2)))
        if total.any() and (abs(mean) > 0.2 or abs(rms - 1) > 0.5):  # a total that is flat at this resolution is zero everywhere
            raise ValueError(
                f"expected a standardized total (mean 0, rms 1: `standardize` True), got mean {mean:.3g} and rms {rms:.3g}; {featurizer}"
            )


def _weights(sample_weight: Any, n_rows: int) -> np.ndarray:
    """Make a (n_rows,) array of weights."""
    if sample_weight is None:
        return np.ones(n_rows)
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (n_rows,):
        raise ValueError(f"`sample_weight` must be ({n_rows},), one number for each row of `X`, got shape {weights.shape}")
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.max() == 0:
        raise ValueError("`sample_weight` must be finite, at least 0, and not zero everywhere")
    return weights


def _make_row(row: Any, options: SampleOptions, seed: int, number: int) -> Sample:
    """Make one sample, or check a ready one; an error says which row it comes from."""
    try:
        sample = make_sample(row, options, seed)
        if isinstance(row, SparseTensor):
            _check_ready(row, options)
        return sample
    except (ValueError, TypeError, OSError) as error:
        error.add_note(f"This was row {number} of `X`.")
        raise


def _picklable(row: Any) -> Any:
    """Turn a Chgcar, which cannot be unpickled (pymatgen-core 2026.10), into a Density before it goes to another process."""
    return as_density(row) if hasattr(row, "data_aug") else row


def _plain(value: Any) -> Any:
    """Make JSON of a parameter: numpy's numbers become Python's; what JSON cannot say (weights by class) is left out."""
    if isinstance(value, np.generic):
        return value.item()
    return None if isinstance(value, Mapping) else value


def _tuples(value: Any) -> Any:
    """Undo JSON's lists."""
    return tuple(value) if isinstance(value, list) else value
