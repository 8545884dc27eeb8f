"""Keyed fingerprints of the people in a data set, by which a ledger knows them again.

A patient is known by the id in `data.columns.privacy_unit`, a record by its words: not by its
file's name, its position or its id, and not by its label, its roles or the spaces between words,
nor by what a run's settings put around them.
So a file that was renamed, sorted anew, converted to another format or has grown is seen to hold
the same people. Without the ledger's key a fingerprint tells nothing, not even of a guessed id.
"""

import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fedtune.data.examples import CONTENT_COLUMNS, ExampleSet
from fedtune.data.formats import one_form, without_frame
from fedtune.errors import InputError

_BATCH_ROWS = 1024


@dataclass(frozen=True)
class People:
    """A data set's rows as fingerprints, uint64 [rows] each, in an order that tells nothing.

    `patients` is empty where rows name no patient, else the patient of each of `records`. Two of
    10^6 fingerprints are the same with a chance of 3e-8, and then two people count as one: what
    either spends, both have spent.
    """

    records: np.ndarray
    patients: np.ndarray

    @cached_property
    def known_records(self) -> np.ndarray:
        """`records`, sorted, each once."""
        return np.unique(self.records)

    @cached_property
    def known_patients(self) -> np.ndarray:
        """`patients`, sorted, each once."""
        return np.unique(self.patients)

    def count(self, unit: Literal["record", "patient"]) -> int:
        """How many units there are: rows, or patients."""
        return len(self.records) if unit == "record" else len(self.known_patients)

    def to_bytes(self) -> bytes:
        """Little-endian numbers, records then patients; `from_bytes` undoes it."""
        return self.records.astype("<u8").tobytes() + self.patients.astype("<u8").tobytes()

    @staticmethod
    def from_bytes(content: bytes, *, named: bool) -> "People":
        """Undo `to_bytes`; `named` says whether rows name patients."""
        numbers = np.frombuffer(content, dtype="<u8").astype(np.uint64)
        half = len(numbers) // 2 if named else len(numbers)
        return People(numbers[:half], numbers[half:])


def fingerprints(
    examples: ExampleSet,
    key: bytes,
    unit: Literal["record", "patient"],
    *,
    label_prompt: bool = False,
) -> People:
    """Fingerprint the people in `examples`, in the memory of one batch and 16 bytes a row.

    Patients are told with `unit: record` too, where the rows name them. With `label_prompt` the
    prompts are made of labels, which are no words of anybody. Raises InputError when `unit` is
    patient and no row names one.
    """
    names = _columns_of_words(examples, label_prompt=label_prompt)
    records, patients = np.zeros((2, len(examples)), dtype=np.uint64)
    named, start = False, 0
    for rows in _batches(examples, names):
        end = start + len(rows)
        records[start:end] = [_keyed(key, "record", _words(row, names)) for row in rows]
        patients[start:end] = [_keyed(key, "patient", one_form(row["unit_id"])) for row in rows]
        named |= any(row["unit_id"] != row["record_id"] for row in rows)
        start = end
    if unit == "patient" and not named:
        raise InputError(
            "the rows name no patients",
            where="data.columns.privacy_unit",
            mend="name the column with the patient's id, or set `privacy.unit: record`",
        )
    order = np.lexsort((records, patients)) if named else np.argsort(records)
    return People(records[order], patients[order] if named else patients[:0])


def _columns_of_words(examples: ExampleSet, *, label_prompt: bool) -> list[str]:
    left_out = {"label", "context", *(["prompt"] if label_prompt else [])}
    return [name for name in CONTENT_COLUMNS[examples.format] if name not in left_out]


def _batches(examples: ExampleSet, names: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    rows = examples.rows.select_columns(["record_id", "unit_id", *names])
    for batch in rows.with_format("arrow").iter(_BATCH_ROWS):
        yield batch.to_pylist()


def _words(row: Mapping[str, Any], names: Sequence[str]) -> str:
    if "messages" in row:
        return one_form(" ".join(turn["content"] for turn in row["messages"]))
    return one_form(" ".join(without_frame(row[name]) for name in names))


def _keyed(key: bytes, kind: str, text: str) -> int:
    digest = hmac.digest(key, f"{kind}\0{text}".encode(), hashlib.sha256)
    return int.from_bytes(digest[:8], "little")
