"""Fingerprints: the same people are known again, whatever became of their file."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedtune.config.schema import RunConfig
from fedtune.data.load import file_sources, read_examples
from fedtune.errors import InputError
from fedtune.privacy.fingerprints import People, fingerprints

KEY = b"k" * 32
ROWS = [{"text": f"note {i} of  some\twords", "who": f"p{i // 2}"} for i in range(3000)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


def found(path: Path, rows: list[dict], unit: str = "patient", *, key: bytes = KEY, **columns: str):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = columns or ({"privacy_unit": "who"} if "who" in rows[0] else {})
    data = {"source": "files", "train_files": [str(path)], "columns": named}
    config = RunConfig.model_validate({"data": data})
    examples, _ = read_examples(config, file_sources([str(path)]), keep_going=False)
    return fingerprints(examples, key, unit)


def same(one: People, other: People) -> bool:
    return np.array_equal(one.records, other.records) and np.array_equal(
        one.patients, other.patients
    )


def test_a_renamed_and_reordered_file_holds_the_same_people(tmp_path: Path):
    first = found(tmp_path / "a.jsonl", ROWS)
    assert (first.count("record"), first.count("patient")) == (3000, 1500)
    assert same(first, found(tmp_path / "b.jsonl", ROWS[::-1]))
    numbered = [{**row, "id": i} for i, row in enumerate(ROWS)]
    columns = {"privacy_unit": "who", "record_id": "id"}
    assert same(first, found(tmp_path / "c.jsonl", numbered, **columns))


def test_a_file_that_has_grown_holds_the_old_people_too(tmp_path: Path):
    first = found(tmp_path / "a.jsonl", ROWS)
    grown = found(tmp_path / "a.jsonl", [{"text": "new", "who": "q"}, *ROWS])
    assert len(grown.records) == 3001
    assert np.isin(first.records, grown.records).all()
    assert np.isin(first.patients, grown.patients).all()


@pytest.mark.parametrize(
    "other",
    [
        {"text": "note  7\nof some words"},
        {"prompt": "note 7", "completion": "of some words"},
        {"messages": [{"role": "user", "content": "note 7"},
                      {"role": "assistant", "content": "of some words"}]},
    ],
    ids=["spaces", "prompt", "chat"],
)  # fmt: skip
def test_the_words_count_and_not_their_form(tmp_path: Path, other: dict):
    one = found(tmp_path / "a.jsonl", [{"text": "note 7 of some words"}], "record")
    assert same(one, found(tmp_path / "b.jsonl", [other], "record"))
    assert not same(one, found(tmp_path / "c.jsonl", [{"text": "note 8 of some words"}], "record"))


def test_what_settings_put_around_words_makes_nobody_new(tmp_path: Path):
    words = {"prompt": "how is 7 ?", "completion": "well, and 8 ?"}
    asked = {"instruction": "how is 7 ?", "output": "well, and 8 ?"}
    with_input = {"instruction": "how is", "input": "7 ?", "output": "well, and 8 ?"}
    one = found(tmp_path / "a.jsonl", [words], "record")
    assert same(one, found(tmp_path / "b.jsonl", [asked], "record"))
    assert same(one, found(tmp_path / "c.jsonl", [with_input], "record"))
    columns = {"prompt": "instruction", "completion": "output"}
    assert same(one, found(tmp_path / "d.jsonl", [asked], "record", **columns))


def test_rows_without_patients_name_none(tmp_path: Path):
    rows = [{"text": row["text"]} for row in ROWS]
    assert len(found(tmp_path / "a.jsonl", rows, "record").patients) == 0
    with pytest.raises(InputError, match="privacy_unit"):
        found(tmp_path / "a.jsonl", rows)


def test_patients_are_told_under_record_units_too_and_bytes_come_back(tmp_path: Path):
    first = found(tmp_path / "a.jsonl", ROWS, "record")
    assert same(first, found(tmp_path / "a.jsonl", ROWS))
    assert same(first, People.from_bytes(first.to_bytes(), named=True))
    only = People(first.records, first.patients[:0])
    assert same(only, People.from_bytes(only.to_bytes(), named=False))


def test_another_key_gives_other_fingerprints_and_ids_are_no_words(tmp_path: Path):
    first = found(tmp_path / "a.jsonl", ROWS)
    other = found(tmp_path / "a.jsonl", ROWS, key=b"K" * 32)
    assert not np.isin(first.records, other.records).any()
    twins = found(tmp_path / "b.jsonl", [{"text": "same", "who": "same"}] * 2)
    assert twins.records[0] != twins.patients[0]
