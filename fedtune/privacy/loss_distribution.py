"""The PLD accountant: privacy loss distributions of dp_accounting, never below the true epsilon.

Distributions are discretized by connect-the-dots (Doroshenko et al. 2022), whose every interval
gives an upper bound; the interval is halved until epsilon moves no more.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, reduce
from importlib.metadata import version

from dp_accounting import get_epsilon_gaussian
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    from_gaussian_mechanism,
)

from fedtune.privacy.events import GaussianEvent, merged
from fedtune.privacy.rounding import exact_part, safe_delta

LIBRARY = f"dp-accounting {version('dp-accounting')}"

_SETTLED = 3e-3  # of epsilon, between an interval and its half: leaves an error of a third
_MAX_HALVINGS = 8
_BLOCK = 10_000  # steps at once: dp_accounting raises a size to the power of the count


def epsilon(events: Sequence[GaussianEvent], delta: float, guess: float) -> float:
    """Epsilon of `events` together, at least the true one and within about 0.1 % of it.

    `guess`, an upper bound by another accountant, sets the first interval. Raises InputError
    where rounding of doubles would drown `delta`.
    """
    gaussian, sampled = exact_part(events)
    if not sampled:
        return float(get_epsilon_gaussian(gaussian, delta)) if gaussian else 0.0
    safe = safe_delta(events, delta)
    parts = [*sampled, *([GaussianEvent(1.0, gaussian)] if gaussian else [])]
    count = sum(event.count for event in parts)
    before = math.inf
    for now in _refined(merged(parts), safe, guess / (10 * count**0.5)):
        if before <= now * (1 + _SETTLED):
            break
        before = now
    return min(now, before, guess)


def _refined(events: Sequence[GaussianEvent], delta: float, interval: float) -> Iterator[float]:
    for halvings in range(_MAX_HALVINGS):
        parts = [_distribution(event, interval / 2**halvings) for event in events]
        whole = reduce(lambda one, other: one.compose(other), parts)
        yield float(whole.get_epsilon_for_delta(delta))


@lru_cache(maxsize=32)
def _distribution(event: GaussianEvent, interval: float) -> PrivacyLossDistribution:
    one = from_gaussian_mechanism(
        event.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=event.sample_rate,
    )
    blocks, rest = divmod(event.count, _BLOCK)
    parts = [one.self_compose(rest)] if rest else []
    if blocks:
        parts.append(one.self_compose(_BLOCK).self_compose(blocks))
    return reduce(lambda first, second: first.compose(second), parts)
