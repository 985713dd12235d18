"""The matrix product, by the faster of the libraries that torch carries.

``torch.mm`` computes float32 on a CPU with MKL, which gives AVX-512 to Intel's processors only; oneDNN, which torch takes for
bfloat16, uses what a processor has. On an EPYC of 2024 that is 2.3 times as fast (``benchmarks/sparse_conv.py`` prints both). Either
repeats bit for bit.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["matrix_product"]


@cache
def _onednn_linear() -> Any:
    """Return ``left @ right.t()`` of oneDNN, which torch keeps for its compiler; None where this build has none, or off x86-64, untried."""
    if platform.machine().lower() not in {"x86_64", "amd64"} or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@torch.no_grad()
def matrix_product(
    left: Float[Tensor, "m k"], right: Float[Tensor, "k n"], out: Float[Tensor, "m n"] | None = None
) -> Float[Tensor, "m n"]:
    """Return ``left @ right``, on which no gradient runs back.

    Parameters
    ----------
    left, right : (m, k) and (k, n) float
        Of one type. Transposed ones need no copy; where one is far larger than the other, the faster place for it is the right one
        transposed.
    out : (m, n) float, optional
        Where to write the product.

    Returns
    -------
    (m, n) float
    """
    linear = _onednn_linear()
    if linear is None or left.device.type != "cpu" or left.dtype != torch.float32 or not torch.backends.mkldnn.enabled:
        return torch.mm(left, right, out=out)
    product: Tensor = linear(left, right.t(), None, "none", [], "")
    return product if out is None else out.copy_(product)
