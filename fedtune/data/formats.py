"""A raw row's canonical form, or why it has none."""

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from fedtune.data.layouts import Layout

_MOST_CHARACTERS = 1_000_000  # a tokenizer takes some 200 bytes for each
_ROLES = ("system", "developer", "user", "assistant", "tool")
_SPEAKERS = {"human": "user", "gpt": "assistant"}  # ShareGPT's words for the two roles


class BadRowError(Exception):
    """One row can't be an example; the message says why, without quoting the row."""


def canonical_row(raw: Mapping[str, Any], layout: Layout, where: str) -> dict[str, Any]:
    """The canonical row of `raw`, found at `where`. Raises `BadRowError`."""
    record_id = _identity(raw, layout.record_id) if layout.record_id else where
    row: dict[str, Any] = {
        "record_id": record_id,
        "unit_id": _unit(raw, layout.privacy_unit) if layout.privacy_unit else record_id,
        "silo": _identity(raw, layout.silo) if layout.silo else "",
        "where": where,
    }
    if layout.format == "messages":
        return row | _conversation(raw, layout.content)
    parts = {p: _PARTS.get(p, _text)(raw, column) for p, column in layout.content.items()}
    if layout.labels and parts["label"] not in layout.labels:
        raise BadRowError(f"`{layout.content['label']}` is none of `task.labels`")
    if layout.label_prompt is not None:
        prompt = label_prompt(layout.label_prompt, parts["label"])
        return row | {"prompt": prompt, "completion": parts["text"]}
    return row | _joined(parts)


def label_prompt(template: str, label: str) -> str:
    """The prompt that texts of `label` are learned and written after."""
    return template.replace("{label}", label)


def _conversation(raw: Mapping[str, Any], content: Mapping[str, str]) -> dict[str, Any]:
    """All turns, and how many of them are a prompt: read, but not learned."""
    prompt, said = content.get("prompt"), content[next(p for p in _SAID if p in content)]
    context = _messages(raw, prompt) if prompt else []
    turns = _messages(raw, said)
    if all(turn["role"] != "assistant" for turn in turns):
        raise BadRowError(f"`{said}` has no assistant turn")
    _check_length(sum(len(turn["content"]) for turn in (*context, *turns)), said)
    return {"messages": [*context, *turns], "context": len(context)}


def _joined(parts: dict[str, Any]) -> dict[str, Any]:
    """Canonical columns from whatever parts a row is made of."""
    if "instruction" in parts:
        return {"prompt": _alpaca(**parts), "completion": parts["output"]}
    return parts


def _alpaca(*, instruction: str, input: str = "", output: str) -> str:
    """The prompt that Alpaca models are trained on."""
    given = ", paired with an input that provides further context" if input else ""
    wanted = "appropriately completes the request."
    return (
        f"Below is an instruction that describes a task{given}. Write a response that {wanted}\n\n"
        f"### Instruction:\n{instruction}\n\n"
        + (f"### Input:\n{input}\n\n" if input else "")
        + "### Response:\n"
    )


_ALPACA = re.compile(
    r"Below is an instruction that describes a task.*?\n\n### Instruction:\n(.*?)"
    r"(?:\n\n### Input:\n(.*))?\n\n### Response:\n",
    re.DOTALL,
)


def without_frame(text: str) -> str:
    """What a row itself says in a prompt of Alpaca's; any other text as it is."""
    found = _ALPACA.fullmatch(text)
    return " ".join(part for part in found.groups() if part) if found else text


def _value(raw: Mapping[str, Any], column: str) -> Any:
    if raw.get(column) is None:
        raise BadRowError(f"`{column}` is missing")
    return raw[column]


def _text(raw: Mapping[str, Any], column: str) -> str:
    value = _value(raw, column)
    if not isinstance(value, str):
        raise BadRowError(f"`{column}` is {type(value).__name__}, not text")
    return _checked(value, column)


def _identity(raw: Mapping[str, Any], column: str) -> str:
    value = _value(raw, column)
    if not isinstance(value, (str, int)):
        raise BadRowError(f"`{column}` is {type(value).__name__}, not text or a whole number")
    return _checked(str(value), column)


def _unit(raw: Mapping[str, Any], column: str) -> str:
    """An id in the form by which a ledger knows it: otherwise one person would be two units."""
    return one_form(_identity(raw, column))


def one_form(text: str) -> str:
    """`text` whatever way its letters are encoded and its words are set apart."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _messages(raw: Mapping[str, Any], column: str) -> list[dict[str, str]]:
    value = _value(raw, column)
    if isinstance(value, str):  # CSV has no lists
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRowError(f"`{column}` is neither a list nor JSON") from None
    if not isinstance(value, list) or not value:
        raise BadRowError(f"`{column}` is not a list of messages")
    return [_turn(turn, f"{column}[{i}]") for i, turn in enumerate(value)]


def _turn(turn: Any, name: str) -> dict[str, str]:
    if isinstance(turn, dict) and "from" in turn and "role" not in turn:  # ShareGPT
        said = str(turn["from"])
        turn = {"role": _SPEAKERS.get(said, said), "content": turn.get("value")}
    if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
        raise BadRowError(f"`{name}` has no role out of {', '.join(_ROLES)}")
    if not isinstance(turn.get("content"), str):
        raise BadRowError(f"`{name}.content` is not text")
    return {"role": turn["role"], "content": _checked(turn["content"], f"{name}.content")}


def _optional(raw: Mapping[str, Any], column: str) -> str:
    value = raw.get(column) or ""
    return _text(raw, column) if not isinstance(value, str) or value.strip() else ""


def _check_length(characters: int, name: str) -> None:
    if characters > _MOST_CHARACTERS:
        raise BadRowError(
            f"`{name}` has {characters:,} characters, more than {_MOST_CHARACTERS:,}: split it "
            "into several rows"
        )


def _checked(value: str, name: str) -> str:
    _check_length(len(value), name)
    if not value.strip():
        raise BadRowError(f"`{name}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"`{name}` holds half a surrogate pair") from None
    return value


_SAID = ("messages", "conversations", "completion")
_PARTS: dict[str, Any] = {"label": _identity, "input": _optional}
