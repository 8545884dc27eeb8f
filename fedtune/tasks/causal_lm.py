"""Next-token prediction: on completions only, or on every token."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from fedtune.config.schema import TaskConfig
from fedtune.errors import InputError
from fedtune.models.padding import filler
from fedtune.tasks.encoding import fingerprint
from fedtune.tasks.padding import lengths_mask, pad
from fedtune.tasks.task import IGNORED, Encoded, Predictions, Task


class CausalLm(Task):
    """The stop token ends every example and is always learned; padding never is."""

    def __init__(self, config: TaskConfig, tokenizer: Any) -> None:
        if config.packing:
            raise InputError("packing is not available yet", where="task.packing")
        self._config, self._tokenizer = config, tokenizer
        self._filler = filler(tokenizer)
        self.fingerprint = fingerprint(config, tokenizer)

    def encode_batch(self, rows: Sequence[Mapping[str, Any]]) -> list[Encoded]:
        """Prompt, completion and stop token; a long prompt loses its beginning first."""
        if "messages" in rows[0]:
            raise InputError("chat messages can't be trained on yet", where=rows[0]["where"])
        if "prompt" not in rows[0]:
            return [self._encoded([], ids) for ids in self._tokens([row["text"] for row in rows])]
        prompts = self._tokens([row["prompt"] for row in rows])
        completions = self._tokens([row["completion"] for row in rows], special=False)
        return [self._encoded(*pair) for pair in zip(prompts, completions, strict=True)]

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels`, all [examples, longest]."""
        rows = [example.input_ids for example in examples]
        return {
            "input_ids": pad(rows, self._filler),
            "attention_mask": lengths_mask(rows),
            "labels": pad([example.labels for example in examples], IGNORED),
        }

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Float32 [examples]."""
        return _mean_losses(*_targets(model, batch))

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> Predictions:
        """Truth and guesses are the target tokens of all examples, one after the other."""
        logits, labels = _targets(model, batch)
        learned = labels != IGNORED
        guesses = logits.argmax(-1)[learned]
        return Predictions(_mean_losses(logits, labels), learned.sum(1), labels[learned], guesses)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """`perplexity`: exp of the loss a token, over the tokens of all examples together."""
        total = (predictions.losses.double() * predictions.targets).sum()
        return {"perplexity": math.exp(min(float(total / predictions.targets.sum()), 700.0))}

    def _tokens(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=special)["input_ids"]
        return ids

    def _encoded(self, prompt: list[int], tokens: list[int]) -> Encoded:
        stop = self._tokenizer.eos_token_id
        masked = self._config.loss_on == "completion"
        tokens = [*(t for t in tokens if t != stop), stop][: self._config.max_length]
        tokens[-1] = stop
        prompt = [t for t in prompt if t != stop]
        prompt = prompt[max(0, len(prompt) + len(tokens) - self._config.max_length) :]
        ignored = [IGNORED] * len(prompt) if masked else prompt
        return Encoded([*prompt, *tokens], [*ignored, *tokens])


def build(config: TaskConfig, tokenizer: Any, labels: Sequence[str]) -> Task:
    """The task; it has no labels."""
    return CausalLm(config, tokenizer)


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
