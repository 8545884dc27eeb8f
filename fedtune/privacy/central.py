"""`privacy.mode: central`: silo-level DP by a trusted coordinator, as an aggregation rule.

DP-FedAvg (McMahan et al. 2018), DP-FedAdam and DP-FTRL (Kairouz et al. 2021): every silo's delta is
clipped here, whatever the silo did, and summed without weights; noise is added to the sum, which is
divided by the number of silos that a round is expected to ask, not by how many came. What follows
(server optimizer, the next adapter) works on that alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedtune.aggregation.rule import Fold, GlobalState
from fedtune.aggregation.server_optimizers import server_step, start_moments
from fedtune.config.federation import ServerOptimizerConfig
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.privacy.clipping import moved_norm
from fedtune.privacy.delta_sum import DeltaSum
from fedtune.privacy.noise import (
    GaussianSource,
    KeyedNoise,
    NoiseSource,
    SecureNoise,
    fresh_key,
    noised,
)
from fedtune.privacy.plan import ExecutionPlan, plan_rounds
from fedtune.privacy.spending import RELEASED, Spending
from fedtune.tensors import TensorSet

_MEMORY = "privacy"


@dataclass(frozen=True)
class SiloLevel:
    """The rule that `privacy.mode: central` names.

    The state's memory holds the server optimizer's moments and, under `privacy`: `rounds`, [1], how
    many are in the state; `norm`, [1], the clipping norm of the next; and with correlated noise
    `keys`, [rounds, 32], a round's secret key of 32 bytes a row. Who has the keys can take the
    noise away: a checkpoint is as secret as the silos' sums.
    """

    plan: ExecutionPlan
    optimizer: ServerOptimizerConfig
    source: NoiseSource
    spending: Spending

    @property
    def secret_sample(self) -> bool:
        """Whether privacy rests on nobody knowing which silos a round asked."""
        return self.plan.correlation is None and self.plan.sample_rate < 1

    def start(self, adapter: TensorSet) -> GlobalState:
        """The state before the first round."""
        memory = {
            "rounds": torch.zeros(1),
            "norm": torch.tensor([self.plan.settings.clipping_norm]),
        }
        if self.plan.correlation is not None:
            memory["keys"] = torch.zeros(0, 32)
        moments = start_moments(self.optimizer, adapter)
        return GlobalState(adapter, {**moments, _MEMORY: TensorSet(memory)})

    def group_of(self, silo: str) -> int:
        """All silos receive the same."""
        return 0

    def received_by(self, group: int, state: GlobalState) -> TensorSet:
        """Every silo receives the same adapter."""
        return state.adapter

    def silos_of(self, names: Sequence[str], round_number: int) -> list[str]:
        """The silos that a round asks, sorted; perhaps none.

        With fresh noise each is taken with the plan's chance, from the noise's own source: a draw
        that the run's seed tells would be no sampling. With correlated noise silos take turns.
        """
        ordered = sorted(names)
        if self.plan.correlation is None:
            chances = self.source.uniform(len(ordered))
            taken = chances < self.plan.sample_rate
        else:
            every = self.plan.correlation.every
            taken = np.arange(len(ordered)) % every == (round_number - 1) % every
        return [name for name, there in zip(ordered, taken, strict=True) if there]

    def fold(self, state: GlobalState, spare: Tensor | None = None) -> Fold:
        """An empty fold for one round from `state`; memory of a float64 sum.

        Raises InputError when the record of released rounds lacks some that are in the state.
        """
        rounds, released = int(state.memory[_MEMORY]["rounds"]), len(self.spending.released)
        if released < rounds:
            raise InputError(
                f"the record of released rounds has {released}, but {rounds} are in the adapter",
                where=RELEASED,
            )
        return _NoisyFold(self, state)


class _NoisyFold:
    def __init__(self, rule: SiloLevel, state: GlobalState) -> None:
        self._rule, self._state, self._memory = rule, state, state.memory[_MEMORY]
        self._norm, self._within = float(self._memory["norm"]), 0.0
        layers = rule.plan.settings.clipping == "per_layer"
        self._sum = DeltaSum(state.adapter.spec, self._norm, "per_layer" if layers else "flat")

    def add(self, silo: str, delta: TensorSet, weight: float) -> None:
        # a half is taken from each silo's 0 or 1, so that one silo moves their sum by a half
        self._within += 0.5 if self._sum.add(delta) else -0.5

    def result(self) -> GlobalState:
        rule, number = self._rule, int(self._memory["rounds"]) + 1
        rule.spending.charge(number)
        memory = {"rounds": torch.tensor([float(number)])}
        source: GaussianSource = rule.source
        if (correlation := rule.plan.correlation) is not None:
            key = torch.tensor([list(fresh_key(rule.source))], dtype=torch.float32)
            memory["keys"] = torch.cat([self._memory["keys"], key])
            source = _Mixture(memory["keys"], correlation.row(number))
        std = rule.plan.sum_noise_multiplier * self._norm
        total = noised(self._sum.sums, std, source)
        del self._sum
        for tensor in total.values():
            tensor.div_(rule.plan.expected_batch)
        memory["norm"] = torch.tensor([self._next_norm()])
        state = self._state
        adapter, moments = server_step(
            rule.optimizer, state.adapter, TensorSet(total), state.memory
        )
        return GlobalState(adapter, {**moments, _MEMORY: TensorSet(memory)})

    def _next_norm(self) -> float:
        plan = self._rule.plan
        if plan.settings.clipping != "adaptive":
            return self._norm
        return moved_norm(self._norm, self._within, plan, self._rule.source)


class _Mixture:
    """A round's share of its own draw and of earlier ones', each made again from its key."""

    def __init__(self, keys: Tensor, shares: dict[int, float]) -> None:
        self._streams = [
            (KeyedNoise(bytes(keys[number - 1].to(torch.uint8).tolist())), share)
            for number, share in shares.items()
        ]

    def normal(self, count: int, std: float) -> np.ndarray:
        """Float64 [count]."""
        total = np.zeros(count)
        for stream, share in self._streams:
            total += stream.normal(count, std * share)
        return total


def build_central(
    config: RunConfig,
    silos: int,
    *,
    checkpoints: Path | None = None,
    source: NoiseSource | None = None,
) -> SiloLevel:
    """The rule of a run with so many silos; what was released before is read from `checkpoints`.

    Raises InputError on a plan that can't be, or a damaged record. `source` is for tests.
    """
    plan = plan_rounds(config.privacy, config.federation, silos)
    record = checkpoints / RELEASED if checkpoints else None
    optimizer = config.federation.server_optimizer
    return SiloLevel(plan, optimizer, source or SecureNoise(), Spending(plan, record))
