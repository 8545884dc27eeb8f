"""What a row is: telling the format from the columns, and a raw row's canonical form."""

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fedtune.config.schema import ColumnsConfig, DataConfig
from fedtune.data.examples import CONTENT_COLUMNS
from fedtune.errors import InputError

_ROLES = ("system", "developer", "user", "assistant", "tool")


class BadRowError(Exception):
    """One row can't be an example; the message says why, without quoting the row."""


@dataclass(frozen=True)
class Layout:
    """A format and the source column of each canonical column. None: made up by the loader."""

    format: str
    content: dict[str, str]
    record_id: str | None = None
    privacy_unit: str | None = None
    silo: str | None = None


def find_layout(
    columns: Collection[str], data: DataConfig, *, task: str, silo: str | None, where: str
) -> Layout:
    """The layout of rows that have `columns`. Raises `InputError` naming `where` if there's none.

    `task` decides between `text` and `text_label`, which share a column.
    """
    format = data.format if data.format != "auto" else _detect(columns, data.columns, task, where)
    content = {part: _source(part, data.columns) for part in CONTENT_COLUMNS[format]}
    for part, name in content.items():
        _require(name, columns, where, f"data.columns.{part}")
    for field in ("record_id", "privacy_unit"):
        if name := getattr(data.columns, field):
            _require(name, columns, where, f"data.columns.{field}")
    if silo:
        _require(silo, columns, where, "federation.partition.column")
    return Layout(format, content, data.columns.record_id, data.columns.privacy_unit, silo)


def _source(part: str, mapping: ColumnsConfig) -> str:
    return getattr(mapping, part) or part


def _detect(columns: Collection[str], mapping: ColumnsConfig, task: str, where: str) -> str:
    named = {part for parts in CONTENT_COLUMNS.values() for part in parts if getattr(mapping, part)}
    if {"chosen", "rejected"} <= set(columns) and not named:
        raise InputError(
            "preference data (columns `chosen` and `rejected`), which this release can't train on",
            where=where,
            expected="text, prompt/completion, messages or text/label rows",
            mend="to learn the chosen answers only, set data.columns.completion=chosen",
        )
    wanted = ["text_label"] if task == "sequence_classification" else _CAUSAL
    fits = [
        format
        for format in wanted
        if all(_source(part, mapping) in columns for part in CONTENT_COLUMNS[format])
    ]
    if len(fits) > 1:  # a column named in the config decides
        fits = [f for f in fits if named & set(CONTENT_COLUMNS[f])] or fits
    if len(fits) == 1:
        return fits[0]
    shown = ", ".join(f"`{column}`" for column in sorted(columns))
    raise InputError(
        f"the columns fit {' and '.join(fits) if fits else 'no format'} ({shown})",
        where=where,
        expected=" or ".join(f"{f} ({', '.join(CONTENT_COLUMNS[f])})" for f in wanted),
        mend="set `data.format`" if fits else "name the columns under `data.columns`",
    )


_CAUSAL = ["messages", "prompt_completion", "text"]


def _require(name: str, columns: Collection[str], where: str, field: str) -> None:
    if name in columns:
        return
    close = difflib.get_close_matches(name, sorted(columns), n=1)
    raise InputError(
        f"no column `{name}` (there are: {', '.join(sorted(columns))})",
        where=where,
        mend=f"set `{field}`" + (f"; did you mean `{close[0]}`?" if close else ""),
    )


def canonical_row(raw: Mapping[str, Any], layout: Layout, where: str) -> dict[str, Any]:
    """The canonical row of `raw`, found at `where`. Raises `BadRowError`."""
    record_id = _identity(raw, layout.record_id) if layout.record_id else where
    row: dict[str, Any] = {
        "record_id": record_id,
        "unit_id": _identity(raw, layout.privacy_unit) if layout.privacy_unit else record_id,
        "silo": _identity(raw, layout.silo) if layout.silo else "",
        "where": where,
    }
    for part, column in layout.content.items():
        row[part] = _CONTENT.get(part, _text)(raw, column)
    return row


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


def _messages(raw: Mapping[str, Any], column: str) -> list[dict[str, str]]:
    value = _value(raw, column)
    if isinstance(value, str):  # CSV has no lists
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRowError(f"`{column}` is neither a list nor JSON") from None
    if not isinstance(value, list) or not value:
        raise BadRowError(f"`{column}` is not a list of messages")
    turns = [_turn(turn, f"{column}[{i}]") for i, turn in enumerate(value)]
    if all(turn["role"] != "assistant" for turn in turns):
        raise BadRowError(f"`{column}` has no assistant turn")
    return turns


def _turn(turn: Any, name: str) -> dict[str, str]:
    if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
        raise BadRowError(f"`{name}` has no role out of {', '.join(_ROLES)}")
    if not isinstance(turn.get("content"), str):
        raise BadRowError(f"`{name}.content` is not text")
    return {"role": turn["role"], "content": _checked(turn["content"], f"{name}.content")}


def _checked(value: str, name: str) -> str:
    if not value.strip():
        raise BadRowError(f"`{name}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"`{name}` holds half a surrogate pair") from None
    return value


_CONTENT: dict[str, Any] = {"label": _identity, "messages": _messages}
