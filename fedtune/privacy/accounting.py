"""Epsilon of what was done, by an accountant's name, and the noise that a target needs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fedtune.errors import InputError
from fedtune.privacy import loss_distribution, renyi
from fedtune.privacy.events import GaussianEvent, merged
from fedtune.privacy.told import rounded_up

Accountant = Literal["pld", "prv", "rdp"]

_NOISE_TOLERANCE = 1e-3
_MOST_NOISE, _LEAST_NOISE = 1e8, 1e-4


@dataclass(frozen=True)
class Figure:
    """One accountant's `epsilon`, and the library with its version that computed it."""

    accountant: Accountant
    epsilon: float
    library: str


def epsilon(events: Sequence[GaussianEvent], delta: float, accountant: Accountant) -> float:
    """Epsilon at `delta` of all `events` together; 0.0 for none.

    An upper bound by every accountant. Raises InputError where the accountant can't count these
    events at this delta, and ValueError when delta isn't between 0 and 1.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta is {delta}, want above 0 and below 1")
    return _counted(tuple(merged(events)), delta, accountant)


@lru_cache(maxsize=10_000)  # equal silos ask the same, and so does each one's search for noise
def _counted(done: tuple[GaussianEvent, ...], delta: float, accountant: Accountant) -> float:
    if accountant == "prv":
        found = renyi.prv_epsilon(done, delta)
    else:
        found = renyi.rdp_epsilon(done, delta)
    if accountant == "pld":
        found = loss_distribution.epsilon(done, delta, guess=found)
    if not math.isfinite(found):
        raise InputError(
            f"the {accountant} accountant finds no finite epsilon",
            where="privacy.noise_multiplier",
            mend="add more noise",
        )
    return found


def figures(events: Sequence[GaussianEvent], delta: float, chosen: Accountant) -> list[Figure]:
    """The `chosen` accountant's figure, then a second one's, by another library where it can."""
    others: list[Accountant] = ["rdp", "prv"] if chosen == "pld" else ["pld", "rdp"]
    first = _figure(events, delta, chosen)
    for other in others:
        try:
            return [first, _figure(events, delta, other)]
        except InputError:  # its grid can't hold these events: the next, under its own name
            continue
    raise AssertionError("rdp counts all that has a finite epsilon")


def _figure(events: Sequence[GaussianEvent], delta: float, name: Accountant) -> Figure:
    library = loss_distribution.LIBRARY if name == "pld" else renyi.LIBRARY
    return Figure(name, epsilon(events, delta, name), library)


def epsilon_of_selection(
    events: Sequence[GaussianEvent],
    delta: float,
    mean_runs: float,
    number: Literal["poisson", "geometric"] = "poisson",
) -> float:
    """Epsilon of publishing only the best of a random `number` of runs of `events` each.

    That number must be drawn, from this distribution with this mean, before any run, and told to
    nobody; a fixed number has to be paid for as that many runs (Papernot and Steinke 2022).
    """
    if not (math.isfinite(mean_runs) and mean_runs >= 1):
        raise ValueError(f"mean number of runs is {mean_runs}, want 1 or more")
    shape = math.inf if number == "poisson" else 1.0
    return loss_distribution.selection_epsilon(merged(events), delta, mean_runs, shape)


def epsilon_of_group(event: GaussianEvent, units: int, delta: float) -> float:
    """Epsilon of `event` for `units` units that are one person's, such as a patient's records.

    An upper bound, within a few percent, by mixtures of Gaussians.
    """
    alone = epsilon([event], delta, "pld")
    return alone if units == 1 else loss_distribution.group_epsilon(event, units, delta, alone)


def solve_noise(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    count: int,
    accountant: Accountant,
    before: Sequence[GaussianEvent] = (),
) -> float:
    """The least noise multiplier, within 0.1 %, whose epsilon with `before` is within the target.

    Never overshoots the target. Raises InputError when no noise can meet it.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise ValueError(f"target epsilon is {target_epsilon}, want above 0")

    def spend(noise: float, name: Accountant = accountant) -> float:
        return epsilon([*before, GaussianEvent(sample_rate, noise, count)], delta, name)

    spent = epsilon(before, delta, accountant)
    high = 1.0
    while spend(high, "rdp") > target_epsilon and high < _MOST_NOISE:  # quick, never too little
        high *= 2
    if spent > target_epsilon or spend(high) > target_epsilon:
        raise _unreachable(target_epsilon, spent, accountant)
    low = high / 2
    while low > _LEAST_NOISE and spend(low) <= target_epsilon:
        low, high = low / 2, low
    return _least(spend, target_epsilon, low, high)


def _least(spend: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The least noise that meets `target`, from above; `low` overshoots, `high` meets it.

    Epsilon over noise is nearly a straight line in logarithms: each turn looks closely on both
    sides of where that line meets the target.
    """
    at_low, at_high = spend(low), spend(high)
    near = _NOISE_TOLERANCE / 4
    while high > low * (1 + _NOISE_TOLERANCE):
        share = 0.5
        if at_high > 0:
            share = math.log(at_low / target) / max(math.log(at_low / at_high), 1e-9)
        middle = low * (high / low) ** min(max(share, 0.1), 0.9)
        for probe in (middle * (1 + near), middle * (1 - near)):
            if not low < probe < high:
                continue
            now = spend(probe)
            if now <= target:
                high, at_high = probe, now
            else:
                low, at_low = probe, now
    return high


def _unreachable(target: float, spent: float, accountant: Accountant) -> InputError:
    if spent:
        problem = f"no noise keeps epsilon within {target:g}: {rounded_up(spent)} is spent already"
    else:
        problem = f"the {accountant} accountant can't show an epsilon as small as {target:g}"
    return InputError(problem, where="privacy.target_epsilon", mend="raise it")
