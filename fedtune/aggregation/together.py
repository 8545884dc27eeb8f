"""Rules that need all of a round's deltas at once: kept as they came, combined at the end.

They can't be folded one at a time, so the server's memory grows with the silos of a round.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fedtune.tensors import TensorSet, spec_difference

_SCALARS = 65_536
"""Scalars of each delta that are stacked together: what is made on the way stays small."""


class Together:
    """Keeps deltas (views of the replies' bytes, no copies) until `combine` makes one of them."""

    def __init__(self, combine: Callable[[Sequence[TensorSet]], TensorSet]) -> None:
        self._combine = combine
        self._deltas: list[TensorSet] = []

    def add(self, delta: TensorSet, weight: float) -> None:
        """Keep `delta`; `weight` plays no part. Raises ValueError on another spec."""
        if self._deltas and delta.spec != self._deltas[0].spec:
            difference = spec_difference(self._deltas[0].spec, delta.spec)
            raise ValueError(f"deltas differ: {difference}")
        self._deltas.append(delta)

    def result(self) -> TensorSet:
        """What the deltas make. Raises ValueError when they are too few."""
        deltas, self._deltas = self._deltas, []
        return self._combine(deltas)


def stacked(deltas: Sequence[TensorSet]) -> Iterator[tuple[slice, Tensor]]:
    """All scalars of all deltas, piece by piece: which they are, and [deltas, piece] float32."""
    rows = [delta.flat() for delta in deltas]
    for piece in pieces(rows[0].shape[0]):
        yield piece, torch.stack([row[piece] for row in rows])


def pieces(count: int) -> Iterator[slice]:
    """`count` scalars in pieces that fit a processor's cache."""
    return (slice(start, start + _SCALARS) for start in range(0, count, _SCALARS))
