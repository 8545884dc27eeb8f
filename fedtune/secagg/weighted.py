"""A silo's weighted delta as one vector to be masked, and the sum of such vectors as their mean.

Each number travels multiplied by the silo's weight over the largest weight that is allowed, in
fixed point. Behind the numbers come whole ones, in words of their own: the weight, and of each
tensor how many of its numbers were cut and which of four thresholds some number was beyond. So the
mean is weighted and nobody sees a weight, and the sum tells how near silos came to their bounds.

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
_THRESHOLDS = (1, 2, 4, 8)
"""Halvings of a bound at which silos tell whether any of a tensor's numbers is beyond it."""
_ROOM = (-1, 0, 1, 3, 7)
"""Halvings after which no number is beyond half of the bound, when some are beyond the first, the
second, ... of the thresholds, or none. (Where numbers were cut nobody knows: `_AFTER_CUTS`.)"""
_AFTER_CUTS = -3
_FIELD = 16  # bits of a word in which a threshold's silos are counted, of 10,000 at most


@dataclass(frozen=True)
class Opened:
    """A sum of `summands` deltas: their weighted mean, the sum of their weights, and by tensor how
    many of their numbers were cut to its bound, and how often that may be halved with every number
    still within half of it (negative: how often it is to be doubled).
    """

    mean: TensorSet
    summands: int
    weight: int
    cut: Mapping[str, int]
    room: Mapping[str, int]


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
        return self._numbers.words + 1 + 2 * len(self.spec)

    @property
    def levels(self) -> int:
        """How many integers a number may become."""
        return self._numbers.levels

    def errors(self, opened: Opened) -> dict[str, float]:
        """By tensor, the largest error that rounding may have made in a number of the mean."""
        uneven = self.max_weight * opened.summands / opened.weight
        return {name: uneven * self._numbers.step(bound) for name, bound in self.bounds.items()}

    def rounding(self, opened: Opened) -> dict[str, float]:
        """By tensor, the root mean square of those errors that is to be expected, at most: silos
        round independently of each other.
        """
        worst = self.errors(opened)
        return {name: error / (2 * opened.summands**0.5) for name, error in worst.items()}

    def halvings_after(self, opened: Opened, halvings: Sequence[int]) -> tuple[int, ...]:
        """The halvings of the round after a sum with these.

        As many as leave rounding `_FINE` of the mean, root mean squares both, but no more than
        leave each number of this sum within half of its bound. Of zeros nothing is learned.
        """
        rounding, found = self.rounding(opened), []
        for (name, _), before in zip(self.spec, halvings, strict=True):
            usual = float(opened.mean[name].double().square().mean().sqrt())
            wanted = math.floor(math.log2(rounding[name] / (_FINE * usual))) if usual else 0
            found.append(min(MAX_HALVINGS, max(0, before + min(wanted, opened.room[name]))))
        return tuple(found)

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
        told = [_told(delta[name].numpy(), self.bounds[name]) for name, _ in self.spec]
        return np.concatenate([words, np.array([counted, *np.ravel(told)], WORD)])

    def decode(self, total: np.ndarray, summands: int) -> Opened:
        """What the sum of `summands` vectors tells. Raises ValueError on one that no honest vectors
        have.
        """
        if total.shape != (self.words,):
            raise ValueError(f"want {self.words} words")
        numbers, (weight, *told) = np.split(total, [self._numbers.words])
        if not summands <= weight <= summands * self.max_weight:
            raise ValueError("the sum of weights is out of range: a silo's was")
        sums = self._numbers.decode(numbers, summands, self._each_bound())
        flat = torch.from_numpy((sums * (self.max_weight / int(weight))).astype(np.float32))
        parts = zip(self.spec, flat.split(self._sizes), strict=True)
        mean = TensorSet({name: part.view(shape) for (name, shape), part in parts})
        cut, room = {}, {}
        for (name, _), size, n, beyond in zip(
            self.spec, self._sizes, told[::2], told[1::2], strict=True
        ):
            if n > summands * size:
                raise ValueError("the sum of numbers that were cut is out of range: a silo's was")
            cut[name], room[name] = int(n), _AFTER_CUTS if n else _room(int(beyond), summands)
        return Opened(mean, summands, int(weight), cut, room)

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


def _told(numbers: np.ndarray, bound: float) -> tuple[int, int]:
    """How many numbers of a tensor are beyond its bound, and a one in the field of each threshold
    that its largest is beyond.
    """
    largest = max(float(numbers.max()), -float(numbers.min()))
    cut = int((np.abs(numbers) > bound).sum()) if largest > bound else 0
    beyond = [largest > bound / 2**halvings for halvings in _THRESHOLDS]
    return cut, sum(one << _FIELD * n for n, one in enumerate(beyond))


def _room(beyond: int, summands: int) -> int:
    """How often a bound may be halved, by how many silos have numbers beyond each threshold."""
    silos = [beyond >> _FIELD * n & ((1 << _FIELD) - 1) for n in range(len(_THRESHOLDS))]
    if max(silos) > summands:
        raise ValueError("the sum of what silos told of their bounds is out of range")
    return next((room for room, count in zip(_ROOM, silos, strict=False) if count), _ROOM[-1])
