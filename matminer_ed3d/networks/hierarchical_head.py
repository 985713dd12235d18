"""One head for the three targets: the crystal system, the extinction group within it, the space group within that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from matminer_ed3d import labels

__all__ = ["HierarchicalHead", "grouped_log_softmax"]


def grouped_log_softmax(logits: Float[Tensor, "n k"], group: Int64[Tensor, " k"]) -> Float[Tensor, "n k"]:
    """Logarithms of probabilities that sum to 1 within each group of columns."""
    index = group.expand_as(logits)
    n_groups = int(group.max()) + 1
    largest = logits.new_full((len(logits), n_groups), -torch.inf).scatter_reduce(1, index, logits.detach(), "amax")
    shifted = logits - largest.gather(1, index)
    sums = logits.new_zeros(len(logits), n_groups).index_add(1, group, shifted.exp())
    return shifted - sums.log().gather(1, index)


class HierarchicalHead(nn.Module):
    """Space groups by the rule of the product: p(space group) = p(system) p(extinction group | system) p(space group | extinction group).

    The cross-entropy of the product is the sum of those of the three targets, so each is taught by every sample; and the sums of the
    probabilities over a system or an extinction group are what the head says of it.

    Parameters
    ----------
    c_in : int
        Channels in.
    space_group_numbers : sequence of int
        The classes, in the order of the outputs.
    """

    def __init__(self, c_in: int, space_group_numbers: Sequence[int]) -> None:
        super().__init__()
        extinction, of_class = np.unique(labels.target_of(space_group_numbers, "extinction_group"), return_inverse=True)
        systems = [labels.crystal_system(labels.extinction_group_members(int(group))[0]) for group in extinction]
        _, of_extinction = np.unique(systems, return_inverse=True)
        self.register_buffer("of_class", torch.from_numpy(of_class), persistent=False)
        self.register_buffer("of_extinction", torch.from_numpy(of_extinction), persistent=False)
        self.n_outputs = int(of_extinction.max()) + 1, len(extinction), len(of_class)
        self.linear = nn.Linear(c_in, sum(self.n_outputs))

    def forward(self, feats: Float[Tensor, "n c_in"]) -> Float[Tensor, "n n_classes"]:
        """Return logarithms of the probabilities of the space groups."""
        of_class, of_extinction = self.get_buffer("of_class"), self.get_buffer("of_extinction")
        systems, extinction, space_groups = self.linear(feats).float().split(self.n_outputs, dim=1)
        extinction = grouped_log_softmax(extinction, of_extinction) + systems.log_softmax(1)[:, of_extinction]
        return grouped_log_softmax(space_groups, of_class) + extinction[:, of_class]

    def extra_repr(self) -> str:
        """Describe the layer in ``print(module)``."""
        return "systems, extinction groups, space groups: {}, {}, {}".format(*self.n_outputs)
