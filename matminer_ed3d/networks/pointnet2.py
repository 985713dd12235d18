"""PointNet++: small PointNets on the neighbourhoods of ever fewer centres, then one on all that is left.

After Qi et al., NeurIPS 2017. In a periodic cell a neighbourhood wraps round the faces, and nothing depends on the origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from matminer_ed3d.networks.batching import PointBatch
from matminer_ed3d.networks.blocks import VoxelBatchNorm
from matminer_ed3d.networks.features import compress_density
from matminer_ed3d.networks.pointnet import COORDINATE_SCALE

__all__ = ["PointNet2", "Stage", "farthest_points", "neighbourhoods"]


@dataclass(frozen=True)
class Stage:
    """One set abstraction.

    Parameters
    ----------
    n_centres : int
        Centres, chosen as far from one another as can be.
    n_neighbours : int
        Points around each, the nearest ones.
    radius : float
        Å; points beyond do not count.
    widths : tuple of int
        Channels of the layers at each neighbour.
    """

    n_centres: int
    n_neighbours: int
    radius: float
    widths: tuple[int, ...]


def _nearest_image(difference: Float[Tensor, "b ... 3"], lattices: Float[Tensor, "b 3 3"] | None) -> Float[Tensor, "b ... 3"]:
    """Shorten differences by lattice vectors: the shortest one in a cell that is not too oblique, if it is below half its widths."""
    if lattices is None:
        return difference
    shape = difference.shape
    frac = difference.reshape(shape[0], -1, 3) @ torch.linalg.inv(lattices)
    return ((frac - frac.round()) @ lattices).view(shape)


def farthest_points(
    coords: Float[Tensor, "b n 3"], first: Int[Tensor, " b"], present: Bool[Tensor, "b n"], n: int, lattices: Float[Tensor, "b 3 3"] | None
) -> Int[Tensor, "b m"]:
    """Return `n` points of each sample, each the farthest from those before it; the first over again where there are too few.

    Parameters
    ----------
    coords : (b, n, 3) float
        Å; samples are filled up to one number of points.
    first : (b,) int
        Where to begin.
    present : (b, n) bool
        Which points are real.
    n : int
        How many.
    lattices : (b, 3, 3) float or None
        Cells, for distances to the nearest image.

    Returns
    -------
    (b, n) int64
    """
    distance = torch.where(present, torch.inf, -torch.inf)
    rows = torch.arange(len(coords), device=coords.device)
    chosen = [first]
    for _ in range(n - 1):
        step = _nearest_image(coords - coords[rows, chosen[-1]][:, None], lattices).square().sum(2)
        distance = torch.minimum(distance, step)
        chosen.append(distance.argmax(1))
    return torch.stack(chosen, 1)


def neighbourhoods(
    coords: Float[Tensor, "b n 3"],
    present: Bool[Tensor, "b n"],
    centres: Int[Tensor, "b m"],
    n_neighbours: int,
    radius: float,
    lattices: Float[Tensor, "b 3 3"] | None,
) -> Int[Tensor, "b m k"]:
    """Return the points nearest to each centre within `radius`; the centre itself where there are too few."""
    at = coords.gather(1, centres[:, :, None].expand(-1, -1, 3))
    squared = torch.stack(
        [
            torch.where(present, _nearest_image(coords - at[:, i, None], lattices).square().sum(2), torch.inf)
            for i in range(centres.shape[1])
        ],
        1,
    )
    n_kept = min(n_neighbours, coords.shape[1])
    nearest, index = squared.topk(n_kept, 2, largest=False)
    index = torch.where(nearest <= radius**2, index, centres[:, :, None])
    return torch.cat([index, index[:, :, :1].expand(-1, -1, n_neighbours - n_kept)], 2)


class _PointwiseNetwork(nn.Sequential):
    def __init__(self, c_in: int, widths: Sequence[int]) -> None:
        super().__init__(*(layer for a, b in pairwise([c_in, *widths]) for layer in (nn.Linear(a, b), VoxelBatchNorm(b), nn.ReLU())))


class PointNet2(nn.Module):
    """PointNet++ on points with densities.

    Parameters
    ----------
    n_channels : int
        Densities at each point.
    n_outputs : int
        Classes, or 1 for a regression.
    stages : sequence of Stage
        From many centres to few.
    widths : sequence of int
        Layers at the last centres, before the maximum over them.
    head_widths : sequence of int
        Hidden layers after it.
    periodic : bool
        Whether neighbourhoods wrap round the cell. The last layers then do not see where a centre lies, and the answer does not depend on
        the origin; in open space they see it from the mean of the cloud, in units of 10 Å.
    """

    def __init__(
        self,
        n_channels: int,
        n_outputs: int,
        stages: Sequence[Stage],
        widths: Sequence[int],
        head_widths: Sequence[int],
        periodic: bool = True,
    ) -> None:
        super().__init__()
        self.sizes, self.periodic = tuple(stages), periodic
        c_in = [n_channels, *(stage.widths[-1] for stage in stages)]
        self.stages = nn.ModuleList(_PointwiseNetwork(3 + c, stage.widths) for c, stage in zip(c_in, stages, strict=False))
        self.last = _PointwiseNetwork(c_in[-1] + (0 if periodic else 3), widths)
        head: list[nn.Module] = []
        for a, b in pairwise([widths[-1], *head_widths]):
            head += [nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU()]
        self.head = nn.Sequential(*head, nn.Linear(head_widths[-1], n_outputs))

    def _lattices(self, batch: PointBatch) -> Tensor | None:
        return batch.lattices if self.periodic else None

    @torch.no_grad()
    def constants(self, batch: PointBatch) -> Int[Tensor, "n_samples n"]:
        """Centres and neighbours of every stage, which no weight changes: training makes them once for each sample.

        Numbers count the points of the sample in the first stage, the centres of the stage before in the others.
        """
        coords, present = _padded(batch.coords, batch)
        density, _ = _padded(batch.feats[:, :1], batch)
        first = torch.where(present, density[:, :, 0], -torch.inf).argmax(1)
        lattices, found = self._lattices(batch), []
        for stage in self.sizes:
            centres = farthest_points(coords, first, present, stage.n_centres, lattices)
            found += [centres, neighbourhoods(coords, present, centres, stage.n_neighbours, stage.radius, lattices).flatten(1)]
            coords = coords.gather(1, centres[:, :, None].expand(-1, -1, 3))
            first, present = torch.zeros_like(first), torch.ones_like(centres, dtype=torch.bool)
        return torch.cat(found, 1).int()

    def forward(self, batch: PointBatch, constants: Int[Tensor, "n_samples n"] | None = None) -> Float[Tensor, "n_samples n_outputs"]:
        """Return logits or values, one row for each sample."""
        tables = self.constants(batch) if constants is None else constants
        coords, present = _padded(batch.coords, batch)
        feats, _ = _padded(compress_density(batch.feats), batch)
        centre_of_cloud = (coords * present[:, :, None]).sum(1, keepdim=True) / present.sum(1)[:, None, None]
        lattices, rows = self._lattices(batch), torch.arange(batch.n_samples, device=coords.device)[:, None]
        parts = torch.split(tables.long(), [n for s in self.sizes for n in (s.n_centres, s.n_centres * s.n_neighbours)], 1)
        for stage, layers, centres, neighbours in zip(self.sizes, self.stages, parts[::2], parts[1::2], strict=True):
            at = coords[rows, centres]
            around = coords[rows, neighbours].view(*at.shape[:2], -1, 3) - at[:, :, None]
            inputs = torch.cat([(_nearest_image(around, lattices) / stage.radius).flatten(1, 2), feats[rows, neighbours]], 2)
            feats = layers(inputs.flatten(0, 1)).view(*at.shape[:2], stage.n_neighbours, -1).amax(2)
            coords = at
        if not self.periodic:
            feats = torch.cat([feats, (coords - centre_of_cloud) / COORDINATE_SCALE], 2)
        feats = self.last(feats.flatten(0, 1)).view(batch.n_samples, self.sizes[-1].n_centres, -1)
        outputs: Tensor = self.head(feats.amax(1).float())
        return outputs.float()


def _padded(values: Float[Tensor, "n c"], batch: PointBatch) -> tuple[Float[Tensor, "b m c"], Bool[Tensor, "b m"]]:
    """Return the rows of every sample, filled up to one number of them, and which are real."""
    sizes = torch.bincount(batch.batch_index, minlength=batch.n_samples)
    order = batch.batch_index.argsort(stable=True)
    place = torch.arange(len(values), device=values.device) - (sizes.cumsum(0) - sizes)[batch.batch_index[order]]
    out = values.new_zeros(batch.n_samples, int(sizes.max()), values.shape[1])
    out[batch.batch_index[order], place] = values[order]
    return out, torch.arange(out.shape[1], device=values.device) < sizes[:, None]
