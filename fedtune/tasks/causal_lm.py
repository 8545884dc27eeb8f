"""Next-token prediction: on completions only, or on every token."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from fedtune.config.task import TaskConfig
from fedtune.errors import InputError
from fedtune.models.padding import filler
from fedtune.tasks.chat import ChatTokens, chat_tokens
from fedtune.tasks.encoding import fingerprint
from fedtune.tasks.packing import by_owner, forward_packed, packed_batch
from fedtune.tasks.padding import lengths_mask, pad
from fedtune.tasks.task import IGNORED, Encoded, Predictions, Task

_log = logging.getLogger(__name__)


class CausalLm(Task):
    """The stop token ends every example and is always learned; padding never is."""

    def __init__(self, config: TaskConfig, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no stop token, so the model would never learn to end",
                where="model.path",
                mend="set `eos_token` in the model's tokenizer_config.json",
            )
        self._config, self._tokenizer = config, tokenizer
        self._begin, self._stop = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._filler = filler(tokenizer)
        self._warned: set[int] = set()
        self.fingerprint = fingerprint(config, tokenizer)

    def encode_batch(self, rows: Sequence[Mapping[str, Any]]) -> list[Encoded]:
        """Prompt, completion and stop token, or a conversation with the assistant's turns learned.

        What is over `max_length` is cut: the beginning of a prompt, then the end of a completion
        or a text, before the stop token; a conversation loses its end, and can't be learned if
        no stop token is left.
        """
        if "messages" in rows[0]:
            chats = [chat_tokens(self._tokenizer, row) for row in rows]
            self._warn_of_other_stops(chats)
            return [self._conversation(chat) for chat in chats]
        if "prompt" not in rows[0]:
            return [self._text([], ids) for ids in self._tokens([row["text"] for row in rows])]
        prompts = self._tokens([row["prompt"] for row in rows])
        completions = self._tokens([row["completion"] for row in rows], special=False)
        return [self._text(*pair) for pair in zip(prompts, completions, strict=True)]

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels` [examples, longest], or a packed batch."""
        if self._config.packing:
            return packed_batch(examples, self._config.max_length, self._filler)
        rows = [example.input_ids for example in examples]
        return {
            "input_ids": pad(rows, self._filler),
            "attention_mask": lengths_mask(rows),
            "labels": pad([example.labels for example in examples], IGNORED),
        }

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Float32 [examples]."""
        return _mean_losses(*_targets(model, batch), batch.get("owner"))

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> Predictions:
        """Truth and guesses are the target tokens of all examples, one after the other."""
        logits, labels = _targets(model, batch)
        learned, owner = labels != IGNORED, batch.get("owner")
        losses, targets = _mean_losses(logits, labels, owner), _per_example(learned, owner)
        return Predictions(losses, targets, labels[learned], logits.argmax(-1)[learned])

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """`perplexity`: exp of the loss a token, over the tokens of all examples together."""
        total = (predictions.losses.double() * predictions.targets).sum()
        return {"perplexity": math.exp(min(float(total / predictions.targets.sum()), 700.0))}

    def _tokens(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Token ids without a stop token at the end, and with one begin token, if any."""
        rows = self._tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        begin, stop = self._begin, self._stop
        trimmed = (row[:-1] if row and row[-1] == stop else row for row in rows)
        return [row[1:] if row[:2] == [begin, begin] else row for row in trimmed]

    def _text(self, prompt: list[int], tokens: list[int]) -> Encoded:
        longest, stop = self._config.max_length, self._stop
        cut = max(0, len(prompt) + len(tokens) + 1 - longest)
        tokens = [*tokens[: longest - 1], stop]
        prompt = self._shortened(prompt, longest - len(tokens))
        masked = self._config.loss_on == "completion"
        ignored = [IGNORED] * len(prompt) if masked else prompt
        return Encoded([*prompt, *tokens], [*ignored, *tokens], cut)

    def _shortened(self, prompt: list[int], length: int) -> list[int]:
        """The end of `prompt`, after its begin token if it has one."""
        if len(prompt) <= length:
            return prompt
        head = prompt[: min(1, length)] if prompt[0] == self._begin else []
        return [*head, *prompt[len(prompt) - (length - len(head)) :]]

    def _warn_of_other_stops(self, chats: Sequence[ChatTokens]) -> None:
        learned = {chat.input_ids[place] for chat in chats for place in chat.stops}
        if other := sorted(learned - {self._stop} - self._warned):
            self._warned.update(other)
            names = ", ".join(self._tokenizer.convert_ids_to_tokens(other))
            _log.warning(
                "assistant turns end with %s, which is not the tokenizer's stop token: what "
                "generates must stop there too (`eos_token_id` in generation_config.json)",
                names,
            )

    def _conversation(self, chat: ChatTokens) -> Encoded:
        longest = self._config.max_length
        ids = chat.input_ids[:longest]
        labels = ids
        if self._config.loss_on == "completion":
            labels = [t if on else IGNORED for t, on in zip(ids, chat.learned, strict=False)]
        problem = None
        if not chat.stops:
            problem = "no assistant turn is learned"
        elif chat.stops[0] >= longest:
            problem = f"its first stop token is token {chat.stops[0] + 1}, beyond `task.max_length`"
        return Encoded(ids, labels, len(chat.input_ids) - len(ids), problem)


def build(config: TaskConfig, tokenizer: Any, labels: Sequence[str]) -> Task:
    """The task; it has no labels."""
    return CausalLm(config, tokenizer)


def _targets(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits [rows, length - 1, vocabulary] and the label that each position predicts."""
    if "owner" in batch:
        return forward_packed(model, batch)[:, :-1], batch["labels"][:, 1:]
    out = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
    # prompt tuning puts its own tokens before the text's
    logits = out.logits[:, -batch["input_ids"].shape[1] :]
    return logits[:, :-1], batch["labels"][:, 1:]


def _mean_losses(logits: Tensor, labels: Tensor, owner: Tensor | None) -> Tensor:
    losses = cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(labels.shape)
    return _per_example(losses, owner) / _per_example(labels != IGNORED, owner).clamp(min=1)


def _per_example(values: Tensor, owner: Tensor | None) -> Tensor:
    """Sums of what targets have: a row's, or with `owner` those of the examples in all rows."""
    return values.sum(1) if owner is None else by_owner(values, owner)
