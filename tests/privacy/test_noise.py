"""Noise: the right size, independent, on a grid, and from nobody's seed."""

import math
import os

import numpy as np
import pytest
import torch
from scipy import stats

from fedtune.privacy.noise import NoiseSource, SecureNoise, SeededNoise, noised

SOURCES = [SecureNoise, lambda: SeededNoise(3)]


@pytest.mark.parametrize("make", SOURCES)
def test_draws_are_normal_and_chances_even(make: type[NoiseSource]):
    source = make()
    values = source.normal(400_000, 2.0)
    assert values.dtype == np.float64
    assert values.std() == pytest.approx(2.0, rel=0.01)
    # chance of a false alarm: one in a million a test
    assert stats.kstest(values / 2.0, "norm").pvalue > 1e-6
    chances = source.uniform(400_000)
    assert chances.min() >= 0.0
    assert chances.max() < 1.0
    assert stats.kstest(chances, "uniform").pvalue > 1e-6


def test_draws_are_independent():
    source = SecureNoise()
    one, other = (source.normal(200_000, 1.0) for _ in range(2))
    most = 5 / math.sqrt(len(one))
    assert abs(np.corrcoef(one, other)[0, 1]) < most
    # Box and Muller's pairs lie half the numbers apart
    for lag in (1, 2, 7, len(one) // 2):
        for values in (one, one**2):
            assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 2 * most


def test_large_draws_do_not_repeat_from_block_to_block():
    values = SecureNoise().normal(3 * 2**20 + 1, 1.0)
    assert len(values) == 3 * 2**20 + 1
    assert len(np.unique(values)) > len(values) - 10
    assert values.std() == pytest.approx(1.0, rel=0.005)


def test_two_sources_differ_and_so_do_forks():
    assert not np.array_equal(SecureNoise().normal(8, 1.0), SecureNoise().normal(8, 1.0))
    source = SecureNoise()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, source.normal(8, 1.0).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(reader, 64))
    os.close(reader)
    os.close(writer)
    assert not np.array_equal(theirs, source.normal(8, 1.0))


def test_no_known_seed_decides_it():
    def draw() -> np.ndarray:
        torch.manual_seed(0)
        np.random.seed(0)
        return SecureNoise().normal(8, 1.0)

    assert not np.array_equal(draw(), draw())


@pytest.mark.parametrize("std", [1e-6, 0.37, 1.0, 123.0])
def test_a_noised_sum_lies_on_the_grid_and_is_right_to_one_percent(std: float):
    sums = {"a": torch.full((300, 400), 5 * std), "b": torch.linspace(0, std, 70_000)}
    result = noised(sums, std, SecureNoise())
    grid = 2.0 ** (math.floor(math.log2(std)) - 18)
    for name, total in sums.items():
        assert result[name].dtype == torch.float32
        steps = result[name].double() / grid
        assert torch.equal(steps, steps.round())
        noise = (result[name].double() - total.double()).numpy()
        assert noise.std() == pytest.approx(std, rel=0.01)
        assert abs(noise.mean()) < 5 * std / math.sqrt(noise.size)
    both = [(result[n] - sums[n]).flatten()[:70_000].numpy() for n in sums]
    assert abs(np.corrcoef(*both)[0, 1]) < 5 / math.sqrt(70_000)


def test_the_grid_does_not_hang_on_the_sum():
    """Low bits of a sum would show in the float that comes out (Mironov 2012)."""
    for total in (1 / 3, 1e-9, 20.1):
        steps = noised({"a": torch.full((1000,), total)}, 1.0, SeededNoise(1))["a"].double() * 2**18
        assert torch.equal(steps, steps.round())
        assert 400 < int((steps % 2).sum()) < 600  # neither finer nor coarser


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan])
def test_no_noise_is_refused(std: float):
    with pytest.raises(ValueError, match="standard deviation"):
        noised({"a": torch.zeros(2)}, std, SecureNoise())


def test_a_sum_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="isn't finite"):
        noised({"a": torch.tensor([math.nan])}, 1.0, SecureNoise())
