"""Examples: memory-mapped canonical rows and what they are."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

# The columns that carry content, by format; the first is what `inspect` and errors speak of.
CONTENT_COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages", "context"),
    "text_label": ("text", "label"),
}
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

    def select(self, indices: Sequence[int]) -> "ExampleSet":
        """The rows at `indices`, in that order, without copying them."""
        chosen = np.asarray(indices, dtype=np.int64)
        digest = hashlib.sha256(self.fingerprint.encode() + chosen.tobytes()).hexdigest()
        return ExampleSet(self.rows.select(chosen), self.format, digest)

    def groups(self, column: str) -> tuple[np.ndarray, list[str]]:
        """Integer code of each row's `column` value, and the sorted values the codes index."""
        if not len(self):
            return np.zeros(0, dtype=np.int64), []
        table = self.rows.select_columns([column]).with_format("arrow")[:]
        encoded = table.column(column).combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        order = sorted(range(len(names)), key=names.__getitem__)
        rank = np.empty(len(names), dtype=np.int64)
        rank[order] = np.arange(len(names))
        return rank[encoded.indices.to_numpy()], [names[i] for i in order]


def features(format: str) -> datasets.Features:
    """The column types of canonical rows of `format`."""
    text = datasets.Value("string")
    kinds: dict[str, Any] = dict.fromkeys((*IDENTITY_COLUMNS, *CONTENT_COLUMNS[format]), text)
    if format == "messages":
        kinds["messages"] = [{"role": text, "content": text}]
        kinds["context"] = datasets.Value("int32")
    return datasets.Features(kinds)
