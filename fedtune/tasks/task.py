"""What a task is: rows to token ids, batches to one loss an example, predictions to metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fedtune.errors import InputError

IGNORED = -100
"""The label of a position that is not learned."""


@dataclass(frozen=True)
class Encoded:
    """One example. `labels` runs along `input_ids`, or is the one class id of a classifier.

    `cut` is how many tokens `task.max_length` left out; `problem` says why it can't be learned.
    """

    input_ids: list[int]
    labels: list[int]
    cut: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class Predictions:
    """What metrics need of some examples, on the CPU; the logits are gone.

    `losses` float32 [examples]; `targets` int64 [examples]: how many targets each has; `truth` and
    `guesses` int64 [all targets]: what was to be said, and the likeliest token or class instead.
    """

    losses: Tensor
    targets: Tensor
    truth: Tensor
    guesses: Tensor


class Task(Protocol):
    """A task. The trainer, and privacy later, need a loss for each example apart."""

    fingerprint: str
    """Changes whenever the same row could be encoded otherwise: settings, labels, tokenizer."""

    def encode_batch(self, rows: Sequence[Mapping[str, Any]]) -> list[Encoded]:
        """Token ids of canonical rows. Raises InputError when the task can't read such rows."""

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Token ids of one row. Raises InputError that names the row if it can't be learned."""
        [encoded] = self.encode_batch([row])
        if encoded.problem:
            raise InputError(encoded.problem, where=row["where"])
        return encoded

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A batch on the CPU, padded on the right."""

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Float32 [examples], in their order: each example's mean loss over its own targets."""

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> Predictions:
        """The same losses, with what metrics need."""

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Metrics besides `loss` and `accuracy`, which every task has from `evaluate`."""
