"""The hierarchical head: probabilities of the three targets, by torch's softmax and the labels' own tables."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from matminer_ed3d import labels
from matminer_ed3d.estimators import PointNetClassifier, SparseCNNClassifier
from matminer_ed3d.networks.hierarchical_head import HierarchicalHead, grouped_log_softmax
from matminer_ed3d.networks.registry import ARCHITECTURES, build_network

EVERY_GROUP = list(range(1, 231))


def test_each_group_of_columns_has_the_softmax_of_torch() -> None:
    logits = torch.randn(5, 9, dtype=torch.float64) * 300
    group = torch.tensor([0, 2, 1, 0, 0, 2, 2, 1, 0])
    result = grouped_log_softmax(logits, group)
    for g in range(3):
        torch.testing.assert_close(result[:, group == g], logits[:, group == g].log_softmax(1))


@pytest.mark.parametrize("numbers", [EVERY_GROUP, [225, 2, 14, 19, 92, 96, 227], [4, 11]])
def test_sums_over_a_target_are_what_the_head_says_of_it(numbers: list[int]) -> None:
    head = HierarchicalHead(6, numbers)
    feats = torch.randn(4, 6)
    proba = head(feats).exp().detach()
    torch.testing.assert_close(proba.sum(1), torch.ones(4))
    systems = head.linear(feats)[:, : head.n_outputs[0]].softmax(1).detach().numpy()
    columns, _ = labels.coarsen_proba(proba.double().numpy(), np.array(numbers), "crystal_system")
    np.testing.assert_allclose(columns, systems, atol=1e-6)


def test_the_loss_is_the_sum_of_the_losses_of_the_three_targets() -> None:
    head = HierarchicalHead(6, EVERY_GROUP)
    feats = torch.randn(1, 6)
    systems, extinction, space_groups = head.linear(feats)[0].split(head.n_outputs)
    groups = sorted({labels.extinction_group(n) for n in EVERY_GROUP})
    system_of = {group: labels.crystal_system(labels.extinction_group_members(group)[0]) for group in groups}
    group, members = labels.extinction_group(62), labels.extinction_group_members(labels.extinction_group(62))
    siblings = [i for i, other in enumerate(groups) if system_of[other] == "orthorhombic"]
    expected = (
        systems.log_softmax(0)[sorted(labels.CRYSTAL_SYSTEMS).index("orthorhombic")]
        + extinction[siblings].log_softmax(0)[siblings.index(groups.index(group))]
        + space_groups[[n - 1 for n in members]].log_softmax(0)[members.index(62)]
    )
    log_proba = head(feats)[0, 61]
    torch.testing.assert_close(log_proba, expected)
    (-log_proba).backward()
    gradient = head.linear.weight.grad
    assert gradient is not None
    assert all(bool((part != 0).any()) for part in gradient.split(head.n_outputs))


@pytest.mark.parametrize(("family", "architecture"), [(f, a) for f, names in ARCHITECTURES.items() for a in names if a != "paper"])
def test_every_network_can_have_one(family: str, architecture: str) -> None:
    network = build_network(family, architecture, 1, 3, [2, 14, 62])
    heads = [layer for layer in network.modules() if isinstance(layer, HierarchicalHead)]
    assert len(heads) == 1
    assert heads[0].n_outputs == (3, 3, 3)
    with pytest.raises(ValueError, match="must name each of the 4 outputs"):
        build_network(family, architecture, 1, 4, [2, 14, 62])


@pytest.mark.parametrize("estimator", [PointNetClassifier, SparseCNNClassifier])
def test_a_fitted_classifier_with_one_comes_back_from_a_file(estimator: Any, crystals: dict[str, Any], tmp_path: Path) -> None:
    rows, numbers = list(crystals.values())[:4], [2, 14, 62, 221]
    model = estimator(hierarchical=True, max_epochs=1, validation_fraction=0.0, random_state=0).fit(rows, numbers)
    proba = model.predict_proba(rows)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    model.save(tmp_path / "model.safetensors")
    for other in (estimator.load(tmp_path / "model.safetensors"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict_proba(rows), proba)
    if estimator is SparseCNNClassifier:
        with pytest.raises(ValueError, match="backend"):
            model.set_params(backend="abacus").predict(rows)


def test_labels_must_be_space_group_numbers(crystals: dict[str, object]) -> None:
    rows = list(crystals.values())[:4]
    with pytest.raises(ValueError, match="needs space group numbers"):
        PointNetClassifier(hierarchical=True, max_epochs=1).fit(rows, ["a", "b", "a", "b"])
