"""Networks by name: family and architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from matminer_ed3d.networks.crystal_net import CrystalNet
from matminer_ed3d.networks.hierarchical_head import HierarchicalHead
from matminer_ed3d.networks.pointnet import PointNet
from matminer_ed3d.networks.sparse_convnext import SparseConvNeXt
from matminer_ed3d.networks.sparse_resnet import SparseResNet

__all__ = ["ARCHITECTURES", "build_network"]


def _pointnet_small(n_channels: int, n_outputs: int) -> nn.Module:
    return PointNet(n_channels, n_outputs, widths=(32, 64, 256), n_groups=8, head_widths=(128,))


def _pointnet_paper(n_channels: int, n_outputs: int) -> nn.Module:
    return PointNet(n_channels, n_outputs, widths=(64, 128, 1024), n_groups=32, head_widths=(512, 256), compress=False)


def _sparse_small(n_channels: int, n_outputs: int) -> nn.Module:
    return SparseResNet(n_channels, n_outputs, widths=(16, 32, 64, 64), n_blocks=(0, 1, 1, 1), strides=(1, 2, 2, 2))


def _sparse_paper(n_channels: int, n_outputs: int) -> nn.Module:
    widths, n_blocks, strides = (128, 128, 256, 512, 1024), (0, 1, 2, 2, 3), (1, 2, 2, 2, 2)
    return SparseResNet(n_channels, n_outputs, widths, n_blocks, strides, compress=False)


def _sparse_convnext(n_channels: int, n_outputs: int) -> nn.Module:
    return SparseConvNeXt(n_channels, n_outputs, widths=(16, 32, 64, 96), n_blocks=(0, 1, 2, 1), strides=(1, 2, 2, 2))


def _crystal(n_channels: int, n_outputs: int) -> nn.Module:
    return CrystalNet(n_channels, n_outputs)


# family -> architecture -> builder(n_channels, n_outputs)
ARCHITECTURES: dict[str, dict[str, Callable[[int, int], nn.Module]]] = {
    "pointnet": {"small": _pointnet_small, "paper": _pointnet_paper},
    "sparse_cnn": {"small": _sparse_small, "paper": _sparse_paper, "convnext": _sparse_convnext, "crystal": _crystal},
}


def build_network(
    family: str, architecture: str, n_channels: int, n_outputs: int, space_group_numbers: Sequence[int] | None = None
) -> nn.Module:
    """Build a network with random weights.

    Parameters
    ----------
    family : {"pointnet", "sparse_cnn"}
        What it eats: a `PointBatch` or a `VoxelBatch`.
    architecture : str
        ``small`` trains on two CPU cores, ``paper`` is that of Kim et al. (2024) and wants a GPU; ``convnext`` (sparse_cnn) has
        ConvNeXt-like blocks, ``crystal`` (sparse_cnn) sees the lattice and the periodic cell.
    n_channels : int
        Densities of each point or voxel.
    n_outputs : int
        Classes, or 1 for a regression.
    space_group_numbers : sequence of int, optional
        What the outputs are: the last layer then is a `HierarchicalHead`.

    Returns
    -------
    nn.Module
        ``forward(batch) -> (n_samples, n_outputs)`` float32 logits or values.

    Raises
    ------
    ValueError
        If the name is unknown, or a count is smaller than 1.
    """
    if family not in ARCHITECTURES:
        raise ValueError(f"`family` must be one of {', '.join(ARCHITECTURES)}, got {family!r}")
    if architecture not in ARCHITECTURES[family]:
        raise ValueError(f"`architecture` of the family {family} must be one of {', '.join(ARCHITECTURES[family])}, got {architecture!r}")
    for name, value in (("n_channels", n_channels), ("n_outputs", n_outputs)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")
    if space_group_numbers is not None and len(space_group_numbers) != n_outputs:
        raise ValueError(f"`space_group_numbers` must name each of the {n_outputs} outputs, got {len(space_group_numbers)}")
    network = ARCHITECTURES[family][architecture](n_channels, n_outputs)
    return network if space_group_numbers is None else _with_hierarchy(network, space_group_numbers)


def _with_hierarchy(network: nn.Module, space_group_numbers: Sequence[int]) -> nn.Module:
    """Put a hierarchical head in place of the last linear layer of ``network.head``."""
    if isinstance(network.head, nn.Linear):
        network.head = HierarchicalHead(network.head.in_features, space_group_numbers)
    else:
        head: Any = network.head
        head[-1] = HierarchicalHead(head[-1].in_features, space_group_numbers)
    return network
