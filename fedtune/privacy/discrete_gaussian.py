"""Whole numbers with exactly a discrete Gaussian's probabilities (Canonne, Kamath, Steinke 2020).

Algorithms 1 to 3 of that paper for many numbers at once: every chance is that of a whole number
below another one, drawn from random words without bias, so that no floating point is in it.
"""

import numpy as np

from fedtune.privacy.noise import NoiseSource

MOST_SCALE = 1 << 24  # its squares, times any number of turns, stay far below 2^63
_AT_ONCE = 1 << 16
_MORE = 1.4  # candidates for each number wanted, of which three in four are taken


def discrete_gaussian(count: int, scale: int, source: NoiseSource) -> np.ndarray:
    """Int64 [count], independent: x has a probability proportional to exp(-x^2 / (2 scale^2)).

    Raises ValueError on a scale that isn't a whole number from 1 to 2^24.
    """
    if not isinstance(scale, int) or not 1 <= scale <= MOST_SCALE:
        raise ValueError(f"the scale is {scale}, want a whole number from 1 to {MOST_SCALE}")
    found = np.empty(count, np.int64)
    done = 0
    while done < count:
        wanted = min(count - done, _AT_ONCE)
        some = _candidates(round(_MORE * wanted) + 16, scale, source)[:wanted]
        found[done : done + len(some)] = some
        done += len(some)
    return found


def _candidates(count: int, scale: int, source: NoiseSource) -> np.ndarray:
    """Those of `count` discrete Laplace numbers that algorithm 3 takes (its t is `scale`)."""
    drawn = _laplace(count, scale, source)
    # taken with chance exp(-(|x| - s^2/t)^2 / (2 s^2)), and t = s
    taken = _chance_exp((np.abs(drawn) - scale) ** 2, 2 * scale**2, source)
    return drawn[taken]


def _laplace(count: int, scale: int, source: NoiseSource) -> np.ndarray:
    """Numbers of the discrete Laplace distribution of `scale`, int64, about `count` (algorithm 2).

    Their size is a remainder of `scale` and a number of times that it is in it.
    """
    tried = _below(scale, 2 * count, source)
    rests = tried[_chance_exp(tried, scale, source)]
    times = np.zeros(len(rests), np.int64)
    going = np.arange(len(rests))
    while len(going):
        going = going[_chance_exp(np.ones(len(going), np.int64), 1, source)]
        times[going] += 1
    sizes = rests + scale * times
    negative = (source.words(len(sizes)) & np.uint64(1)).astype(bool)
    kept = ~(negative & (sizes == 0))  # else zero would be there twice
    numbers: np.ndarray = np.where(negative, -sizes, sizes)[kept]
    return numbers


def _chance_exp(numerators: np.ndarray, denominator: int, source: NoiseSource) -> np.ndarray:
    """Bool: each true with chance exp(-numerator / denominator), independently (algorithm 1)."""
    whole, rest = np.divmod(numerators, denominator)
    true = _chance_exp_below_one(rest, denominator, source)
    going = np.flatnonzero(true & (whole > 0))
    while len(going):  # exp(-n) is exp(-1), n times
        ones = np.ones(len(going), np.int64)
        survived = _chance_exp_below_one(ones, 1, source)
        true[going[~survived]] = False
        whole[going] -= 1
        going = going[survived & (whole[going] > 0)]
    return true


def _chance_exp_below_one(
    numerators: np.ndarray, denominator: int, source: NoiseSource
) -> np.ndarray:
    """The same for fractions of at most 1: how long a series of chances n/(d k) holds is odd."""
    odd = np.ones(len(numerators), bool)
    going, turn = np.arange(len(numerators)), 1
    while len(going):
        drawn = _below(denominator * turn, len(going), source)
        going = going[drawn < numerators[going]]
        odd[going] ^= True
        turn += 1
    return odd


def _below(bound: int, count: int, source: NoiseSource) -> np.ndarray:
    """Int64 [count], each uniform from 0 and below `bound`."""
    most = np.uint64(2**64 - 2**64 % bound - 1)  # above it, the last multiple isn't whole
    words = source.words(count)
    while len(over := np.flatnonzero(words > most)):
        words = words.copy()
        words[over] = source.words(len(over))
    return (words % np.uint64(bound)).astype(np.int64)
