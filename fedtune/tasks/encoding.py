"""Encoded examples on disk: written once, keyed by data, task and tokenizer, then memory-mapped."""

import hashlib
import json
import logging
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import transformers

from fedtune.atomic import writable
from fedtune.config.task import TaskConfig
from fedtune.data.cache import entry
from fedtune.data.digests import file_digest
from fedtune.data.examples import ExampleSet
from fedtune.data.store import BadRows
from fedtune.errors import InputError
from fedtune.tasks.task import Encoded, Task

_VERSION = 1  # raise it when an encoding changes, so that older files aren't read
_BATCH_ROWS = 512
_BATCH_CHARACTERS = 1_000_000
_MAPPED_ROWS = 40 * _BATCH_ROWS
_TOKENS = pa.list_(pa.int32())
_SCHEMA = pa.schema({"input_ids": _TOKENS, "labels": _TOKENS, "cut": pa.int32()})
_log = logging.getLogger(__name__)


class EncodedSet(Sequence[Encoded]):
    """Encoded examples in a memory-mapped file; reading one allocates only that one."""

    def __init__(self, table: pa.Table, indices: np.ndarray) -> None:
        self._table, self._indices = table, indices
        self._starts = np.cumsum([0, *(len(batch) for batch in table.column(0).chunks)])

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "EncodedSet": ...
    def __getitem__(self, index: int | slice) -> "Encoded | EncodedSet":
        if isinstance(index, slice):
            return EncodedSet(self._table, self._indices[index])
        row = self._indices[index]
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = int(row - self._starts[chunk])
        ids, labels, cut = (column.chunk(chunk) for column in self._table.columns)
        return Encoded(_list_at(ids, place), _list_at(labels, place), cut[place].as_py())

    def lengths(self) -> np.ndarray:
        """Int64 [examples]: tokens of each, without what was cut."""
        return self._column(pc.list_value_length(self._table.column("input_ids")))

    def cuts(self) -> np.ndarray:
        """Int64 [examples]: how many tokens `task.max_length` cut off each."""
        return self._column(self._table.column("cut"))

    def _column(self, values: pa.ChunkedArray) -> np.ndarray:
        return values.to_numpy().astype(np.int64)[self._indices]

    def select(self, indices: Sequence[int]) -> "EncodedSet":
        """The examples at `indices`, in that order, without copying them."""
        return EncodedSet(self._table, self._indices[np.asarray(indices, dtype=np.int64)])


def encode_examples(task: Task, examples: ExampleSet) -> EncodedSet:
    """All `examples` under `task`, in order; says in the log how many were cut.

    Memory is that of one batch. Raises InputError that counts the rows which the task can't learn
    and names the first; nothing is kept then.
    """
    parts = [_VERSION, transformers.__version__, examples.fingerprint, task.fingerprint]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    folder = entry("encoded", key, lambda draft: _write(task, examples, draft / "rows.arrow"))
    with pa.memory_map(str(folder / "rows.arrow")) as file:
        table = pa.ipc.open_stream(file).read_all()
    encoded = EncodedSet(table, np.arange(len(table)))
    if cut := int((encoded.cuts() > 0).sum()):
        _log.warning("%d of %d examples were cut to `task.max_length`", cut, len(encoded))
    return encoded


def fingerprint(config: TaskConfig, tokenizer: Any, labels: Sequence[str] = ()) -> str:
    """SHA-256 over a task's settings and every file of the tokenizer, chat template included."""
    with tempfile.TemporaryDirectory() as folder:
        with writable(Path(folder), "make room, or set TMPDIR to a folder elsewhere"):
            tokenizer.save_pretrained(folder)
        parts = [config.model_dump(mode="json"), file_digest(Path(folder)), list(labels)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(task: Task, examples: ExampleSet, path: Path) -> None:
    bad = BadRows()
    with pa.ipc.new_stream(str(path), _SCHEMA) as writer:
        for rows in batches(examples):
            encoded = task.encode_batch(rows)
            columns = {name: [getattr(e, name) for e in encoded] for name in _SCHEMA.names}
            writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=_SCHEMA))
            for row, example in zip(rows, encoded, strict=True):
                if example.problem:
                    bad += BadRows(1, (f"{row['where']}: {example.problem}",))
    if bad.count:
        raise InputError(
            f"these examples can't be learned: {bad}",
            where="task.max_length",
            mend="raise `task.max_length`, or shorten or leave out these rows",
        )


def batches(examples: ExampleSet) -> Iterator[list[dict[str, Any]]]:
    """Canonical rows in order, some hundreds at a time, or fewer where they are very long."""
    for start in range(0, len(examples), _MAPPED_ROWS):
        part = examples.rows.select(range(start, min(start + _MAPPED_ROWS, len(examples))))
        # a copy maps the file anew, so that the pages of rows that are done with are given back
        part = pickle.loads(pickle.dumps(part))  # noqa: S301 - our own bytes
        for batch in part.iter(_BATCH_ROWS):
            rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
            yield from _cut_by_text(rows)


def _cut_by_text(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """`rows` in order, as lists of at most `_BATCH_CHARACTERS`, or of one row."""
    part: list[dict[str, Any]] = []
    held = 0
    for row in rows:
        size = sum(len(value) for value in row.values() if isinstance(value, str))
        size += sum(len(turn["content"]) for turn in row.get("messages", ()))
        if part and held + size > _BATCH_CHARACTERS:
            yield part
            part, held = [], 0
        part.append(row)
        held += size
    yield part


def _list_at(column: pa.ListArray, place: int) -> list[int]:
    numbers: list[int] = column.slice(place, 1).flatten().to_numpy().tolist()
    return numbers
