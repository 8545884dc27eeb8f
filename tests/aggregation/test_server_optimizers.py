"""Two steps of each server optimizer, worked out by hand."""

import math

import pytest
import torch

from fedtune.aggregation.server_optimizers import server_step, start_moments
from fedtune.config.federation import ServerOptimizerConfig
from fedtune.tensors import TensorSet

STATE = TensorSet({"w": torch.tensor([1.0])})
DELTA = TensorSet({"w": torch.tensor([2.0])})


def two_steps(config: ServerOptimizerConfig) -> list[float]:
    state, moments, seen = STATE, start_moments(config, STATE), []
    for _ in range(2):
        state, moments = server_step(config, state, DELTA.clone(), moments)
        seen.append(state["w"].item())
    return seen


def test_none_adds_the_delta():
    assert two_steps(ServerOptimizerConfig(name="none")) == [3.0, 5.0]


def test_fedavgm():
    # m: 2, then 0.5*2 + 2 = 3; state: 1 + 0.1*2, then + 0.1*3
    config = ServerOptimizerConfig(name="fedavgm", learning_rate=0.1, momentum=0.5)
    assert two_steps(config) == pytest.approx([1.2, 1.5])


def test_fedadam():
    # tau 0.5, so v starts at 0.25. m: 1, 1.5. v: 0.75*0.25 + 0.25*4 = 1.1875, then 1.890625
    config = ServerOptimizerConfig(
        name="fedadam", learning_rate=0.1, beta1=0.5, beta2=0.75, tau=0.5
    )
    first = 1 + 0.1 * 1.0 / (math.sqrt(1.1875) + 0.5)
    second = first + 0.1 * 1.5 / (math.sqrt(1.890625) + 0.5)
    assert two_steps(config) == pytest.approx([first, second])


def test_fedadam_without_a_rate_moves_a_weight_by_a_hundredth_at_most():
    # 0.1*2 / sqrt(0.01*4) = 1, as for any delta well above tau: with rate 1 an adapter is undone
    first, _ = two_steps(ServerOptimizerConfig(name="fedadam"))
    assert first == pytest.approx(1.01, abs=1e-4)
