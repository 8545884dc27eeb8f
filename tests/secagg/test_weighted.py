"""The mean that comes out of a secure sum is the weighted mean, to the error that is told."""

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from fedtune.secagg.weighted import Opened, Weighted
from fedtune.tensors import TensorSet
from tests.secagg.conftest import run, terms_of

SIGMA = {"a": 1e-4, "b": 3e-2}


def deltas(silos: int, seed: int = 0) -> list[TensorSet]:
    generator = torch.Generator().manual_seed(seed)
    return [
        TensorSet(
            {
                "a": torch.randn(8, 16, generator=generator) * SIGMA["a"],
                "b": torch.randn(50, generator=generator) * SIGMA["b"],
            }
        )
        for _ in range(silos)
    ]


def encoding(silos: int, max_weight: int = 1000) -> Weighted:
    bounds = {name: 6 * sigma for name, sigma in SIGMA.items()}
    return Weighted(deltas(1)[0].spec, bounds, silos, max_weight)


def test_a_secure_round_gives_the_weighted_mean_of_the_survivors():
    code, given, weights = encoding(7), deltas(7), [1000, 3, 250, 999, 17, 640, 77]
    terms = terms_of(7, code.words, dropouts=2)
    vectors = {
        silo: code.encode(delta, weight)
        for silo, delta, weight in zip(terms.silos, given, weights, strict=True)
    }
    total, survivors = run(terms, vectors, {"share": terms.silos[:1], "mask": terms.silos[6:]})
    assert len(survivors) == 5
    opened = code.decode(total, 5)
    assert opened.weight == sum(weights[1:6])
    for name in SIGMA:
        exact = sum(w * d[name].double() for w, d in zip(weights[1:6], given[1:6], strict=True))
        off, worst = opened.mean[name] - exact / opened.weight, code.errors(opened)[name]
        assert worst == pytest.approx(code.bounds[name] * 2 / 377_462 * 5000 / opened.weight)
        assert float(off.abs().max()) <= worst < 1e-3 * SIGMA[name]


def test_one_silo_s_number_and_weight_count_for_no_more_than_the_largest():
    code = encoding(3, max_weight=10)
    loud = deltas(1)[0].map(lambda tensor: torch.full_like(tensor, 1e9))
    quiet = loud.map(torch.zeros_like)
    total = code.encode(loud, 10**9) + code.encode(quiet, 10)
    opened = code.decode(total, 2)
    assert opened.weight == 20
    assert opened.cut == {"a": 128, "b": 50}
    for name, sigma in SIGMA.items():
        mean = opened.mean[name]
        assert torch.allclose(mean, torch.full_like(mean, 3 * sigma), rtol=1e-4)


def test_a_cut_number_does_not_profit_from_a_small_weight():
    code = encoding(3, max_weight=1000)
    loud = deltas(1)[0].map(lambda tensor: torch.full_like(tensor, 1e9))
    mean = code.decode(code.encode(loud, 500), 1).mean
    assert torch.allclose(mean["a"], torch.full_like(mean["a"], 6 * SIGMA["a"]), rtol=1e-3)


def test_what_was_not_agreed_is_refused():
    code, delta = encoding(3), deltas(1)[0]
    with pytest.raises(ValueError, match="other tensors"):
        code.encode(TensorSet({"a": delta["a"]}), 1)
    with pytest.raises(ValueError, match="weight is 0"):
        code.encode(delta, 0)
    with pytest.raises(ValueError, match="finite"):
        code.encode(delta.map(lambda tensor: tensor * np.nan), 1)
    with pytest.raises(ValueError, match="each tensor"):
        Weighted(delta.spec, {"a": 1.0}, 3, 10)
    with pytest.raises(ValueError, match="weights is out of range"):
        code.decode(code.encode(delta, 1000) + code.encode(delta, 1000), 1)
    with pytest.raises(ValueError, match="that were cut is out of range"):
        code.decode(
            code.encode(delta, 1) + np.array([0] * (code.words - 2) + [51, 0], np.uint64), 1
        )


SPEC = deltas(1)[0].spec
WIDEST = 0.3


def opened_with(
    given: list[TensorSet], halvings: tuple[int, ...], silos: int | None = None
) -> tuple[Weighted, Opened]:
    """The sum of a round with these halvings, all silos weighing the same."""
    each = zip(SPEC, halvings, strict=True)
    bounds = {name: WIDEST / 2**n for (name, _), n in each}
    code = Weighted(SPEC, bounds, silos or len(given), 1)
    return code, code.decode(sum(code.encode(one, 1) for one in given), len(given))


def off(opened: Opened, given: list[TensorSet], name: str) -> torch.Tensor:
    return opened.mean[name] - sum(one[name].double() for one in given) / len(given)


def relative_error(opened: Opened, given: list[TensorSet], name: str) -> float:
    exact = sum(one[name].double() for one in given) / len(given)
    return float(off(opened, given, name).norm() / exact.norm())


