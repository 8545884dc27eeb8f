"""Private steps, noise apart, are those of Opacus' own hooks and optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch.optim import SGD

from fedtune.config.task import TaskConfig
from fedtune.privacy.dp_sgd import PrivateSteps
from fedtune.privacy.plan import ExecutionPlan
from fedtune.privacy.sampling import UnitRows
from fedtune.tasks import build_task
from fedtune.tasks.task import Encoded, Task
from tests.privacy.test_per_example import (
    ADAPTERS,
    CLASSIFIERS,
    LABELS,
    WORDS,
    adapted,
    losses_of,
    tokenizer,
)

HEAD, PHYSICAL, RATE = "sequence_classification", 3, 0.3
STEPS = ([0, 3, 5, 6, 9, 11, 20], [1, 2], [4, 5, 6, 7, 8, 12, 13, 15, 22, 23], [0, 1, 5])
"""The rows of each step, which make one, three or four batches of at most `PHYSICAL`."""


def rows_of(count: int) -> list[Encoded]:
    numbers = np.random.default_rng(3)
    return [
        Encoded(numbers.integers(5, WORDS, numbers.integers(4, 14)).tolist(), [row % len(LABELS)])
        for row in range(count)
    ]


def model_of(family: str, adapter: str) -> Any:
    torch.manual_seed(0)
    return adapted(CLASSIFIERS[family](), ADAPTERS[adapter], HEAD).train()


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


class Given:
    """A sampler whose steps are known beforehand."""

    def __init__(self) -> None:
        self._steps = iter(STEPS)

    def take(self) -> list[np.ndarray]:
        return [np.array([row]) for row in next(self._steps)]


def by_fedtune(model: Any, task: Task, rows: Sequence[Encoded], plan: ExecutionPlan) -> None:
    steps = PrivateSteps(plan, UnitRows.of(np.arange(plan.units)))
    steps._sampler = Given()  # type: ignore[assignment]
    attached = steps.attach(model)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], RATE)
    for _ in STEPS:
        attached.set_gradients(lambda some: losses_of(task, model, some), rows)
        optimizer.step()


def by_opacus(model: Any, task: Task, rows: Sequence[Encoded], plan: ExecutionPlan) -> None:
    hooked = GradSampleModule(model, loss_reduction="mean")
    optimizer = DPOptimizer(
        SGD([p for p in model.parameters() if p.requires_grad], RATE),
        noise_multiplier=0.0,
        max_grad_norm=plan.settings.clipping_norm,
        expected_batch_size=int(plan.expected_batch),
    )
    for step in STEPS:
        parts = [step[start : start + PHYSICAL] for start in range(0, len(step), PHYSICAL)]
        for number, part in enumerate(parts):
            optimizer.signal_skip_step(do_skip=number + 1 < len(parts))
            optimizer.zero_grad()
            losses_of(task, hooked, [rows[row] for row in part]).mean().backward()
            optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("family", CLASSIFIERS)
@pytest.mark.parametrize("adapter", ["lora", "ffa"])
def test_the_weights_after_some_steps_are_opacus_s(
    family: str, adapter: str, plan_of: Callable[..., ExecutionPlan]
) -> None:
    plan = plan_of(
        units=24,
        batch=8,
        steps=len(STEPS),
        noise_multiplier=1e-7,
        clipping_norm=0.5,
        max_physical_batch=PHYSICAL,
    )
    task, rows = build_task(TaskConfig(name=HEAD), tokenizer(), LABELS), rows_of(plan.units)
    start = weights(model_of(family, adapter))
    ours, theirs = model_of(family, adapter), model_of(family, adapter)
    by_fedtune(ours, task, rows, plan)
    by_opacus(theirs, task, rows, plan)
    moved, off = weights(theirs) - start, weights(ours) - weights(theirs)
    assert off.norm() < 1e-4 * moved.norm()
    assert moved.norm() > 0.04
