"""The weighted mean, folded one delta at a time in the memory of one."""

import math

from torch import Tensor

from fedtune.tensors import Spec, TensorSet, spec_difference


class WeightedMean:
    """A running mean, moved in place towards each delta by its share of the weight so far.

    One delta's memory however many are folded. After n of them a scalar is off by at most about
    n * 6e-8 of the largest that was seen at its place (float32 rounding of each step). Fold in
    silo-name order for bit-equal results. The mean is built in `spare`, float32 [count], if given.
    """

    def __init__(self, spare: Tensor | None = None) -> None:
        self._mean: Tensor | None = None
        self._spare = spare
        self._spec: Spec = ()
        self._weight = 0.0

    def add(self, delta: TensorSet, weight: float) -> None:
        """Fold `delta` in. Raises ValueError on a weight that is not positive or another spec."""
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weight is {weight}, want a positive number")
        if self._mean is None:
            self._mean, self._spec, self._weight = self._copy(delta.flat()), delta.spec, weight
            return
        if delta.spec != self._spec:
            raise ValueError(f"deltas differ: {spec_difference(self._spec, delta.spec)}")
        self._weight += weight
        self._mean.lerp_(delta.flat(), weight / self._weight)

    def _copy(self, whole: Tensor) -> Tensor:
        spare, self._spare = self._spare, None
        return whole.clone() if spare is None else spare.copy_(whole)

    def result(self) -> TensorSet:
        """The mean, handed over: the fold is empty again. Raises ValueError when it was empty."""
        if self._mean is None:
            raise ValueError("nothing to average")
        mean, self._mean, self._weight = self._mean, None, 0.0
        return TensorSet.of_flat(mean, self._spec)
