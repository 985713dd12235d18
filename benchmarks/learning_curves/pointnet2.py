"""PointNet++, to compare: small PointNets on the neighbourhoods of ever fewer centres, then one on all that is left.

After Qi et al., NeurIPS 2017. It sees one cell as a cloud in open space, as PointNet does. Equal densities and distances, which a crystal
has, are told apart by the order of points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from matminer_ed3d.networks.batching import PointBatch
from matminer_ed3d.networks.blocks import RowBatchNorm
from matminer_ed3d.networks.features import compress_density
from matminer_ed3d.networks.hierarchical_head import HierarchicalHead
from matminer_ed3d.networks.pointnet import COORDINATE_SCALE


@dataclass(frozen=True)
class Abstraction:
    """One set abstraction: how many centres, how many of the points nearest to each within a radius in Å, widths of the layers at them."""

    n_centres: int
    n_neighbours: int
    radius: float
    widths: tuple[int, ...]


ABSTRACTIONS = (Abstraction(128, 32, 1.5, (32, 64)), Abstraction(32, 16, 4.0, (128, 128)))


def farthest_points(coords: Float[Tensor, "b n 3"], first: Int[Tensor, " b"], present: Bool[Tensor, "b n"], n: int) -> Int[Tensor, "b m"]:
    """`n` points of each sample, each the farthest from those before it; the first one over again where no other is left."""
    distance = torch.where(present, torch.inf, -torch.inf)
    rows, chosen = torch.arange(len(coords)), [first]
    for _ in range(n - 1):
        step = (coords - coords[rows, chosen[-1]][:, None]).square().sum(2)
        distance = torch.minimum(distance, step)
        farthest, place = distance.max(1)
        chosen.append(torch.where(farthest > 0, place, first))
    return torch.stack(chosen, 1)


def neighbourhoods(
    coords: Float[Tensor, "b n 3"], present: Bool[Tensor, "b n"], centres: Int[Tensor, "b m"], of: Abstraction
) -> Int[Tensor, "b m k"]:
    """The points nearest to each centre within the radius; the centre itself where there are too few."""
    at = coords.gather(1, centres[:, :, None].expand(-1, -1, 3))
    squared = torch.where(present[:, None], torch.cdist(at, coords).square(), torch.inf)
    nearest, index = squared.topk(min(of.n_neighbours, coords.shape[1]), 2, largest=False)
    index = torch.where(nearest <= of.radius**2, index, centres[:, :, None])
    return torch.cat([index, index[:, :, :1].expand(-1, -1, of.n_neighbours - index.shape[2])], 2)


class PointwiseNetwork(nn.Sequential):
    """Linear layers, each normalised and rectified, at every point."""

    def __init__(self, c_in: int, widths: Sequence[int]) -> None:
        super().__init__(*(layer for a, b in pairwise([c_in, *widths]) for layer in (nn.Linear(a, b), RowBatchNorm(b), nn.ReLU())))


class PointNet2(nn.Module):
    """PointNet++ with a hierarchical head for space groups."""

    def __init__(self, n_channels: int, space_group_numbers: Sequence[int]) -> None:
        super().__init__()
        c_in = [n_channels, *(a.widths[-1] for a in ABSTRACTIONS)]
        self.layers = nn.ModuleList(PointwiseNetwork(3 + c, a.widths) for c, a in zip(c_in, ABSTRACTIONS, strict=False))
        self.last = PointwiseNetwork(c_in[-1] + 3, (256, 512))
        self.head = nn.Sequential(nn.Linear(512, 256), nn.LayerNorm(256), nn.ReLU(), HierarchicalHead(256, space_group_numbers))

    @torch.no_grad()
    def constants(self, batch: PointBatch) -> Int[Tensor, "n_samples n"]:
        """Centres and neighbours of every abstraction, which no weight changes: training makes them once for each sample."""
        coords, present = padded(batch.coords, batch)
        density, _ = padded(batch.feats[:, :1], batch)
        first, found = torch.where(present, density[:, :, 0], -torch.inf).argmax(1), []
        for of in ABSTRACTIONS:
            centres = farthest_points(coords, first, present, of.n_centres)
            found += [centres, neighbourhoods(coords, present, centres, of).flatten(1)]
            coords = coords.gather(1, centres[:, :, None].expand(-1, -1, 3))
            present = torch.cat([torch.ones_like(present[:, :1]), centres[:, 1:] != first[:, None]], 1)
            first = torch.zeros_like(first)
        return torch.cat(found, 1).int()

    def forward(self, batch: PointBatch, constants: Int[Tensor, "n_samples n"] | None = None) -> Float[Tensor, "n_samples n_outputs"]:
        """Logits."""
        tables = self.constants(batch) if constants is None else constants
        coords, present = padded(batch.coords, batch)
        feats, _ = padded(compress_density(batch.feats), batch)
        middle = (coords * present[:, :, None]).sum(1, keepdim=True) / present.sum(1)[:, None, None]
        rows = torch.arange(batch.n_samples)[:, None]
        parts = torch.split(tables.long(), [n for of in ABSTRACTIONS for n in (of.n_centres, of.n_centres * of.n_neighbours)], 1)
        for of, layers, centres, neighbours in zip(ABSTRACTIONS, self.layers, parts[::2], parts[1::2], strict=True):
            at = coords[rows, centres]
            around = coords[rows, neighbours].view(*at.shape[:2], -1, 3) - at[:, :, None]
            inputs = torch.cat([(around / of.radius).flatten(1, 2), feats[rows, neighbours]], 2)
            feats = layers(inputs.flatten(0, 1)).view(*at.shape[:2], of.n_neighbours, -1).amax(2)
            coords = at
        feats = self.last(torch.cat([feats, (coords - middle) / COORDINATE_SCALE], 2).flatten(0, 1)).view(
            batch.n_samples, coords.shape[1], -1
        )
        outputs: Tensor = self.head(feats.amax(1).float())
        return outputs.float()


def padded(values: Float[Tensor, "n c"], batch: PointBatch) -> tuple[Float[Tensor, "b m c"], Bool[Tensor, "b m"]]:
    """The rows of every sample, filled up to one number of them, and which are real; those of a sample stand together."""
    sizes = torch.bincount(batch.batch_index, minlength=batch.n_samples)
    place = torch.arange(len(values)) - (sizes.cumsum(0) - sizes)[batch.batch_index]
    out = values.new_zeros(batch.n_samples, int(sizes.max()), values.shape[1])
    out[batch.batch_index, place] = values
    return out, torch.arange(out.shape[1]) < sizes[:, None]
