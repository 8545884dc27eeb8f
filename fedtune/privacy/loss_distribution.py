"""The PLD accountant: privacy loss distributions of dp_accounting, never below the true epsilon.

Distributions are discretized by connect-the-dots (Doroshenko et al. 2022), whose every interval
gives an upper bound; two intervals tell how small a third must be.
"""

import math
from collections.abc import Sequence
from functools import lru_cache, reduce
from importlib.metadata import version

import numpy as np
from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    get_epsilon_gaussian,
)
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    from_gaussian_mechanism,
    from_mixture_gaussian_mechanism,
)
from dp_accounting.rdp import RdpAccountant
from scipy.stats import binom

from fedtune.privacy.events import GaussianEvent, merged
from fedtune.privacy.rounding import MOST_EPSILON, exact_part, safe_delta

LIBRARY = f"dp-accounting {version('dp-accounting')}"

_TOLERANCE = 1e-3  # of epsilon: what discretization may add
_NEAR_ZERO = 1e-3  # below it, that tolerance is of this
_LITTLE_NOISE = (2 * MOST_EPSILON) ** -0.5  # e to a single sum's loss is no double
_BLOCK = 10_000  # steps at once: dp_accounting raises a size to the power of the count


def epsilon(events: Sequence[GaussianEvent], delta: float, guess: float) -> float:
    """Epsilon of `events` together, never below the true one and about 0.1 % above it.

    `guess`, another accountant's upper bound, sets the first interval; it is the answer where this
    accountant's doubles overflow. Raises InputError where rounding would drown
    `delta`.
    """
    gaussian, sampled = exact_part(events)
    if not sampled:
        return float(get_epsilon_gaussian(gaussian, delta)) * (1 + 1e-9) if gaussian else 0.0
    safe = safe_delta(events, delta)
    if any(event.noise_multiplier < _LITTLE_NOISE for event in sampled):
        return guess
    parts = merged([*sampled, *([GaussianEvent(1.0, gaussian)] if gaussian else [])])
    with np.errstate(over="ignore"):
        found = _settled(parts, safe, guess / (10 * sum(e.count for e in parts) ** 0.5))
    return min(found, guess)


def _settled(events: Sequence[GaussianEvent], delta: float, interval: float) -> float:
    """Epsilon at an interval small enough: its excess grows with the interval's square."""
    for _ in range(5):
        coarse, fine = (_at(events, delta, part) for part in (interval, interval / 2))
        allowed = _TOLERANCE * max(fine, _NEAR_ZERO)
        excess = (coarse - fine) * 4 / 3
        if excess <= 4 * allowed:
            return fine
        if excess <= 64 * allowed:
            return min(fine, _at(events, delta, interval * (allowed / excess) ** 0.5))
        interval /= 4
    return fine


def _at(events: Sequence[GaussianEvent], delta: float, interval: float) -> float:
    parts = [_distribution(event, interval) for event in events]
    whole = reduce(lambda one, other: one.compose(other), parts)
    return float(whole.get_epsilon_for_delta(delta))


@lru_cache(maxsize=32)
def _distribution(event: GaussianEvent, interval: float) -> PrivacyLossDistribution:
    one = from_gaussian_mechanism(
        event.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=event.sample_rate,
    )
    return _composed(one, event.count)


def _composed(one: PrivacyLossDistribution, count: int) -> PrivacyLossDistribution:
    blocks, rest = divmod(count, _BLOCK)
    parts = [one.self_compose(rest)] if rest else []
    if blocks:
        parts.append(one.self_compose(_BLOCK).self_compose(blocks))
    return reduce(lambda first, second: first.compose(second), parts)


def group_epsilon(event: GaussianEvent, units: int, delta: float, guess: float) -> float:
    """An upper bound on epsilon for `units` units together, each sampled by itself.

    Of the group a binomial number takes part in a step, so that the sum moves by a mixture (Ganesh
    2024). `guess` is epsilon for one unit. A few percent above the true one at most.
    """
    if event.sample_rate == 1.0:
        alone = GaussianEvent(1.0, event.noise_multiplier / units, event.count)
        return epsilon([alone], delta, math.inf)
    moved = list(range(units + 1))
    one = from_mixture_gaussian_mechanism(
        event.noise_multiplier,
        moved,
        list(binom.pmf(moved, units, event.sample_rate)),
        value_discretization_interval=max(units * guess, _NEAR_ZERO) / (10 * event.count**0.5),
    )
    whole = _composed(one, event.count)
    with np.errstate(over="ignore"):
        return float(whole.get_epsilon_for_delta(safe_delta([event], delta)))


def selection_epsilon(
    events: Sequence[GaussianEvent], delta: float, runs: float, spread: float
) -> float:
    """Epsilon of the best of a random number of runs (Papernot and Steinke 2022), by Renyi DP.

    Each run does all `events`; `runs` is their mean number. `spread` is the shape of the number's
    distribution: infinite for Poisson, 1 for geometric.
    """
    accountant = RdpAccountant()
    one_run = ComposedDpEvent([_dp_event(event) for event in events])
    accountant.compose(RepeatAndSelectDpEvent(one_run, runs, spread))
    return float(accountant.get_epsilon(delta))


def _dp_event(event: GaussianEvent) -> DpEvent:
    noisy = GaussianDpEvent(event.noise_multiplier)
    if event.sample_rate < 1.0:
        noisy = PoissonSampledDpEvent(event.sample_rate, noisy)
    return SelfComposedDpEvent(noisy, event.count)
