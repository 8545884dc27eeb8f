"""Mean of LoRA products, truncated by SVD to the adapter's rank; silos may differ in rank."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fedtune.aggregation.fedavg import WeightedMean
from fedtune.aggregation.lora import LowRank, mean_of_products, truncate
from fedtune.aggregation.lora_names import lora_pairs
from fedtune.aggregation.rule import Fold, GlobalState
from fedtune.tensors import TensorSet


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
        """The state before the first round. Raises InputError on tensors that aren't 2-D LoRA."""
        lora_pairs(adapter.spec)
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
        for name_a, name_b in lora_pairs(state.adapter.spec):
            tensors[name_a] = tensors[name_a][:rank].clone()
            ratio = self.scale(self.rank) / self.scale(rank)
            tensors[name_b] = tensors[name_b][:, :rank] * ratio
        return TensorSet(tensors)

    def fold(self, state: GlobalState, spare: Tensor | None = None) -> Fold:
        """An empty fold for one round from `state`."""
        return _ProductFold(self, state)


class _ProductFold:
    """Keeps the factors of all silos: the truncation needs them together."""

    def __init__(self, rule: SvdMean, state: GlobalState) -> None:
        self._rule, self._state, self._plain = rule, state, WeightedMean()
        self._pairs = lora_pairs(state.adapter.spec)
        self._trained: list[tuple[TensorSet, float]] = []

    def add(self, silo: str, delta: TensorSet, weight: float) -> None:
        trained = self._rule.received_by(self._rule.group_of(silo), self._state) + delta
        lora = {name for pair in self._pairs for name in pair}
        self._trained.append((TensorSet({n: trained[n] for n in trained if n in lora}), weight))
        self._plain.add(TensorSet({n: delta[n] for n in delta if n not in lora}), weight)

    def result(self) -> GlobalState:
        plain = self._plain.result()
        tensors = {name: self._state.adapter[name] + plain[name] for name in plain}
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
