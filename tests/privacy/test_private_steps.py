"""Whole private steps on a model small enough to compute by hand."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fedtune.errors import InputError, RunFailedError
from fedtune.privacy.dp_sgd import PrivateSteps
from fedtune.privacy.noise import SeededNoise
from fedtune.privacy.plan import ExecutionPlan
from fedtune.privacy.sampling import UnitRows
from fedtune.tasks.task import Encoded

Plans = Callable[..., ExecutionPlan]


class Net(nn.Module):
    """Three parameter tensors of 40,400 scalars; an example is four numbers."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(4, 200), nn.Dropout(dropout)
        self.second = nn.Linear(200, 196, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.second(self.drop(torch.tanh(self.first(rows)))).square().mean(1)


def net(dropout: float = 0.0) -> Net:
    torch.manual_seed(0)
    return Net(dropout).train()


def rows_of(count: int, size: float = 1.0) -> list[Encoded]:
    numbers = np.random.default_rng(0).standard_normal((count, 4)) * size
    return [Encoded(row.tolist(), []) for row in numbers]


def losses_of(model: nn.Module) -> Callable[[Sequence[Encoded]], Tensor]:
    return lambda rows: model(torch.tensor([row.input_ids for row in rows], dtype=torch.float32))


def no_losses(model: nn.Module) -> Callable[[Sequence[Encoded]], Tensor]:
    losses = losses_of(model)
    return lambda rows: losses(rows) * 0.0


def steps_of(plan: ExecutionPlan, seed: int | None = None, codes: Any = None) -> PrivateSteps:
    units = UnitRows.of(np.arange(plan.units) if codes is None else np.asarray(codes))
    return PrivateSteps(plan, units, *([] if seed is None else [SeededNoise(seed)]))


def released(model: nn.Module) -> np.ndarray:
    return np.concatenate([p.grad.flatten().double().numpy() for p in model.parameters()])


def run(plan: ExecutionPlan, *, seed: int | None = None, count: int = 1, **how: Any) -> np.ndarray:
    """Gradients of `count` steps, [count, scalars]."""
    model = how.pop("model", None) or net()
    losses = how.pop("losses", losses_of)(model)
    attached = steps_of(plan, seed, how.pop("codes", None)).attach(model)
    taken = []
    for _ in range(count):
        attached.set_gradients(losses, how.get("rows") or rows_of(plan.units))
        taken.append(released(model))
    return np.stack(taken)


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
@pytest.mark.parametrize(
    "how",
    [
        {"units": 40, "batch": 20, "max_physical_batch": 3},  # virtual steps
        {"units": 40, "batch": 1, "max_physical_batch": 64},  # many batches are empty
        {"units": 6, "batch": 6, "sampling": "full"},
        {"units": 6, "batch": 2, "sampling": "shuffle"},
    ],
)
def test_noise_is_right_to_one_percent(how: dict[str, Any], clipping: str, plan_of: Plans):
    plan = plan_of(noise_multiplier=0.7, clipping_norm=3.0, clipping=clipping, **how)
    taken = run(plan, losses=no_losses, count=10)
    want = 0.7 * 3.0 / plan.expected_batch
    assert taken.std() == pytest.approx(want, rel=0.01)
    assert taken.std(1) == pytest.approx(want, rel=0.03)  # in every step
    for part in (slice(0, 800), slice(800, 1000), slice(1000, None)):  # in every tensor
        assert taken[:, part].std() == pytest.approx(want, rel=0.1)
    assert stats.kstest((taken / want).flatten(), "norm").pvalue > 1e-6
    pairs = np.corrcoef(taken)
    assert np.abs(pairs - np.eye(10)).max() < 6 / math.sqrt(taken.shape[1])


def test_an_empty_batch_is_noised_and_counts(plan_of: Plans):
    plan = plan_of(units=1000, batch=1, steps=12)
    steps, model = steps_of(plan), net()
    attached = steps.attach(model)

    class Nobody:
        def take(self) -> list[np.ndarray]:
            return []

    steps._sampler = Nobody()  # type: ignore[assignment]

    def never(rows: Sequence[Encoded]) -> Tensor:
        raise AssertionError

    attached.set_gradients(never, [])
    assert released(model).std() == pytest.approx(1.0, rel=0.02)
    assert steps.taken == 1


def test_adaptive_clipping_pays_for_its_count_with_more_noise(plan_of: Plans):
    how = {"clipping": "adaptive", "count_noise": 0.8, "clipping_norm": 2.0, "units": 20}
    plan = plan_of(noise_multiplier=1.0, batch=10, steps=9, **how)
    # Andrew et al. 2021, theorem 1: z^-2 = z_sum^-2 + (2 z_count)^-2
    assert plan.sum_noise_multiplier**-2 + (2 * 0.8) ** -2 == pytest.approx(1.0)
    model = net()
    steps = steps_of(plan)
    attached = steps.attach(model)
    for _ in range(9):
        norm = steps.norm
        attached.set_gradients(no_losses(model), rows_of(20))
        want = plan.sum_noise_multiplier * norm / plan.expected_batch
        assert released(model).std() == pytest.approx(want, rel=0.02)
        assert steps.norm != norm  # the noised count moved it
    assert plan.sum_noise_multiplier > 1.2


def moved(plan: ExecutionPlan) -> float:
    """The clipping norm after one step in which half of the units are within it."""
    model, count = net(), plan.units
    losses, rows = losses_of(model), rows_of(count)
    beyond = {id(row) for row in rows[: count // 2]}
    steps = steps_of(plan)
    scale = lambda some: torch.tensor([float(id(row) in beyond) for row in some])  # noqa: E731
    steps.attach(model).set_gradients(lambda some: losses(some) * scale(some), rows)
    return steps.norm


def test_adaptive_clipping_stays_where_half_of_the_units_are_within(plan_of: Plans):
    how = {"clipping": "adaptive", "sampling": "full", "units": 20, "clipping_norm": 1e-6}
    plan = plan_of(noise_multiplier=1e-4, count_noise=1e-3, batch=20, **how)
    assert moved(plan) == pytest.approx(1e-6, rel=1e-3)


def test_the_count_of_adaptive_clipping_has_noise(plan_of: Plans):
    how = {"clipping": "adaptive", "sampling": "full", "units": 20, "clipping_norm": 1e-6}
    plan = plan_of(noise_multiplier=1.0, count_noise=2.0, batch=20, **how)
    assert len({moved(plan) for _ in range(5)}) == 5


def test_two_runs_of_one_seed_differ(plan_of: Plans):
    plan = plan_of(units=8, batch=8, sampling="full")
    one, other = run(plan), run(plan)
    assert not np.array_equal(one, other)
    assert np.array_equal(run(plan, seed=1), run(plan, seed=1))


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_how_batches_are_cut_decides_nothing(reduction: str, clipping: str, plan_of: Plans):
    codes = np.repeat(np.arange(12), [1, 2, 3] * 4)
    how = {"unit": "patient", "units": 12, "batch": 6, "max_records_per_unit": 2, "steps": 9}
    how |= {"unit_reduction": reduction, "clipping": clipping, "clipping_norm": 0.05}

    def cut(most: int) -> np.ndarray:
        plan = plan_of(max_physical_batch=most, noise_multiplier=1e-3, **how)
        return run(plan, seed=5, count=4, codes=codes, rows=rows_of(len(codes)))

    whole = cut(64)
    for most in (2, 3, 7):
        assert cut(most) == pytest.approx(whole, abs=1e-7)


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_a_unit_moves_a_noiseless_step_by_its_norm_at_most(clipping: str, plan_of: Plans):
    """The same seed, with and without one unit: the difference is what it adds."""
    rows = rows_of(6, size=30.0)
    how = {"sampling": "full", "noise_multiplier": 1e-9, "clipping_norm": 0.5}
    how |= {"clipping": clipping, "max_physical_batch": 4}
    whole = run(plan_of(units=6, batch=6, **how), rows=rows)[0] * 6
    for left in range(6):
        rest = rows[:left] + rows[left + 1 :]
        without = run(plan_of(units=5, batch=5, **how), rows=rest)[0] * 5
        assert np.linalg.norm(whole - without) <= 0.5 * (1 + 1e-5)
        assert np.linalg.norm(whole - without) > 0.1


def test_the_divisor_is_the_expected_batch_not_the_one_that_chance_took(plan_of: Plans):
    rows = [Encoded([1.0, 2.0, 3.0, 4.0], [])] * 40
    plan = plan_of(units=40, batch=10, noise_multiplier=1e-9, clipping_norm=1e-3, steps=30)
    taken = run(plan, count=30, rows=rows)
    sizes = np.linalg.norm(taken, axis=1) * 10 / 1e-3
    assert sizes == pytest.approx(sizes.round(), abs=1e-3)
    assert len({*sizes.round().tolist()}) > 3


def test_dropout_is_not_told_by_a_seed(plan_of: Plans):
    """A mask known by its place would change for all who come after a unit that is left out."""
    how = {"sampling": "full", "noise_multiplier": 1e-9, "clipping_norm": 10.0}
    plan = plan_of(units=4, batch=4, **how)
    one, other = (run(plan, model=net(dropout=0.5), rows=rows_of(4)) for _ in range(2))
    assert np.abs(one - other).max() > 1e-4


def test_a_full_step_without_noise_and_clipping_is_plain_training(plan_of: Plans):
    how = {"sampling": "full", "noise_multiplier": 1e-6, "clipping_norm": 1e3}
    taken = run(plan_of(units=9, batch=9, max_physical_batch=4, **how), rows=rows_of(9))[0]
    model = net()
    losses_of(model)(rows_of(9)).mean().backward()
    plain = released(model)
    # the noise has a standard deviation of 1e-3 / 9 each: take a multiplier that leaves none
    assert np.abs(taken - plain).max() < 1e-3
    less = how | {"noise_multiplier": 1e-9, "clipping_norm": 10.0}
    taken = run(plan_of(units=9, batch=9, max_physical_batch=4, **less), rows=rows_of(9))[0]
    assert np.linalg.norm(taken - plain) < 1e-5 * np.linalg.norm(plain)


def test_steps_beyond_the_plan_are_refused(plan_of: Plans):
    with pytest.raises(RunFailedError, match="plan is for 2 steps"):
        run(plan_of(units=6, batch=3, steps=2), count=3)


def test_a_patient_that_does_not_fit_a_batch_is_refused(plan_of: Plans):
    plan = plan_of(unit="patient", max_records_per_unit=9, max_physical_batch=8)
    with pytest.raises(InputError, match="must fit in one batch"):
        steps_of(plan)


class Mixing(Net):
    """Centres each batch."""

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows - rows.mean(0))


def test_one_example_alone_does_not_pass_for_a_check(plan_of: Plans):
    model, alone = Mixing(), plan_of(units=2, batch=2, sampling="full", max_physical_batch=1)
    run(alone, model=model, rows=rows_of(2))  # examples are never together: nothing is mixed
    # a patient of one row comes first, then one of two, whose rows are mixed
    how = {"unit": "patient", "max_physical_batch": 2, "max_records_per_unit": 2}
    plan = plan_of(units=2, batch=2, sampling="full", **how)
    with pytest.raises(RunFailedError, match="of one example alone"):
        run(plan, model=model, rows=rows_of(3), codes=[0, 1, 1])


def test_a_row_that_is_not_finite_takes_no_other_along(plan_of: Plans):
    codes = [0, 0, 1, 2, 2]
    how = {"unit": "patient", "units": 3, "batch": 3, "sampling": "full", "clipping_norm": 0.01}
    plan = plan_of(noise_multiplier=1e-9, max_records_per_unit=2, **how)
    rows = rows_of(5)
    rows[4] = Encoded([math.nan] * 4, [])
    taken = run(plan, rows=rows, codes=codes)[0] * 3
    want = run(
        plan_of(noise_multiplier=1e-9, **how | {"units": 2, "batch": 2}),
        rows=rows[:3],
        codes=codes[:3],
    )[0]
    assert taken == pytest.approx(want * 2, abs=1e-8)
    assert np.linalg.norm(taken) > 0.005
