"""PointNet: one small network at every point, the maximum over the points of a sample, a head.

After Qi et al., CVPR 2017, without its alignment networks, as Kim et al., npj Comput. Mater. 10 (2024), use it on densities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matminer_ed3d.networks.batching import PointBatch
from matminer_ed3d.networks.features import compress_density
from matminer_ed3d.sparse.pooling import global_mean_pool, max_of_samples, samples_together

__all__ = ["COORDINATE_SCALE", "PointNet", "SampleGroupNorm"]

COORDINATE_SCALE = 10.0  # Å: half the edge of a typical conventional cell or more, so that coordinates come near [-1, 1]


class SampleGroupNorm(nn.Module):
    """Group normalisation of samples with any number of points each.

    Mean and variance run over the points of one sample and the channels of one group: what ``torch.nn.GroupNorm`` does to a sample
    (1, n_channels, n_points). (On rows, (n_points, n_channels), it would normalise every point by itself, and two channels in a
    group, as 64 channels in 32 groups, would leave nothing but which of them is larger.)

    Parameters
    ----------
    n_groups, n_channels : int
        `n_groups` divides `n_channels`.
    eps : float
        Added to the variance.
    """

    def __init__(self, n_groups: int, n_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.n_groups, self.eps = n_groups, eps
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, feats: Float[Tensor, "n c"], sizes: list[int]) -> Float[Tensor, "n c"]:
        """Return the normalised features, on a CPU in the precision of the input.

        Parameters
        ----------
        feats : (n, c) float
            Rows of a sample together, one sample after another.
        sizes : list of int
            Rows of each sample.
        """
        if len(set(sizes)) == 1:
            return self._normalised(feats, len(sizes))
        return torch.cat([self._normalised(sample, 1) for sample in torch.split(feats, sizes)])

    def _normalised(self, feats: Tensor, n_samples: int) -> Tensor:
        # As images with channels last, for which torch has a kernel of its own. That sums squares, so a mean far above the deviations
        # would drown them: first a constant is taken off each group, which changes neither the answer nor its gradient.
        rows = feats.view(n_samples, -1, self.n_groups, feats.shape[1] // self.n_groups)
        rows = rows - rows[:, :1].detach().mean(3, keepdim=True)
        images = rows.view(n_samples, -1, 1, feats.shape[1]).permute(0, 3, 1, 2)
        normal = torch.group_norm(images, self.n_groups, self.weight, self.bias, self.eps)
        return normal.permute(0, 2, 3, 1).reshape(feats.shape)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        return f"{self.n_groups}, {len(self.weight)}, eps={self.eps}"


class PointNet(nn.Module):
    """PointNet on points with densities.

    The input of a point is its Cartesian position, from the mean of its sample's points and in units of 10 Å, and its densities. The
    answer does not depend on the order of points nor on where the cloud lies; it does depend on its orientation and on the cell.

    Parameters
    ----------
    n_channels : int
        Densities at each point.
    n_outputs : int
        Classes, or 1 for a regression.
    widths : sequence of int
        Channels of the layers at each point.
    n_groups : int
        Groups of the normalisation after each of them; divides every width.
    head_widths : sequence of int
        Channels of the hidden layers after the maximum.
    compress : bool
        Whether densities go through `compress_density`; False takes them raw, in e/Å³.
    """

    def __init__(
        self, n_channels: int, n_outputs: int, widths: Sequence[int], n_groups: int, head_widths: Sequence[int], compress: bool = True
    ) -> None:
        super().__init__()
        self.compress = compress
        inputs = [3 + n_channels, *widths[:-1]]
        self.layers = nn.ModuleList(nn.Linear(c_in, c_out) for c_in, c_out in zip(inputs, widths, strict=True))
        self.norms = nn.ModuleList(SampleGroupNorm(n_groups, width) for width in widths)
        head: list[nn.Module] = []
        for c_in, c_out in zip([widths[-1], *head_widths[:-1]], head_widths, strict=True):
            head += [nn.Linear(c_in, c_out), nn.LayerNorm(c_out), nn.ReLU()]
        self.head = nn.Sequential(*head, nn.Linear(head_widths[-1], n_outputs))

    def forward(self, batch: PointBatch) -> Float[Tensor, "n_samples n_outputs"]:
        """Return logits or values, one row for each sample."""
        centre = global_mean_pool(batch.coords, batch.batch_index, batch.n_samples)
        position = (batch.coords - centre.index_select(0, batch.batch_index)) / COORDINATE_SCALE
        density = compress_density(batch.feats) if self.compress else batch.feats
        feats, sizes = samples_together(torch.cat([position, density], 1), batch.batch_index, batch.n_samples)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            feats = norm(layer(feats), sizes).relu()
        outputs: Tensor = self.head(max_of_samples(feats, sizes))
        return outputs.float()
