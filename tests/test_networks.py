"""Networks: what must not change the answer does not, and every architecture builds, differentiates and learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from matminer_ed3d.networks.batching import PointBatch, VoxelBatch
from matminer_ed3d.networks.blocks import RowBatchNorm
from matminer_ed3d.networks.features import compress_density
from matminer_ed3d.networks.pointnet import PointNet, SampleGroupNorm
from matminer_ed3d.networks.registry import ARCHITECTURES, build_network
from matminer_ed3d.networks.sparse_resnet import SparseResNet
from matminer_ed3d.sparse.pooling import global_mean_pool
from matminer_ed3d.sparse.voxels import Voxels

Shape = tuple[int, int, int]
NAMES = [(family, architecture) for family, architectures in ARCHITECTURES.items() for architecture in architectures]


def point_batch(counts: list[int], n_channels: int = 1, seed: int = 0) -> PointBatch:
    generator = torch.Generator().manual_seed(seed)
    coords = 8 * torch.rand(sum(counts), 3, generator=generator)
    feats = torch.rand(sum(counts), n_channels, generator=generator)
    index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return PointBatch(coords, feats, index, 8 * torch.eye(3).repeat(len(counts), 1, 1), len(counts))


def voxel_batch(shapes: list[Shape], n_channels: int = 1, periodic: bool = True, seed: int = 0) -> VoxelBatch:
    generator = torch.Generator().manual_seed(seed)
    coords = []
    for sample, shape in enumerate(shapes):
        cells = (torch.rand(shape, generator=generator) < 0.5).nonzero()
        coords.append(torch.cat([torch.full((len(cells), 1), sample), cells], 1))
    rows = torch.cat(coords)
    feats = torch.rand(len(rows), n_channels, generator=generator)
    return VoxelBatch(rows, feats, torch.tensor(shapes) if periodic else None, 0.5 * torch.eye(3).repeat(len(shapes), 1, 1), len(shapes))


def random_batch(family: str, n_channels: int = 1) -> PointBatch | VoxelBatch:
    return point_batch([30, 50, 20], n_channels) if family == "pointnet" else voxel_batch([(8, 8, 8), (4, 6, 5), (16, 8, 8)], n_channels)


def with_random_norms(network: nn.Module) -> nn.Module:
    """Give the norms statistics and weights of a trained network: at the start they are 0 and 1 and hide mistakes."""
    torch.manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.BatchNorm1d | SampleGroupNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return network.eval()


@pytest.fixture
def stride_one() -> nn.Module:
    torch.manual_seed(0)
    return with_random_norms(SparseResNet(1, 5, widths=(8, 8, 16), n_blocks=(0, 1, 1), strides=(1, 1, 1)))


@pytest.mark.parametrize("shift", [(1, 0, 0), (3, 5, 2), (0, 0, 7)])
def test_moving_the_origin_of_a_cell_by_voxels_changes_nothing(stride_one: nn.Module, shift: Shape) -> None:
    batch = voxel_batch([(6, 7, 8), (3, 4, 9)])
    cells = (batch.coords[:, 1:] + torch.tensor(shift)).remainder(batch.grid_shapes[batch.coords[:, 0]])
    moved = dataclasses.replace(batch, coords=torch.cat([batch.coords[:, :1], cells], 1))
    torch.testing.assert_close(stride_one(moved), stride_one(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_doubling_the_cell_changes_nothing(stride_one: nn.Module, axis: int) -> None:
    batch = voxel_batch([(4, 5, 6), (1, 2, 3)])
    step = torch.zeros_like(batch.coords)
    step[:, 1 + axis] = batch.grid_shapes[batch.coords[:, 0], axis]
    shapes = batch.grid_shapes.clone()
    shapes[:, axis] *= 2
    doubled = VoxelBatch(torch.cat([batch.coords, batch.coords + step]), batch.feats.repeat(2, 1), shapes, batch.voxel_bases, 2)
    torch.testing.assert_close(stride_one(doubled), stride_one(batch), rtol=0, atol=1e-5)
    # and the mean over voxels, which other heads use
    means = []
    for one in (batch, doubled):
        feats, voxels = stride_one.stages[0](one.feats, one.voxels())
        means.append(global_mean_pool(feats, voxels.batch_index, 2))
    torch.testing.assert_close(means[1], means[0], rtol=0, atol=1e-5)


def test_strides_keep_shifts_by_whole_coarse_voxels() -> None:
    network = with_random_norms(build_network("sparse_cnn", "small", 1, 5))
    batch = voxel_batch([(8, 16, 8)])
    moved = dataclasses.replace(batch, coords=(batch.coords + torch.tensor([0, 8, 8, 0])).remainder(torch.tensor([1, 8, 16, 8])))
    torch.testing.assert_close(network(moved), network(batch), rtol=0, atol=1e-5)


def test_moving_or_reordering_a_cloud_changes_nothing() -> None:
    network = with_random_norms(build_network("pointnet", "small", 1, 5))
    batch = point_batch([40, 60])
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    moved = dataclasses.replace(
        batch, coords=batch.coords[order] + torch.tensor([3.0, -20.0, 8.0]), feats=batch.feats[order], batch_index=batch.batch_index[order]
    )
    torch.testing.assert_close(network(moved), network(batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "architecture"), [name for name in NAMES if name[1] != "paper"])
def test_batching_changes_nothing(family: str, architecture: str) -> None:
    torch.manual_seed(0)
    network = with_random_norms(build_network(family, architecture, 1, 5))
    batch = random_batch(family)
    together = network(batch)
    for sample in range(batch.n_samples):
        if isinstance(batch, PointBatch):
            rows = batch.batch_index == sample
            lattice = batch.lattices[sample : sample + 1]
            alone = PointBatch(batch.coords[rows], batch.feats[rows], torch.zeros_like(batch.batch_index[rows]), lattice, 1)
        else:
            rows = batch.coords[:, 0] == sample
            part = slice(sample, sample + 1)
            coords = batch.coords[rows] * torch.tensor([0, 1, 1, 1])
            alone = VoxelBatch(coords, batch.feats[rows], batch.grid_shapes[part], batch.voxel_bases[part], 1)
        torch.testing.assert_close(network(alone)[0], together[sample], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "architecture"), [name for name in NAMES if name != ("sparse_cnn", "paper")])
@pytest.mark.parametrize("n_channels", [1, 4])
def test_every_parameter_of_every_architecture_gets_a_gradient(family: str, architecture: str, n_channels: int) -> None:
    torch.manual_seed(0)
    network = build_network(family, architecture, n_channels, 3)
    outputs = network(random_batch(family, n_channels))
    assert outputs.shape == (3, 3)
    assert outputs.dtype == torch.float32
    outputs.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("family", "architecture"), [name for name in NAMES if name[1] != "paper"])
def test_autocast_returns_float32_near_the_exact_answer(family: str, architecture: str) -> None:
    torch.manual_seed(0)
    network = with_random_norms(build_network(family, architecture, 1, 5))
    with torch.no_grad():
        exact = network(random_batch(family))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = network(random_batch(family))
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))


@pytest.mark.parametrize(("family", "architecture"), [("pointnet", "small"), ("sparse_cnn", "small")])
def test_eight_samples_are_learnt_by_heart(family: str, architecture: str) -> None:
    torch.manual_seed(0)
    network = build_network(family, architecture, 1, 8)
    batch = point_batch([60] * 8) if family == "pointnet" else voxel_batch([(6, 6, 6)] * 8)
    labels = torch.arange(8)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch), labels).backward()
        optimizer.step()
    assert (network(batch).argmax(1) == labels).all()


def test_the_papers_architectures_are_the_papers() -> None:
    point = build_network("pointnet", "paper", 1, 230)
    assert [layer.in_features for layer in point.layers] == [4, 64, 128]
    assert [norm.n_groups for norm in point.norms] == [32, 32, 32]
    assert [module.out_features for module in point.head if isinstance(module, nn.Linear)] == [512, 256, 230]
    with torch.device("meta"):  # 198 million parameters: shapes only
        sparse = build_network("sparse_cnn", "paper", 1, 230)
    assert [len(stage.blocks) for stage in sparse.stages] == [0, 1, 2, 2, 3]
    assert [stage.entry.conv.stride for stage in sparse.stages] == [1, 2, 2, 2, 2]
    assert sparse.head.in_features == 1024


def test_regression_may_be_negative() -> None:
    torch.manual_seed(0)
    for family in ARCHITECTURES:
        network = build_network(family, "small", 1, 1)
        final = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        nn.init.constant_(final.bias, -1e3)
        assert (network(random_batch(family)) < 0).all()


@pytest.mark.parametrize("sizes", [[7, 12, 1], [5, 5, 5]])
def test_sample_group_norm_equals_group_norm_of_each_sample(sizes: list[int]) -> None:
    norm = SampleGroupNorm(4, 16).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    feats = 3 + torch.randn(sum(sizes), 16, dtype=torch.float64)
    value = norm(feats, sizes)
    for got, points in zip(value.split(sizes), feats.split(sizes), strict=True):
        torch.testing.assert_close(got, nn.functional.group_norm(points.t()[None], 4, norm.weight, norm.bias)[0].t())
    assert torch.autograd.gradcheck(lambda x: norm(x, sizes), feats.requires_grad_())


def test_sample_group_norm_stands_a_large_mean_and_one_channel_a_group() -> None:
    norm, feats = SampleGroupNorm(4, 16), torch.randn(40, 16)
    torch.testing.assert_close(norm(feats + 1000, [30, 10]), norm(feats, [30, 10]), rtol=0, atol=1e-3)
    torch.testing.assert_close(norm(torch.full((8, 16), 3.3), [8]), torch.zeros(8, 16))
    alone = SampleGroupNorm(16, 16)
    assert torch.equal(alone(feats[:3], [1, 2])[:1], torch.zeros(1, 16))
    assert norm(feats.bfloat16(), [30, 10]).dtype == torch.bfloat16
    torch.testing.assert_close(norm(feats.bfloat16(), [30, 10]).float(), norm(feats, [30, 10]), rtol=0, atol=0.05)


def test_gradients_through_a_network_equal_finite_differences() -> None:
    torch.manual_seed(0)
    network = SparseResNet(1, 2, widths=(2, 2), n_blocks=(0, 1), strides=(1, 2)).double().eval()
    voxels = Voxels(torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 1, 1]]), torch.tensor([[2, 2, 2]]))

    def run(feats: torch.Tensor) -> torch.Tensor:
        out = voxels
        for stage in network.stages:
            feats, out = stage(feats, out)
        return feats

    assert torch.autograd.gradcheck(run, torch.rand(3, 1, dtype=torch.float64, requires_grad=True))


def test_a_batch_of_one_voxel_trains() -> None:
    norm = RowBatchNorm(4).train()
    assert norm(torch.ones(1, 4)).isfinite().all()
    network = build_network("sparse_cnn", "small", 1, 2).train()
    network(voxel_batch([(2, 2, 2)])).sum().backward()


def test_compression_keeps_sign_and_order() -> None:
    values = torch.tensor([[-1000.0], [-0.1], [0.0], [0.01], [0.1], [1000.0]])
    squeezed = compress_density(values)
    assert (squeezed.diff(dim=0) > 0).all()
    torch.testing.assert_close(compress_density(-values), -squeezed)
    assert squeezed.abs().max() < 10


def test_widths_and_groups_are_those_of_the_constructor() -> None:
    network = PointNet(2, 3, widths=(4, 8), n_groups=2, head_widths=(6,))
    assert network(point_batch([5, 6], 2)).shape == (2, 3)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="pointnet, sparse_cnn, got 'transformer'"):
        build_network("transformer", "small", 1, 1)
    with pytest.raises(ValueError, match="small, paper, convnext, crystal, got 'large'"):
        build_network("sparse_cnn", "large", 1, 1)
    with pytest.raises(ValueError, match="`n_outputs` must be at least 1"):
        build_network("pointnet", "small", 1, 0)
