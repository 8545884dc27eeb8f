"""Correlated noise: rows of C^-1, exact sensitivity by brute force, and what it gains."""

import itertools
import math

import numpy as np
import pytest
import torch

from fedtune.config.federation import FederationConfig
from fedtune.config.privacy import PrivacyConfig
from fedtune.privacy.correlated import Correlation, best_bands
from fedtune.privacy.plan import plan_rounds

CASES = [
    Correlation("tree", 7, 1),
    Correlation("tree", 8, 2),
    Correlation("tree", 6, 3),
    Correlation("banded", 7, 1, 3),
    Correlation("banded", 8, 2, 2),
    Correlation("banded", 8, 3, 5),
]


def matrix(correlation: Correlation) -> np.ndarray:
    """C, written down entry by entry from its definition."""
    n = correlation.rounds
    c = np.zeros((n, n))
    for t, s in itertools.product(range(1, n + 1), repeat=2):
        if correlation.kind == "tree":
            low = next(2**k for k in range(20) if t // 2**k % 2)
            c[t - 1, s - 1] = t - low < s <= t
        elif 0 <= t - s < correlation.bands:
            c[t - 1, s - 1] = math.comb(2 * (t - s), t - s) / 4 ** (t - s)
    return c


@pytest.mark.parametrize("correlation", CASES, ids=str)
def test_rows_are_those_of_the_inverse(correlation: Correlation):
    rows = np.zeros((correlation.rounds, correlation.rounds))
    for t in range(1, correlation.rounds + 1):
        for s, share in correlation.row(t).items():
            rows[t - 1, s - 1] = share
    assert np.allclose(matrix(correlation) @ rows, np.eye(correlation.rounds), atol=1e-12)


@pytest.mark.parametrize("correlation", CASES, ids=str)
@pytest.mark.parametrize("released", [None, [1, 2], [1, 2, 2, 3]])
def test_sensitivity_is_the_worst_of_all_that_a_silo_can_do(
    correlation: Correlation, released: list[int] | None
):
    """Every subset of a group's turns, each with every sign: brute force over 3^turns."""
    c, n = matrix(correlation), correlation.rounds
    rows = c if released is None else c[np.array(released) - 1]
    worst = 0.0
    for group in range(correlation.every):
        turns = list(range(group, n, correlation.every))
        for signs in itertools.product((-1.0, 0.0, 1.0), repeat=len(turns)):
            x = np.zeros(n)
            x[turns] = signs
            worst = max(worst, float(np.linalg.norm(rows @ x)))
    assert correlation.sensitivity(released) == pytest.approx(worst, rel=1e-12)


def test_vectors_in_several_dimensions_move_no_more_than_the_sensitivity():
    rng = np.random.default_rng(0)
    for correlation in CASES:
        for _ in range(200):
            x = rng.normal(size=(correlation.rounds, 3))
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            group = rng.integers(correlation.every)
            x[np.arange(correlation.rounds) % correlation.every != group] = 0
            assert np.linalg.norm(matrix(correlation) @ x) <= correlation.sensitivity() + 1e-9


@pytest.mark.parametrize("correlation", CASES, ids=str)
def test_error_is_the_noise_of_prefix_sums(correlation: Correlation):
    n = correlation.rounds
    sums = np.tril(np.ones((n, n))) @ np.linalg.inv(matrix(correlation))
    wanted = math.sqrt((sums**2).sum() / n) * correlation.sensitivity()
    assert correlation.error() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("rounds", "every"), [(16, 4), (32, 8), (64, 8), (128, 32)])
def test_sums_over_rounds_hold_less_noise_than_independent_noise_at_the_same_epsilon(
    rounds: int, every: int
):
    independent = Correlation("banded", rounds, every, 1).error()
    # fresh noise each round: a silo is in rounds/every of them, and t rounds' noise adds up
    by_hand = math.sqrt(np.mean(np.arange(1, rounds + 1)) * math.ceil(rounds / every))
    assert independent == pytest.approx(by_hand)
    banded = Correlation("banded", rounds, every, best_bands(rounds, every)).error()
    assert banded < 0.75 * independent
    single = Correlation("tree", rounds, rounds)
    assert single.error() < Correlation("banded", rounds, rounds, 1).error() * 1.2


@pytest.mark.parametrize("rounds", [4, 10, 50])
def test_a_silo_in_every_round_leaves_correlation_nothing_to_gain(rounds: int):
    """Said in the docs: no number of bands beats independent noise then."""
    errors = [Correlation("banded", rounds, 1, bands).error() for bands in range(1, rounds + 1)]
    assert int(np.argmin(errors)) == 0
    assert best_bands(rounds, 1) == 1


def test_the_plan_counts_all_rounds_as_one_release():
    privacy = PrivacyConfig(mode="central", noise_multiplier=4.0, server_noise="banded", bands=3)
    federation = FederationConfig(rounds=8, fraction=0.5)
    plan = plan_rounds(privacy, federation, silos=20)
    moved = np.linalg.norm(matrix(plan.correlation) @ (np.arange(8) % 2 == 0))
    event = plan.event()
    assert (event.sample_rate, event.count) == (1.0, 1)
    assert event.noise_multiplier == pytest.approx(4.0 / moved)
    assert plan.expected_batch == 10
    # four of the rounds cost less; one run again costs more
    assert plan.event(4).noise_multiplier > event.noise_multiplier
    assert plan.event_of([*range(1, 9), 8]).noise_multiplier < event.noise_multiplier


def test_draws_have_the_covariance_of_the_inverse():
    from fedtune.privacy.central import _Mixture

    correlation, draws = Correlation("banded", 6, 2, 2), 200_000
    keys = torch.arange(6 * 32, dtype=torch.float32).view(6, 32)
    noise = np.stack([_Mixture(keys, correlation.row(t)).normal(draws, 3.0) for t in range(1, 7)])
    inverse = np.linalg.inv(matrix(correlation))
    wanted = 9.0 * inverse @ inverse.T
    assert np.allclose(noise @ noise.T / draws, wanted, atol=9.0 * 6 / math.sqrt(draws))
