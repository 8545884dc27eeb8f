"""Chat messages through the tokenizer's own template, and which of their tokens are learned.

Where the template marks assistant turns with `{% generation %}`, its mask is used. Otherwise a
turn is what the template adds to the conversation before it, which holds only if that conversation
is a prefix of the whole, token by token: checked for every row. A learned turn must hold its stop
token, else the model would never end one.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from fedtune.errors import InputError

Messages = Sequence[Mapping[str, str]]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatTokens:
    """A conversation's token ids, whether each is learned, and where learned turns stop."""

    input_ids: list[int]
    learned: list[bool]
    stops: list[int]


def chat_tokens(tokenizer: Any, row: Mapping[str, Any]) -> ChatTokens:
    """Tokens of `row["messages"]`; the first `row["context"]` turns are read but not learned.

    Raises InputError, naming the row, when the template is missing, refuses the messages, doesn't
    show which tokens are an assistant's, or ends a turn with no stop token.
    """
    chat = _Chat(tokenizer, row["where"])
    messages, context = row["messages"], row["context"]
    whole = chat.tokens(messages)
    spans = _marked(chat, messages, context) if chat.marks else _added(chat, messages, context)
    learned, stops = [False] * len(whole), []
    for begin, end in spans:
        stop = chat.stop_within(whole, begin, end)
        learned[begin : stop + 1] = [True] * (stop + 1 - begin)
        stops.append(stop)
    return ChatTokens(whole, learned, stops)


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that no text stands for, without those that begin or fill up a text."""
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    other = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    return {*added, *tokenizer.all_special_ids} - (other - {tokenizer.eos_token_id})


class _Chat:
    """A tokenizer's template, with errors that name the row in hand."""

    def __init__(self, tokenizer: Any, where: str) -> None:
        if not tokenizer.chat_template:
            raise InputError(
                "chat messages need a chat template, and the tokenizer has none",
                where="model.path",
                mend="put the model family's `chat_template.jinja` in the model's folder, or use "
                "prompt/completion rows",
            )
        self._tokenizer, self._where = tokenizer, where
        self._special = special_ids(tokenizer)
        self.marks = bool(tokenizer.is_fast and _GENERATION.search(tokenizer.get_chat_template()))

    def tokens(self, messages: Messages, *, answer: bool = False) -> list[int]:
        """Token ids; with `answer` also what the template puts before the assistant's reply."""
        ids: list[int] = self._apply(messages, add_generation_prompt=answer)["input_ids"]
        return ids

    def mask(self, messages: Messages) -> list[int]:
        """The template's own mark on each token: 1 for the assistant's."""
        marked = self._apply(messages, return_assistant_tokens_mask=True)
        mask: list[int] = marked["assistant_masks"]
        return mask

    def stop_within(self, ids: list[int], begin: int, end: int) -> int:
        """Place of the token that ends the turn at `begin`: the last special one before `end`."""
        for place in range(end - 1, begin - 1, -1):
            if ids[place] in self._special:
                return place
        raise self.error(
            "the chat template ends an assistant turn with no stop token that is learned",
            "end the turn with `{{ eos_token }}`"
            + (", inside `{% generation %}`" if self.marks else " in the template"),
        )

    def error(self, problem: str, mend: str) -> InputError:
        """A refusal that names the row."""
        return InputError(problem, where=self._where, mend=mend)

    def _apply(self, messages: Messages, **settings: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), tokenize=True, return_dict=True, **settings
            )
        except jinja2.TemplateError as error:
            raise self.error(
                f"the chat template refuses the messages: {error}",
                "change the roles or their order, or the model's chat template",
            ) from None


def _marked(chat: _Chat, messages: Messages, context: int) -> list[tuple[int, int]]:
    """Assistant turns by the template's own mask, as [begin, end)."""
    after = len(chat.tokens(messages[:context])) if context else 0
    mask, spans, place = chat.mask(messages), [], 0
    for mark, run in itertools.groupby(mask):
        begin, place = place, place + len(list(run))
        if mark and place > after:
            spans.append((max(begin, after), place))
    return spans


def _added(chat: _Chat, messages: Messages, context: int) -> list[tuple[int, int]]:
    """Assistant turns as what each adds to the conversation before it, as [begin, end)."""
    whole, spans = chat.tokens(messages), []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant" or turn < context:
            continue
        if turn == 0:
            raise chat.error(
                "the conversation begins with an assistant turn",
                "begin it with a user turn, or mark assistant turns with `{% generation %}` in the "
                "chat template",
            )
        before = chat.tokens(messages[:turn], answer=True)
        through = chat.tokens(messages[: turn + 1])
        if whole[: len(through)] != through or through[: len(before)] != before:
            raise chat.error(
                f"the chat template writes `messages[{turn}]` otherwise when more follows, so "
                "which tokens are the assistant's can't be told",
                "mark assistant turns with `{% generation %}` in the chat template, or set "
                "`task.loss_on: all`",
            )
        spans.append((len(before), len(through)))
    return spans
