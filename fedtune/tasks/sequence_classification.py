"""One label for a text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedtune.config.schema import TaskConfig
from fedtune.errors import InputError
from fedtune.tasks.padding import lengths_mask, pad
from fedtune.tasks.task import Encoded


class SequenceClassification:
    """Labels are numbered in the order of `labels`; a long text loses its end."""

    def __init__(self, config: TaskConfig, tokenizer: Any, labels: Sequence[str]) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._ids = {label: number for number, label in enumerate(labels)}

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Token ids and the label's id. Raises InputError on a label that isn't known."""
        if row["label"] not in self._ids:
            raise InputError(
                f"label `{row['label']}` is not known",
                where=row["where"],
                expected=", ".join(self._ids),
                mend="add it to `task.labels`, or leave that empty",
            )
        tokens = self._tokenizer(row["text"], truncation=True, max_length=self._config.max_length)
        return Encoded(tokens["input_ids"], [self._ids[row["label"]]])

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` [examples, longest], `labels` [examples]."""
        rows = [example.input_ids for example in examples]
        return {
            "input_ids": pad(rows, self._tokenizer.pad_token_id),
            "attention_mask": lengths_mask(rows),
            "labels": torch.tensor([example.labels[0] for example in examples]),
        }

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Float32 [examples]."""
        return cross_entropy(_logits(model, batch), batch["labels"], reduction="none")

    def evaluate(self, model: Any, data: Sequence[Encoded], batch_size: int) -> dict[str, float]:
        """`loss`, `accuracy` and `macro_f1`."""
        was_training = model.training
        model.eval()
        losses: list[float] = []
        truth: list[int] = []
        guesses: list[int] = []
        with torch.no_grad():
            for start in range(0, len(data), batch_size):
                batch = self.collate(data[start : start + batch_size])
                logits = _logits(model, batch)
                losses += cross_entropy(logits, batch["labels"], reduction="none").tolist()
                truth += batch["labels"].tolist()
                guesses += logits.argmax(-1).tolist()
        model.train(was_training)
        return {
            "loss": math.fsum(losses) / len(losses),
            "accuracy": float(accuracy_score(truth, guesses)),
            "macro_f1": float(f1_score(truth, guesses, average="macro", zero_division=0.0)),
        }


def _logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    logits: Tensor = out.logits
    return logits.float()
