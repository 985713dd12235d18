"""What a network does to densities before its first layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["DENSITY_SCALE", "compress_density"]

# e/Å³, about the valence density half-way between bonded atoms: linear below it, logarithmic above, towards the nuclei.
DENSITY_SCALE = 0.1


def compress_density(feats: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """Return ``sign(x) log(1 + |x| / 0.1)`` of densities in e/Å³.

    Densities run over five orders of magnitude, from 0.01 between molecules to 1000 at a heavy nucleus; this brings them to 0.1 to 9
    and keeps the sign of a spin density.
    """
    return feats.sign() * torch.log1p(feats.abs() / DENSITY_SCALE)
