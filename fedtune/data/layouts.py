"""What rows are: telling the format from the columns, and which column plays which part."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fedtune.config.data import ColumnsConfig, DataConfig
from fedtune.errors import InputError


@dataclass(frozen=True)
class Layout:
    """A format and the source column of each part that its rows are made of (`_SHAPES`).

    An identity column that is None is made up by the loader. With a `label_prompt` the text and
    label of a row become its completion and its prompt. With `labels` a row has one of these.
    """

    format: str
    content: dict[str, str]
    record_id: str | None = None
    privacy_unit: str | None = None
    silo: str | None = None
    label_prompt: str | None = None
    labels: tuple[str, ...] = ()


# Parts that rows of a format may be made of, the usual shape first. `conversations` is ShareGPT's
# name, `instruction`, `input` and `output` are Alpaca's; both are read, never written.
_SHAPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",), ("conversations",), ("prompt", "completion")),
    "prompt_completion": (
        ("prompt", "completion"),
        ("instruction", "input", "output"),
        ("instruction", "output"),
    ),
    "text": (("text",),),
    "text_label": (("text", "label"),),
}
_CAUSAL = ("messages", "prompt_completion", "text")


def find_layout(
    first: Mapping[str, Any],
    columns: Collection[str],
    data: DataConfig,
    *,
    task: str,
    silo: str | None,
    where: str,
) -> Layout:
    """The layout of rows that have `columns`, of which `first` is one.

    `task` decides between `text` and `text_label`, which share a column. Raises `InputError` naming
    `where` when no layout fits, or it is one that this release can't train on.
    """
    format: str = data.format
    if format == "auto":
        _refuse_preferences(first, columns, data.columns, where)
        format = _detect(first, columns, data.columns, task, where)
    content = _content(format, first, columns, data.columns)
    if content is None:
        content = {part: _source(part, data.columns) for part in _SHAPES[format][0]}
    for part, name in content.items():
        _require(name, columns, where, f"data.columns.{part}")
    for field in ColumnsConfig.model_fields:  # one that the format has no use for must be there too
        if name := getattr(data.columns, field):
            _require(name, columns, where, f"data.columns.{field}")
    _refuse_idle(data.columns, format, content)
    if silo:
        _require(silo, columns, where, "federation.partition.column")
    if data.label_prompt is not None:
        format = "prompt_completion"
    ids = data.columns.record_id, data.columns.privacy_unit
    return Layout(format, content, *ids, silo, data.label_prompt)


def _content(
    format: str, first: Mapping[str, Any], columns: Collection[str], mapping: ColumnsConfig
) -> dict[str, str] | None:
    """The first shape of `format` whose columns are all there, as part to column; else None."""
    for shape in _SHAPES[format]:
        content = {part: _source(part, mapping) for part in shape}
        if not set(content.values()) <= set(columns):
            continue
        # prompt and completion as lists of messages are a conversation, as texts they are not
        listed = "prompt" in content and isinstance(first.get(content["prompt"]), list)
        if "prompt" not in content or listed == (format == "messages"):
            return content
    return None


def _source(part: str, mapping: ColumnsConfig) -> str:
    return getattr(mapping, part, None) or part


def _refuse_preferences(
    first: Mapping[str, Any], columns: Collection[str], mapping: ColumnsConfig, where: str
) -> None:
    """Refuse by name what is for learning from preferences, unless the config names columns."""
    if any(getattr(mapping, part) for part in ("text", "prompt", "completion", "messages")):
        return
    if {"chosen", "rejected"} <= set(columns):
        raise InputError(
            "preference data (columns `chosen` and `rejected`), which this release can't train on",
            where=where,
            expected="text, prompt/completion, messages or text/label rows",
            mend="to learn the chosen answers only, set data.columns.completion=chosen",
        )
    if {"prompt", "completion"} <= set(columns) and isinstance(first.get("label"), bool):
        raise InputError(
            "preference data (`completion` with a true or false `label`), which this release can't "
            "train on",
            where=where,
            mend="keep the rows whose label is true, and set data.columns.completion=completion",
        )
    if "prompt" in columns and not set(columns) & {"completion", "text", "messages"}:
        raise InputError(
            "prompts without completions, as methods that sample answers take (GRPO): this release "
            "can't train on them",
            where=where,
            mend="name the column with the answers: `data.columns.completion`",
        )


def _detect(
    first: Mapping[str, Any],
    columns: Collection[str],
    mapping: ColumnsConfig,
    task: str,
    where: str,
) -> str:
    wanted = ("text_label",) if task == "sequence_classification" else _CAUSAL
    found = {f: _content(f, first, columns, mapping) for f in wanted}
    fits = [format for format in wanted if found[format]]
    if len(fits) > 1:  # a column named in the config decides
        named = {part for part in ColumnsConfig.model_fields if getattr(mapping, part)}
        fits = [f for f in fits if named & set(found[f] or ())] or fits
    if len(fits) == 1:
        return fits[0]
    shown = ", ".join(f"`{column}`" for column in sorted(columns))
    raise InputError(
        f"the columns fit {' and '.join(fits) if fits else 'no format'} ({shown})",
        where=where,
        expected=" or ".join(f"{f} ({', '.join(_SHAPES[f][0])})" for f in wanted),
        mend="set `data.format`"
        if fits
        else "name the columns: " + " ".join(f"data.columns.{p}=COLUMN" for p in _example(wanted)),
    )


def _example(wanted: tuple[str, ...]) -> tuple[str, ...]:
    return _SHAPES["prompt_completion" if "prompt_completion" in wanted else wanted[0]][0]


def _refuse_idle(mapping: ColumnsConfig, format: str, content: Mapping[str, str]) -> None:
    """Refuse a column that is named for a part which rows of this format don't have."""
    for part in ("text", "prompt", "completion", "messages", "label"):
        if getattr(mapping, part) and part not in content:
            raise InputError(
                f"is not used: rows are read as {format} ({', '.join(content)})",
                where=f"data.columns.{part}",
                mend="leave it out, or set `data.format` to one that has it",
            )


def _require(name: str, columns: Collection[str], where: str, field: str) -> None:
    if name in columns:
        return
    close = difflib.get_close_matches(name, sorted(columns), n=1)
    raise InputError(
        f"no column `{name}` (there are: {', '.join(sorted(columns))})",
        where=where,
        mend=f"set `{field}`" + (f"; did you mean `{close[0]}`?" if close else ""),
    )
