"""One label for a text."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedtune.config.task import TaskConfig
from fedtune.errors import InputError
from fedtune.models.padding import classifier_filler
from fedtune.tasks.encoding import fingerprint
from fedtune.tasks.padding import lengths_mask, pad
from fedtune.tasks.task import Encoded, Predictions, Task


class SequenceClassification(Task):
    """Labels are numbered in the order of `labels`; a long text loses its end."""

    def __init__(self, config: TaskConfig, tokenizer: Any, labels: Sequence[str]) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._filler = classifier_filler(tokenizer)
        self._ids = {label: number for number, label in enumerate(labels)}
        self.fingerprint = fingerprint(config, tokenizer, labels)

    def encode_batch(self, rows: Sequence[Mapping[str, Any]]) -> list[Encoded]:
        """Token ids and the label's id. Raises InputError on a label that isn't known."""
        labels = [self._label(row) for row in rows]
        whole = self._tokenizer([row["text"] for row in rows], verbose=False)["input_ids"]
        encoded = []
        for row, ids, label in zip(rows, whole, labels, strict=True):
            kept = self._shortened(ids, row["text"])
            # a decoder takes the last token that isn't padding for the text's end
            said = [t for t in kept if t != self._filler]
            encoded.append(Encoded(said, [label], len(ids) - len(kept)))
        return encoded

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` [examples, longest], `labels` [examples]."""
        rows = [example.input_ids for example in examples]
        return {
            "input_ids": pad(rows, self._filler),
            "attention_mask": lengths_mask(rows),
            "labels": torch.tensor([example.labels[0] for example in examples]),
        }

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Float32 [examples]."""
        return cross_entropy(_logits(model, batch), batch["labels"], reduction="none")

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> Predictions:
        """Truth and guesses are class ids; every example has one target."""
        logits, labels = _logits(model, batch), batch["labels"]
        losses = cross_entropy(logits, labels, reduction="none")
        return Predictions(losses, torch.ones_like(labels), labels, logits.argmax(-1))

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """`macro_f1`: the mean of the classes' F1, so that a rare class counts as a common one."""
        from sklearn.metrics import f1_score  # here: a silo trains and scores nothing

        truth, guesses = predictions.truth, predictions.guesses
        return {"macro_f1": float(f1_score(truth, guesses, average="macro", zero_division=0.0))}

    def _shortened(self, ids: list[int], text: str) -> list[int]:
        if len(ids) <= self._config.max_length:
            return ids
        # the tokenizer knows which of its own tokens must stay at the end
        cut = self._tokenizer(text, truncation=True, max_length=self._config.max_length)
        shortened: list[int] = cut["input_ids"]
        return shortened

    def _label(self, row: Mapping[str, Any]) -> int:
        if row["label"] not in self._ids:
            raise InputError(
                f"label `{row['label']}` is not known",
                where=row["where"],
                expected=", ".join(self._ids),
                mend="add it to `task.labels`, or leave that empty",
            )
        return self._ids[row["label"]]


def build(config: TaskConfig, tokenizer: Any, labels: Sequence[str]) -> Task:
    """The task over `labels`."""
    return SequenceClassification(config, tokenizer, labels)


def _logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    logits: Tensor = out.logits
    return logits.float()
