"""Who takes part in a step: by independent chances at the stated rate, whole and bounded."""

import itertools
import math
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from fedtune.privacy.noise import SecureNoise
from fedtune.privacy.plan import ExecutionPlan
from fedtune.privacy.sampling import UnitRows, UnitSampler, physical_batches

STEPS, UNITS, BATCH = 4000, 12, 3
Plans = Callable[..., ExecutionPlan]
Samplers = Callable[..., UnitSampler]


def taken(sampler: UnitSampler, steps: int) -> np.ndarray:
    """Bool [steps, units]."""
    seen = np.zeros((steps, UNITS), dtype=bool)
    for step in range(steps):
        seen[step, [int(rows[0]) for rows in sampler.take()]] = True
    return seen


@pytest.fixture(scope="module")
def sampler_of(plan_of: Plans) -> Samplers:
    def make(sampling: str = "poisson") -> UnitSampler:
        plan = plan_of(sampling=sampling, units=UNITS, batch=BATCH)
        return UnitSampler(plan, UnitRows.of(np.arange(UNITS)), SecureNoise())

    return make


@pytest.fixture(scope="module")
def seen(sampler_of: Samplers) -> np.ndarray:
    """Half the steps by one sampler, half by its successors after restarts."""
    parts = [taken(sampler_of(), STEPS // 2)]
    parts += [taken(sampler_of(), 10) for _ in range(STEPS // 20)]
    return np.concatenate(parts)


# a false alarm is a chance of one in a million
def test_each_unit_has_the_stated_rate(seen: np.ndarray):
    rate = BATCH / UNITS
    for unit in range(UNITS):
        assert stats.binomtest(int(seen[:, unit].sum()), len(seen), rate).pvalue > 1e-6


def test_batch_sizes_are_binomial_and_some_are_empty(seen: np.ndarray):
    sizes = np.bincount(seen.sum(1), minlength=UNITS + 1)
    expected = stats.binom.pmf(np.arange(UNITS + 1), UNITS, BATCH / UNITS) * len(seen)
    sizes = np.append(sizes[:8], sizes[8:].sum())
    expected = np.append(expected[:8], expected[8:].sum())
    assert stats.chisquare(sizes, expected).pvalue > 1e-6
    assert sizes[0] > 0


def test_no_pair_of_units_or_of_steps_hangs_together(seen: np.ndarray):
    pairs = [(seen[:, a], seen[:, b]) for a, b in itertools.combinations(range(UNITS), 2)]
    steps = [(seen[:-lag, u], seen[lag:, u]) for u in range(UNITS) for lag in (1, 2, 4)]
    for one, other in pairs + steps:
        table = np.array([[np.sum((one == a) & (other == b)) for a in (0, 1)] for b in (0, 1)])
        assert stats.chi2_contingency(table, correction=False).pvalue > 1e-6


def test_restarts_do_not_repeat_a_draw(sampler_of: Samplers):
    draws = {taken(sampler_of(), 8).tobytes() for _ in range(20)}
    assert len(draws) == 20


def test_a_pass_takes_every_unit_once_and_each_draws_for_itself(sampler_of: Samplers):
    sampler = sampler_of("shuffle")
    turns = math.ceil(UNITS / BATCH)
    seen = taken(sampler, turns * 500).reshape(500, turns, UNITS)
    assert (seen.sum(1) == 1).all()
    # were the batches of one size, who has which turn would tell of the others
    first = seen[:, 0, :]
    table = [[np.sum((first[:, 0] == a) & (first[:, 1] == b)) for a in (0, 1)] for b in (0, 1)]
    assert stats.chi2_contingency(np.array(table), correction=False).pvalue > 1e-6
    assert len({*first.sum(1).tolist()}) > 3


def test_full_takes_all(sampler_of: Samplers):
    assert taken(sampler_of("full"), 3).all()


def test_a_patient_gives_a_bounded_number_of_rows_each_time_others(plan_of: Plans):
    codes = np.array([0] * 9 + [1] * 2)
    plan = plan_of(unit="patient", sampling="full", units=2, batch=2, max_records_per_unit=4)
    sampler = UnitSampler(plan, UnitRows.of(codes), SecureNoise())
    draws = [sampler.take() for _ in range(200)]
    assert all(len(many) == 4 and len({*many.tolist()}) == 4 for many, _ in draws)
    assert all(few.tolist() == [9, 10] for _, few in draws)
    counts = np.bincount(np.concatenate([many for many, _ in draws]), minlength=9)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_a_plan_for_other_units_is_refused(plan_of: Plans):
    with pytest.raises(ValueError, match="plan is for 12 units"):
        UnitSampler(plan_of(units=12), UnitRows.of(np.arange(5)), SecureNoise())


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_rows_are_found_by_unit(codes: list[int]):
    known, numbers = np.unique(codes, return_inverse=True)
    units = UnitRows.of(numbers)
    assert len(units) == len(known)
    for unit in range(len(units)):
        assert units.of_unit(unit).tolist() == np.flatnonzero(numbers == unit).tolist()


@given(st.lists(st.integers(1, 5), max_size=30), st.integers(5, 12))
@settings(deadline=None)
def test_physical_batches_hold_whole_units_and_all_of_them(sizes: list[int], most: int):
    ends = np.cumsum([0, *sizes])
    units = [np.arange(ends[i], ends[i + 1]) for i in range(len(sizes))]
    found: list[list[int]] = []
    for rows, owners in physical_batches(units, most):
        assert 0 < len(rows) == len(owners) <= most
        parts = [rows[owners == number].tolist() for number in range(owners[-1] + 1)]
        assert [*itertools.chain(*parts)] == rows.tolist()
        found += parts
    assert found == [unit.tolist() for unit in units]


def test_a_unit_beyond_the_limit_is_refused():
    with pytest.raises(ValueError, match="unit of 5 rows"):
        list(physical_batches([np.arange(5)], 4))
