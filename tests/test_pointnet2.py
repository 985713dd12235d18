"""PointNet++: its neighbourhoods are those of a search by hand, and a periodic one does not know the origin."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pymatgen.core.lattice import Lattice
from test_networks import point_batch, with_random_norms

from matminer_ed3d.networks.batching import PointBatch
from matminer_ed3d.networks.pointnet2 import PointNet2, Stage, farthest_points, neighbourhoods

LATTICE = np.array([[7.0, 0.3, 0.0], [0.5, 8.0, 0.2], [-0.4, 0.1, 6.5]])
STAGES = (Stage(12, 8, 2.5, (8, 16)), Stage(4, 4, 4.0, (16,)))


def distances(coords: np.ndarray, periodic: bool) -> np.ndarray:
    if not periodic:
        return np.linalg.norm(coords[:, None] - coords, axis=2)
    frac = coords @ np.linalg.inv(LATTICE)
    return np.array(Lattice(LATTICE).get_all_distances(frac, frac))


@pytest.mark.parametrize("periodic", [True, False])
def test_neighbourhoods_are_those_of_all_distances(periodic: bool) -> None:
    coords = torch.rand(2, 60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 7
    present = torch.ones(2, 60, dtype=torch.bool)
    present[1, 40:] = False
    lattices = torch.from_numpy(LATTICE).expand(2, 3, 3) if periodic else None
    centres = torch.tensor([[3, 50], [0, 39]])
    found = neighbourhoods(coords, present, centres, 6, 2.0, lattices)
    for sample, n in ((0, 60), (1, 40)):
        away = distances(coords[sample, :n].numpy(), periodic)
        for m, centre in enumerate(centres[sample].tolist()):
            nearest = [i for i in np.argsort(away[centre])[:6] if away[centre, i] <= 2.0]
            assert set(found[sample, m].tolist()) == set(nearest)
            assert found[sample, m].tolist().count(centre) == 1 + 6 - len(nearest)


@pytest.mark.parametrize("periodic", [True, False])
def test_every_centre_is_the_farthest_from_those_before(periodic: bool) -> None:
    coords = torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 7
    lattices = torch.from_numpy(LATTICE)[None] if periodic else None
    chosen = farthest_points(coords, torch.tensor([7]), torch.ones(1, 50, dtype=torch.bool), 10, lattices)[0].tolist()
    away = distances(coords[0].numpy(), periodic)
    assert chosen[0] == 7
    for i in range(1, 10):
        assert chosen[i] == away[chosen[:i]].min(axis=0).argmax()


def test_few_points_are_chosen_over_again_and_absent_ones_never() -> None:
    coords = torch.rand(1, 9, 3)
    present = torch.tensor([[True, True, True, False, False, False, False, False, False]])
    chosen = farthest_points(coords, torch.tensor([1]), present, 6, None)
    assert set(chosen[0].tolist()) == {0, 1, 2}
    assert set(neighbourhoods(coords, present, chosen, 5, 9.0, None).flatten().tolist()) == {0, 1, 2}


@pytest.mark.parametrize("periodic", [True, False])
def test_order_batch_and_place_change_nothing(periodic: bool) -> None:
    torch.manual_seed(0)
    network = with_random_norms(PointNet2(2, 5, STAGES, (32,), (16,), periodic))
    batch = point_batch([90, 70], n_channels=2)
    lattices = torch.from_numpy(LATTICE).float().repeat(2, 1, 1)
    batch = dataclasses.replace(batch, lattices=lattices)
    logits = network(batch)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(1))
    fields = {name: getattr(batch, name)[order] for name in ("coords", "feats", "batch_index")}
    fields["coords"] = fields["coords"] + torch.tensor([3.0, -2.0, 1.0])
    if periodic:  # a moved origin, and points that come back into the cell
        frac = fields["coords"] @ torch.linalg.inv(lattices[0])
        fields["coords"] = (frac - frac.floor()) @ lattices[0]
    torch.testing.assert_close(network(dataclasses.replace(batch, **fields)), logits, rtol=0, atol=1e-4)
    second = batch.batch_index == 1
    index = torch.zeros_like(batch.batch_index[second])
    alone = PointBatch(batch.coords[second], batch.feats[second], index, lattices[1:], 1)
    torch.testing.assert_close(network(alone)[0], logits[1], rtol=0, atol=1e-4)


def test_tables_made_before_give_the_same_logits() -> None:
    torch.manual_seed(0)
    network = PointNet2(1, 3, STAGES, (32,), (16,)).eval()
    batch = point_batch([40, 12])
    assert torch.equal(network(batch, network.constants(batch)), network(batch))
