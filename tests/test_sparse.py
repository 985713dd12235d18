"""Sparse convolution: equal to torch's dense convolution, in cells, in open space, and in boxes smaller than the kernel."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from matminer_ed3d.sparse import dense
from matminer_ed3d.sparse import voxels as voxels_module
from matminer_ed3d.sparse.backends import torch_gemm
from matminer_ed3d.sparse.convolution import SparseConv3d, SparseConvTranspose3d, checkpointed, sparse_conv
from matminer_ed3d.sparse.pooling import global_max_pool, global_mean_pool, sparse_max_pool, sparse_mean_pool
from matminer_ed3d.sparse.voxels import Voxels, kernel_map, kernel_offsets

C_IN, C_OUT = 3, 4
Shape = tuple[int, int, int]


def random_voxels(shapes: list[Shape], fill: float, periodic: bool, seed: int = 0) -> Voxels:
    """Occupy a fraction of every box at random; rows in random order, and in open space off the origin."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for sample, shape in enumerate(shapes):
        cells = (torch.rand(shape, generator=generator) <= fill).nonzero()
        rows.append(torch.cat([torch.full((len(cells), 1), sample), cells], 1))
    coords = torch.cat(rows)
    coords = coords[torch.randperm(len(coords), generator=generator)]
    return Voxels(coords, torch.tensor(shapes) if periodic else None)


