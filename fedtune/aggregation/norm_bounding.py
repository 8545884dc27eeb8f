"""Norm bounding (Sun et al. 2019, "Can You Really Backdoor Federated Learning?")."""

import math

from torch import Tensor

from fedtune.aggregation.fedavg import WeightedMean
from fedtune.tensors import TensorSet


class BoundedMean:
    """The example-weighted mean of deltas, each scaled down to a norm of at most `bound`.

    Memory is that of the mean and one clipped delta. The mean's norm is at most `bound`, even if
    a silo claims all the weight.
    """

    def __init__(self, bound: float, spare: Tensor | None = None) -> None:
        if not 0.0 < bound < math.inf:
            raise ValueError(f"the norm's bound is {bound}, want above 0")
        self._bound, self._mean = bound, WeightedMean(spare)

    def add(self, delta: TensorSet, weight: float) -> None:
        """Fold `delta` in. Raises ValueError on a weight that is not positive or another spec."""
        self._mean.add(bounded(delta, self._bound), weight)

    def result(self) -> TensorSet:
        """The mean, handed over: the fold is empty again. Raises ValueError when it was empty."""
        return self._mean.result()


def bounded(delta: TensorSet, bound: float) -> TensorSet:
    """`delta`, scaled down if its L2 norm over all scalars exceeds `bound` (float32 rounding
    aside); as it is otherwise.
    """
    norm = delta.norm()
    if norm <= bound:
        return delta
    return TensorSet.of_flat(delta.flat() * (bound / norm), delta.spec)
