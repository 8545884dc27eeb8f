"""Noise that is correlated over rounds (DP-FTRL): which matrix, how far a silo moves it, its rows.

With x the sums of all rounds in units of the clipping norm, one row a round, a lower-triangular
matrix C and independent Gaussian z, what is released is C x + z. Multiplied by the inverse of C,
which needs no secret, that is x + w with w = C^-1 z: each round's sum with a noise of which later
rounds take back a part, so that sums over rounds hold less of it.

`tree`: binary tree aggregation (Dwork et al. 2010; Kairouz et al. 2021), in the form that a Fenwick
tree has: row t of C sums the lowest-set-bit(t) rounds up to t, so the noise of the first t rounds
is a sum of popcount(t) draws. `banded`: the square root of the matrix of prefix sums, cut to some
bands (Choquette-Choo et al. 2023; Kalinin and Lampert 2024, whose closed form for the coefficients
is used: binomial(2j, j) / 4^j).
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.signal import lfilter

_MOST_TRIED = 256


@dataclass(frozen=True)
class Correlation:
    """The matrix C for `rounds` rounds, counted from 1, in which silos take turns.

    Silo group g of `every` groups (from 0) is asked in rounds g + 1, g + 1 + every, and so on;
    with `every` 1 all silos are asked in every round. `bands` is 1 for `tree`.
    """

    kind: Literal["tree", "banded"]
    rounds: int
    every: int
    bands: int = 1

    def sensitivity(self, released: Sequence[int] | None = None) -> float:
        """How far one silo can move rows `released` of C x together: L2, in clipping norms.

        `released` are all rounds once, by default; a round that is run and released again, with
        new noise, stands there again. The norm is exact. A silo of group g adds x_t of norm at most
        u_t to row t of x, where u_t is 1 in the group's rounds and 0 in others (less than 1 where
        it fails). No entry of C is negative, so by the triangle inequality row t of C x has norm at
        most sum_s C_ts |x_s| <= (C u)_t, and all rows together at most |C u|; a silo that adds the
        same unit vector in all its rounds reaches it. The result is the largest over groups.
        """
        moved = self._moved()
        rows = np.arange(self.rounds) if released is None else np.asarray(released) - 1
        return math.sqrt(float((moved[:, rows] ** 2).sum(axis=1).max()))

    def row(self, round_number: int) -> dict[int, float]:
        """Row `round_number` of C^-1: the share of each round's draw in this round's noise."""
        if self.kind == "tree":
            now, before = _prefix(round_number), _prefix(round_number - 1)
            return {r: float((r in now) - (r in before)) for r in sorted(now ^ before)}
        shares = _inverse(self.rounds, self.bands)[:round_number][::-1]
        return {r: float(share) for r, share in enumerate(shares, start=1) if share}

    def error(self) -> float:
        """Noise in the sum of the first t rounds: root of the mean variance over t, in clipping
        norms, where the noise multiplier over all of the rounds is 1.
        """
        if self.kind == "tree":
            variances = [float(len(_prefix(t))) for t in range(1, self.rounds + 1)]
        else:
            variances = list(np.cumsum(np.cumsum(_inverse(self.rounds, self.bands)) ** 2))
        return math.sqrt(float(np.mean(variances))) * self.sensitivity()

    def to_json(self) -> Mapping[str, Any]:
        """Plain values for the statement."""
        return {"kind": self.kind, "every": self.every, "bands": self.bands}

    def _moved(self) -> np.ndarray:
        return _moved(self.kind, self.rounds, self.every, self.bands)


def best_bands(rounds: int, every: int) -> int:
    """The number of bands whose `error` is least; at most twice `every`, and 1 if none is better.

    With `every` 1 it is 1, independent noise: a silo that is there in all rounds moves all that
    correlated noise would take back.
    """
    tried = range(1, min(rounds, 2 * every, _MOST_TRIED) + 1)
    return min(tried, key=lambda bands: Correlation("banded", rounds, every, bands).error())


@functools.lru_cache(maxsize=16)
def _moved(kind: str, rounds: int, every: int, bands: int) -> np.ndarray:
    """C u for each group, float64 [groups, rounds]."""
    turns = np.stack([_turns(group, every, rounds) for group in range(min(every, rounds))])
    if kind == "banded":
        return np.stack([np.convolve(u, _coefficients(bands))[:rounds] for u in turns])
    ends = np.arange(1, rounds + 1)
    sums = np.pad(np.cumsum(turns, axis=1), ((0, 0), (1, 0)))
    moved: np.ndarray = sums[:, ends] - sums[:, ends - (ends & -ends)]
    return moved


def _turns(group: int, every: int, rounds: int) -> np.ndarray:
    return (np.arange(rounds) % every == group).astype(np.float64)


def _coefficients(bands: int) -> np.ndarray:
    """The first column of C: binomial(2j, j) / 4^j."""
    j = np.arange(1, bands)
    return np.cumprod(np.concatenate([[1.0], (2 * j - 1) / (2 * j)]))


@functools.lru_cache(maxsize=16)
def _inverse(rounds: int, bands: int) -> np.ndarray:
    """The first column of C^-1, a Toeplitz matrix as C is; float64 [rounds]."""
    impulse = np.zeros(rounds)
    impulse[0] = 1.0
    column: np.ndarray = lfilter([1.0], _coefficients(bands), impulse)
    return column


def _prefix(end: int) -> set[int]:
    """Rounds whose draws add up to the tree's noise in the first `end` rounds."""
    return set(_downwards(end))


def _downwards(end: int) -> Iterator[int]:
    while end > 0:
        yield end
        end -= end & -end
