"""`privacy.mode: distributed`: silos' vectors as whole numbers with a share of the noise in each.

The distributed discrete Gaussian (Kairouz, Liu and Steinke 2021), on the words of secure sums. A
silo clips its vector, rotates it, rounds it to steps of which `steps` are a clipping norm, and adds
its share of the noise. What comes out of a secure sum is then a noised sum of whole numbers, of
which decoding, wraps around a word included, is a function: nothing else needs to be counted.

docs/privacy-distributed.md shows, line by line, that it promises what Gaussian noise of
`noise_multiplier` does; the names there are those here.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch

from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.privacy.discrete_gaussian import discrete_gaussian
from fedtune.privacy.noise import NoiseSource, SecureNoise
from fedtune.privacy.plan import Shares, noise_of_shared
from fedtune.secagg.fixed_point import BASE, packed, unpacked, words_of
from fedtune.secagg.rotation import BLOCK, padded, rotate, rotate_back
from fedtune.tensors import Spec, TensorSet

_LEAST = -(BASE // 2)
_RANGE = 0.98 * (BASE // 2)
_TAIL = 8.0  # standard deviations of the noise, and root mean squares of a rotated vector
_FLOATS = 1.001  # how much longer float arithmetic may make a clipped vector, generously
_SMOOTHING = 2  # standard deviation, in steps, of noise that makes up for whole numbers
_SLACK = 1e-9  # of the noise's variance: more than all bounds of 1e-30 and less add up to
_LEAST_SCALE = 4


@dataclass(frozen=True)
class NoisySum:
    """The code of one round's vectors of `spec`, sums of up to `silos` silos.

    `units` is how many clipped vectors a silo's own sum is expected to have (1 where the silo is
    the unit); `key` makes the round's rotation, and is the same for all silos.
    """

    spec: Spec
    norm: float
    noise_multiplier: float
    shares: Shares
    silos: int
    units: int
    key: bytes

    @property
    def words(self) -> int:
        """Length of a vector."""
        return words_of(padded(self._count))

    @property
    def steps(self) -> int:
        """Whole numbers to a clipping norm: as many as a sum's digits have room for.

        Raises InputError where rounding would count for more than what is rounded.
        """
        silos = 2 * self.shares.silos  # one lost or won changes nothing: a round may be tried again
        if self.silos > silos:
            silos = 1 << (self.silos - 1).bit_length()
        noises = _TAIL * self.noise_multiplier * (silos / self.shares.honest) ** 0.5
        room = _RANGE - noises * self._rounding
        found = math.floor(room / (noises * _FLOATS + silos * self.units * _TAIL / BLOCK**0.5))
        if found < self._rounding:
            raise InputError(
                f"{self._count:,} weights and the noise of {self.silos} silos leave no room to "
                "tell a delta in a secure sum",
                where="privacy.noise_multiplier",
                mend="lower it, raise `federation.min_silos`, or train fewer weights "
                "(`adapter.lora_r`, `adapter.freeze_a`)",
            )
        return found

    @property
    def sensitivity(self) -> float:
        """The most, in steps, that one unit moves the rounded sum (L2)."""
        return self.steps * _FLOATS + self._rounding

    def scale(self, colluders: int) -> int:
        """Standard deviation, in steps, of the noise of a silo that reckons with so many colluders.

        The silos of a sum that tell nobody their noise have, this one's with it, all that is
        counted: each of the others adds what `shares` asks for. Raises ValueError where there are
        no others.
        """
        whole = (self.noise_multiplier * self.sensitivity) ** 2 * (1 + _SLACK) + _SMOOTHING**2
        others = self.shares.silos - max(colluders, self.shares.colluders) - 1
        if others < 0:
            raise ValueError(
                f"sums of {self.shares.silos} silos are noised for {self.shares.colluders} "
                f"colluders, and this silo reckons with {colluders}"
            )
        own = whole - others * whole / self.shares.honest
        return max(_LEAST_SCALE, math.ceil(own**0.5))

    def encode(
        self, vector: TensorSet, *, colluders: int, source: NoiseSource | None = None
    ) -> np.ndarray:
        """The words, uint64 [words], of a silo's vector: a clipped delta, or a sum of clipped
        gradients. `source` is a seeded one in tests only.

        Raises ValueError on a vector of another spec or that isn't finite.
        """
        if vector.spec != self.spec:
            raise ValueError("the vector has other tensors than were agreed")
        if not vector.is_finite():
            raise ValueError("the vector has NaN or infinite values")
        source = source or SecureNoise()
        rotated = rotate(vector.flat().numpy(), self.key) * (self.steps / self.norm)
        # whatever the chance is: with a unit less, each number rounds to within one of its own
        whole = np.floor(rotated + source.uniform(len(rotated)))
        most = math.ceil(self.units * self.steps * _TAIL / BLOCK**0.5)
        numbers = whole.clip(-most, most).astype(np.int64)
        numbers += discrete_gaussian(len(numbers), self.scale(colluders), source)
        return packed(numbers)

    def decode(self, total: np.ndarray) -> TensorSet:
        """The noised sum of vectors whose words add up to `total`, uint64 [words]."""
        if total.shape != (self.words,):
            raise ValueError(f"want {self.words} words")
        numbers = unpacked(total, padded(self._count), _LEAST)
        flat = rotate_back(numbers * (self.norm / self.steps), self.key, self._count)
        sizes = [math.prod(shape) for _, shape in self.spec]
        parts = torch.from_numpy(flat.astype(np.float32)).split(sizes)
        named = zip(self.spec, parts, strict=True)
        return TensorSet({name: part.view(shape) for (name, shape), part in named})

    @property
    def _count(self) -> int:
        return sum(math.prod(shape) for _, shape in self.spec)

    @property
    def _rounding(self) -> float:
        """Length of a vector of ones: less than this is what rounding adds to a difference."""
        return float(padded(self._count) ** 0.5)


def noisy_sum(config: RunConfig, spec: Spec, silos: int, run: str, number: int) -> NoisySum:
    """How vectors of `spec` are summed in round `number` of a run; the same on both sides."""
    told = f"{run} {number}".encode()
    return NoisySum(
        spec,
        config.privacy.clipping_norm,
        noise_of_shared(config),
        Shares(config.federation.min_silos, config.secure_aggregation.max_colluders),
        silos,
        1 if config.privacy.unit == "silo" else config.training.batch_size,
        hashlib.sha256(told).digest(),
    )


def clipped(delta: TensorSet, norm: float) -> TensorSet:
    """`delta`, shorter where its L2 norm is above `norm`."""
    length = delta.norm()
    return delta * (norm / length) if length > norm else delta
