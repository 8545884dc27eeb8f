"""Rates by the step, clipping and weight decay: numbers worked out by hand."""

import pytest
import torch

from fedtune.config.training import TrainingConfig
from fedtune.training.optimizers import build_optimizer, clip, rate_factor, set_rate


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_rate_warms_up_then_decays(schedule: str, factors: list[float]):
    settings = TrainingConfig.model_validate({"lr_schedule": schedule, "warmup_steps": 2})
    assert [rate_factor(settings, step, 6) for step in range(6)] == pytest.approx(factors, abs=1e-6)


def test_the_whole_gradients_norm_is_clipped_on_request():
    def clipped(norm: float | None) -> list[float]:
        weights = [torch.zeros(1), torch.zeros(1)]
        for weight, value in zip(weights, (3.0, 4.0), strict=True):
            weight.grad = torch.full((1,), value)
        clip(weights, TrainingConfig(max_grad_norm=norm))
        return [float(weight.grad) for weight in weights]

    assert clipped(1.0) == pytest.approx([0.6, 0.8], abs=1e-5)
    assert clipped(10.0) == clipped(None) == [3.0, 4.0]


def test_sgd_keeps_its_momentum():
    weight = torch.zeros(1, requires_grad=True)
    settings = TrainingConfig(optimizer="sgd", momentum=0.5, learning_rate=1.0)
    optimizer = build_optimizer(settings, [weight])
    for _ in range(2):
        weight.grad = torch.ones(1)
        optimizer.step()
    assert weight.item() == -(1.0 + 1.5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_without_a_gradient_decays_the_weights_at_the_rate_that_is_set(name: str):
    weight = torch.ones(1, requires_grad=True)
    settings = TrainingConfig.model_validate({"optimizer": name, "weight_decay": 0.1})
    optimizer = build_optimizer(settings, [weight])
    set_rate(optimizer, 0.5)
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.5 * 0.1)
