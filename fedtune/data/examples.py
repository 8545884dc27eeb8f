"""Examples: memory-mapped canonical rows and what they are."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# The columns that carry content, by format; the first is what `inspect` and errors speak of.
CONTENT_COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages", "context"),
    "text_label": ("text", "label"),
}
_BATCH_ROWS = 1024
IDENTITY_COLUMNS = ("record_id", "unit_id", "silo", "where")


@dataclass(frozen=True)
class ExampleSet:
    """Canonical rows of one format. Rows stay on disk and are mapped into memory on use.

    Every row has `record_id`, `unit_id`, `silo` ("" if none) and `where` (`file.jsonl:12`), then
    the columns of its `format` in `CONTENT_COLUMNS`; the first `context` of its `messages` are
    read but not learned. `fingerprint` identifies the content.
    """

    rows: datasets.Dataset
    format: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[index]
        return row

    def select(self, indices: Sequence[int] | np.ndarray) -> "ExampleSet":
        """The rows at `indices`, in that order, without copying them."""
        chosen = np.asarray(indices, dtype=np.int64)
        digest = hashlib.sha256(self.fingerprint.encode() + chosen.tobytes()).hexdigest()
        return ExampleSet(self.rows.select(chosen), self.format, digest)

    def groups(self, column: str) -> tuple[np.ndarray, list[str]]:
        """Integer code of each row's `column` value, and the sorted values the codes index."""
        codes, values = self._grouped(column)
        return codes, values.to_pylist()

    def codes(self, column: str) -> tuple[np.ndarray, int]:
        """What `groups` gives, but only the number of values: there may be one a row."""
        codes, values = self._grouped(column)
        return codes, len(values)

    def _grouped(self, column: str) -> tuple[np.ndarray, pa.Array]:
        if not len(self):
            return np.zeros(0, dtype=np.int64), pa.array([], pa.string())
        # in batches: `datasets` gathers chosen rows as one small table each
        batches = self.rows.select_columns([column]).with_format("arrow").iter(_BATCH_ROWS)
        parts = [batch.column(column).combine_chunks() for batch in batches]
        encoded = pa.chunked_array(parts).combine_chunks().dictionary_encode()
        order = pc.sort_indices(encoded.dictionary)
        rank = np.empty(len(order), dtype=np.int64)
        rank[order.to_numpy()] = np.arange(len(order))
        return rank[encoded.indices.to_numpy()], encoded.dictionary.take(order)


def features(format: str) -> datasets.Features:
    """The column types of canonical rows of `format`."""
    text = datasets.Value("string")
    kinds: dict[str, Any] = dict.fromkeys((*IDENTITY_COLUMNS, *CONTENT_COLUMNS[format]), text)
    if format == "messages":
        kinds["messages"] = [{"role": text, "content": text}]
        kinds["context"] = datasets.Value("int32")
    return datasets.Features(kinds)
