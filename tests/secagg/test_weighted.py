"""The mean that comes out of a secure sum is the weighted mean, to the error that is told."""

import numpy as np
import pytest
import torch

from fedtune.secagg.weighted import Bounds, Opened, Weighted, first_bounds
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
        code.decode(code.encode(delta, 1) + np.array([0] * (code.words - 1) + [51], np.uint64), 1)


SPEC = deltas(1)[0].spec
WIDEST = 0.3


def opened_with(given: list[TensorSet], bounds: Bounds) -> tuple[Weighted, Opened]:
    """The sum of a round under these bounds, all silos weighing the same."""
    each = zip(SPEC, bounds.halvings, strict=True)
    code = Weighted(SPEC, {name: WIDEST / 2**n for (name, _), n in each}, len(given), 1)
    return code, code.decode(sum(code.encode(one, 1) for one in given), len(given))


def relative_error(opened: Opened, given: list[TensorSet], name: str) -> float:
    exact = sum(one[name].double() for one in given) / len(given)
    return float((opened.mean[name] - exact).norm() / exact.norm())


@pytest.mark.parametrize("silos", [3, 10, 100])
@pytest.mark.parametrize("alike", [0.0, 1.0], ids=["independent", "alike"])
def test_bounds_follow_the_sums_until_rounding_is_below_a_thousandth(silos: int, alike: float):
    bounds, errors, common = first_bounds(SPEC), [], deltas(1, seed=99)[0]
    for number in range(3):
        given = [one + common * alike for one in deltas(silos, seed=number)]
        code, opened = opened_with(given, bounds)
        errors.append({name: relative_error(opened, given, name) for name in SIGMA})
        assert opened.cut == {"a": 0, "b": 0}
        bounds = code.bounds_after(opened, bounds)
    assert errors[0]["a"] > 1e-3  # by the settings' bound alone, which is 3,000 sigma
    assert max(error for later in errors[1:] for error in later.values()) < 1e-3
    assert bounds.halvings[0] > bounds.halvings[1]  # each tensor has its own


def test_a_bound_at_which_numbers_were_cut_is_widened_and_not_used_again():
    tame, given = deltas(10), deltas(10, seed=1)
    code, opened = opened_with(tame, first_bounds(SPEC))
    bounds = narrow = code.bounds_after(opened, first_bounds(SPEC))
    given[0]["a"][0, 0] = 1000 * SIGMA["a"]
    for _ in range(6):
        code, opened = opened_with(given, bounds)
        told, bounds = opened.cut["a"], code.bounds_after(opened, bounds)
        if not told:
            break
        assert told == 1
        assert bounds.most[0] == bounds.halvings[0] < narrow.halvings[0]
    assert not told
    code, opened = opened_with(tame, bounds)
    assert code.bounds_after(opened, bounds).halvings[0] <= bounds.most[0]  # however tame they are
    assert bounds.most[1] == narrow.most[1]  # of its own tensor only


def test_what_is_zero_stays_zero_and_tells_nothing_of_its_bound():
    given = [one.map(torch.zeros_like) for one in deltas(10)]
    code, opened = opened_with(given, Bounds((4, 0), (60, 60)))
    assert opened.mean.norm() == 0
    assert code.bounds_after(opened, Bounds((4, 0), (60, 60))) == Bounds((4, 0), (60, 60))


def test_a_delta_that_grows_is_given_room_up_to_the_settings_bound():
    grown, narrow = [one * 1000 for one in deltas(4)], Bounds((2, 2), (60, 60))
    code, opened = opened_with(grown, narrow)
    assert all(opened.cut.values())
    assert code.bounds_after(opened, narrow).halvings == (0, 0)


def test_a_bound_leaves_room_for_silos_that_have_nothing_in_common():
    """300 silos' mean is 17 times smaller than they are, and their rounding coarse."""
    code = Weighted(SPEC, dict.fromkeys(SIGMA, WIDEST), 300, 1)
    mean = deltas(1)[0] * 300**-0.5
    bounds = code.bounds_after(Opened(mean, 300, 300, {"a": 0, "b": 0}), first_bounds(SPEC))
    alone = float(deltas(1)[0]["a"].abs().max())
    assert 2 * alone <= WIDEST / 2 ** bounds.halvings[0] <= 6 * alone
