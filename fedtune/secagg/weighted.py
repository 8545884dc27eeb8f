"""A silo's weighted delta as one vector to be masked, and the sum of such vectors as their mean.

Each number travels multiplied by the silo's weight over the largest weight that is allowed, in
fixed point; the weight itself as a whole number in a word of its own, at the end. So the mean is
weighted, and nobody sees a weight.

Bounds are agreed before anybody trains, tensor by tensor: a number beyond its tensor's is cut to
it. They must come from what is public (settings, earlier sums), never from a silo's own data.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fedtune.config.schema import RunConfig
from fedtune.secagg.fixed_point import FixedPoint
from fedtune.secagg.masks import WORD
from fedtune.tensors import Spec, TensorSet

_LARGEST_WEIGHT = 1 << 40  # ten thousand of them still fit a word


@dataclass(frozen=True)
class Weighted:
    """The encoding of deltas of `spec`, of at most `silos` silos of weight `max_weight` at most.

    `bounds` gives each tensor's largest absolute value.
    """

    spec: Spec
    bounds: Mapping[str, float]
    silos: int
    max_weight: int

    def __post_init__(self) -> None:
        if self.bounds.keys() != {name for name, _ in self.spec}:
            raise ValueError("want a bound for each tensor")
        if not 1 <= self.max_weight <= _LARGEST_WEIGHT:
            raise ValueError(f"the largest weight is {self.max_weight}, want up to 2^40")

    @property
    def words(self) -> int:
        """Length of a vector."""
        return self._numbers.words + 1

    def errors(self) -> dict[str, float]:
        """By tensor, the largest error of a mean of silos that all have the largest weight; of
        others it is larger by that weight over the mean of theirs.
        """
        return {name: self._numbers.step(bound) for name, bound in self.bounds.items()}

    def encode(self, delta: TensorSet, weight: int) -> np.ndarray:
        """The vector, uint64 [words]; a weight over the largest counts as the largest.

        Raises ValueError on a delta of another spec or that isn't finite, or a weight below 1.
        """
        if delta.spec != self.spec:
            raise ValueError("the delta has other tensors than were agreed")
        if weight < 1:
            raise ValueError(f"the weight is {weight}, want 1 at least")
        counted = min(weight, self.max_weight)
        values = np.concatenate([delta[name].numpy().ravel() for name, _ in self.spec])
        # cut before it is weighed: a number beyond its bound must not profit from a small weight
        words = self._numbers.encode(values, self._each_bound(), counted / self.max_weight)
        return np.append(words, WORD.type(counted))

    def decode(self, total: np.ndarray, summands: int) -> tuple[TensorSet, int]:
        """The weighted mean of `summands` vectors, and the sum of their weights.

        Raises ValueError on a sum that no honest vectors have.
        """
        if total.shape != (self.words,):
            raise ValueError(f"want {self.words} words")
        weight = int(total[-1])
        if not summands <= weight <= summands * self.max_weight:
            raise ValueError("the sum of weights is out of range: a silo's was")
        bounds = self._each_bound()
        sums = self._numbers.decode(total[:-1], summands, bounds)
        flat = torch.from_numpy((sums * (self.max_weight / weight)).astype(np.float32))
        sizes = [int(np.prod(shape)) for _, shape in self.spec]
        parts = zip(self.spec, flat.split(sizes), strict=True)
        return TensorSet({name: part.view(shape) for (name, shape), part in parts}), weight

    @property
    def _numbers(self) -> FixedPoint:
        return FixedPoint(sum(int(np.prod(shape)) for _, shape in self.spec), self.silos)

    def _each_bound(self) -> np.ndarray:
        sizes = [int(np.prod(shape)) for _, shape in self.spec]
        return np.repeat(np.array([self.bounds[name] for name, _ in self.spec]), sizes)


def encoding_of(config: RunConfig, spec: Spec, silos: int) -> Weighted:
    """How deltas of `spec` are encoded in a round of so many silos; the same on both sides."""
    settings = config.secure_aggregation
    bounds = dict.fromkeys((name for name, _ in spec), settings.bound_in(config.training))
    return Weighted(spec, bounds, silos, settings.max_weight)