def dense_conv(
    feats: Tensor, weight: Tensor, voxels: Voxels, out: Voxels, shapes: list[Shape], size: int, stride: int, dilation: int, periodic: bool
) -> Tensor:
    """Convolve every sample by torch.nn.functional.conv3d on a dense grid; small boxes are tiled until the kernel fits."""
    reach = dilation * (size - 1)
    low = dilation * (size // 2) if size % 2 else 0
    dense_weight = weight.view(size, size, size, C_IN, C_OUT).permute(4, 3, 0, 1, 2)
    result = feats.new_zeros(out.n_voxels, C_OUT)
    for sample, shape in enumerate(shapes):
        rows = (voxels.batch_index == sample).nonzero()[:, 0]
        x, y, z = voxels.coords[rows, 1:].unbind(1)
        grid = feats.new_zeros(*shape, C_IN).index_put((x, y, z), feats[rows]).permute(3, 0, 1, 2)
        if periodic:
            for axis, n in enumerate(shape):  # explicit images, the oracle for wrapping
                grid = grid.index_select(axis + 1, torch.arange(-low, n + reach - low).remainder(n))
        else:
            grid = functional.pad(grid, (low, reach - low) * 3)
        value = functional.conv3d(grid[None], dense_weight, stride=stride, dilation=dilation)[0]
        out_rows = (out.batch_index == sample).nonzero()[:, 0]
        i, j, k = out.coords[out_rows, 1:].unbind(1)
        result = result.index_put((out_rows,), value[:, i, j, k].t())
    return result


def assert_equals_dense(shapes: list[Shape], fill: float, size: int, stride: int, dilation: int, periodic: bool) -> None:
    voxels = random_voxels(shapes, fill, periodic)
    generator = torch.Generator().manual_seed(1)
    feats = torch.randn(voxels.n_voxels, C_IN, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(size**3, C_IN, C_OUT, dtype=torch.float64, generator=generator, requires_grad=True)
    kmap, out = kernel_map(voxels, size, stride, dilation)
    value = sparse_conv(feats, weight, kmap)
    expected = dense_conv(feats, weight, voxels, out, shapes, size, stride, dilation, periodic)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)
    cotangent = torch.randn(value.shape, dtype=torch.float64, generator=generator)
    for got, want in zip(
        torch.autograd.grad(value, (feats, weight), cotangent), torch.autograd.grad(expected, (feats, weight), cotangent), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("size", "stride", "dilation"), list(itertools.product((1, 2, 3, 4, 5), (1, 2, 3), (1, 2, 3))))
@pytest.mark.parametrize("periodic", [True, False], ids=["periodic", "open"])
def test_convolution_and_its_gradients_equal_dense_convolution(size: int, stride: int, dilation: int, periodic: bool) -> None:
    assert_equals_dense([(8, 6, 10), (5, 11, 6), (3, 3, 4)], 0.4, size, stride, dilation, periodic)


@pytest.mark.parametrize(("size", "stride", "dilation"), list(itertools.product((2, 3, 5), (1, 2), (1, 2, 3))))
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (2, 2, 2), (2, 1, 5), (3, 4, 1)])
def test_boxes_smaller_than_the_kernel_wrap_as_often_as_needed(shape: Shape, size: int, stride: int, dilation: int) -> None:
    assert_equals_dense([shape, (4, 5, 6), shape], 0.8 if shape != (1, 1, 1) else 1.0, size, stride, dilation, periodic=True)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_full_cell_equals_conv3d_with_circular_padding(size: int) -> None:
    voxels = random_voxels([(6, 7, 8)], 1.0, periodic=True)
    conv = SparseConv3d(C_IN, C_OUT, size, bias=True).double()
    torch.nn.init.normal_(conv.bias)
    reference = torch.nn.Conv3d(C_IN, C_OUT, size, padding=size // 2, padding_mode="circular").double()
    with torch.no_grad():
        conv.weight.copy_(reference.weight.permute(2, 3, 4, 1, 0).flatten(0, 2))
        conv.bias.copy_(reference.bias)
    feats = torch.randn(voxels.n_voxels, C_IN, dtype=torch.float64)
    value, _ = conv(feats, voxels)
    i, j, k = voxels.coords[:, 1:].unbind(1)
    grid = feats.new_zeros(6, 7, 8, C_IN).index_put((i, j, k), feats).permute(3, 0, 1, 2)
    torch.testing.assert_close(value, reference(grid[None])[0][:, i, j, k].t(), rtol=0, atol=1e-10)


def test_gradients_equal_finite_differences() -> None:
    voxels = random_voxels([(2, 3, 2)], 0.6, periodic=True)
    kmap, _ = kernel_map(voxels, 3, 2, 1)
    feats = torch.randn(voxels.n_voxels, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(27, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: sparse_conv(x, w, kmap), (feats, weight))


def test_batching_changes_nothing() -> None:
    shapes: list[Shape] = [(4, 5, 6), (2, 2, 2), (7, 3, 5)]
    batch = random_voxels(shapes, 0.5, periodic=True)
    weight = torch.randn(27, C_IN, C_OUT, dtype=torch.float64)
    feats = torch.randn(batch.n_voxels, C_IN, dtype=torch.float64)
    together = sparse_conv(feats, weight, kernel_map(batch, 3, 1, 2)[0])
    for sample, shape in enumerate(shapes):
        rows = batch.batch_index == sample
        alone = Voxels(batch.coords[rows] * torch.tensor([0, 1, 1, 1]), torch.tensor([shape]))
        torch.testing.assert_close(sparse_conv(feats[rows], weight, kernel_map(alone, 3, 1, 2)[0]), together[rows], rtol=0, atol=1e-12)


def test_results_repeat_bit_for_bit() -> None:
    def run() -> list[Tensor]:
        voxels = random_voxels([(9, 10, 11), (12, 8, 7)], 0.4, periodic=True)
        generator = torch.Generator().manual_seed(3)
        feats = torch.randn(voxels.n_voxels, 16, generator=generator, requires_grad=True)
        weight = torch.randn(27, 16, 16, generator=generator, requires_grad=True)
        value = sparse_conv(feats, weight, kernel_map(voxels, 3, 2)[0])
        return [value, *torch.autograd.grad(value.square().sum(), (feats, weight))]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_very_empty_space_takes_binary_search_and_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    def table() -> Tensor:
        return kernel_map(random_voxels([(8, 6, 10), (5, 11, 6)], 0.4, periodic=False), 3, 2)[0].neighbours

    dense = table()
    monkeypatch.setattr(voxels_module, "MAX_CELLS_PER_VOXEL", 0)
    monkeypatch.setattr(voxels_module, "MAX_SPARE_CELLS", 0)
    assert torch.equal(table(), dense)


def test_open_voxels_at_the_ends_of_the_world_cost_no_table() -> None:
    coords = torch.tensor([[0, -100_000, -100_000, -100_000], [0, 100_000, 100_000, 100_000], [0, 100_000, 100_000, 99_999]])
    kmap, _ = kernel_map(Voxels(coords, None), 3)
    assert (kmap.neighbours < 3).sum(1).tolist() == [1, 2, 2]


def test_negative_coordinates_stride_like_floor_division() -> None:
    coarse = Voxels(torch.tensor([[0, -3, 0, 0], [0, -1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1], [1, -4, 5, 0]]), None).strided(2)
    assert coarse.coords.tolist() == [[0, -2, 0, 0], [0, -1, 0, 0], [0, 0, 0, 0], [1, -2, 2, 0]]


def test_maps_are_made_once() -> None:
    voxels = random_voxels([(4, 5, 6)], 0.5, periodic=True)
    assert kernel_map(voxels, 3, 2)[0] is kernel_map(voxels, 3, 2)[0]
    assert kernel_map(voxels, 3, 2)[1] is voxels.strided(2)
    assert voxels.strided(1) is voxels


def test_offsets_run_z_fastest() -> None:
    assert kernel_offsets(3)[:4].tolist() == [[-1, -1, -1], [-1, -1, 0], [-1, -1, 1], [-1, 0, -1]]
    assert kernel_offsets(2).min() == 0
    assert kernel_offsets(1).tolist() == [[0, 0, 0]]


def test_autocast_computes_in_bfloat16_and_returns_gradients_in_float32() -> None:
    voxels = random_voxels([(6, 6, 6)], 0.5, periodic=True)
    conv = SparseConv3d(8, 8)
    feats = torch.randn(voxels.n_voxels, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, _ = conv(feats, voxels)
    assert value.dtype == torch.bfloat16
    value.float().square().sum().backward()
    assert conv.weight.grad.dtype == torch.float32
    exact, _ = conv(feats, voxels)
    torch.testing.assert_close(value.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("coords", "shapes", "message"),
    [
        (torch.zeros(0, 4, dtype=torch.long), None, "at least one"),
        (torch.tensor([[0, 0, 0, 4]]), torch.tensor([[4, 4, 4]]), "modulo grid_shape"),
        (torch.tensor([[0, -1, 0, 0]]), torch.tensor([[4, 4, 4]]), "modulo grid_shape"),
        (torch.tensor([[1, 0, 0, 0]]), torch.tensor([[4, 4, 4]]), "modulo grid_shape"),
    ],
)
def test_wrong_voxels_are_refused(coords: Tensor, shapes: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Voxels(coords, shapes)


def test_a_voxel_twice_a_wrong_size_and_a_wrong_weight_are_refused() -> None:
    twice = Voxels(torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1]]), torch.tensor([[2, 2, 2]]))
    with pytest.raises(ValueError, match="every voxel once"):
        kernel_map(twice, 3)
    voxels = Voxels(torch.tensor([[0, 1, 1, 1]]), None)
    with pytest.raises(ValueError, match="`dilation` must be"):
        kernel_map(voxels, 3, 1, 0)
    with pytest.raises(ValueError, match="27 offsets"):
        sparse_conv(torch.zeros(1, 2), torch.zeros(8, 2, 2), kernel_map(voxels, 3)[0])


def test_pooling_equals_a_loop_over_samples() -> None:
    batch_index = torch.tensor([2, 0, 1, 0, 2, 2])
    feats = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    groups = [feats[batch_index == sample] for sample in range(3)]
    torch.testing.assert_close(global_max_pool(feats, batch_index, 3), torch.stack([group.amax(0) for group in groups]))
    torch.testing.assert_close(global_mean_pool(feats, batch_index, 3), torch.stack([group.mean(0) for group in groups]))
    assert torch.autograd.gradcheck(lambda x: global_max_pool(x, batch_index, 3), feats)
    assert torch.autograd.gradcheck(lambda x: global_mean_pool(x, batch_index, 3), feats)


def test_pooling_of_half_precision_returns_float32() -> None:
    ones = torch.ones(5000, 1, dtype=torch.bfloat16)
    index = torch.zeros(5000, dtype=torch.long)
    assert global_mean_pool(ones, index, 1).item() == 1.0
    assert global_max_pool(ones, index, 1).dtype == torch.float32


def flat_conv_weight(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size**3, C_IN, C_OUT, dtype=torch.float64, generator=generator, requires_grad=True)


@pytest.mark.parametrize(("size", "stride", "dilation"), [(2, 2, 1), (3, 2, 1), (3, 3, 1), (3, 1, 2), (2, 1, 1), (4, 2, 2)])
@pytest.mark.parametrize("periodic", [True, False], ids=["periodic", "open"])
def test_transposed_convolution_is_the_adjoint_of_dense_convolution(size: int, stride: int, dilation: int, periodic: bool) -> None:
    """Its values are a gradient of conv3d, and the gradients of its values follow from that."""
    shapes: list[Shape] = [(8, 6, 10), (5, 11, 6), (1, 2, 4)]
    fine = random_voxels(shapes, 0.4, periodic)
    kmap, coarse = kernel_map(fine, size, stride, dilation)
    generator = torch.Generator().manual_seed(1)
    feats = torch.randn(coarse.n_voxels, C_OUT, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = flat_conv_weight(size, generator)
    value = sparse_conv(feats, weight.transpose(1, 2), kmap.transposed)
    probe = torch.zeros(fine.n_voxels, C_IN, dtype=torch.float64, requires_grad=True)
    image = dense_conv(probe, weight, fine, coarse, shapes, size, stride, dilation, periodic)
    (expected,) = torch.autograd.grad(image, probe, feats, create_graph=True)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)
    cotangent = torch.randn(value.shape, dtype=torch.float64, generator=generator)
    for got, want in zip(
        torch.autograd.grad(value, (feats, weight), cotangent), torch.autograd.grad(expected, (feats, weight), cotangent), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_transposed_layer_goes_back_to_its_target_and_refuses_another() -> None:
    fine = random_voxels([(8, 6, 10)], 0.4, periodic=True)
    down, up = SparseConv3d(C_IN, C_OUT, 3, stride=2), SparseConvTranspose3d(C_OUT, C_IN, 3, stride=2, bias=True)
    feats, coarse = down(torch.randn(fine.n_voxels, C_IN), fine)
    back, target = up(feats, coarse, fine)
    assert target is fine
    assert back.shape == (fine.n_voxels, C_IN)
    with pytest.raises(ValueError, match="must be `target"):
        up(feats, coarse, random_voxels([(8, 6, 12)], 0.4, periodic=True))


def dense_pool(feats: Tensor, voxels: Voxels, out: Voxels, shapes: list[Shape], size: int, stride: int, *, largest: bool) -> Tensor:
    """Pool periodic samples by torch's dense pooling: absent voxels are -inf for a maximum, and not counted for a mean."""
    low = size // 2 if size % 2 else 0
    result = feats.new_zeros(out.n_voxels, feats.shape[1])
    for sample, shape in enumerate(shapes):
        rows = (voxels.batch_index == sample).nonzero()[:, 0]
        x, y, z = voxels.coords[rows, 1:].unbind(1)
        empty = feats.new_full((*shape, feats.shape[1] + 1), -torch.inf if largest else 0.0)
        grid = empty.index_put((x, y, z), torch.cat([feats[rows], feats.new_ones(len(rows), 1)], 1)).permute(3, 0, 1, 2)
        for axis, n in enumerate(shape):
            grid = grid.index_select(axis + 1, torch.arange(-low, n + size - 1 - low).remainder(n))
        pooled = functional.max_pool3d(grid[None], size, stride)[0] if largest else functional.avg_pool3d(grid[None], size, stride)[0]
        out_rows = (out.batch_index == sample).nonzero()[:, 0]
        i, j, k = out.coords[out_rows, 1:].unbind(1)
        columns = pooled[:, i, j, k].t()
        columns = columns[:, :-1] if largest else columns[:, :-1] / columns[:, -1:]
        result = result.index_put((out_rows,), columns)
    return result


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 1), (3, 2), (2, 1)])
def test_local_pooling_and_its_gradients_equal_dense_pooling(size: int, stride: int) -> None:
    shapes: list[Shape] = [(8, 6, 10), (6, 4, 4), (2, 2, 4)]
    voxels = random_voxels(shapes, 0.7, periodic=True)
    feats = torch.randn(voxels.n_voxels, C_IN, dtype=torch.float64, requires_grad=True)
    for pool, largest in ((sparse_max_pool, True), (sparse_mean_pool, False)):
        value, out = pool(feats, voxels, size, stride)
        is_read = (kernel_map(voxels, size, stride)[0].neighbours < voxels.n_voxels).any(1)
        expected = dense_pool(feats, voxels, out, shapes, size, stride, largest=largest)
        torch.testing.assert_close(value[is_read], expected[is_read], rtol=0, atol=1e-10)
        cotangent = torch.randn(value.shape, dtype=torch.float64)[is_read]
        got = torch.autograd.grad(value[is_read], feats, cotangent)[0]
        torch.testing.assert_close(got, torch.autograd.grad(expected[is_read], feats, cotangent)[0], rtol=0, atol=1e-10)
        assert torch.autograd.gradcheck(lambda x, pool=pool: pool(x, voxels, size, stride)[0], feats, fast_mode=True)


