"""Backends of the sparse convolution: one result, whatever computes it; those that are not installed are skipped."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from matminer_ed3d.sparse import backends
from matminer_ed3d.sparse.backends import BACKENDS, Kernel, convolve, halo, resolve_backend
from matminer_ed3d.sparse.convolution import SparseConv3d, set_backend
from matminer_ed3d.sparse.voxels import Voxels, kernel_offsets

# Channels are not multiples of a tile; the smallest box is smaller than the kernels.
C_IN, C_OUT = 5, 19
BOXES = [(4, 5, 6), (2, 3, 4)]
KERNELS = [
    Kernel(1),
    Kernel(3),
    Kernel(3, dilation=2),
    Kernel(5),
    Kernel(2, stride=2),
    Kernel(3, stride=2),
    Kernel(1, stride=2),
    Kernel(2, stride=2, transposed=True),
    Kernel(3, stride=2, transposed=True),
]


def random_voxels(periodic: bool, device: str) -> Voxels:
    """Occupy two fifths of the boxes; in open space, off the origin and with much that no kernel reaches."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for sample, shape in enumerate(BOXES):
        cells = (torch.rand(shape, generator=generator) < 0.4).nonzero()
        rows.append(torch.cat([torch.full((len(cells), 1), sample), cells], 1))
    coords = torch.cat(rows)
    coords = coords[torch.randperm(len(coords), generator=generator)]
    if periodic:
        return Voxels(coords.to(device), torch.tensor(BOXES, device=device))
    coords = torch.cat([coords * torch.tensor([1, 1, 1, 2]) - torch.tensor([0, 3, 0, 0]), torch.tensor([[1, 40, 40, 40]])])
    return Voxels(coords.to(device), None)


