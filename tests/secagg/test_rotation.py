"""The rotation is Hadamard's with signs, keeps lengths, and spreads what is in one place."""

import numpy as np
import pytest
from scipy.linalg import hadamard

from fedtune.secagg.rotation import BLOCK, padded, rotate, rotate_back

KEY = bytes(range(32))


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 20_000])
def test_it_can_be_taken_back_and_keeps_lengths(count: int):
    values = np.random.default_rng(count).normal(size=count)
    rotated = rotate(values, KEY)
    assert rotated.shape == (padded(count),)
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(values), rel=1e-12)
    assert np.allclose(rotate_back(rotated, KEY, count), values, atol=1e-12)


def test_it_is_hadamard_s_matrix_times_signs():
    values = np.random.default_rng(0).normal(size=BLOCK)
    matrix = hadamard(BLOCK) / BLOCK**0.5
    signs = (matrix @ rotate(values, KEY)) / values
    assert np.allclose(np.abs(signs), 1.0)
    assert 0.45 < (signs > 0).mean() < 0.55
    other = (matrix @ rotate(values, bytes(32))) / values
    assert 0.4 < (np.sign(signs) == np.sign(other)).mean() < 0.6


def test_what_is_in_one_place_is_spread():
    for values in (np.eye(1, BLOCK, 77)[0], np.ones(BLOCK) / BLOCK**0.5):
        assert np.abs(rotate(values, KEY)).max() < 8 / BLOCK**0.5
