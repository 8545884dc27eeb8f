"""What was understood of some files: the facts behind `fedtune data inspect`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtune.config.schema import RunConfig
from fedtune.data.examples import CONTENT_COLUMNS, ExampleSet
from fedtune.data.load import file_sources, read_examples, source_layout
from fedtune.data.store import BadRows, peek


@dataclass(frozen=True)
class TokenLengths:
    """Lengths of examples in tokens, and how many exceed `task.max_length`."""

    shortest: int
    median: int
    p95: int
    longest: int
    max_length: int
    truncated: int


@dataclass(frozen=True)
class Inspection:
    """Facts on some files. `mapping` is canonical column to file column."""

    files: tuple[str, ...]
    columns: tuple[str, ...]
    format: str
    mapping: dict[str, str | None]
    rows: int
    bad_rows: BadRows
    privacy_units: int
    silos: dict[str, int]
    labels: dict[str, int]
    tokens: TokenLengths | None
    first: dict[str, Any]


def inspect_files(
    patterns: Sequence[str],
    config: RunConfig,
    count_tokens: Callable[[str], int] | None = None,
) -> Inspection:
    """Read `patterns` under `config`; bad rows are reported, never refused.

    `count_tokens` gives the tokens of a text; None: lengths are left out. Raises `InputError`
    for files that can't be understood at all.
    """
    data = config.data.model_copy(update={"source": "files", "train_files": list(patterns)})
    config = config.model_copy(update={"data": data})
    sources = file_sources(patterns)
    examples, bad = read_examples(config, sources, keep_going=True)
    layout = source_layout(config, sources[0])
    return Inspection(
        files=tuple(source.shown for source in sources),
        columns=tuple(peek(sources[0].read())[1]),
        format=layout.format,
        mapping={
            **layout.content,
            "record_id": layout.record_id,
            "privacy_unit": layout.privacy_unit,
            "silo": layout.silo,
        },
        rows=len(examples),
        bad_rows=bad,
        privacy_units=len(examples.groups("unit_id")[1]),
        silos=_counts(examples, "silo") if layout.silo else {},
        labels=_counts(examples, "label") if examples.format == "text_label" else {},
        tokens=_lengths(examples, count_tokens, config.task.max_length) if count_tokens else None,
        first=examples[0],
    )


def _counts(examples: ExampleSet, column: str) -> dict[str, int]:
    codes, names = examples.groups(column)
    counts = Counter(codes.tolist())
    return {name: counts[code] for code, name in enumerate(names)}


def content_text(row: dict[str, Any], format: str) -> str:
    """The text of a row that a model reads, its parts one below the other."""
    if format == "messages":
        return "\n".join(turn["content"] for turn in row["messages"])
    return "\n".join(row[part] for part in CONTENT_COLUMNS[format] if part != "label")


def _lengths(
    examples: ExampleSet, count_tokens: Callable[[str], int], max_length: int
) -> TokenLengths:
    lengths = np.array([count_tokens(content_text(row, examples.format)) for row in examples.rows])
    return TokenLengths(
        shortest=int(lengths.min()),
        median=int(np.median(lengths)),
        p95=int(np.percentile(lengths, 95)),
        longest=int(lengths.max()),
        max_length=max_length,
        truncated=int((lengths > max_length).sum()),
    )
