"""Blocks: stochastic depth keeps the mean, checkpointing changes nothing, ConvNeXt-like networks treat origins alike."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from test_networks import voxel_batch, with_random_norms
from torch import nn

from matminer_ed3d.networks.blocks import Block, ConvNeXtBlock, ResidualBlock, StochasticDepth, pool_samples, set_checkpointing
from matminer_ed3d.networks.crystal_net import CrystalNet
from matminer_ed3d.networks.registry import build_network
from matminer_ed3d.networks.sparse_convnext import SparseConvNeXt
from matminer_ed3d.sparse.voxels import Voxels


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, n_samples = StochasticDepth(0.25).train(), 4000
    index = torch.arange(n_samples).repeat_interleave(3)
    kept = layer(torch.ones(len(index), 2), index).view(n_samples, -1)
    assert (kept == kept[:, :1]).all()
    assert kept[:, 0].unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert kept.mean() == pytest.approx(1, abs=0.03)
    assert torch.equal(layer.eval()(kept.view(-1, 2), index), kept.view(-1, 2))


def test_a_convnext_block_is_a_convolution_and_a_network_at_every_voxel() -> None:
    torch.manual_seed(0)
    batch = voxel_batch([(4, 5, 6)])
    block, voxels = ConvNeXtBlock(8, dilation=2), batch.voxels()
    feats = torch.randn(voxels.n_voxels, 8)
    branch = nn.Sequential(block.norm, block.expand, nn.GELU(), block.project)(block.conv(feats, voxels)[0])
    torch.testing.assert_close(block(feats, voxels), feats + block.scale * branch)


@pytest.fixture
def stride_one() -> nn.Module:
    torch.manual_seed(0)
    return SparseConvNeXt(1, 5, widths=(8, 16), n_blocks=(1, 2), strides=(1, 1)).eval()


def test_the_origin_and_a_doubled_cell_change_nothing(stride_one: nn.Module) -> None:
    batch = voxel_batch([(6, 7, 8), (3, 4, 9)])
    cells = (batch.coords[:, 1:] + torch.tensor([1, 5, 2])).remainder(batch.grid_shapes[batch.coords[:, 0]])
    moved = dataclasses.replace(batch, coords=torch.cat([batch.coords[:, :1], cells], 1))
    torch.testing.assert_close(stride_one(moved), stride_one(batch), rtol=0, atol=1e-5)
    step = torch.zeros_like(batch.coords)
    step[:, 2] = batch.grid_shapes[batch.coords[:, 0], 1]
    doubled = dataclasses.replace(
        batch,
        coords=torch.cat([batch.coords, batch.coords + step]),
        feats=batch.feats.repeat(2, 1),
        grid_shapes=batch.grid_shapes * torch.tensor([1, 2, 1]),
    )
    torch.testing.assert_close(stride_one(doubled), stride_one(batch), rtol=0, atol=1e-5)


def test_pooling_is_the_maximum_or_the_mean_beside_it() -> None:
    voxels = Voxels(torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]), None)
    feats = torch.tensor([[1.0], [4.0], [-2.0]])
    assert pool_samples(feats, voxels, 2, "max").tolist() == [[4.0], [-2.0]]
    assert pool_samples(feats, voxels, 2, "mean_max").tolist() == [[2.5, 4.0], [-2.0, -2.0]]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("architecture", ["small", "convnext", "crystal"])
def test_checkpointing_keeps_less_and_changes_neither_gradients_nor_statistics(architecture: str, half: bool) -> None:
    torch.manual_seed(0)
    plain = with_random_norms(build_network("sparse_cnn", architecture, 1, 5)).train()
    checkpointing = copy.deepcopy(plain)
    set_checkpointing(checkpointing, True)
    assert any(isinstance(module, Block) for module in plain.modules())
    batch, kept = voxel_batch([(8, 8, 8), (4, 6, 5)]), []
    for network in (plain, checkpointing):
        n_kept: list[int] = []
        torch.manual_seed(1)  # of dropout and stochastic depth
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x, n_kept=n_kept: (n_kept.append(x.numel()), x)[1], lambda x: x)
        with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            outputs = network(batch)
        outputs.square().sum().backward()
        kept.append(sum(n_kept))
    assert kept[1] < kept[0]
    for (name, got), want in zip(checkpointing.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(got.grad, want.grad), name
    for (name, got), want in zip(checkpointing.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(got, want), name


def test_a_checkpointed_block_goes_back_as_often_as_asked() -> None:
    torch.manual_seed(0)
    batch = voxel_batch([(4, 5, 6)])
    block, voxels = ResidualBlock(3, 3).train(), batch.voxels()
    feats = torch.randn(voxels.n_voxels, 3, requires_grad=True)
    wanted = torch.autograd.grad(block(feats, voxels).sum(), feats)[0]
    before = {name: buffer.clone() for name, buffer in block.named_buffers()}
    set_checkpointing(block, True)
    out = block(feats, voxels)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(out.sum(), feats, retain_graph=True)[0], wanted)
    assert block.first.norm.num_batches_tracked == before["first.norm.num_batches_tracked"] + 1
    assert block.first.norm.momentum == 0.1


def test_choices_are_checked_at_construction() -> None:
    with pytest.raises(ValueError, match="`pooling` must be one of 'max', 'mean_max', got 'mean'"):
        SparseConvNeXt(1, 2, widths=(4,), n_blocks=(1,), strides=(1,), pooling="mean")
    with pytest.raises(ValueError, match="`block` must be one of 'residual', 'convnext', got 'resnet'"):
        CrystalNet(1, 2, block="resnet")
    with pytest.raises(ValueError, match="`drop_path` is of the block 'convnext'"):
        CrystalNet(1, 2, drop_path=0.1)
    with pytest.raises(ValueError, match="below 1, got 1"):
        StochasticDepth(1.0)


def test_deeper_blocks_are_left_out_more_often() -> None:
    network = SparseConvNeXt(1, 2, widths=(4, 8), n_blocks=(2, 3), strides=(1, 2), drop_path=0.2)
    assert [m.probability for m in network.modules() if isinstance(m, StochasticDepth)] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    crystal = CrystalNet(1, 2, block="convnext", drop_path=0.3)
    assert [m.probability for m in crystal.modules() if isinstance(m, StochasticDepth)] == [0.3, 0.3]


@pytest.mark.parametrize("block", ["residual", "convnext"])
def test_the_default_network_takes_either_block(block: str) -> None:
    torch.manual_seed(0)
    network = CrystalNet(1, 5, width=8, dilations=(1, 2, 3), block=block).eval()
    batch = voxel_batch([(8, 8, 8), (6, 7, 9)])
    batch = dataclasses.replace(batch, feats=batch.feats - 0.5)
    cells = (batch.coords[:, 1:] + torch.tensor([3, 1, 2])).remainder(batch.grid_shapes[batch.coords[:, 0]])
    constants = network.constants(batch)
    moved = dataclasses.replace(batch, coords=torch.cat([batch.coords[:, :1], cells], 1))
    torch.testing.assert_close(network(moved, constants), network(batch, constants), rtol=0, atol=1e-4)
