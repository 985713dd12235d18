"""Crystal system, extinction group and space group from a 3D electron density.

The public names below load their module when they are first used, so that importing the package stays fast and the feature side
never pays for torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matminer_ed3d.checkpoints import list_pretrained, load_pretrained
    from matminer_ed3d.density import Density
    from matminer_ed3d.estimators import PointNetClassifier, PointNetRegressor, SparseCNNClassifier, SparseCNNRegressor
    from matminer_ed3d.featurizers import DensityPointCloud, DensitySparseTensor, DensityStatistics, DensitySymmetryFeaturizer
    from matminer_ed3d.labels import crystal_system, extinction_group, space_group_number
    from matminer_ed3d.representations import PointCloud, SparseTensor
    from matminer_ed3d.sources import as_density
    from matminer_ed3d.symmetry import find_symmetry
    from matminer_ed3d.symmetry_estimators import EvidenceGuidedClassifier, SymmetryEvidenceClassifier

    __version__: str

__all__ = [
    "Density",
    "DensityPointCloud",
    "DensitySparseTensor",
    "DensityStatistics",
    "DensitySymmetryFeaturizer",
    "EvidenceGuidedClassifier",
    "PointCloud",
    "PointNetClassifier",
    "PointNetRegressor",
    "SparseCNNClassifier",
    "SparseCNNRegressor",
    "SparseTensor",
    "SymmetryEvidenceClassifier",
    "__version__",
    "as_density",
    "crystal_system",
    "extinction_group",
    "find_symmetry",
    "list_pretrained",
    "load_pretrained",
    "space_group_number",
]

_HOMES = {
    "Density": "density",
    "DensityPointCloud": "featurizers",
    "DensitySparseTensor": "featurizers",
    "DensityStatistics": "featurizers",
    "DensitySymmetryFeaturizer": "featurizers",
    "EvidenceGuidedClassifier": "symmetry_estimators",
    "PointCloud": "representations",
    "PointNetClassifier": "estimators",
    "PointNetRegressor": "estimators",
    "SparseCNNClassifier": "estimators",
    "SparseCNNRegressor": "estimators",
    "SparseTensor": "representations",
    "SymmetryEvidenceClassifier": "symmetry_estimators",
    "as_density": "sources",
    "crystal_system": "labels",
    "extinction_group": "labels",
    "find_symmetry": "symmetry",
    "list_pretrained": "checkpoints",
    "load_pretrained": "checkpoints",
    "space_group_number": "labels",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("matminer_ed3d")
    if name in _HOMES:
        return getattr(import_module(f"matminer_ed3d.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'matminer_ed3d' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
