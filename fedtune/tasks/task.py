"""What a task is: rows to token ids, batches to one loss an example, a metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

IGNORED = -100
"""The label of a position that is not learned."""


@dataclass(frozen=True)
class Encoded:
    """One example. `labels` runs along `input_ids`, or is the one class id of a classifier."""

    input_ids: list[int]
    labels: list[int]


class Task(Protocol):
    """A task. The trainer, and privacy later, need a loss for each example apart."""

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Token ids of one row. Raises InputError that names the row."""

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A batch, padded on the right."""

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Float32 [examples]: each example's mean loss over its own targets."""

    def evaluate(self, model: Any, data: Sequence[Encoded], batch_size: int) -> dict[str, float]:
        """At least `loss` (mean over examples) and `accuracy`; leaves the model as it was."""
