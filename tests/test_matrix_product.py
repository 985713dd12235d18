"""The matrix product: that of numpy in every layout, with and without oneDNN, and never a wrong gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from matminer_ed3d.sparse import matrix_product as module
from matminer_ed3d.sparse.matrix_product import matrix_product

LAYOUTS: dict[str, Callable[[int, int], Tensor]] = {
    "rows": lambda m, n: torch.randn(m, n),
    "transposed": lambda m, n: torch.randn(n, m).t(),
    "a part": lambda m, n: torch.randn(m + 3, n + 5)[1 : m + 1, 2 : n + 2],
    "one row for all": lambda m, n: torch.randn(1, n).expand(m, n),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("left", "right"), list(itertools.product(LAYOUTS, LAYOUTS)))
def test_equals_numpy_in_every_layout(left: str, right: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for m, k, n in ((7, 130, 5), (1, 1, 1), (64, 3, 33)):
        a, b = LAYOUTS[left](m, k).to(dtype), LAYOUTS[right](k, n).to(dtype)
        want = a.double().numpy() @ b.double().numpy()
        scale = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2}[dtype] * np.sqrt(k) * 3
        out = torch.empty(n, m, dtype=dtype).t()
        for product in (matrix_product(a, b), matrix_product(a, b, out=out), out):
            assert product.dtype == dtype
            np.testing.assert_allclose(product.double().numpy(), want, rtol=0, atol=scale)


def test_agrees_with_torch_where_there_is_no_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(20, 300), torch.randn(300, 8)
    product = matrix_product(a, b)
    monkeypatch.setattr(module, "_onednn_linear", lambda: None)
    torch.testing.assert_close(matrix_product(a, b), product, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_runs_back(dtype: torch.dtype) -> None:
    a = torch.randn(4, 5, dtype=dtype, requires_grad=True)
    assert not matrix_product(a, torch.randn(5, 3, dtype=dtype)).requires_grad
