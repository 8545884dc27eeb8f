"""What a silo receives, how its delta is folded in, and what the next global state is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedtune.aggregation.fedavg import WeightedMean
from fedtune.aggregation.lora import LowRank, mean_of_products, truncate
from fedtune.aggregation.server_optimizers import server_step, start_moments
from fedtune.config.schema import RunConfig, ServerOptimizerConfig
from fedtune.errors import InputError
from fedtune.tensors import TensorSet


@dataclass(frozen=True)
class GlobalState:
    """All that goes from one round to the next: the adapter and the server's own memory."""

    adapter: TensorSet
    memory: Mapping[str, TensorSet] = field(default_factory=dict)


class Fold(Protocol):
    """One round's replies, taken in silo-name order."""

    def add(self, silo: str, delta: TensorSet, weight: float) -> None:
        """Fold one silo's delta in."""

    def result(self) -> GlobalState:
        """The next state. Raises ValueError when nothing was added."""


class Rule(Protocol):
    """An aggregation rule."""

    def start(self, adapter: TensorSet) -> GlobalState:
        """The state before the first round."""

    def group_of(self, silo: str) -> int:
        """Silos of one group receive the same tensors."""

    def received_by(self, group: int, state: GlobalState) -> TensorSet:
        """What the silos of `group` train from; their deltas have this spec."""

    def fold(self, state: GlobalState) -> Fold:
        """An empty fold for one round from `state`."""


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

    def fold(self, state: GlobalState) -> Fold:
        """An empty fold for one round from `state`."""
        return _MeanFold(self.optimizer, state)


class _MeanFold:
    def __init__(self, optimizer: ServerOptimizerConfig, state: GlobalState) -> None:
        self._optimizer, self._state, self._mean = optimizer, state, WeightedMean()

    def add(self, silo: str, delta: TensorSet, weight: float) -> None:
        self._mean.add(delta, weight)

    def result(self) -> GlobalState:
        state = self._state
        delta = self._mean.result()
        return GlobalState(*server_step(self._optimizer, state.adapter, delta, state.memory))


@dataclass(frozen=True)
class SvdMean:
    """Mean of LoRA products truncated to `rank`; a silo may hold fewer components.

    `scale(r)` is the adapter's factor at rank r: what acts on the model is scale(r) * B A, so
    factors are rescaled whenever they move between ranks.
    """

    rank: int
    silo_ranks: Mapping[str, int]
    scale: Callable[[int], float]

    def start(self, adapter: TensorSet) -> GlobalState:
        """The state before the first round. Raises ValueError on tensors that aren't 2-D LoRA."""
        lora_pairs(adapter)
        return GlobalState(adapter)

    def group_of(self, silo: str) -> int:
        """A silo's rank."""
        return self.silo_ranks.get(silo, self.rank)

    def received_by(self, group: int, state: GlobalState) -> TensorSet:
        """The leading components that the group's rank allows."""
        rank = group
        if rank == self.rank:
            return state.adapter
        tensors = dict(state.adapter.tensors)
        for name_a, name_b in lora_pairs(state.adapter):
            tensors[name_a] = tensors[name_a][:rank].clone()
            ratio = self.scale(self.rank) / self.scale(rank)
            tensors[name_b] = tensors[name_b][:, :rank] * ratio
        return TensorSet(tensors)

    def fold(self, state: GlobalState) -> Fold:
        """An empty fold for one round from `state`."""
        return _ProductFold(self, state)


class _ProductFold:
    """Keeps the factors of all silos: the truncation needs them together."""

    def __init__(self, rule: SvdMean, state: GlobalState) -> None:
        self._rule, self._state, self._plain = rule, state, WeightedMean()
        self._pairs = lora_pairs(state.adapter)
        self._trained: list[tuple[TensorSet, float]] = []

    def add(self, silo: str, delta: TensorSet, weight: float) -> None:
        trained = self._rule.received_by(self._rule.group_of(silo), self._state) + delta
        lora = {name for pair in self._pairs for name in pair}
        self._trained.append((TensorSet({n: trained[n] for n in trained if n in lora}), weight))
        self._plain.add(TensorSet({n: trained[n] for n in trained if n not in lora}), weight)

    def result(self) -> GlobalState:
        tensors = dict(self._plain.result().tensors)
        for name_a, name_b in self._pairs:
            mean = mean_of_products(
                [self._part(trained, name_a, name_b) for trained, _ in self._trained],
                [weight for _, weight in self._trained],
            )
            kept, _ = truncate(mean, self._rule.rank)
            tensors[name_a], tensors[name_b] = kept.a.float(), kept.b.float()
        return GlobalState(TensorSet(tensors))

    def _part(self, trained: TensorSet, name_a: str, name_b: str) -> LowRank:
        a, b = trained[name_a], trained[name_b]
        return LowRank(
            b.double() * (self._rule.scale(a.shape[0]) / self._rule.scale(self._rule.rank)), a
        )


def lora_pairs(adapter: TensorSet) -> list[tuple[str, str]]:
    """Names of the (A, B) factors in PEFT's naming. Raises ValueError on what can't be paired."""
    pairs = [(name, name.replace("lora_A", "lora_B")) for name in adapter if "lora_A" in name]
    paired = {name for pair in pairs for name in pair}
    odd = [name for name in adapter if "lora_" in name and name not in paired]
    odd += [b for _, b in pairs if b not in adapter.tensors]
    odd += [name for name in paired if name in adapter.tensors and adapter[name].ndim != 2]
    if odd or not pairs:
        raise ValueError(f"not pairs of LoRA matrices: {', '.join(sorted(odd)[:3]) or 'no lora_A'}")
    return pairs


def build_rule(config: RunConfig) -> Rule:
    """The rule that `federation.aggregation` names. Raises InputError for `fedex`."""
    federation, adapter = config.federation, config.adapter
    if federation.aggregation == "fedavg":
        return FedAvg(federation.server_optimizer)
    if federation.aggregation == "svd":
        power = 0.5 if adapter.use_rslora else 1.0
        return SvdMean(
            adapter.lora_r, federation.silo_ranks, lambda rank: adapter.lora_alpha / rank**power
        )
    raise InputError(
        "`fedex` is not available yet",
        where="federation.aggregation",
        expected="`fedavg` or `svd`",
    )
