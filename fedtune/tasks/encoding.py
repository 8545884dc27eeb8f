"""Encoded examples on disk: written once, keyed by data, task and tokenizer, then memory-mapped."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import transformers

from fedtune.config.schema import TaskConfig
from fedtune.data.cache import entry
from fedtune.data.examples import ExampleSet
from fedtune.data.store import file_digest
from fedtune.tasks.task import Encoded, Task

_VERSION = 1  # raise it when an encoding changes, so that older files aren't read
_BATCH_ROWS = 512
_TOKENS = pa.list_(pa.int32())
_SCHEMA = pa.schema({"input_ids": _TOKENS, "labels": _TOKENS})


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
        return Encoded(*(_list_at(column.chunk(chunk), place) for column in self._table.columns))

    def select(self, indices: Sequence[int]) -> "EncodedSet":
        """The examples at `indices`, in that order, without copying them."""
        return EncodedSet(self._table, self._indices[np.asarray(indices, dtype=np.int64)])


def encode_examples(task: Task, examples: ExampleSet) -> EncodedSet:
    """All `examples` under `task`, in order. Memory is that of one batch.

    Raises InputError on rows that the task can't learn; nothing is kept of them.
    """
    parts = [_VERSION, transformers.__version__, examples.fingerprint, task.fingerprint]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    folder = entry("encoded", key, lambda draft: _write(task, examples, draft / "rows.arrow"))
    with pa.memory_map(str(folder / "rows.arrow")) as file:
        table = pa.ipc.open_stream(file).read_all()
    return EncodedSet(table, np.arange(len(table)))


def fingerprint(config: TaskConfig, tokenizer: Any, labels: Sequence[str] = ()) -> str:
    """SHA-256 over a task's settings and every file of the tokenizer, chat template included."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        parts = [config.model_dump(mode="json"), file_digest(Path(folder)), list(labels)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(task: Task, examples: ExampleSet, path: Path) -> None:
    with pa.ipc.new_stream(str(path), _SCHEMA) as writer:
        for rows in _batches(examples):
            encoded = task.encode_batch(rows)
            columns = {name: [getattr(e, name) for e in encoded] for name in _SCHEMA.names}
            writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=_SCHEMA))


def _batches(examples: ExampleSet) -> Iterator[list[dict[str, Any]]]:
    for batch in examples.rows.iter(_BATCH_ROWS):
        yield [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


def _list_at(column: pa.ListArray, place: int) -> list[int]:
    numbers: list[int] = column.slice(place, 1).flatten().to_numpy().tolist()
    return numbers
