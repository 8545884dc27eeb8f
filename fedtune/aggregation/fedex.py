"""FedEx-LoRA (Singhal et al. 2024): mean factors, and what they lose against the mean of products.

The residual of each round is added to the ones before and stays frozen, so that what acts on the
model after a round is exactly the weighted mean of what acted in the silos.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedtune.aggregation.fedavg import WeightedMean
from fedtune.aggregation.lora import LowRank, fedex, shrink
from fedtune.aggregation.lora_names import lora_pairs
from fedtune.aggregation.rule import RESIDUAL, Fold, GlobalState
from fedtune.tensors import Spec, TensorSet


@dataclass(frozen=True)
class FedEx:
    """`scale` is the adapter's factor: what acts on the model is scale * B A + the residual."""

    scale: float

    def start(self, adapter: TensorSet) -> GlobalState:
        """The state before the first round. Raises InputError on tensors that aren't 2-D LoRA."""
        lora_pairs(adapter.spec)
        return GlobalState(adapter)

    def group_of(self, silo: str) -> int:
        """All silos are one group."""
        return 0

    def received_by(self, group: int, state: GlobalState) -> TensorSet:
        """Every silo receives the same adapter (and the state's residual)."""
        return state.adapter

    def fold(self, state: GlobalState, spare: Tensor | None = None) -> Fold:
        """An empty fold for one round from `state`."""
        return _ResidualFold(self.scale, state)


def most_residual_bytes(adapter: Spec, added_rank: int) -> int:
    """The largest residual for `adapter` after rounds that added `added_rank` components in all."""
    shapes, total = dict(adapter), 0
    for name_a, name_b in lora_pairs(adapter):
        inner, out = shapes[name_a][1], shapes[name_b][0]
        total += 4 * (inner + out) * min(inner, out, added_rank)
    return total


class _ResidualFold:
    """Keeps the factors of all silos: the residual needs them together."""

    def __init__(self, scale: float, state: GlobalState) -> None:
        self._scale, self._state, self._plain = scale, state, WeightedMean()
        self._pairs = lora_pairs(state.adapter.spec)
        self._lora = {name for pair in self._pairs for name in pair}
        self._trained: list[tuple[TensorSet, float]] = []

    def add(self, silo: str, delta: TensorSet, weight: float) -> None:
        adapter = self._state.adapter
        trained = {name: adapter[name] + delta[name] for name in self._lora}
        self._trained.append((TensorSet(trained), weight))
        self._plain.add(TensorSet({n: delta[n] for n in delta if n not in self._lora}), weight)

    def result(self) -> GlobalState:
        plain, adapter = self._plain.result(), self._state.adapter
        tensors = {name: adapter[name] + plain[name] for name in plain}
        residual = {}
        weights = [weight for _, weight in self._trained]
        for name_a, name_b in self._pairs:
            parts = [LowRank(trained[name_b], trained[name_a]) for trained, _ in self._trained]
            mean, lost = fedex(parts, weights)
            tensors[name_a], tensors[name_b] = mean.a.float(), mean.b.float()
            whole = self._added(name_a, name_b, lost)
            residual[name_a], residual[name_b] = whole.a.float(), whole.b.float()
        return GlobalState(TensorSet(tensors), {RESIDUAL: TensorSet(residual)})

    def _added(self, name_a: str, name_b: str, lost: LowRank) -> LowRank:
        """The residual so far and this round's, with the fewest components."""
        before = self._state.residual
        a, b = [lost.a], [lost.b * self._scale]
        if len(before):
            a, b = [before[name_a].double(), *a], [before[name_b].double(), *b]
        return shrink(LowRank(torch.cat(b, dim=1), torch.cat(a)))
