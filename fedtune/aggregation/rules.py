"""The rule that a run's settings name, and the plainest of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fedtune.aggregation.fedavg import WeightedMean
from fedtune.aggregation.fedex import FedEx
from fedtune.aggregation.krum import multi_krum
from fedtune.aggregation.median import coordinate_median
from fedtune.aggregation.norm_bounding import BoundedMean
from fedtune.aggregation.rule import Combination, Fold, GlobalState, Rule
from fedtune.aggregation.server_optimizers import server_step, start_moments
from fedtune.aggregation.svd import SvdMean
from fedtune.aggregation.together import Together
from fedtune.aggregation.trimmed_mean import TrimmedMean
from fedtune.config.federation import NEED_ALL_AT_ONCE, FederationConfig, ServerOptimizerConfig
from fedtune.config.schema import RunConfig
from fedtune.tensors import TensorSet


@dataclass(frozen=True)
class FedAvg:
    """Example-weighted mean of deltas, then a server optimizer.

    `combination` is what takes the mean's place: given memory to build in, an empty one.
    """

    optimizer: ServerOptimizerConfig
    combination: Callable[[Tensor | None], Combination] = WeightedMean

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
        return _MeanFold(self.optimizer, state, self.combination(spare))


class _MeanFold:
    def __init__(
        self, optimizer: ServerOptimizerConfig, state: GlobalState, mean: Combination
    ) -> None:
        self._optimizer, self._state, self._mean = optimizer, state, mean

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
    return FedAvg(federation.server_optimizer, _combination(federation))


def _combination(federation: FederationConfig) -> Callable[[Tensor | None], Combination]:
    hostile, bound = federation.hostile_silos, federation.norm_bound
    if federation.aggregation == "median":
        return lambda spare: Together(coordinate_median)
    if federation.aggregation == "trimmed_mean":
        return lambda spare: TrimmedMean(hostile)
    if federation.aggregation == "multi_krum":
        return lambda spare: Together(partial(multi_krum, hostile=hostile))
    if federation.aggregation == "norm_bounding" and bound is not None:
        return lambda spare: BoundedMean(bound, spare)
    return WeightedMean


def deltas_kept(federation: FederationConfig, silos: int) -> int:
    """Deltas in memory beside the mean and the one in hand, in a round of so many silos."""
    if federation.aggregation in NEED_ALL_AT_ONCE:
        return silos
    if federation.aggregation == "trimmed_mean":
        return 2 * federation.hostile_silos + 1  # its mean is in float64
    return 1 if federation.aggregation == "norm_bounding" else 0
