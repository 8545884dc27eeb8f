"""Next-token prediction: on completions only, or on every token."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedtune.config.schema import TaskConfig
from fedtune.errors import InputError
from fedtune.tasks.padding import lengths_mask, pad
from fedtune.tasks.task import IGNORED, Encoded


class CausalLm:
    """The stop token ends every example and is always learned; padding never is."""

    def __init__(self, config: TaskConfig, tokenizer: Any) -> None:
        if config.packing:
            raise InputError("packing is not available yet", where="task.packing")
        self._config, self._tokenizer = config, tokenizer

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Prompt, completion and stop token; a long prompt loses its beginning first."""
        if "messages" in row:
            raise InputError("chat messages can't be trained on yet", where=row["where"])
        prompt = self._tokenizer(row["prompt"])["input_ids"] if "prompt" in row else []
        rest = row["completion"] if "prompt" in row else row["text"]
        special = "prompt" not in row
        tokens = self._tokenizer(rest, add_special_tokens=special)["input_ids"]
        stop = self._tokenizer.eos_token_id
        tokens = [*(t for t in tokens if t != stop), stop][: self._config.max_length]
        tokens[-1] = stop
        prompt = [t for t in prompt if t != stop]
        prompt = prompt[max(0, len(prompt) + len(tokens) - self._config.max_length) :]
        masked = self._config.loss_on == "completion" and "prompt" in row
        return Encoded(
            [*prompt, *tokens], [*([IGNORED] * len(prompt) if masked else prompt), *tokens]
        )

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels`, all [examples, longest]."""
        rows = [example.input_ids for example in examples]
        return {
            "input_ids": pad(rows, self._tokenizer.pad_token_id),
            "attention_mask": lengths_mask(rows),
            "labels": pad([example.labels for example in examples], IGNORED),
        }

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Float32 [examples]."""
        logits, labels = _targets(model, batch)
        return _mean_losses(logits, labels)

    def evaluate(self, model: Any, data: Sequence[Encoded], batch_size: int) -> dict[str, float]:
        """`loss`, `perplexity` and `accuracy` (share of target tokens that come first)."""
        was_training = model.training
        model.eval()
        losses, right, count = [], 0, 0
        with torch.no_grad():
            for start in range(0, len(data), batch_size):
                logits, labels = _targets(model, self.collate(data[start : start + batch_size]))
                losses += _mean_losses(logits, labels).tolist()
                right += int((logits.argmax(-1) == labels).sum())
                count += int((labels != IGNORED).sum())
        model.train(was_training)
        loss = math.fsum(losses) / len(losses)
        return {"loss": loss, "accuracy": right / count, "perplexity": math.exp(min(loss, 700))}


def _targets(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits [examples, length - 1, vocabulary] and the label that each position predicts."""
    out = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
    return out.logits[:, :-1], batch["labels"][:, 1:]


def _mean_losses(logits: Tensor, labels: Tensor) -> Tensor:
    losses = cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(labels.shape)
    return losses.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)