@pytest.mark.parametrize("silos", [3, 10, 100])
@pytest.mark.parametrize("alike", [0.0, 1.0], ids=["independent", "alike"])
def test_bounds_follow_the_sums_until_rounding_is_below_a_thousandth(silos: int, alike: float):
    halvings, errors, common = (0, 0), [], deltas(1, seed=99)[0]
    for number in range(4):
        given = [one + common * alike for one in deltas(silos, seed=number)]
        code, opened = opened_with(given, halvings)
        errors.append({name: relative_error(opened, given, name) for name in SIGMA})
        assert opened.cut == {"a": 0, "b": 0}
        halvings = code.halvings_after(opened, halvings)
    assert errors[0]["a"] > 1e-3  # by the settings' bound alone, which is 3,000 sigma
    assert max(error for later in errors[2:] for error in later.values()) < 1e-3
    assert halvings[0] > halvings[1]  # each tensor has its own
    if silos < 100:  # no narrower than is needed
        rounding = code.rounding(opened)["a"] / opened.mean["a"].double().square().mean() ** 0.5
        assert rounding > 2e-4


@settings(max_examples=200, deadline=None)
@drawn(
    st.integers(3, 40),
    st.floats(-12, 3),
    st.sampled_from(["normal", "sparse", "one silo", "cancelling"]),
    st.integers(0, 20),
    st.integers(0, 2**32),
)
def test_no_number_of_a_sum_is_beyond_half_of_its_next_bound(
    silos: int, size: float, kind: str, now: int, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(silos, 178, generator=generator) * 10.0**size
    if kind == "sparse":
        rows *= torch.rand(silos, 178, generator=generator) < 1 / silos
    elif kind == "one silo":
        rows[1:] *= 1e-3
    elif kind == "cancelling":
        rows[1] = -rows[0]
        rows[2:] = 0
    given = [TensorSet({"a": row[:128].view(8, 16), "b": row[128:]}) for row in rows]
    code, opened = opened_with(given, (now, now))
    after = code.halvings_after(opened, (now, now))
    for place, name in enumerate(SIGMA):
        largest = max(float(one[name].abs().max()) for one in given)
        assert 0 <= after[place] <= 60
        if opened.cut[name]:
            assert largest > WIDEST / 2**now
            assert after[place] <= max(0, now - 3)
        else:
            assert largest <= WIDEST / 2**now
            assert float(off(opened, given, name).abs().max()) <= code.errors(opened)[name] * 1.0001
            assert largest <= WIDEST / 2 ** after[place] / 2 or after[place] == 0


def test_a_number_beyond_its_bound_is_counted_and_the_bound_widened_until_none_is():
    given, halvings = deltas(10), (8, 0)
    given[0]["a"][0, 0] = -1000 * SIGMA["a"]
    code, opened = opened_with(given, halvings)
    assert opened.cut == {"a": 1, "b": 0}
    while opened.cut["a"]:
        halvings = code.halvings_after(opened, halvings)
        code, opened = opened_with(given, halvings)
    assert code.halvings_after(opened, halvings)[0] <= 1  # where 0.1 is within half of it
    given[0]["a"][0, 0] = 0
    for _ in range(3):
        halvings = code.halvings_after(opened, halvings)
        code, opened = opened_with(given, halvings)
    assert halvings[0] >= 5  # one such number is forgotten


def test_what_is_zero_stays_zero_and_tells_nothing_of_its_bound():
    given = [one.map(torch.zeros_like) for one in deltas(10)]
    code, opened = opened_with(given, (4, 0))
    assert opened.mean.norm() == 0
    assert code.halvings_after(opened, (4, 0)) == (4, 0)


def test_rounding_is_told_as_large_as_it_is():
    given = deltas(30)
    code, opened = opened_with(given, (0, 0), silos=40)
    told = code.rounding(opened)["a"]
    seen = float(off(opened, given, "a").double().square().mean().sqrt())
    assert 0.6 * told < seen < told


def test_what_no_honest_silos_told_of_their_bounds_is_out_of_range():
    code, _ = opened_with(deltas(3), (0, 0))
    total = sum(code.encode(one, 1) for one in deltas(3))
    total[-1] += np.uint64(4) << np.uint64(48)
    with pytest.raises(ValueError, match="told of their bounds"):
        code.decode(total, 3)


@pytest.mark.parametrize(
    ("share", "more"), [(0.9, -1), (0.4, 0), (0.2, 1), (0.1, 1), (0.05, 3), (0.01, 3), (0.003, 7)]
)
def test_how_much_narrower_a_bound_gets_hangs_on_the_largest_number(share: float, more: int):
    """Two silos whose numbers cancel: of the mean alone one would narrow a lot."""
    one = deltas(1)[0].map(lambda tensor: torch.full_like(tensor, 1.001 * share * WIDEST / 16))
    code, opened = opened_with([one, one * -1.0, one * 0.0], (4, 4))
    assert code.halvings_after(opened, (4, 4)) == (4 + more, 4 + more)
