"""The rule that a run's settings name, and the plainest of them."""

from dataclasses import dataclass

from torch import Tensor

from fedtune.aggregation.fedavg import WeightedMean
from fedtune.aggregation.fedex import FedEx
from fedtune.aggregation.rule import Fold, GlobalState, Rule
from fedtune.aggregation.server_optimizers import server_step, start_moments
from fedtune.aggregation.svd import SvdMean
from fedtune.config.federation import ServerOptimizerConfig
from fedtune.config.schema import RunConfig
from fedtune.tensors import TensorSet


@dataclass(frozen=True)
class FedAvg:
    """Example-weighted mean of deltas, then a server optimizer."""

    optimizer: ServerOptimizerConfig

    def start(self, adapter: TensorSet) -> GlobalState:
        """The state before the first round."""
        return GlobalState(adapter, start_moments(self.optimizer, adapter))

    def group_of(self, silo: str) -> int:
        """All silos are one group."""
        return 0

    def received_by(self, group: int, state: GlobalState) -> TensorSet:
        """Every silo receives the same adapter."""
        return state.adapter

    def fold(self, state: GlobalState, spare: Tensor | None = None) -> Fold:
        """An empty fold for one round from `state`."""
        return _MeanFold(self.optimizer, state, spare)


class _MeanFold:
    def __init__(
        self, optimizer: ServerOptimizerConfig, state: GlobalState, spare: Tensor | None
    ) -> None:
        self._optimizer, self._state, self._mean = optimizer, state, WeightedMean(spare)

    def add(self, silo: str, delta: TensorSet, weight: float) -> None:
        self._mean.add(delta, weight)

    def result(self) -> GlobalState:
        state = self._state
        delta = self._mean.result()
        return GlobalState(*server_step(self._optimizer, state.adapter, delta, state.memory))


def build_rule(config: RunConfig) -> Rule:
    """The rule that `federation.aggregation` names."""
    federation, adapter = config.federation, config.adapter
    power = 0.5 if adapter.use_rslora else 1.0

    def scale(rank: int) -> float:
        return adapter.lora_alpha / rank**power

    if federation.aggregation == "svd":
        return SvdMean(adapter.lora_r, federation.silo_ranks, scale)
    if federation.aggregation == "fedex":
        return FedEx(scale(adapter.lora_r))
    return FedAvg(federation.server_optimizer)
