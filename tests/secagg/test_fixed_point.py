"""Encoded numbers add up without a wrap, and err no more than is told."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.secagg.fixed_point import BASE, DIGITS, FixedPoint


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 50),
    st.sampled_from([1, 2, 3, 10, 100, 1000, BASE // 2]),
    st.integers(0, 2**32 - 1),
)
def test_the_sum_s_error_is_below_a_step_a_silo(count: int, silos: int, seed: int):
    numbers, rng = FixedPoint(count, silos), np.random.default_rng(seed)
    bounds = 10.0 ** rng.uniform(-6, 3, count)
    summands = min(silos, 6)
    values = rng.uniform(-1.3, 1.3, (summands, count)) * bounds  # some are cut
    words = np.zeros(numbers.words, np.uint64)
    for row in values:
        words += numbers.encode(row, bounds)
    exact = values.clip(-bounds, bounds).sum(0)
    off = np.abs(numbers.decode(words, summands, bounds) - exact)
    steps = np.array([numbers.step(bound) for bound in bounds])
    assert (off <= summands * steps * (1 + 1e-6)).all()


@pytest.mark.parametrize("silos", [1, 2, 3, 7, 16, 100, 300, 5000])
def test_no_digit_wraps_when_all_are_at_a_bound(silos: int):
    numbers = FixedPoint(3 * DIGITS, silos)
    bounds = np.ones(numbers.count)
    for sign in (-1.0, 1.0):
        one = numbers.encode(sign * bounds, bounds)
        total = one * np.uint64(silos)
        assert np.allclose(numbers.decode(total, silos, bounds), sign * silos)
        exact = sum(int(word) * silos < 2**64 for word in one)
        assert exact == numbers.words
    assert silos * (numbers.levels - 1) < BASE <= 2 ** (64 / DIGITS)
    assert silos * (numbers.levels + 1) >= BASE  # no more levels would do
    assert (BASE + 1) ** DIGITS > 2**64


@pytest.mark.parametrize("silos", [2, 3, 7, 16, 100, 300])
def test_zero_is_exactly_zero(silos: int):
    numbers = FixedPoint(1000, silos)
    zeros = np.zeros(numbers.count)
    words = sum(numbers.encode(zeros, zeros + 0.1, factor) for factor in (1.0, 0.37))
    assert not numbers.decode(words, 2, zeros + 0.1).any()


def test_rounding_is_right_in_the_mean():
    numbers = FixedPoint(200_000, 300)
    bounds = np.ones(numbers.count)
    value = 0.25 * numbers.step(1.0)
    got = numbers.decode(numbers.encode(np.full(numbers.count, value), bounds), 1, bounds)
    assert got.mean() == pytest.approx(value, abs=4 * numbers.step(1.0) / 2 / np.sqrt(200_000))
    assert got.std() <= 0.51 * numbers.step(1.0)
    again = numbers.decode(numbers.encode(np.full(numbers.count, value), bounds), 1, bounds)
    assert not np.array_equal(got, again)


@pytest.mark.parametrize(("silos", "bytes_", "worst"), [(10, 2.67, 2e-4), (300, 2.67, 1e-3)])
def test_a_lora_sized_mean_is_right_to_a_thousandth_at_three_bytes(silos, bytes_, worst):
    rng, sigma, count = np.random.default_rng(0), 1e-4, 100_000
    numbers, bounds = FixedPoint(count, silos), np.full(count, 6 * sigma)
    deltas = rng.normal(0, sigma, (silos, count))
    words = sum(numbers.encode(row, bounds) for row in deltas)
    mean = numbers.decode(words, silos, bounds) / silos
    exact = deltas.mean(0)
    assert np.linalg.norm(mean - exact) / np.linalg.norm(exact) < worst
    assert words.nbytes / count == pytest.approx(bytes_, abs=0.01)


@pytest.mark.parametrize(
    ("value", "bound", "said"),
    [(np.nan, 1.0, "finite"), (np.inf, 1.0, "finite"), (0.1, 0.0, "positive")],
)
def test_what_has_no_encoding_is_refused(value: float, bound: float, said: str):
    with pytest.raises(ValueError, match=said):
        FixedPoint(1, 3).encode(np.array([value]), np.array([bound]))
    with pytest.raises(ValueError, match="can't be added"):
        FixedPoint(1, BASE // 2 + 1)