def result_and_gradients(kernel: Kernel, periodic: bool, backend: str, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    voxels = random_voxels(periodic, device)
    generator = torch.Generator().manual_seed(1)
    n_in = (voxels.strided(kernel.stride) if kernel.transposed else voxels).n_voxels
    feats = torch.randn(n_in, C_IN, generator=generator).to(device, dtype).requires_grad_()
    weight = (
        (torch.randn(kernel.n_offsets, C_IN, C_OUT, generator=generator) / (C_IN * kernel.n_offsets) ** 0.5)
        .to(device, dtype)
        .requires_grad_()
    )
    value, out_voxels = convolve(feats, weight, voxels, kernel, backend)
    assert len(value) == out_voxels.n_voxels
    assert value.dtype == dtype
    cotangent = torch.randn(value.shape, generator=generator).to(device, dtype)
    return [value.detach(), *torch.autograd.grad(value, (feats, weight), cotangent)]


def device_of(backend: str) -> str:
    """Return where a backend runs here, or skip the test."""
    if backend in backends.PACKAGES and find_spec(backends.PACKAGES[backend][0]) is None:
        pytest.skip(f"{backends.PACKAGES[backend][0]} is not installed")
    if backend == "spconv" and not torch.cuda.is_available():
        pytest.skip("spconv computes on CUDA only")
    if backend == "triton" and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("without a GPU, test_triton_kernels_in_the_interpreter runs this in a process of its own")
    return "cuda" if backend in {"triton", "spconv"} and torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("periodic", [True, False], ids=["periodic", "open"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.size}-{k.stride}-{k.dilation}{'-transposed' if k.transposed else ''}")
def test_backends_agree(kernel: Kernel, periodic: bool, backend: str) -> None:
    device = device_of(backend)
    if backend == "spconv" and kernel.transposed:
        pytest.skip("spconv has no transposed convolution here")
    if backend == "triton" and device == "cpu" and kernel.size == 5:
        pytest.skip("seconds in the interpreter, and nothing in it that size 3 has not")
    expected = result_and_gradients(kernel, periodic, "torch", "cpu", torch.float64)
    for got, want in zip(result_and_gradients(kernel, periodic, backend, device), expected, strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_triton_in_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    device = device_of("triton")
    if device == "cpu" and dtype == torch.bfloat16:
        with pytest.raises(ValueError, match="interpreter"):
            result_and_gradients(Kernel(3), True, "triton", device, dtype)
        return
    expected = result_and_gradients(Kernel(3), True, "torch", "cpu", torch.float64)
    for got, want in zip(result_and_gradients(Kernel(3), True, "triton", device, dtype), expected, strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=2e-2, atol=5e-2)


def test_triton_repeats_bit_for_bit() -> None:
    device = device_of("triton")
    first, second = (result_and_gradients(Kernel(3, stride=2), True, "triton", device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="the tests above run the kernels themselves"
)
def test_triton_kernels_in_the_interpreter() -> None:
    # a process of its own: whether kernels are interpreted is settled when they are first imported
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton and not interpreter", __file__]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False, timeout=300)
    if "only 0-dimensional arrays can be converted" in run.stdout:
        pytest.skip("the interpreter of this triton does not know this numpy; take triton 3.9 or numpy 2.3")
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from matminer_ed3d.sparse.backends import triton_gemm

SIZES = {"n_offsets": 27, "c_in": 64, "c_out": 128, "COLS": 128}
for kernel, pointers, tiles in (
    (triton_gemm._product, ("feats", "weight", "out"), {"ROWS": 128}),
    (triton_gemm._weight_product, ("feats", "grad"), {"CHANNELS": 64}),
):
    for dtype, depth in (("bf16", 64), ("fp32", 32)):
        constants = {**SIZES, **tiles, "DEPTH": depth, "PRECISION": "tf32x3"}
        types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(pointers, "*" + dtype) | {"table": "*i32"}
        types |= {"partial": "*fp32"} if "partial" in types else {}
        types |= dict.fromkeys(constants, "constexpr")
        places = {name: place for place, name in enumerate(kernel.arg_names)}
        aligned = {(places[name],): [["tt.divisibility", 16]] for name, kind in types.items() if kind.startswith("*")}
        source = ASTSource(kernel, types, {(places[name],): value for name, value in constants.items()}, aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "num_stages": 3})
        ptx = compiled.asm["ptx"]
        assert "wgmma" in ptx and "cp.async" in ptx, (kernel.__name__, dtype)
        assert compiled.asm["cubin"]
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_triton_kernels_compile_for_hopper_without_one() -> None:
    """The machine code has the tensor cores' instructions and asynchronous copies."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]
    )
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_triton_refuses_float64_and_a_cpu() -> None:
    with pytest.raises(ValueError, match="backend='torch'"):
        result_and_gradients(Kernel(3), True, "triton", "cpu", torch.float64)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # its layers make objects of autograd functions
@pytest.mark.skipif(find_spec("MinkowskiEngine") is None, reason="MinkowskiEngine is not installed")
def test_minkowski_layer_with_our_weight_gives_our_result() -> None:
    """Its own layer, on coordinates that it strides itself, in open space: the conversion of weights both ways."""
    minkowski = importlib.import_module("matminer_ed3d.sparse.backends.minkowski")
    engine = minkowski._engine()
    voxels = random_voxels(False, "cpu")
    feats = torch.randn(voxels.n_voxels, C_IN)
    for size, stride in ((3, 1), (3, 2), (2, 2), (1, 1)):
        layer = engine.MinkowskiConvolution(C_IN, C_OUT, kernel_size=size, stride=stride, dimension=3)
        weight = minkowski.from_minkowski(layer.kernel.detach())
        assert torch.equal(minkowski.to_minkowski(weight).reshape(layer.kernel.shape), layer.kernel)
        out = layer(engine.SparseTensor(feats, coordinates=voxels.coords.int()))
        expected, out_voxels = convolve(feats, weight, voxels, Kernel(size, stride), "torch")
        rows = {tuple(row): place for place, row in enumerate((out_voxels.coords * torch.tensor([1, stride, stride, stride])).tolist())}
        order = torch.tensor([rows[tuple(row)] for row in out.C.tolist()])
        torch.testing.assert_close(out.F.detach(), expected[order], rtol=0, atol=1e-4)


@pytest.mark.skipif(find_spec("MinkowskiEngine") is None, reason="MinkowskiEngine is not installed")
def test_minkowski_refuses_other_precisions() -> None:
    with pytest.raises(ValueError, match="float32 only"):
        result_and_gradients(Kernel(3), True, "minkowski", "cpu", torch.bfloat16)


def test_weights_go_to_other_layouts_and_back() -> None:
    weight = torch.randn(27, C_IN, C_OUT)
    dense = weight.view(3, 3, 3, C_IN, C_OUT)
    minkowski = importlib.import_module("matminer_ed3d.sparse.backends.minkowski")
    spconv = importlib.import_module("matminer_ed3d.sparse.backends.spconv")
    x, y, z = 0, 1, 2
    assert torch.equal(minkowski.to_minkowski(weight)[x + 3 * y + 9 * z], dense[x, y, z])
    assert torch.equal(minkowski.from_minkowski(minkowski.to_minkowski(weight)), weight)
    assert torch.equal(minkowski.from_minkowski(weight[0]), weight[:1])
    assert torch.equal(spconv.to_spconv(weight)[4, x, y, z], dense[x, y, z, :, 4])
    assert torch.equal(spconv.from_spconv(spconv.to_spconv(weight)), weight)


@pytest.mark.parametrize("kernel", [Kernel(3), Kernel(5, dilation=2), Kernel(2, stride=2)])
def test_images_are_all_that_the_kernel_reaches_and_each_once(kernel: Kernel) -> None:
    voxels = random_voxels(True, "cpu")
    coords, rows = halo.with_images(voxels, kernel)
    found = {tuple(place): row for place, row in zip(coords.tolist(), rows.tolist(), strict=True)}
    assert len(found) == len(coords)
    assert torch.equal(coords[: voxels.n_voxels], voxels.coords)
    occupied = {tuple(place): row for row, place in enumerate(voxels.coords.tolist())}
    for sample, i, j, k in (voxels.strided(kernel.stride).coords * torch.tensor([1, *[kernel.stride] * 3])).tolist():
        nx, ny, nz = BOXES[sample]
        for a, b, c in (kernel.dilation * kernel_offsets(kernel.size)).tolist():
            wrapped = occupied.get((sample, (i + a) % nx, (j + b) % ny, (k + c) % nz))
            assert found.get((sample, i + a, j + b, k + c)) == wrapped
    open_space = random_voxels(False, "cpu")
    assert torch.equal(halo.with_images(open_space, kernel)[0], open_space.coords)


def test_auto_on_a_cpu_is_torch() -> None:
    assert resolve_backend("auto", "cpu") == "torch"
    assert resolve_backend("auto", torch.device("cpu"), torch.bfloat16) == "torch"


def test_auto_on_a_gpu_is_triton_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    assert resolve_backend("auto", "cuda") == "triton"
    assert resolve_backend("auto", "cuda", torch.float64) == "torch"
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert resolve_backend("auto", "cuda") == "torch"


@pytest.mark.parametrize(("name", "install"), [("triton", "pip install"), ("minkowski", "backends.md"), ("spconv", "spconv-cu126")])
def test_an_absent_backend_says_what_to_install(name: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=install):
        result_and_gradients(Kernel(3), True, name, "cpu")


def test_spconv_refuses_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="CUDA"):
        result_and_gradients(Kernel(3), True, "spconv", "cpu")


def test_an_unknown_backend_and_a_wrong_kernel_are_refused() -> None:
    with pytest.raises(ValueError, match="'torch', 'triton', 'minkowski', 'spconv', got 'cudnn'"):
        resolve_backend("cudnn", "cpu")
    with pytest.raises(ValueError, match="got 'cudnn'"):
        SparseConv3d(1, 1, backend="cudnn")
    with pytest.raises(ValueError, match="`stride` of a kernel"):
        Kernel(3, 0)


def test_set_backend_reaches_every_layer() -> None:
    network = torch.nn.Sequential(SparseConv3d(1, 2), torch.nn.Sequential(SparseConv3d(2, 2, backend="torch")))
    set_backend(network, "minkowski")
    assert [layer.backend for layer in network.modules() if isinstance(layer, SparseConv3d)] == ["minkowski"] * 2
    with pytest.raises(ValueError, match="`backend` must be"):
        set_backend(network, "none")
