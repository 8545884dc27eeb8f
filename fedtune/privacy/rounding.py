"""What doubles can tell of a delta and of an epsilon.

Convolving `count` distributions loses that many roundings of delta.
"""

from collections.abc import Sequence

from fedtune.errors import InputError
from fedtune.privacy.events import GaussianEvent, merged

MOST_EPSILON = 700.0
"""What a run may plan for: e to the power of much more is no double, and no promise either."""

_ROUNDING = 1e-15  # of mass, a composed step: the transform's error at low frequencies


def exact_part(events: Sequence[GaussianEvent]) -> tuple[float | None, list[GaussianEvent]]:
    """The noise of the one Gaussian that all unsampled events together are, and the sampled rest.

    Sums of unsampled Gaussians compose exactly: squares of sensitivity over noise add up.
    """
    sampled = [event for event in events if event.sample_rate < 1.0]
    squares = sum(e.count / e.noise_multiplier**2 for e in events if e.sample_rate == 1.0)
    return (squares**-0.5 if squares else None), list(merged(sampled))


def lost(events: Sequence[GaussianEvent]) -> float:
    """Most mass that rounding may move when these events' distributions are convolved."""
    return _ROUNDING * sum(event.count for event in events)


def safe_delta(events: Sequence[GaussianEvent], delta: float) -> float:
    """`delta` less what rounding may have lost. Raises InputError when that is half of it."""
    mass = lost(events)
    if mass > delta / 2:
        count = sum(event.count for event in events)
        raise InputError(
            f"delta {delta:g} drowns in the rounding of {count} composed steps",
            where="privacy.delta",
            expected=f"at least {2 * mass:.2g} with this accountant",
            mend="raise delta, or set `privacy.accountant: rdp`",
        )
    return delta - mass