def test_local_maximum_shares_its_gradient_among_ties_and_is_zero_where_nothing_is_read() -> None:
    voxels = Voxels(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 3, 3, 3]]), torch.tensor([[4, 4, 4]]))
    feats = torch.tensor([[2.0], [2.0], [-1.0]], requires_grad=True)
    value, _ = sparse_max_pool(feats, voxels, 2, 2)
    assert value[:, 0].tolist() == [2.0, -1.0]
    value.sum().backward()
    assert feats.grad is not None
    assert feats.grad[:, 0].tolist() == [0.5, 0.5, 1.0]
    assert sparse_max_pool(feats, voxels, 1, 2)[0][:, 0].tolist() == [2.0, 0.0]
    assert sparse_mean_pool(feats, voxels, 1, 2)[0][:, 0].tolist() == [2.0, 0.0]


@pytest.mark.parametrize(("size", "dilation"), [(3, 1), (3, 2), (5, 1)])
def test_full_boxes_of_one_shape_take_the_dense_path_and_agree(size: int, dilation: int) -> None:
    shapes: list[Shape] = [(4, 5, 6)] * 3
    coords = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(5), torch.arange(6))
    voxels = Voxels(coords, torch.tensor(shapes))
    feats = torch.randn(voxels.n_voxels, C_IN, dtype=torch.float64, requires_grad=True)
    weight = flat_conv_weight(size, torch.Generator().manual_seed(1))
    assert voxels.full_shape == (3, 4, 5, 6)
    value = dense.convolve(feats, weight, voxels.full_shape, size, dilation)
    expected = sparse_conv(feats, weight, kernel_map(voxels, size, 1, dilation)[0])
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)
    cotangent = torch.randn(value.shape, dtype=torch.float64)
    for got, want in zip(
        torch.autograd.grad(value, (feats, weight), cotangent), torch.autograd.grad(expected, (feats, weight), cotangent), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    layer = SparseConv3d(C_IN, C_OUT, size, dilation=dilation)
    single = feats.detach().float()
    by_layer, _ = layer(single, voxels)
    torch.testing.assert_close(by_layer, sparse_conv(single, layer.weight, kernel_map(voxels, size, 1, dilation)[0]), rtol=1e-4, atol=1e-5)


def test_only_full_boxes_of_one_shape_in_order_are_dense() -> None:
    cells = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3), torch.arange(4))
    shapes = torch.tensor([[2, 3, 4]] * 2)
    assert Voxels(cells, shapes).full_shape == (2, 2, 3, 4)
    assert Voxels(cells, None).full_shape is None
    assert Voxels(cells.flip(0), shapes).full_shape is None
    assert Voxels(cells[1:], shapes).full_shape is None
    assert Voxels(cells, torch.tensor([[2, 3, 4], [3, 3, 4]])).full_shape is None
    full, feats = Voxels(cells, shapes), torch.zeros(48, 2)
    assert dense.fitting_shape(feats.double(), full, 3, 1) is None
    assert dense.fitting_shape(feats, full, 3, 3) is None  # wraps more than once
    assert dense.fitting_shape(feats, full, 2, 1) is None


