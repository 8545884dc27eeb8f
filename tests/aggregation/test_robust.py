"""Rules against hostile silos: what they promise, and that they are what their papers say."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from fedtune.aggregation import together
from fedtune.aggregation.fedavg import WeightedMean
from fedtune.aggregation.krum import multi_krum, squared_distances
from fedtune.aggregation.median import coordinate_median
from fedtune.aggregation.norm_bounding import BoundedMean, bounded
from fedtune.aggregation.rule import Combination
from fedtune.aggregation.together import Together
from fedtune.aggregation.trimmed_mean import TrimmedMean
from fedtune.tensors import TensorSet

LARGEST = float(np.finfo(np.float32).max)
SCALAR = st.floats(-100.0, 100.0, width=32)
WILD = st.floats(-LARGEST, LARGEST, width=32)


def sets(values: Sequence[Sequence[float]]) -> list[TensorSet]:
    """One delta a row: its first scalar in one tensor, the rest in another."""
    rows = [torch.tensor(row, dtype=torch.float32) for row in values]
    return [TensorSet({"a": row[:1], "b": row[1:]}) for row in rows]


def matrix(count: st.SearchStrategy[int], scalar: st.SearchStrategy[float] = SCALAR):
    row = st.lists(scalar, min_size=3, max_size=3)
    return count.flatmap(lambda n: st.lists(row, min_size=n, max_size=n))


def trimmed(deltas: Sequence[TensorSet], cut: int) -> TensorSet:
    mean = TrimmedMean(cut)
    for number, delta in enumerate(deltas):
        mean.add(delta, weight=10.0**number)
    return mean.result()


@given(matrix(st.integers(1, 9)))
def test_the_median_is_numpys(values: list[list[float]]):
    expected = np.median(np.float32(values).astype(np.float64), axis=0)
    assert np.allclose(coordinate_median(sets(values)).flat(), expected, rtol=1e-6, atol=1e-30)


@given(matrix(st.integers(1, 11)), st.integers(0, 3))
def test_the_trimmed_mean_is_scipys(values: list[list[float]], cut: int):
    silos = len(values)
    if silos <= 2 * cut:
        with pytest.raises(ValueError, match="nothing is left"):
            trimmed(sets(values), cut)
        return
    expected = trim_mean(np.float32(values).astype(np.float64), (cut + 0.5) / silos, axis=0)
    assert np.allclose(trimmed(sets(values), cut).flat(), expected, rtol=1e-6, atol=1e-6)


def krum_by_the_book(values: np.ndarray, hostile: int) -> np.ndarray:
    """Blanchard et al. 2017, section 4, with loops."""
    silos, near = len(values), len(values) - hostile - 2
    scores = []
    for i in range(silos):
        apart = sorted(float(((values[i] - values[j]) ** 2).sum()) for j in range(silos) if j != i)
        scores.append(sum(apart[:near]))
    return values[sorted(range(silos), key=scores.__getitem__)[:near]].mean(axis=0)


# of three the closest two have one score, and either may be taken: not compared
@given(st.sampled_from([(0, 4), (0, 9), (1, 5), (1, 6), (2, 7), (2, 9), (3, 9)]), st.integers(0))
def test_multi_krum_is_the_papers(numbers: tuple[int, int], seed: int):
    hostile, silos = numbers
    values = np.random.default_rng(seed).normal(size=(silos, 3)).astype(np.float32)
    expected = krum_by_the_book(values.astype(np.float64), hostile)
    result = multi_krum(sets(values.tolist()), hostile).flat()
    assert np.allclose(result, expected, rtol=1e-5, atol=1e-6)


RULES: dict[str, Callable[[Sequence[TensorSet]], TensorSet]] = {
    "median": coordinate_median,
    "trimmed mean": lambda deltas: trimmed(deltas, 2),
    "multi-Krum": lambda deltas: multi_krum(deltas, 2),
}


@pytest.mark.parametrize("name", RULES)
@given(values=matrix(st.integers(7, 9)), order=st.randoms(use_true_random=False))
def test_the_order_of_silos_plays_no_part(name: str, values: list[list[float]], order):
    turned = list(values)
    order.shuffle(turned)
    one, other = (RULES[name](sets(v)).flat() for v in (values, turned))
    if name == "trimmed mean":  # to the last bit of a float64 sum
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)
    else:
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["median", "trimmed mean"])
@given(values=matrix(st.just(5)), wild=matrix(st.integers(0, 2), WILD), at=st.integers(0, 5))
def test_a_few_wild_deltas_move_no_scalar_out_of_the_honest_range(
    name: str, values: list[list[float]], wild: list[list[float]], at: int
):
    result = RULES[name](sets([*values[:at], *wild, *values[at:]])).flat()
    honest = torch.tensor(values)
    assert (result >= honest.amin(0) - 1e-4).all()
    assert (result <= honest.amax(0) + 1e-4).all()


@given(
    matrix(st.just(5), st.floats(-1.0, 1.0, width=32)),
    matrix(st.integers(1, 2), st.floats(1e3, LARGEST, width=32)),
)
def test_multi_krum_takes_none_that_is_far_away(values: list[list[float]], far: list[list[float]]):
    result = multi_krum(sets([*far, *values]), 2 if len(far) == 2 else 1)
    assert float(result.flat().abs().max()) <= 1.0


def test_distances_among_large_deltas_that_lie_close_are_exact():
    near, nearer = [1e9, 1.0, 1.0], [1e9, 1.0, 1.25]
    assert squared_distances(sets([near, nearer]))[0, 1] == 0.0625


def test_krum_settles_a_tie_alike_in_any_order():
    # the first two lie closest, each to the other; one of them is taken
    values = [[0.0] * 3, [1.0] * 3, [10.0] * 3]
    results = {
        tuple(multi_krum(sets(turned), 0).flat().tolist())
        for turned in itertools.permutations(values)
    }
    assert len(results) == 1


def test_krum_refuses_more_hostile_silos_than_it_can_outvote():
    with pytest.raises(ValueError, match="2 hostile deltas needs 7 or more in all, got 6"):
        multi_krum(sets([[0.0] * 3] * 6), 2)
    multi_krum(sets([[0.0] * 3] * 7), 2)


@pytest.mark.parametrize("name", RULES)
def test_a_delta_longer_than_a_piece_is_whole(name: str, monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).normal(size=(7, 11)).tolist()
    whole = RULES[name](sets(values)).flat()
    monkeypatch.setattr(together, "_SCALARS", 4)
    assert torch.allclose(RULES[name](sets(values)).flat(), whole, rtol=1e-6)


@given(matrix(st.integers(1, 5)), st.floats(1e-3, 1e3))
def test_bounding_scales_what_is_too_long_and_nothing_else(values: list[list[float]], bound: float):
    for delta in sets(values):
        result = bounded(delta, bound)
        assert result.norm() <= bound * (1 + 1e-6)
        if delta.norm() <= bound:
            assert result.digest() == delta.digest()
        else:
            assert torch.allclose(result.flat() * delta.norm(), delta.flat() * bound, rtol=1e-4)


def test_no_silo_moves_a_bounded_mean_by_more_than_the_bound():
    mean = BoundedMean(5.0)
    mean.add(sets([[LARGEST, 0.0, -LARGEST]])[0], 1e9)
    mean.add(sets([[0.6, 0.8, 0.0]])[0], 1.0)
    assert mean.result().norm() <= 5.0 * (1 + 1e-6)


def test_a_bound_above_all_norms_is_fedavg_bit_for_bit():
    plain, loose = WeightedMean(), BoundedMean(1e6)
    for delta, weight in zip(sets([[1.0, 2.0, 3.0], [0.1, 0.7, -3.0]]), (3.0, 4.0), strict=True):
        plain.add(delta, weight)
        loose.add(delta, weight)
    assert plain.result().digest() == loose.result().digest()


def test_examples_are_no_weight():
    median = Together(coordinate_median)
    for delta, weight in zip(sets([[1.0] * 3, [2.0] * 3, [9.0] * 3]), (1, 1, 10**9), strict=True):
        median.add(delta, weight)
    assert median.result().flat().tolist() == [2.0] * 3
    # and the trimmed mean, whose weights here grow tenfold each
    assert (
        trimmed(sets([[1.0] * 3, [2.0] * 3, [3.0] * 3, [6.0] * 3]), 1).flat().tolist() == [2.5] * 3
    )


FOLDS: dict[str, Callable[[], Combination]] = {
    "trimmed mean": lambda: TrimmedMean(1),
    "median": lambda: Together(coordinate_median),
    "norm bounding": lambda: BoundedMean(1.0),
}


@pytest.mark.parametrize("name", FOLDS)
def test_another_shape_and_nothing_at_all_are_refused(name: str):
    with pytest.raises(ValueError, match="nothing"):
        FOLDS[name]().result()
    fold = FOLDS[name]()
    fold.add(sets([[1.0, 2.0]])[0], 1.0)
    with pytest.raises(ValueError, match="deltas differ: b is"):
        fold.add(sets([[1.0, 2.0, 3.0]])[0], 1.0)


def test_a_trimmed_mean_keeps_what_may_still_be_cut_and_no_more():
    mean = TrimmedMean(2)
    for delta in sets([[float(i)] * 3 for i in range(50)]):
        mean.add(delta, 1.0)
    assert len(mean._least) + len(mean._largest) == 4
    assert mean.result().flat().tolist() == [24.5] * 3
