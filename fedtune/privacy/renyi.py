"""Opacus' accountants: Renyi DP (Mironov et al. 2019) and PRV (Gopi et al. 2021)."""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from fedtune.errors import InputError
from fedtune.privacy.events import GaussianEvent, merged
from fedtune.privacy.rounding import MOST_EPSILON, exact_part, lost, safe_delta

LIBRARY = f"opacus {version('opacus')}"

# Opacus' own, and larger ones, which small epsilons need
ORDERS = [*RDPAccountant.DEFAULT_ALPHAS, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1000]

_ROUNDING = 5e-13  # of a logarithm that sums up to a thousand terms
_LARGE_NOISE = 30.0  # from here on Opacus' series for fractional orders is long
_MAX_NOISE = 1000.0  # with sampling; PRV's first step takes minutes beyond it
_MAX_GRID = 2_000_000  # points: about a second


def rdp_epsilon(events: Sequence[GaussianEvent], delta: float) -> float:
    """An upper bound on epsilon by Renyi divergences, summed over `events`."""
    if not events:
        return 0.0
    total = np.sum([_divergences(e.sample_rate, e.noise_multiplier) * e.count for e in events], 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an optimum at the first or last order is a fair bound
        found, _ = get_privacy_spent(orders=ORDERS, rdp=total, delta=delta)
    return max(0.0, float(found))


@lru_cache(maxsize=256)
def _divergences(rate: float, noise: float) -> np.ndarray:
    """Renyi divergence of one step at each order."""
    return np.array([_divergence(rate, noise, order) for order in ORDERS])


def _divergence(rate: float, noise: float, order: float) -> float:
    """Of one step: Opacus' figure and what rounding may have taken; at most the unsampled one."""
    unsampled = order / (2 * noise**2)
    if rate == 1.0:
        return unsampled
    if noise > _LARGE_NOISE and order % 1:
        return unsampled  # such noise is judged by large orders, which are whole numbers
    try:
        found = float(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=float(order)))
    except (ValueError, OverflowError, ZeroDivisionError):
        return unsampled
    found = max(found, 0.0) + _ROUNDING / (order - 1)
    return found if found < unsampled else unsampled  # nan as well


def prv_epsilon(events: Sequence[GaussianEvent], delta: float) -> float:
    """The upper bound of Opacus' PRV accountant, about 1 % above the true epsilon at most.

    Raises InputError where its grid can't hold these events.
    """
    gaussian, sampled = exact_part(events)
    parts = [*sampled, *([GaussianEvent(1.0, gaussian)] if gaussian else [])]
    if not parts:
        return 0.0
    safe_delta(events, delta)
    if any(event.noise_multiplier > _MAX_NOISE for event in sampled):
        raise _beyond(f"sampled sums with noise above {_MAX_NOISE:g}")
    loss = max(delta / 1000, lost(parts))
    widest = rdp_epsilon(parts, loss / 4) + 3
    mesh = (sum(e.count for e in parts) * math.log(12 / loss) / 2) ** 0.5
    least = 2 * widest * mesh / _MAX_GRID
    if not (widest < MOST_EPSILON and least < 0.1):
        raise _beyond(f"its grid would have to hold losses up to {widest:.3g}")
    first = _prv_upper(parts, delta, loss, max(0.01, least))
    finer = max(0.01 * first, least)
    return first if finer >= 0.01 else _prv_upper(parts, delta, loss, finer)


def _prv_upper(events: Sequence[GaussianEvent], delta: float, loss: float, error: float) -> float:
    accountant = PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sample_rate, e.count) for e in merged(events)]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = accountant.get_epsilon(delta, eps_error=error, delta_error=loss)
    except (RuntimeError, ValueError) as fault:
        raise _beyond(str(fault)) from fault
    if not math.isfinite(found):
        raise _beyond("its figure is not finite")
    return max(0.0, float(found))


def _beyond(why: str) -> InputError:
    return InputError(
        f"the prv accountant can't count this: {why}",
        where="privacy.accountant",
        mend="set `privacy.accountant: pld`",
    )
