"""Drawn whole numbers have a discrete Gaussian's probabilities, exactly."""

import math

import numpy as np
import pytest
from scipy import stats

from fedtune.privacy import discrete_gaussian as module
from fedtune.privacy.discrete_gaussian import MOST_SCALE, discrete_gaussian
from fedtune.privacy.noise import SecureNoise, SeededNoise

COUNT = 200_000


def probabilities(scale: int, most: int) -> np.ndarray:
    """Of -most to most, by the definition."""
    weights = np.array([math.exp(-(x**2) / (2 * scale**2)) for x in range(-most, most + 1)])
    return weights / weights.sum()


@pytest.mark.parametrize("scale", [1, 2, 3, 7])
def test_small_scales_fit_their_probabilities(scale: int):
    drawn = discrete_gaussian(COUNT, scale, SeededNoise(scale))
    most = 3 * scale  # beyond it, all in one
    seen = np.bincount(np.clip(drawn, -most - 1, most + 1) + most + 1, minlength=2 * most + 3)
    inner = probabilities(scale, 20 * scale)[20 * scale - most : 20 * scale + most + 1]
    tail = (1 - inner.sum()) / 2
    wanted = np.concatenate([[tail], inner, [tail]]) * COUNT
    assert stats.chisquare(seen, wanted).pvalue > 1e-4


@pytest.mark.parametrize("scale", [100, 51_638, MOST_SCALE])
def test_large_scales_are_as_good_as_normal(scale: int):
    drawn = discrete_gaussian(COUNT, scale, SeededNoise(scale)) / scale
    assert stats.kstest(drawn, "norm").pvalue > 1e-4
    assert drawn.std() == pytest.approx(1.0, rel=0.01)
    assert stats.kurtosis(drawn) == pytest.approx(0.0, abs=0.05)


def test_numbers_are_independent_and_fresh():
    one = discrete_gaussian(COUNT, 1000, SeededNoise(0)).astype(float)
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 5 / COUNT**0.5
    assert np.array_equal(discrete_gaussian(COUNT, 1000, SeededNoise(0)), one)
    source = SecureNoise()
    first, second = (discrete_gaussian(1000, 1000, source) for _ in range(2))
    assert not np.array_equal(first, second)
    assert len(discrete_gaussian(0, 5, source)) == 0


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 7), (5, 5), (19, 5), (0, 3)])
def test_chances_are_those_of_the_exponential(numerator: int, denominator: int):
    asked = np.full(COUNT, numerator)
    true = int(module._chance_exp(asked, denominator, SeededNoise(1)).sum())
    wanted = math.exp(-numerator / denominator)
    assert stats.binomtest(true, COUNT, min(1.0, wanted)).pvalue > 1e-4


def test_numbers_below_a_bound_are_even_where_words_do_not_divide():
    bound = 3 << 61  # words over it divide into one and two thirds
    thirds = module._below(bound, COUNT, SeededNoise(2)) >> 61
    assert stats.chisquare(np.bincount(thirds, minlength=3)).pvalue > 1e-4


@pytest.mark.parametrize("scale", [0, MOST_SCALE + 1, 2.5])
def test_other_scales_are_refused(scale):
    with pytest.raises(ValueError, match="scale"):
        discrete_gaussian(1, scale, SeededNoise(0))
