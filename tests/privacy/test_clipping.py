"""What one unit adds to a step's sum is bounded, whatever its rows hold."""

import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fedtune.config.privacy import PrivacyConfig
from fedtune.privacy.clipping import clipped_sum, moved_norm, unit_mix
from fedtune.privacy.noise import SeededNoise
from fedtune.privacy.plan import ExecutionPlan, plan_steps

SHAPES = {"a": (3, 2), "b": (5,)}
Case = tuple[dict[str, Tensor], Tensor, int]


SCALES = (0.0, 1e-30, 1e-3, 1.0, 1e3, math.inf, math.nan)
"""Of rows. The square of what is beyond 1e18 leaves float32, where a loop in float64 would not."""


@st.composite
def cases(draw: Any, among: tuple[float, ...] = SCALES) -> Case:
    """Gradients of 1 to 9 rows, some large, tiny or not finite, and their 1 to 5 units."""
    units = draw(st.integers(1, 5))
    owners = sorted([*range(units), *draw(st.lists(st.integers(0, units - 1), max_size=4))])
    numbers = np.random.default_rng(draw(st.integers(0, 10**6)))
    many = {"min_size": len(owners), "max_size": len(owners)}
    scales = torch.tensor(draw(st.lists(st.sampled_from(among), **many)))
    grads = {}
    for name, shape in SHAPES.items():
        rows = torch.from_numpy(numbers.standard_normal((len(owners), *shape))).float()
        grads[name] = rows * scales.view(-1, *[1] * len(shape)).float()
    return grads, torch.tensor(owners), units


def naive(case: Case, norm: float, reduction: str, *, per_layer: bool) -> dict[str, Tensor]:
    """Unit by unit in float64."""
    grads, owners, units = case
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for unit in range(units):
        rows = {name: g[owners == unit].double() for name, g in grads.items()}
        own = {n: g.sum(0) if reduction == "sum" else g.mean(0) for n, g in rows.items()}
        whole = math.sqrt(sum(float(v.square().sum()) for v in own.values()))
        if not math.isfinite(whole):
            continue
        for name, value in own.items():
            size = float(value.norm()) if per_layer else whole
            bound = norm / math.sqrt(len(own)) if per_layer else norm
            sums[name] += value * min(1.0, bound / size if size else 1.0)
    return sums


def run(case: Case, norm: float, reduction: str, *, per_layer: bool) -> dict[str, Tensor]:
    grads, owners, units = case
    return clipped_sum(grads, unit_mix(owners, units, reduction), norm, per_layer=per_layer).sums


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((one[n].double() - other[n].double()).square().sum()) for n in one))


@given(
    cases((*SCALES, 1e18, 1e25)),
    st.sampled_from([1e-3, 1.0, 50.0]),
    st.sampled_from(["mean", "sum"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_unit_moves_the_sum_by_more_than_the_norm(
    case: Case, norm: float, reduction: str, per_layer: bool
):
    grads, owners, units = case
    whole = run(case, norm, reduction, per_layer=per_layer)
    assert all(bool(torch.isfinite(total).all()) for total in whole.values())
    for unit in range(units):
        kept = owners != unit
        without = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        if units > 1:
            less = owners[kept] - (owners[kept] > unit).long()
            rest = {name: rows[kept] for name, rows in grads.items()}
            without = run((rest, less, units - 1), norm, reduction, per_layer=per_layer)
        # float32 sums of up to five vectors
        assert distance(whole, without) <= norm * (1 + 2e-6)


@given(cases(), st.sampled_from(["mean", "sum"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_it_is_what_a_loop_over_units_gives(case: Case, reduction: str, per_layer: bool):
    got = run(case, 2.0, reduction, per_layer=per_layer)
    want = naive(case, 2.0, reduction, per_layer=per_layer)
    assert distance(got, want) < 1e-5 * case[2]


def test_one_row_that_is_not_finite_costs_its_own_unit_only():
    grads = {"a": torch.ones(4, 3)}
    grads["a"][2, 1] = math.nan
    mix = unit_mix(torch.tensor([0, 0, 1, 2]), 3, "mean")
    clipped = clipped_sum(grads, mix, 100.0)
    assert torch.allclose(clipped.sums["a"], torch.full((3,), 2.0))
    assert clipped.within == 2


def test_each_layer_has_its_share_of_the_norm():
    grads = {"a": torch.tensor([[30.0, 40.0]]), "b": torch.tensor([[0.0, 0.1]])}
    sums = clipped_sum(grads, None, 2.0, per_layer=True).sums
    assert float(sums["a"].norm()) == pytest.approx(2 / math.sqrt(2), rel=1e-5)
    assert torch.equal(sums["b"], grads["b"][0])


def test_units_within_the_norm_are_counted_before_clipping():
    grads = {"a": torch.tensor([[0.5, 0.0], [0.0, 3.0], [1.0, 0.0]])}
    assert clipped_sum(grads, None, 1.0).within == 2


@pytest.mark.parametrize(("share", "direction"), [(0.9, -1), (0.1, 1), (0.5, 0)])
def test_the_norm_moves_towards_the_quantile(
    share: float, direction: int, plan_of: Callable[..., ExecutionPlan]
):
    plan = plan_of(clipping="adaptive", count_noise=1.0, units=4000, batch=2000)
    moves = [
        math.log(moved_norm(1.0, (share - 0.5) * 2000, plan, SeededNoise(s))) for s in range(20)
    ]
    # Andrew et al. 2021, section 2.2: log C moves by -rate * (share - quantile)
    assert np.mean(moves) == pytest.approx(-0.2 * (share - 0.5), abs=1e-3)
    assert np.sign(round(float(np.mean(moves)), 2)) == direction
    # the noise is `count_noise` units over the expected batch
    assert np.std(moves) == pytest.approx(0.2 / 2000, rel=0.5)


def test_a_unit_moves_the_count_by_half():
    grads = {"a": torch.tensor([[0.5], [3.0]])}
    both = clipped_sum(grads, None, 1.0).within - 2 / 2
    for left in (0, 1):
        alone = clipped_sum({"a": grads["a"][[left]]}, None, 1.0).within - 1 / 2
        assert abs(both - alone) == 0.5


@pytest.mark.parametrize("start", [1e-6, 1e6])
@pytest.mark.parametrize("within", [-500.0, 500.0])
def test_no_settings_lead_to_a_norm_that_float32_can_not_tell(start: float, within: float):
    """The square of 1e-25 is zero in float32, and a vector of norm zero is not clipped."""
    how = {"mode": "local", "clipping": "adaptive", "clipping_rate": 100.0, "noise_multiplier": 1.0}
    with pytest.raises(ValueError, match="clipping_norm"):
        PrivacyConfig.model_validate({**how, "clipping_norm": start**4})
    settings = PrivacyConfig.model_validate({**how, "clipping_norm": start})
    plan = plan_steps(settings, "record", 1000, 1000, 1)
    norm = moved_norm(start, within, plan, SeededNoise(0))
    for power in range(-40, 18):
        grads = {"a": torch.full((1, 1000), 10.0**power), "b": torch.full((1, 9), 10.0**power)}
        for per_layer in (False, True):
            sums = clipped_sum(grads, None, norm, per_layer=per_layer).sums.values()
            assert math.sqrt(sum(float(part.double().square().sum()) for part in sums)) <= norm