@pytest.mark.parametrize("stride", [1, 2])
def test_float16_agrees_with_float32(stride: int) -> None:
    voxels = random_voxels([(6, 6, 6)], 0.5, periodic=True)
    kmap, _ = kernel_map(voxels, 3, stride)
    feats, weight = torch.randn(voxels.n_voxels, 8), torch.randn(27, 8, 8) * 0.1
    results = []
    for dtype in (torch.float32, torch.float16):
        x, w = feats.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        value = sparse_conv(x, w, kmap)
        results.append([value, *torch.autograd.grad(value.sum(), (x, w))])
    for exact, half in zip(*results, strict=True):
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.float(), exact, rtol=0.02, atol=0.05)


class Layer:
    """A random layer to compute in several ways."""

    def __init__(self, shapes: list[Shape], stride: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.kmap, _ = kernel_map(random_voxels(shapes, 0.6, periodic=True), 3, stride)
        self.feats = torch.randn(self.kmap.n_in, C_IN).to(dtype).requires_grad_()
        self.weight = torch.randn(27, C_IN, C_OUT).to(dtype).requires_grad_()
        self.cotangent = torch.randn(self.kmap.n_out, C_OUT).to(dtype)
        self.atol = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]

    def value(self) -> Tensor:
        return sparse_conv(self.feats, self.weight, self.kmap)

    def value_and_gradients(self) -> tuple[Tensor, ...]:
        value = self.value()
        return value, *torch.autograd.grad(value, (self.feats, self.weight), self.cotangent)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_many_blocks_are_one(dtype: torch.dtype, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer([(12, 9, 10), (5, 6, 7)], stride, dtype)
    whole = layer.value_and_gradients()
    monkeypatch.setattr(torch_gemm, "CPU_BLOCK_BYTES", 1)
    padded, kmap = torch_gemm._padded(layer.feats.detach()), layer.kmap
    assert sum(1 for _ in torch_gemm._gathered(padded, kmap.neighbours, slice(0, kmap.n_out), C_OUT)) > 1
    for got, want in zip(layer.value_and_gradients(), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=layer.atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_threads_share_the_rows_of_a_layer(dtype: torch.dtype, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer([(12, 9, 10), (15, 16, 17)], stride, dtype)

    def part_lengths() -> list[int]:
        return torch_gemm._by_parts(lambda part: part.stop - part.start, layer.weight, layer.kmap.n_out)

    n_threads = torch.get_num_threads()
    whole = layer.value_and_gradients()
    monkeypatch.setattr(torch_gemm, "SHARED_PRODUCTS", 0)
    monkeypatch.setattr(torch_gemm, "CPU_BLOCK_BYTES", 1)
    try:
        torch.set_num_threads(3)
        assert len(part_lengths()) == 3
        assert sum(part_lengths()) == layer.kmap.n_out
        shared, again = layer.value_and_gradients(), layer.value_and_gradients()
        assert torch.get_num_threads() == 3
        with torch.inference_mode():
            assert torch.equal(layer.value(), shared[0])
    finally:
        torch.set_num_threads(n_threads)
    for first, second, want in zip(shared, again, whole, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, want, rtol=0, atol=layer.atol)


def test_two_dtypes_are_refused() -> None:
    kmap, _ = kernel_map(random_voxels([(4, 4, 4)], 0.5, periodic=True), 3)
    with pytest.raises(ValueError, match=r"one dtype, got torch\.float32 and torch\.float64"):
        sparse_conv(torch.ones(kmap.n_in, 2), torch.ones(27, 2, 2, dtype=torch.float64), kmap)


@pytest.mark.parametrize(("index", "n_samples"), [([0, 1, 2], 2), ([0, 2], 3), ([1, 1], 2)])
def test_pooling_refuses_samples_without_rows_and_rows_without_a_sample(index: list[int], n_samples: int) -> None:
    with pytest.raises(ValueError, match=f"each of the {n_samples} samples at least once"):
        global_max_pool(torch.ones(len(index), 1), torch.tensor(index), n_samples)


def test_products_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = random_voxels([(8, 6, 10)], 0.6, periodic=True)
    kmap, coarse = kernel_map(fine, 3, 2)
    feats, weight = torch.randn(coarse.n_voxels, 4, dtype=torch.float64), torch.randn(27, 4, 20, dtype=torch.float64)
    whole = sparse_conv(feats, weight, kmap.transposed)
    monkeypatch.setattr(torch_gemm, "PRODUCT_BYTES", 1)
    torch.testing.assert_close(sparse_conv(feats, weight, kmap.transposed), whole, rtol=0, atol=1e-12)


class _TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SparseConv3d(4, 8), SparseConv3d(8, 4, stride=2)

    def forward(self, feats: Tensor, voxels: Voxels) -> tuple[Tensor, Voxels]:
        return self.second(self.first(feats, voxels)[0].relu(), voxels)


def test_checkpointing_keeps_less_and_gives_the_same_gradients() -> None:
    voxels = random_voxels([(6, 8, 10)], 0.5, periodic=True)
    module, feats = _TwoLayers(), torch.randn(voxels.n_voxels, 4, requires_grad=True)
    gradients, kept = [], []
    for call in (module, lambda *inputs: checkpointed(module, *inputs)):
        n_kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, n_kept=n_kept: (n_kept.append(x.numel()), x)[1], lambda x: x):
            value, out_voxels = call(feats, voxels)
        assert out_voxels is voxels.strided(2)
        gradients.append(torch.autograd.grad(value.square().sum(), [feats, *module.parameters()]))
        kept.append(sum(n_kept))
    assert kept[1] < kept[0]
    for got, want in zip(*gradients, strict=True):
        assert torch.equal(got, want)


def periodic_logits(density: Tensor, layers: nn.ModuleList) -> Tensor:
    """Run a small network without strides on the occupied voxels of one cell."""
    cells = (density > 0.3).nonzero()
    voxels = Voxels(functional.pad(cells, (1, 0)), torch.tensor([density.shape]))
    feats = density[tuple(cells.t())][:, None]
    for layer in layers:
        feats = layer(feats, voxels)[0].relu()
    index = voxels.batch_index
    return torch.cat([global_max_pool(feats, index, 1), global_mean_pool(feats, index, 1)], 1)


def test_origin_shift_and_doubled_cell_leave_the_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    density = torch.rand(4, 6, 5, generator=generator)
    layers = nn.ModuleList([SparseConv3d(1, 8), SparseConv3d(8, 8, dilation=2), SparseConv3d(8, 8, 5)])
    logits = periodic_logits(density, layers)
    for other in (density.roll((1, 2, 3), (0, 1, 2)), density.repeat(2, 1, 1), density.repeat(1, 2, 2).roll(3, 2)):
        torch.testing.assert_close(periodic_logits(other, layers), logits, rtol=0, atol=1e-5)
