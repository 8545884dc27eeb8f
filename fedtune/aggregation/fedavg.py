"""The weighted mean, folded one delta at a time so that only one is alive."""

import math

import torch
from torch import Tensor

from fedtune.tensors import TensorSet, spec_difference


class WeightedMean:
    """Running sum of weight * delta in float64. Fold in silo-name order for bit-equal results."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._template: TensorSet | None = None
        self._weight = 0.0

    def add(self, delta: TensorSet, weight: float) -> None:
        """Fold `delta` in. Raises ValueError on a weight that is not positive or another spec."""
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weight is {weight}, want a positive number")
        if self._template is None:
            # only names and shapes are read again: one scalar seen through zero strides
            self._template = delta.map(lambda tensor: torch.zeros(()).expand(tensor.shape))
            self._sums = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in _items(delta)}
        if delta.spec != self._template.spec:
            raise ValueError(f"deltas differ: {spec_difference(self._template.spec, delta.spec)}")
        for name, tensor in _items(delta):
            self._sums[name].add_(tensor.double(), alpha=weight)
        self._weight += weight

    def result(self) -> TensorSet:
        """The mean, float32. Raises ValueError when nothing was added."""
        if self._template is None:
            raise ValueError("nothing to average")
        return TensorSet({name: (s / self._weight).float() for name, s in self._sums.items()})


def _items(delta: TensorSet) -> list[tuple[str, Tensor]]:
    return list(delta.tensors.items())
