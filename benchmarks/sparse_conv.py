"""Layers of sparse convolution: python benchmarks/sparse_conv.py [--threads 2] [--device cuda] [--fills 1 0.5 0.25] [--minkowski PYTHON].

For each fill and layer it times, in turns, our engine by every backend that is installed for the device (float32, bfloat16; spconv
float32, float16), dense circular conv3d on the boxes, and, in an interpreter that has it, MinkowskiEngine: forward, and forward with
backward, minima over the rounds. Voxels are the densest of smooth random fields, 8 samples of 8,000, kernel 3. Flops are useful ones: two
for each pair of voxels that a kernel joins and each number of its weight; backward counts twice. The fraction is of the fastest product
of two matrices of 1024 x 1024 (8192 x 8192 on a GPU) in that precision, by torch.mm or by ours, measured in every round. One JSON line per
case. MinkowskiEngine and spconv know no wrapping, so they convolve open space, where pairs are fewer; their flops count those.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

N_SAMPLES, N_VOXELS, SIZE = 8, 8000, 3
PRECISIONS = ("float32", "bfloat16")
OURS = "ours"  # backend torch
LAYERS = ((32, 32), (64, 128), (128, 128), (256, 256))

Calls = tuple[Callable[[], object], Callable[[], object]]  # forward; forward and backward


def smooth_boxes(fill: float) -> tuple[Any, Any, tuple[int, int, int, int]]:
    """Return rows [sample, i, j, k] of the densest voxels of smooth periodic fields, the boxes, and the shape of all of them."""
    import torch

    generator = torch.Generator().manual_seed(0)
    edge = round((N_VOXELS / fill) ** (1 / 3) / 2) * 2
    k = torch.fft.fftfreq(edge) * edge
    blur = torch.exp(-(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2) / 18)
    rows = []
    for sample in range(N_SAMPLES):
        field = torch.fft.ifftn(torch.fft.fftn(torch.randn(edge, edge, edge, generator=generator)) * blur).real
        cells = field.flatten().topk(min(N_VOXELS, edge**3))[1].sort()[0]
        rows.append(torch.stack([torch.full_like(cells, sample), cells // edge**2, cells // edge % edge, cells % edge], 1))
    return torch.cat(rows), torch.full((N_SAMPLES, 3), edge), (N_SAMPLES, edge, edge, edge)


def seconds(call: Callable[[], object]) -> float:
    """Return the time of one call: of a single thread the time on a CPU, which other processes hardly change."""
    torch = sys.modules["torch"]
    on_gpu = torch.cuda.is_initialized()
    clock = time.thread_time if os.environ["OMP_NUM_THREADS"] == "1" and not on_gpu else time.perf_counter
    if on_gpu:
        torch.cuda.synchronize()
    started = clock()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - started


def pair_of_calls(run: Callable[[], Any], inputs: list[Any]) -> Calls:
    """Return the forward pass, and forward with backward, of a layer."""
    import torch

    with torch.no_grad():
        cotangent = torch.randn_like(run())

    def forward() -> None:
        with torch.no_grad():
            run()

    def both() -> None:
        for tensor in inputs:
            tensor.grad = None
        run().backward(cotangent)

    return forward, both


def serve_minkowski() -> None:
    """Answer requests, one JSON line each, with the times of MinkowskiEngine's layer; run by the interpreter of --minkowski."""
    import collections
    import collections.abc
    import warnings

    for name in ("Sequence", "Iterable", "Mapping"):  # MinkowskiEngine 0.5.4 asks for names that Python 3.10 moved
        setattr(collections, name, getattr(collections.abc, name))
    warnings.filterwarnings("ignore")
    import MinkowskiEngine
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def one_round(fill: float, c_in: int, c_out: int) -> dict[str, float]:
        coords, _, _ = smooth_boxes(fill)
        manager = MinkowskiEngine.CoordinateManager(D=3)
        feats = torch.randn(len(coords), c_in, requires_grad=True)
        layer = MinkowskiEngine.MinkowskiConvolution(c_in, c_out, kernel_size=SIZE, dimension=3)

        def first() -> Any:
            return MinkowskiEngine.SparseTensor(feats, coordinates=coords.int(), coordinate_manager=manager)

        first_s = seconds(lambda: layer(first()))  # with its coordinate map and kernel map
        key = first().coordinate_map_key
        forward, both = pair_of_calls(
            lambda: layer(MinkowskiEngine.SparseTensor(feats, coordinate_map_key=key, coordinate_manager=manager)).F, [feats, layer.kernel]
        )
        forward_s = seconds(forward)
        return {"forward": forward_s, "both": seconds(both), "map": max(0.0, first_s - forward_s)}

    for line in sys.stdin:
        print(json.dumps(one_round(**json.loads(line))), flush=True)


