"""The coordinate-wise median (Yin et al. 2018, "Byzantine-Robust Distributed Learning")."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedtune.aggregation.together import stacked
from fedtune.tensors import TensorSet


def coordinate_median(deltas: Sequence[TensorSet]) -> TensorSet:
    """The median of each scalar over `deltas`, of their spec; unweighted.

    With an even number, halfway between the middle two. Less than half of the deltas, whatever
    they hold, move no scalar out of the range of the others'. Raises ValueError on no delta.
    """
    if not deltas:
        raise ValueError("nothing to take the median of")
    whole = torch.empty(deltas[0].count)
    for piece, scalars in stacked(deltas):
        whole[piece] = _middle(scalars)
    return TensorSet.of_flat(whole, deltas[0].spec)


def _middle(scalars: Tensor) -> Tensor:
    """[deltas, n] to [n]."""
    count = len(scalars)
    ordered = scalars.sort(dim=0).values
    # halves first: the sum of two large float32 may overflow
    return ordered[(count - 1) // 2] * 0.5 + ordered[count // 2] * 0.5
