"""Real numbers as integers whose sum can't wrap, several to a 64-bit word.

A number within [-bound, bound] becomes one of `levels` integers from 0 on; three of them are digits
of one word in base 2,642,245, the largest whose cube fits 64 bits. `levels` is chosen from the
number of silos so that no digit of a sum reaches the base: words are then added modulo 2^64, masks
and all, without a carry from digit to digit, at 8/3 bytes a number. It is odd, so that zero is one
of the integers: what is exactly zero in all silos is so in the sum.

Rounding is stochastic, from a stream of the system's randomness: an encoded number's mean is the
number itself, its error below one step, 2 * bound / (levels - 1), and of variance at most a quarter
of the step's square. The mean of n silos so errs by at most one step, and by step / (2 sqrt(n)) in
the root mean square.
"""

import secrets
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedtune.secagg.masks import WORD

BASE = 2_642_245
DIGITS = 3
_CHUNK = 1 << 15  # its numbers stay in a core's cache from step to step


def words_of(count: int) -> int:
    """Words that `count` digits take."""
    return -(-count // DIGITS)


def packed(digits: np.ndarray) -> np.ndarray:
    """Words, uint64 [words_of(count)], of digits, int64 [count], of either sign.

    Words of sums are sums of words modulo 2^64, whatever the digits are: only to tell the digits
    again, each of a sum's must be within a range of the base.
    """
    whole = np.zeros(DIGITS * words_of(len(digits)), np.int64)
    whole[: len(digits)] = digits
    low, middle, high = whole.view(WORD).reshape(DIGITS, -1)
    return low + BASE * (middle + BASE * high)


def unpacked(words: np.ndarray, count: int, least: int = 0) -> np.ndarray:
    """The digits, int64 [count], each from `least` on and below `least` + the base."""
    lifted = words - WORD.type((least * (1 + BASE + BASE**2)) % 2**64)
    rest, low = np.divmod(lifted, BASE)
    high, middle = np.divmod(rest, BASE)
    digits = np.concatenate([low, middle, high])[:count].view(np.int64)
    digits += least
    return digits


@dataclass(frozen=True)
class FixedPoint:
    """The encoding of `count` numbers of which at most `silos` vectors are added.

    Raises ValueError where no encoding is left: more silos than digits have values.
    """

    count: int
    silos: int

    def __post_init__(self) -> None:
        if self.count < 1 or not 1 <= self.silos <= BASE // 2:
            raise ValueError(f"{self.count} numbers of {self.silos} silos can't be added")

    @property
    def levels(self) -> int:
        """Values of one silo's digit, an odd number; a sum of `silos` is below the base."""
        return (BASE - 1) // self.silos // 2 * 2 + 1

    @property
    def words(self) -> int:
        """64-bit words of a vector."""
        return words_of(self.count)

    def step(self, bound: float) -> float:
        """The largest error of one silo's number within `bound`."""
        return 2.0 * bound / (self.levels - 1)

    def encode(self, values: np.ndarray, bounds: np.ndarray, factor: float = 1.0) -> np.ndarray:
        """Words, uint64 [words], of `values`, float [count], each cut to its bound, float [count],
        and multiplied by `factor`, at most 1.

        Raises ValueError on a value that isn't finite or a bound that isn't positive.
        """
        if values.shape != (self.count,) or bounds.shape != (self.count,):
            raise ValueError(f"want {self.count} numbers and bounds")
        if not np.isfinite(values).all() or not (bounds > 0).all():
            raise ValueError("numbers are to be finite, bounds positive")
        chance = Cipher(AES(secrets.token_bytes(32)), CTR(bytes(16))).encryptor()
        words = np.empty(self.words, WORD)
        # piece by piece: whole digits would be three times the words, all of it fresh memory
        for start in range(0, self.words, _CHUNK):
            stop = min(start + _CHUNK, self.words)
            digits = np.zeros((DIGITS, stop - start), np.int64)
            for place, row in enumerate(digits):
                part = slice(place * self.words + start, place * self.words + stop)
                exact = np.divide(values[part], bounds[part], dtype=np.float64)
                row[: len(exact)] = self._rounded(exact, factor, chance)
            words[start:stop] = packed(digits.ravel())
        return words

    def _rounded(self, shares: np.ndarray, factor: float, chance: CipherContext) -> np.ndarray:
        """Digits of numbers that are given as shares of their bounds; works in place."""
        half = 0.5 * (self.levels - 1)
        np.clip(shares, -1.0, 1.0, out=shares)
        shares *= factor * half
        shares += half
        shares += np.frombuffer(chance.update(bytes(4 * len(shares))), "<u4") * 2.0**-32
        # below the next integer by construction, but for floating point at the very top
        return np.minimum(shares, self.levels - 1, out=shares)

    def decode(self, words: np.ndarray, summands: int, bounds: np.ndarray) -> np.ndarray:
        """The sum of `summands` vectors' numbers, float64 [count].

        Raises ValueError on a digit that no sum of honest vectors has.
        """
        if words.shape != (self.words,) or not 1 <= summands <= self.silos:
            raise ValueError(f"want {self.words} words, a sum of 1 to {self.silos} vectors")
        digits = unpacked(words, self.count)
        if int(digits.max()) > summands * (self.levels - 1):
            raise ValueError("the sum is out of range: a silo's vector was")
        half = (self.levels - 1) // 2
        return (digits - summands * half) * (bounds / half)