class Minkowski:
    """MinkowskiEngine in its own interpreter, asked for one round at a time."""

    def __init__(self, python: str, threads: int) -> None:
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads), OMP_WAIT_POLICY="PASSIVE")
        command = [python, str(Path(__file__).resolve()), "--serve-minkowski"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, fill: float, c_in: int, c_out: int) -> dict[str, float]:
        """Return the times of one round."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"fill": fill, "c_in": c_in, "c_out": c_out}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the interpreter of --minkowski ended; does it have MinkowskiEngine?")
        return dict(json.loads(answer))


def backends_of(device: str, dtype_name: str) -> list[str]:
    """Name the backends that compute on a device in a precision and are installed."""
    if device == "cpu":
        return ["torch"] if dtype_name != "float16" else []
    which = {"torch": "torch", "triton": "triton"} if dtype_name != "float16" else {}
    if dtype_name != "bfloat16":
        which["spconv"] = "spconv"
    return [backend for backend, package in which.items() if find_spec(package)]


def our_calls(
    voxels: dict[str, Any], shape: tuple[int, int, int, int], c_in: int, c_out: int, dtype_name: str, options: argparse.Namespace
) -> dict[str, Calls]:
    """Return the passes of our engine, and of dense convolution with our padding of the boxes and with torch's, in one precision."""
    import torch
    from torch.nn import functional

    from matminer_ed3d.sparse import dense
    from matminer_ed3d.sparse.backends import Kernel, convolve, convolve_map
    from matminer_ed3d.sparse.voxels import kernel_map

    def leaf(tensor: Any) -> Any:
        return tensor.detach().to(options.device, getattr(torch, dtype_name)).requires_grad_()

    kmap, _ = kernel_map(voxels["periodic"], SIZE)  # not through `convolve`, which takes full boxes to dense convolution
    feats, weight = leaf(torch.randn(kmap.n_in, c_in)), leaf(torch.randn(SIZE**3, c_in, c_out) * 0.05)
    calls = {}
    for backend in backends_of(options.device, dtype_name):
        if backend == "spconv":
            run = partial(lambda name: convolve(feats, weight, voxels["open"], Kernel(SIZE), name)[0], backend)
        else:
            run = partial(convolve_map, feats, weight, kmap, backend)
        calls[f"{OURS if backend == 'torch' else backend} {dtype_name}"] = pair_of_calls(run, [feats, weight])
    if not options.no_dense and dtype_name != "float16":
        rows = leaf(torch.randn(shape).flatten()[:, None].repeat(1, c_in))
        calls[f"dense, our padding {dtype_name}"] = pair_of_calls(lambda: dense.convolve(rows, weight, shape, SIZE), [rows, weight])
        grid = leaf(torch.randn(shape[0], c_in, *shape[1:]).to(memory_format=torch.channels_last_3d))
        kernel = leaf(torch.randn(c_out, c_in, SIZE, SIZE, SIZE) * 0.05)
        calls[f"dense, torch's padding {dtype_name}"] = pair_of_calls(
            lambda: functional.conv3d(functional.pad(grid, (SIZE // 2,) * 6, mode="circular"), kernel), [grid, kernel]
        )
    return calls


def peaks_of(dtype_name: str, device: str) -> dict[str, float]:
    """Return the fastest of ten matrix products by torch.mm and by our choice of library, GFLOP/s."""
    import torch

    from matminer_ed3d.sparse.matrix_product import matrix_product

    n = 1024 if device == "cpu" else 8192
    square = torch.randn(n, n).to(device, getattr(torch, dtype_name))
    products = {f"torch.mm {dtype_name}": torch.mm, f"{OURS} {dtype_name}": matrix_product}
    return {
        name: 2 * n**3 / min(seconds(lambda product=product: product(square, square)) for _ in range(10)) / 1e9
        for name, product in products.items()
    }


def measure_layer(fill: float, c_in: int, c_out: int, minkowski: Minkowski | None, options: argparse.Namespace) -> None:
    """Time one layer at one fill by every engine in turns, and print a line for each."""
    from matminer_ed3d.sparse.voxels import Voxels, kernel_map

    coords, boxes, shape = smooth_boxes(fill)
    coords, boxes = coords.to(options.device), boxes.to(options.device)
    voxels = {"periodic": Voxels(coords, boxes), "open": Voxels(coords, None)}
    maps = {space: kernel_map(those, SIZE)[0] for space, those in voxels.items()}
    flops = {space: 2 * c_in * c_out * int((kmap.neighbours < kmap.n_in).sum()) / 1e9 for space, kmap in maps.items()}
    precisions = PRECISIONS if options.device == "cpu" else (*PRECISIONS, "float16")
    calls: dict[str, Calls] = {}
    for name in precisions:
        calls |= our_calls(voxels, shape, c_in, c_out, name, options)
    times: dict[str, list[tuple[float, ...]]] = {}
    peaks: dict[str, float] = {}
    for _ in range(options.repeats + 1):
        for name in precisions:
            peaks |= {which: max(peaks.get(which, 0.0), gflops) for which, gflops in peaks_of(name, options.device).items()}
        map_s = seconds(lambda: kernel_map(Voxels(coords, boxes), SIZE))
        for name, (forward, both) in calls.items():
            times.setdefault(name, []).append((seconds(forward), seconds(both), map_s))
        if minkowski:
            answer = minkowski.ask(fill, c_in, c_out)
            times.setdefault("MinkowskiEngine float32", []).append((answer["forward"], answer["both"], answer["map"]))
    best_of = {name: [min(column) for column in zip(*rounds, strict=True)] for name, rounds in times.items()}
    for name, (forward_s, both_s, map_s) in best_of.items():
        useful = 3 * flops["open" if name.startswith(("Mink", "spconv")) else "periodic"] / both_s
        row: dict[str, Any] = {"fill": fill, "layer": f"{c_in}->{c_out}", "engine": name}
        row |= {"forward_ms": round(forward_s * 1e3, 1), "both_ms": round(both_s * 1e3, 1), "gflops": round(useful)}
        row |= {"fraction_of_peak": round(useful / max(value for which, value in peaks.items() if which.endswith(name.split()[-1])), 2)}
        if not name.startswith("dense"):
            row |= {"map_ms": round(map_s * 1e3, 1)}
        if name.startswith("Mink"):
            row |= {f"times_ours_{name}": round(both_s / best_of[f"{OURS} {name}"][1], 2) for name in PRECISIONS}
        print(json.dumps(row), flush=True)
    print(json.dumps({"peak_gflops": {name: round(value) for name, value in peaks.items()}, "load": os.getloadavg()[0]}), flush=True)


def measure(options: argparse.Namespace) -> None:
    """Time all cases and print them."""
    import torch

    torch.set_num_threads(options.threads)
    minkowski = Minkowski(options.minkowski, options.threads) if options.minkowski else None
    print(json.dumps({"device": options.device, "threads": options.threads, "torch": torch.__version__}))
    for fill in options.fills:
        for c_in, c_out in options.layers:
            measure_layer(fill, c_in, c_out, minkowski, options)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fills", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument(
        "--layers", type=lambda text: tuple(map(int, text.split("-"))), nargs="+", default=LAYERS, help="such as 32-32 64-128"
    )
    parser.add_argument("--no-dense", action="store_true", help="without dense conv3d")
    parser.add_argument("--minkowski", metavar="PYTHON", help="an interpreter with MinkowskiEngine and torch")
    parser.add_argument("--serve-minkowski", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_minkowski:
        serve_minkowski()
        return
    settings = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(options.threads)}
    if os.environ | settings != os.environ:  # before torch starts its threads: they would otherwise spin against each other
        os.environ |= settings
        os.execv(sys.executable, [sys.executable, *sys.argv])
    measure(options)


if __name__ == "__main__":
    main()
