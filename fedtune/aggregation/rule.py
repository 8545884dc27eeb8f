"""What a rule is: what silos receive, how a delta is folded in, and the next global state."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedtune.tensors import TensorSet

RESIDUAL = "residual"


@dataclass(frozen=True)
class GlobalState:
    """All that goes from one round to the next: the adapter and the server's own memory."""

    adapter: TensorSet
    memory: Mapping[str, TensorSet] = field(default_factory=dict)

    @property
    def residual(self) -> TensorSet:
        """Frozen LoRA factors that act on the model beside the adapter; empty but for FedEx-LoRA.

        Names as the adapter's; a scale of 1, ranks of their own.
        """
        return self.memory.get(RESIDUAL, TensorSet({}))


class Fold(Protocol):
    """One round's replies, taken in silo-name order."""

    def add(self, silo: str, delta: TensorSet, weight: float) -> None:
        """Fold one silo's delta in."""

    def result(self) -> GlobalState:
        """The next state. Raises ValueError when nothing was added."""


class Combination(Protocol):
    """One delta made of a round's, taken in silo-name order."""

    def add(self, delta: TensorSet, weight: float) -> None:
        """Take one silo's delta in."""

    def result(self) -> TensorSet:
        """What they make, in memory of its own. Raises ValueError when too few were added."""


class Rule(Protocol):
    """An aggregation rule."""

    def start(self, adapter: TensorSet) -> GlobalState:
        """The state before the first round."""

    def group_of(self, silo: str) -> int:
        """Silos of one group receive the same tensors."""

    def received_by(self, group: int, state: GlobalState) -> TensorSet:
        """What the silos of `group` train from; their deltas have this spec."""

    def fold(self, state: GlobalState, spare: Tensor | None = None) -> Fold:
        """An empty fold for one round from `state`.

        `spare`, float32 [count of the adapter], is memory that nobody reads any more: a rule may
        build its result in it, which saves a system the cost of fresh pages.
        """
