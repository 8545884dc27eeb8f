"""A silo's weighted delta as one vector to be masked, and the sum of such vectors as their mean.

Each number travels multiplied by the silo's weight over the largest weight that is allowed, in
fixed point; behind the numbers the weight itself, and of each tensor how many of its numbers were
cut, as whole numbers in words of their own. So the mean is weighted, and nobody sees a weight.

Bounds are agreed in a round's terms before anybody trains, tensor by tensor: a number beyond its
tensor's is cut to it. They come from what is public alone, never from one silo's data: in the first
round from the settings, then from the sum before, so that rounding stays small beside what is sent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedtune.config.schema import RunConfig
from fedtune.secagg.fixed_point import FixedPoint
from fedtune.secagg.masks import WORD
from fedtune.secagg.terms import MAX_HALVINGS
from fedtune.tensors import Spec, TensorSet

_LARGEST_WEIGHT = 1 << 40  # ten thousand of them still fit a word
_FINE = 2.5e-4
"""Of a mean's root mean square, what rounding may be; or up to twice that: bounds are halved."""
_SPARE = 2.0
"""How far beyond what independent silos had in the sum before a number may go without being cut."""
_FEW = 4.0
"""Root mean squares that are taken for the largest of few numbers, which tell less of others."""
_WIDER = 3
"""How many halvings fewer a bound has, from then on, at which numbers were cut."""


@dataclass(frozen=True)
class Bounds:
    """Tensor by tensor, how often the settings' bound is halved, and how often it may ever be."""

    halvings: tuple[int, ...]
    most: tuple[int, ...]


def first_bounds(spec: Spec) -> Bounds:
    """Those of the settings, of which nothing is known yet."""
    return Bounds((0,) * len(spec), (MAX_HALVINGS,) * len(spec))


@dataclass(frozen=True)
class Opened:
    """A sum of `summands` deltas: their weighted mean, the sum of their weights, and by tensor how
    many of their numbers were beyond its bound.
    """

    mean: TensorSet
    summands: int
    weight: int
    cut: Mapping[str, int]


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
        return self._numbers.words + 1 + len(self.spec)

    @property
    def levels(self) -> int:
        """How many integers a number may become."""
        return self._numbers.levels

    def errors(self, opened: Opened) -> dict[str, float]:
        """By tensor, the largest error that rounding may have made in a number of the mean."""
        uneven = self.max_weight * opened.summands / opened.weight
        return {name: uneven * self._numbers.step(bound) for name, bound in self.bounds.items()}

    def rounding(self, opened: Opened) -> dict[str, float]:
        """By tensor, what the root mean square of those errors is at most (silos round apart)."""
        worst = self.errors(opened)
        return {name: error / (2 * opened.summands**0.5) for name, error in worst.items()}

    def bounds_after(self, opened: Opened, now: Bounds) -> Bounds:
        """The bounds of the round after a sum with bounds `now`.

        A bound is halved as often as leaves rounding `_FINE` of the mean, root mean squares both;
        but a number may still be `_SPARE` times what would be cut of silos that are independent of
        each other, whose mean is smaller than they are by the root of their number. Where numbers
        were cut it is widened, and never as narrow again. Of zeros nothing is learned.
        """
        rounding, halvings, most = self.rounding(opened), [], []
        for (name, _), before, known in zip(self.spec, now.halvings, now.most, strict=True):
            numbers, bound = opened.mean[name].double(), self.bounds[name]
            largest, wanted = float(numbers.abs().max()), bound
            limit = max(0, before - _WIDER) if opened.cut[name] else known
            if largest:
                usual = float(numbers.square().mean().sqrt())
                beyond = _SPARE * opened.summands**0.5 * max(largest, _FEW * usual)
                wanted = max(_FINE * usual * bound / rounding[name], beyond)
            fewer = before + math.floor(math.log2(bound / wanted))
            halvings.append(min(limit, max(0, fewer)))
            most.append(limit)
        return Bounds(tuple(halvings), tuple(most))

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
        cut = [int((delta[name].abs() > self.bounds[name]).sum()) for name, _ in self.spec]
        return np.concatenate([words, np.array([counted, *cut], WORD)])

    def decode(self, total: np.ndarray, summands: int) -> Opened:
        """What the sum of `summands` vectors tells. Raises ValueError on one that no honest vectors
        have.
        """
        if total.shape != (self.words,):
            raise ValueError(f"want {self.words} words")
        numbers, (weight, *cut) = np.split(total, [self._numbers.words])
        if not summands <= weight <= summands * self.max_weight:
            raise ValueError("the sum of weights is out of range: a silo's was")
        if any(n > summands * size for n, size in zip(cut, self._sizes, strict=True)):
            raise ValueError("the sum of numbers that were cut is out of range: a silo's was")
        sums = self._numbers.decode(numbers, summands, self._each_bound())
        flat = torch.from_numpy((sums * (self.max_weight / int(weight))).astype(np.float32))
        parts = zip(self.spec, flat.split(self._sizes), strict=True)
        mean = TensorSet({name: part.view(shape) for (name, shape), part in parts})
        told = {name: int(n) for (name, _), n in zip(self.spec, cut, strict=True)}
        return Opened(mean, summands, int(weight), told)

    @property
    def _numbers(self) -> FixedPoint:
        return FixedPoint(sum(self._sizes), self.silos)

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(shape) for _, shape in self.spec]

    def _each_bound(self) -> np.ndarray:
        return np.repeat(np.array([self.bounds[name] for name, _ in self.spec]), self._sizes)


def encoding_of(config: RunConfig, spec: Spec, silos: int, halvings: Sequence[int]) -> Weighted:
    """How deltas of `spec` are encoded in a round of so many silos; the same on both sides.

    `halvings` are those of the round's terms. Raises ValueError unless there is one a tensor.
    """
    if len(halvings) != len(spec):
        raise ValueError(f"bounds of {len(halvings)} tensors are told, want {len(spec)}")
    widest = config.secure_aggregation.bound_in(config.training)
    bounds = {name: widest / 2**n for (name, _), n in zip(spec, halvings, strict=True)}
    return Weighted(spec, bounds, silos, config.secure_aggregation.max_weight)
