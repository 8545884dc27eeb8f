"""Canonical rows on disk: written once, keyed by content, memory-mapped when used."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter

from fedtune.data.cache import entry
from fedtune.data.examples import ExampleSet, features
from fedtune.data.formats import BadRowError, canonical_row
from fedtune.data.layouts import Layout
from fedtune.data.readers import RawRow
from fedtune.errors import InputError

_VERSION = 5  # raise it when canonical rows change, so that older stores aren't read
_SHOWN = 10
_WRITER_ROWS = 1024


@dataclass(frozen=True)
class BadRows:
    """How many rows couldn't be examples, and the first few as `file:line: why`."""

    count: int = 0
    first: tuple[str, ...] = ()

    def __add__(self, other: "BadRows") -> "BadRows":
        return BadRows(self.count + other.count, (self.first + other.first)[:_SHOWN])

    def __str__(self) -> str:
        lines = [f"{self.count} bad rows" if self.count != 1 else "1 bad row", *self.first]
        if self.count > len(self.first):
            lines.append(f"and {self.count - len(self.first)} more")
        return "\n  ".join(lines)


@dataclass(frozen=True)
class Source:
    """A stream of raw rows. `name` is short and is kept in rows; `shown` is said in errors."""

    name: str
    shown: str
    read: Callable[[], Iterator[RawRow]]
    content: str

    def place(self, line: int) -> str:
        """Where a row is, as kept in the row."""
        return f"{self.name}:{line}"


def store(
    sources: list[tuple[Source, Layout]], *, keep_going: bool = False
) -> tuple[ExampleSet, BadRows]:
    """Canonical rows of all `sources` as one memory-mapped set, and what was bad in them.

    Bad rows are an `InputError` that counts them, or with `keep_going` are left out. Memory
    is that of one batch, plus the record ids where a column names them.
    """
    format = sources[0][1].format
    key = _key(sources)
    folder = entry("data", key, lambda draft: _write(sources, format, draft))
    bad = _read_bad(folder)
    if bad.count and not keep_going:
        raise InputError(
            str(bad),
            expected="every row to be an example",
            mend="mend the rows, or set `data.bad_rows: skip` to leave them out",
        )
    rows = datasets.Dataset.from_file(str(folder / "rows.arrow"))
    if not len(rows):
        raise InputError(f"no usable row: {bad}", where=", ".join(s.shown for s, _ in sources))
    return ExampleSet(rows, format, key), bad


def _key(sources: list[tuple[Source, Layout]]) -> str:
    parts = [[source.name, source.shown, source.content, asdict(lay)] for source, lay in sources]
    return hashlib.sha256(json.dumps([_VERSION, parts]).encode()).hexdigest()


def _read_bad(folder: Path) -> BadRows:
    saved = json.loads((folder / "bad.json").read_text())
    return BadRows(saved["count"], tuple(saved["first"]))


def _write(sources: list[tuple[Source, Layout]], format: str, folder: Path) -> None:
    bad = BadRows()
    writer = ArrowWriter(
        features=features(format),
        path=str(folder / "rows.arrow"),
        writer_batch_size=_WRITER_ROWS,
    )
    seen: set[str] = set()
    for source, layout in sources:
        for result in _canonical(source, layout, seen):
            if isinstance(result, str):
                bad += BadRows(1, (result,))
            else:
                writer.write(result)
    writer.finalize()
    (folder / "bad.json").write_text(json.dumps(asdict(bad)))


def _canonical(source: Source, layout: Layout, seen: set[str]) -> Iterator[dict[str, Any] | str]:
    """Each row in canonical form, or `file:line: why` in place of a bad one."""
    for raw in source.read():
        try:
            if raw.row is None:
                raise BadRowError(raw.problem)
            row = canonical_row(raw.row, layout, source.place(raw.line))
            if layout.record_id:
                if row["record_id"] in seen:
                    raise BadRowError(f"`{layout.record_id}` was used by an earlier row")
                seen.add(row["record_id"])
            yield row
        except BadRowError as error:
            yield f"{source.shown}:{raw.line}: {error}"


def peek(rows: Iterable[RawRow], count: int = 100) -> tuple[dict[str, Any], list[str]]:
    """The first readable row, and the columns that any of the first `count` has, in order."""
    readable = (raw.row for raw in rows if raw.row is not None)
    first: dict[str, Any] = {}
    columns: dict[str, None] = {}
    for row in itertools.islice(readable, count):
        first = first or row
        columns.update(dict.fromkeys(row))
    return first, list(columns)
