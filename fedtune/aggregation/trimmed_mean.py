"""The coordinate-wise trimmed mean (Yin et al. 2018, "Byzantine-Robust Distributed Learning")."""

import torch
from torch import Tensor

from fedtune.aggregation.together import pieces
from fedtune.tensors import Spec, TensorSet, spec_difference


class TrimmedMean:
    """A running mean of each scalar without its `cut` least and its `cut` largest; unweighted.

    At most `cut` deltas, whatever they hold, move no scalar out of the range of the others'. Only
    what may still be cut is kept apart, so that memory is that of 2 `cut` + 2 deltas however many
    are folded. Their order matters to the last bit of a float64 sum at most.
    """

    def __init__(self, cut: int) -> None:
        if cut < 0:
            raise ValueError(f"{cut} values are cut at each end, want 0 or more")
        self._cut, self._count = cut, 0
        self._spec: Spec = ()
        self._least: list[Tensor] = []
        self._largest: list[Tensor] = []
        self._sum = torch.zeros(0)

    def add(self, delta: TensorSet, weight: float) -> None:
        """Fold `delta` in; `weight` plays no part. Raises ValueError on another spec."""
        if self._count == 0:
            self._spec, self._sum = delta.spec, torch.zeros(delta.count, dtype=torch.float64)
        elif delta.spec != self._spec:
            raise ValueError(f"deltas differ: {spec_difference(self._spec, delta.spec)}")
        whole, number = delta.flat(), self._count
        if number < self._cut:
            self._least.append(torch.empty_like(whole))
        elif number < 2 * self._cut:
            self._largest.append(torch.empty_like(whole))
        for piece in pieces(delta.count):
            self._fold(whole[piece], piece, number)
        self._count += 1

    def _fold(self, scalars: Tensor, piece: slice, number: int) -> None:
        """What is neither among the least nor among the largest goes into the sum for good."""
        if number < self._cut:
            self._least[number][piece] = scalars
            return
        for row in self._least:
            there = row[piece].clone()
            row[piece] = torch.minimum(there, scalars)
            scalars = torch.maximum(there, scalars)
        if number < 2 * self._cut:
            self._largest[number - self._cut][piece] = scalars
            return
        for row in self._largest:
            there = row[piece].clone()
            row[piece] = torch.maximum(there, scalars)
            scalars = torch.minimum(there, scalars)
        self._sum[piece] += scalars

    def result(self) -> TensorSet:
        """The mean, handed over: the fold is empty again.

        Raises ValueError unless more than 2 `cut` deltas were added.
        """
        count, total = self._count - 2 * self._cut, self._sum
        if count < 1:
            raise ValueError(f"{self._count} deltas, {self._cut} cut at each end: nothing is left")
        self._least, self._largest, self._count = [], [], 0
        self._sum = torch.zeros(0)
        return TensorSet.of_flat(total.div_(count).float(), self._spec)
