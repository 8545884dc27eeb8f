"""What choosing the best of several runs costs, and what a patient with several records has."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom, norm

from fedtune.privacy.accounting import (
    epsilon,
    epsilon_of_group,
    epsilon_of_selection,
    solve_noise,
)
from fedtune.privacy.events import GaussianEvent

ORDERS = np.concatenate([np.arange(1.05, 20, 0.01), np.arange(20, 400, 0.5)])


def to_epsilon(divergences: np.ndarray, delta: float) -> float:
    return float(
        (divergences + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)).min()
    )


def geometric_selection(noise: float, runs: float, delta: float) -> float:
    """Theorem 2 of the same for a geometric number, which stops with the chance 1 / runs."""
    plain = ORDERS / (2 * noise**2)
    least = ((1 - 1 / ORDERS) * plain + math.log(runs) / ORDERS).min()
    return to_epsilon(plain + math.log(runs) / (ORDERS - 1) + 2 * least, delta)


def poisson_selection(noise: float, runs: float, delta: float) -> float:
    """Theorem 6 of Papernot and Steinke 2022 for a Gaussian, whose divergences are known."""
    hat = np.log1p(1 / (ORDERS - 1))
    exact = norm.cdf(0.5 / noise - hat * noise) - np.exp(hat) * norm.cdf(-0.5 / noise - hat * noise)
    plain = ORDERS / (2 * noise**2)
    return to_epsilon(plain + runs * exact + math.log(runs) / (ORDERS - 1), delta)


@pytest.mark.parametrize(("noise", "runs"), [(4.0, 3), (4.0, 50), (8.0, 10), (2.0, 10)])
def test_selection_follows_its_theorem(noise: float, runs: int) -> None:
    """Never below the theorem with an exact tail, which the library bounds by Renyi as well."""
    event = GaussianEvent(1.0, noise, 1)
    found = epsilon_of_selection([event], 1e-6, runs)
    least = poisson_selection(noise, runs, 1e-6)
    assert least * (1 - 1e-9) <= found <= least * 1.5

    found = epsilon_of_selection([event], 1e-6, runs, "geometric")
    assert found == pytest.approx(geometric_selection(noise, runs, 1e-6), rel=0.01)


def test_selection_grows_slowly_with_the_runs() -> None:
    """Dearer than one run, cheaper than all, and growing."""
    events = [GaussianEvent(0.02, 1.0, 200), GaussianEvent(1.0, 30.0, 1)]
    one = epsilon(events, 1e-6, "rdp")
    costs = [epsilon_of_selection(events, 1e-6, runs) for runs in (2, 10, 100)]
    assert one < costs[0] < costs[1] < costs[2]
    assert costs[1] < epsilon(events * 10, 1e-6, "rdp")


@pytest.mark.parametrize("runs", [0.5, 0, -1, math.nan, math.inf])
def test_runs_below_one_are_refused(runs: float) -> None:
    with pytest.raises(ValueError, match="mean number of runs"):
        epsilon_of_selection([GaussianEvent(0.1, 1.0, 1)], 1e-6, runs)


@pytest.mark.parametrize(("records", "expected"), [(2, 6.7), (5, 21.0), (10, 56.0)])
def test_a_record_level_3_for_a_patient(records: int, expected: float) -> None:
    noise = solve_noise(3.0, 1e-5, 1.0, 1, "pld")
    found = epsilon_of_group(GaussianEvent(1.0, noise, 1), records, 1e-5)
    assert found == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize(("rate", "noise", "records"), [(0.1, 2.0, 3), (0.02, 1.5, 8)])
def test_a_sampled_step_for_a_group(rate: float, noise: float, records: int) -> None:
    """The claimed epsilon keeps delta by quadrature in both directions, and 5 % less does not."""
    found = epsilon_of_group(GaussianEvent(rate, noise, 1), records, 1e-6)
    shares = binom.pmf(range(records + 1), records, rate)

    def mixed(x: float) -> float:
        return sum(share * norm.pdf(x, j, noise) for j, share in enumerate(shares))

    def delta(eps: float) -> float:
        def removing(x: float) -> float:
            return max(0.0, mixed(x) - math.exp(eps) * norm.pdf(x, 0, noise))

        def adding(x: float) -> float:
            return max(0.0, norm.pdf(x, 0, noise) - math.exp(eps) * mixed(x))

        ends = (-12 * noise, records + 12 * noise)
        return max(
            quad(side, *ends, limit=400, epsabs=1e-12, epsrel=1e-8)[0]
            for side in (removing, adding)
        )

    assert delta(found) <= 1e-6 < delta(found * 0.95)


def test_a_group_of_one_is_a_unit() -> None:
    event = GaussianEvent(0.05, 1.2, 30)
    assert epsilon_of_group(event, 1, 1e-5) == epsilon([event], 1e-5, "pld")
    assert epsilon_of_group(event, 2, 1e-5) > 1.8 * epsilon([event], 1e-5, "pld")
