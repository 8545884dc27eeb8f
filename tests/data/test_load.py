"""Files become examples, or an error that names the place. Every message is checked once."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedtune.config.schema import RunConfig
from fedtune.data import load
from fedtune.data.examples import ExampleSet
from fedtune.data.load import load_splits
from fedtune.data.readers import load_hub
from fedtune.errors import InputError
from fedtune.tasks.encoding import batches

ROWS = [{"prompt": f"Q{i}", "completion": f"A{i}", "site": f"s{i % 2}"} for i in range(20)]
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def config(*files: Path, task: str = "causal_lm", column: str | None = None, **data: Any) -> Any:
    return RunConfig.model_validate(
        {
            "data": {"source": "files", "train_files": [str(f) for f in files], **data},
            "task": {"name": task},
            "training": {"eval_steps": 1} if any("validation" in name for name in data) else {},
            "federation": {"partition": {"column": column}},
        }
    )


def prompts(examples: ExampleSet) -> list[str]:
    return list(examples.rows["prompt"])


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_splits(config(*args, **kwargs))
    return str(caught.value)


def write_as(kind: str, folder: Path) -> Path:
    path = folder / f"rows.{kind}"
    table = pa.Table.from_pylist(ROWS)
    if kind == "jsonl":
        return jsonl(path, ROWS)
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    elif kind == "csv":
        lines = [",".join(ROWS[0]), *(",".join(row.values()) for row in ROWS)]
        path.write_text("\ufeff" + "\n".join(lines))
    elif kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    elif kind == "feather":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


KINDS = ["jsonl", "jsonl.gz", "csv", "parquet", "arrow", "feather", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    splits = load_splits(config(write_as(kind, tmp_path), column="site"))
    assert splits.train.format == "prompt_completion"
    assert sorted(prompts(splits.train) + prompts(splits.test)) == sorted(r["prompt"] for r in ROWS)
    assert len(splits.test) == 2  # a tenth of each silo's ten
    first = splits.train[0]
    line = ROWS.index({k: first[k] for k in ("prompt", "completion")} | {"site": first["silo"]})
    assert first["where"] == f"rows.{kind}:{line + (2 if kind == 'csv' else 1)}"


def test_globs_several_files_and_places_that_tell_them_apart(tmp_path: Path) -> None:
    jsonl(tmp_path / "a" / "x.jsonl", ROWS[:10])
    jsonl(tmp_path / "b" / "x.jsonl", ROWS[10:])
    splits = load_splits(config(tmp_path / "**" / "*.jsonl"))
    places = {w for s in (splits.train, splits.test) for w in s.rows["where"]}
    assert places == {f"{d}/x.jsonl:{i}" for d in "ab" for i in range(1, 11)}


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", ROWS)
    one = load_splits(config(path)).train.fingerprint
    assert load_splits(config(path)).train.fingerprint == one
    jsonl(path, [*ROWS[:-1], {"prompt": "new", "completion": "new"}])
    after = load_splits(config(path))
    assert after.train.fingerprint != one
    assert "new" in prompts(after.train) + prompts(after.test)


def test_no_privacy_unit_is_in_both_splits(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "patient": i // 5} for i in range(100)]
    path = jsonl(tmp_path / "x.jsonl", rows)
    splits = load_splits(config(path, columns={"privacy_unit": "patient"}, test_fraction=0.25))
    train, test = (set(s.rows["unit_id"]) for s in (splits.train, splits.test))
    assert not train & test
    assert len(test) == 5
    assert len(splits.test) == 25


def test_a_row_is_read_by_its_columns_and_the_task(tmp_path: Path) -> None:
    labelled = jsonl(tmp_path / "l.jsonl", [{"text": f"t{i}", "label": i % 3} for i in range(9)])
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    messages = jsonl(tmp_path / "m.jsonl", [{"messages": chat}] * 3)
    assert load_splits(config(labelled)).train.format == "text"
    classified = load_splits(config(labelled, task="sequence_classification"))
    assert (classified.train.format, classified.labels) == ("text_label", ["0", "1", "2"])
    assert load_splits(config(messages)).train[0]["messages"] == chat


def test_a_text_is_learned_after_its_label(tmp_path: Path) -> None:
    rows = [{"note": f"t{i} {{label}}", "label": "{x}" if i % 2 else 7} for i in range(9)]
    told = {"format": "text_label", "columns": {"text": "note"}, "label_prompt": "a {label} {n}:"}
    splits = load_splits(config(jsonl(tmp_path / "l.jsonl", rows), **told))
    assert splits.train.format == "prompt_completion"
    found = {(row["prompt"], row["completion"]) for row in splits.train.rows}
    assert found < {(f"a {row['label']} {{n}}:", row["note"]) for row in rows}
    # another prompt makes other rows of the same file
    again = load_splits(config(tmp_path / "l.jsonl", **{**told, "label_prompt": "{label}"}))
    assert set(again.train.rows["prompt"]) == {"7", "{x}"}


CHAT = {"messages": [{"role": "user", "content": "q"}]}
BAD: list[tuple[Any, str]] = [
    ("{oops", "not JSON"),
    ("[1]", "a JSON list, not an object"),
    ({"prompt": "q"}, "`completion` is missing"),
    ({"prompt": "q", "completion": None}, "`completion` is missing"),
    ({"prompt": "q", "completion": 3}, "`completion` is int, not text"),
    ({"prompt": " ", "completion": "a"}, "`prompt` is empty"),
    ('{"prompt": "\\ud800", "completion": "a"}', "`prompt` holds half a surrogate pair"),
]


@pytest.mark.parametrize(("row", "why"), BAD)
def test_a_bad_row_is_refused_with_its_line_or_skipped_and_counted(
    row: Any, why: str, tmp_path: Path
) -> None:
    path = jsonl(tmp_path / "x.jsonl", [*ROWS[:4], "", row, *ROWS[4:]])
    message = refusal(path)
    assert f"{path}:6: {why}" in message
    assert message.startswith("1 bad row\n")
    assert "data.bad_rows: skip" in message
    splits = load_splits(config(path, bad_rows="skip"))
    assert len(splits.train) + len(splits.test) == 20
    assert splits.bad_rows.count == 1


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("hello", "neither a list nor JSON"),
        ([], "not a list of messages"),
        (CHAT["messages"], "has no assistant turn"),
        ([{"role": "ghost", "content": "x"}], "`messages[0]` has no role out of system"),
        ([{"role": "user", "content": None}], "`messages[0].content` is not text"),
    ],
)
def test_bad_messages(value: Any, why: str, tmp_path: Path) -> None:
    assert why in refusal(jsonl(tmp_path / "x.jsonl", [{"messages": value}]))


def test_bad_bytes_and_bad_csv_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    assert "x.jsonl:2: not UTF-8 text" in refusal(tmp_path / "x.jsonl")
    (tmp_path / "x.csv").write_bytes(b'text,n\n"two\nlines",1\n\xff,2\nshort\nopen,"3')
    message = refusal(tmp_path / "x.csv")
    assert "x.csv:4: not UTF-8 text" in message
    assert "x.csv:5: 1 fields where the header has 2" in message
    assert "x.csv:6: not CSV" in message
    assert message.startswith("3 bad rows")
    (tmp_path / "y.csv").write_text("a,a\n1,2\n")
    assert "y.csv:1: the header line is empty or repeats" in refusal(tmp_path / "y.csv")


def test_many_bad_rows_are_counted_and_the_first_ten_shown(tmp_path: Path) -> None:
    message = refusal(jsonl(tmp_path / "x.jsonl", [*ROWS, *["{"] * 25]))
    assert message.startswith("25 bad rows")
    assert "and 15 more" in message


def test_a_repeated_record_id_is_a_bad_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"text": "t", "id": 1}, {"text": "u", "id": 1}])
    message = refusal(path, columns={"record_id": "id"})
    assert f"{path}:2: `id` was used by an earlier row" in message


def test_an_empty_privacy_unit_is_a_bad_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"text": "t", "p": "1"}, {"text": "u", "p": ""}])
    assert "x.jsonl:2: `p` is empty" in refusal(path, columns={"privacy_unit": "p"})


def test_columns_that_fit_nothing_or_too_much(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"question": "q", "answer": "a"}])
    message = refusal(path)
    assert "fit no format (`answer`, `question`)" in message
    assert "messages (messages) or prompt_completion (prompt, completion) or text" in message
    assert "data.columns.prompt=COLUMN data.columns.completion=COLUMN" in message
    message = refusal(path, columns={"prompt": "questoin"}, format="prompt_completion")
    assert "no column `questoin`" in message
    assert "did you mean `question`?" in message
    both = jsonl(tmp_path / "y.jsonl", [{"text": "t", "prompt": "p", "completion": "c"}] * 3)
    assert "fit prompt_completion and text" in refusal(both)
    assert load_splits(config(both, columns={"text": "text"})).train.format == "text"
    assert "federation.partition.column" in refusal(both, format="text", column="site")


def test_preference_data_is_recognised_and_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}] * 3)
    message = refusal(path)
    assert "preference data" in message
    assert "data.columns.completion=chosen" in message
    chosen = load_splits(config(path, columns={"completion": "chosen"}))
    assert chosen.train[0]["completion"] == "c"


SHARED_GPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
ASK = [{"role": "user", "content": "q"}]
REPLY = [{"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "format", "context"),
    [
        ({"messages": ASK + REPLY}, "messages", 0),
        ({"prompt": ASK, "completion": REPLY}, "messages", 1),
        ({"conversations": SHARED_GPT}, "messages", 0),
        ({"conversations": ASK + REPLY}, "messages", 0),
    ],
)
def test_conversations_in_every_dialect(
    row: Any, format: str, context: int, tmp_path: Path
) -> None:
    path = jsonl(tmp_path / "x.jsonl", [row] * 3)
    train = load_splits(config(path)).train
    assert (train.format, train[0]["messages"]) == (format, ASK + REPLY)
    assert train[0]["context"] == context
    assert load_splits(config(path, format=format)).train.fingerprint == train.fingerprint


def test_alpaca_rows_are_read_with_and_without_input(tmp_path: Path) -> None:
    rows = [{"instruction": "Add", "input": i, "output": "3"} for i in ("1 2", "", None)]
    train = load_splits(config(jsonl(tmp_path / "x.jsonl", [*rows, *rows]))).train
    seen = {(row["prompt"], row["completion"]) for row in train.rows}
    assert len(seen) == 2
    assert all("### Instruction:\nAdd\n\n" in prompt for prompt, _ in seen)
    assert [p for p, _ in seen if "### Input:\n1 2\n\n### Response:\n" in p]
    assert {answer for _, answer in seen} == {"3"}


@pytest.mark.parametrize(
    ("row", "says", "mend"),
    [
        ({"chosen": "a", "rejected": "b"}, "preference data", "data.columns.completion=chosen"),
        ({"prompt": "p", "completion": "c", "label": True}, "true or false `label`", "is true"),
        ({"prompt": "p", "site": "s"}, "prompts without completions", "data.columns.completion"),
    ],
)
def test_data_for_other_methods_is_refused_by_name(
    row: Any, says: str, mend: str, tmp_path: Path
) -> None:
    message = refusal(jsonl(tmp_path / "x.jsonl", [row] * 3))
    assert says in message
    assert mend in message


def test_a_conversation_among_texts_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": ASK, "completion": REPLY}]
    assert "x.jsonl:2: `prompt` is list, not text" in refusal(jsonl(tmp_path / "x.jsonl", rows))
    assert "x.jsonl:2: `prompt` is neither" in refusal(jsonl(tmp_path / "x.jsonl", rows[::-1]))


def test_files_that_are_not_there_or_not_data(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.jsonl")
    assert "the pattern matches no file" in refusal(tmp_path / "*.jsonl")
    (tmp_path / "x.txt").write_text("hi")
    assert "unknown kind of file `.txt`" in refusal(tmp_path / "x.txt")
    (tmp_path / "x.parquet").write_text("hi")
    assert "x.parquet: can't be read" in refusal(tmp_path / "x.parquet")
    (tmp_path / "x.jsonl.gz").write_text("hi")
    assert "x.jsonl.gz: can't be read" in refusal(tmp_path / "x.jsonl.gz")
    (tmp_path / "dir").mkdir()
    assert "not a `datasets` folder" in refusal(tmp_path / "dir")
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "dict"))
    assert f"name one of them: {tmp_path / 'dict' / 'train'}" in refusal(tmp_path / "dict")
    assert "no rows" in refusal(jsonl(tmp_path / "e.jsonl", []))
    assert "no usable row; line 1: not JSON" in refusal(jsonl(tmp_path / "b.jsonl", ["{"]))


DAMAGED = [
    ("x.csv", b"text,n\rone,1\rtwo,2\r", ("x.csv:1: the header line can't be read", "LF or CRLF")),
    ("x.csv", b'"text"x,n\none,1\n', ("x.csv:1: the header line can't be read",)),
    ("x.csv", b"text;n\none;1\n", ("x.csv:1: one column, `text;n`", "commas between columns")),
    ("x.csv", b"text\tn\none\t1\n", ("x.csv:1: one column", "commas between columns")),
    ("x.csv", b"prompt, completion\na, b\n", ("` completion`", "spaces out of the header line")),
    ("x.csv", "text,größe\na,1\n".encode("latin-1"), ("x.csv:1: not UTF-8 text", "as UTF-8")),
    ("x.csv", "text,n\na,1\n".encode("utf-16"), ("x.csv:1: not UTF-8 text", "as UTF-8")),
    ("x.tsv", b"text\tn\n", ("unknown kind of file `.tsv`", "comma-separated")),
    (
        "x.json",
        b'[{"text": "a"}, {"text": "b"}]',
        ("line 1: a JSON list", "one JSON object a line"),
    ),
    (
        "x.json",
        b'[\n{"text": "a"},\n{"text": "b"}\n]\n',
        ("a JSON array", "one JSON object a line"),
    ),
    ("x.jsonl", b'{"text": "a"},\n{"text": "b"}\n', ("x.jsonl:1", "with a comma after it")),
    ("x.jsonl", b'{"text": "a",}\n{"text": "b"}\n', ("x.jsonl:1", "comma before a closing brace")),
    ("x.jsonl", b"{}\n", ("line 1: an empty object", "one JSON object a line")),
    ("x.jsonl", '{"text": "a"}\n'.encode("utf-16"), ("line 1: not UTF-8 text", "in UTF-8")),
    ("x.jsonl", '{"text": "ä"}\n'.encode("latin-1"), ("line 1: not UTF-8 text", "in UTF-8")),
]


@pytest.mark.parametrize(("name", "content", "says"), DAMAGED)
def test_a_file_of_another_make_is_refused_with_what_to_do(
    name: str, content: bytes, says: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    for words in says:
        assert words in message
    assert "expected:" in message or "to mend:" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_dict.json", "{"),
        ("dataset_dict.json", "[1]"),
        ("dataset_dict.json", '{"splits": []}'),
        ("dataset_dict.json", '{"splits": [1]}'),
        ("state.json", "{"),
        ("state.json", "{}"),
        ("state.json", '{"_data_files": 3}'),
    ],
)
def test_a_damaged_datasets_folder_is_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text(content)
    message = refusal(tmp_path / "set")
    assert message.startswith(str(tmp_path / "set"))
    assert "is damaged" in message


def test_what_is_no_data_is_refused_before_it_is_read_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(load, "file_digest", read)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "film.mp4").write_bytes(b"x")
    assert "not a `datasets` folder" in refusal(tmp_path / "home")
    assert "unknown kind of file" in refusal(tmp_path / "home" / "film.mp4")


def test_a_text_beyond_all_measure_is_a_bad_row(tmp_path: Path) -> None:
    long, turn = "x" * 1_000_001, {"role": "user", "content": "x" * 500_001}
    rows = [{"prompt": long, "completion": "a"}, *ROWS]
    said = refusal(jsonl(tmp_path / "x.jsonl", rows))
    assert "x.jsonl:1: `prompt` has 1,000,001 characters, more than 1,000,000: split it" in said
    said = refusal(jsonl(tmp_path / "y.jsonl", [{"messages": [turn, turn, *REPLY]}]))
    assert "y.jsonl:1: `messages` has 1,000,003 characters" in said


def test_rows_are_handed_on_in_batches_of_bounded_text(tmp_path: Path) -> None:
    rows = [{"text": "x" * 400_000}] * 5 + [{"text": "y"}] * 5
    train = load_splits(config(jsonl(tmp_path / "x.jsonl", rows))).train
    sizes = [sum(len(row["text"]) for row in batch) for batch in batches(train)]
    assert sum(sizes) == sum(len(row["text"]) for row in train.rows)
    assert max(sizes) <= 1_000_000
    assert len(sizes) == 2


def test_when_every_row_is_bad_the_first_reasons_are_told(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"text": " "}] * 12)
    said = refusal(path, bad_rows="skip")
    assert f"no usable row: 12 bad rows\n  {path}:1: `text` is empty" in said
    assert "and 2 more" in said


def test_files_that_do_not_go_together(tmp_path: Path) -> None:
    a = jsonl(tmp_path / "a.jsonl", ROWS)
    b = jsonl(tmp_path / "b.jsonl", [{"text": "t", "p": 1}] * 2)
    c = jsonl(tmp_path / "c.jsonl", [{"text": "t", "p": 1}] * 3)
    assert "files of different formats can't be mixed" in refusal(a, b)
    assert "a.jsonl: also one of the train files\n" in refusal(a, test_files=[str(a)])
    copy = jsonl(tmp_path / "copy.jsonl", ROWS)
    said = refusal(a, test_files=[str(copy)])
    assert f"copy.jsonl: also one of the train files (`{a}` has the same content)" in said
    said = refusal(a, copy)
    assert f"copy.jsonl: has the same content as `{a}`, which is named too" in said
    assert "test rows are text, train rows prompt_completion" in refusal(a, test_files=[str(b)])
    overlap = refusal(b, test_files=[str(c)], columns={"privacy_unit": "p"})
    assert "1 privacy units are in both the train and the test files (the first at c.jsonl:1)" in (
        overlap
    )
    assert len(load_splits(config(b, test_files=[str(c)])).test) == 3


def test_a_record_is_in_one_part_only(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "id": f"r{i}", "p": i % 3} for i in range(12)]
    train = jsonl(tmp_path / "a.jsonl", rows)
    test = jsonl(tmp_path / "b.jsonl", [{"text": "new", "id": "new", "p": 7}, rows[3] | {"p": 8}])
    for columns in ({"record_id": "id"}, {"record_id": "id", "privacy_unit": "p"}):
        said = refusal(train, test_files=[str(test)], columns=columns)
        assert "1 record ids are in both the train and the test files" in said
        assert "the first at b.jsonl:2" in said
    jsonl(test, [{"text": "new", "id": "new", "p": 7}])
    assert len(load_splits(config(train, test_files=[str(test)], columns=columns)).test) == 1


def test_validation_files_are_apart_from_the_others(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "p": i} for i in range(12)]
    train, test = jsonl(tmp_path / "a.jsonl", rows[:8]), jsonl(tmp_path / "b.jsonl", rows[8:10])
    validation = jsonl(tmp_path / "c.jsonl", rows[10:])
    parts = {"test_files": [str(test)], "columns": {"privacy_unit": "p"}}
    splits = load_splits(config(train, validation_files=[str(validation)], **parts))
    assert splits.validation is not None
    sets = [splits.train, splits.validation, splits.test]
    assert [list(part.rows["text"]) for part in sets] == [
        [row["text"] for row in some] for some in (rows[:8], rows[10:], rows[8:10])
    ]
    assert splits.facts.validation_fingerprint == splits.validation.fingerprint
    cut = load_splits(config(train, validation_fraction=0.25, **parts))
    assert (cut.facts.train_examples, cut.facts.validation_examples, len(cut.test)) == (6, 2, 2)
    for of, part in ((train, "train"), (test, "test")):
        said = refusal(train, validation_files=[str(of)], **parts)
        assert f"also one of the {part} files" in said
        copy = jsonl(tmp_path / "copy.jsonl", of.read_text().splitlines()[::-1])
        said = refusal(train, validation_files=[str(copy)], **parts)
        assert f"in both the {part} and the validation files" in said
        assert said.startswith("data.validation_files")


def test_a_label_that_only_validation_rows_have_is_a_label(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(9)])
    validation = jsonl(tmp_path / "b.jsonl", [{"text": "t", "label": "c"}])
    settings = config(train, task="sequence_classification", validation_files=[str(validation)])
    assert load_splits(settings).labels == ["a", "b", "c"]


def test_one_unit_cannot_be_split(tmp_path: Path) -> None:
    assert "no test set can be split off" in refusal(jsonl(tmp_path / "x.jsonl", ROWS[:1]))


def test_a_hub_id_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="can't load split `train` of hub dataset"):
        load_hub(str(tmp_path / "nobody" / "nothing"), "train")


def test_real_questions_by_institute() -> None:
    path = SHARED / "medquad" / "medquad.jsonl"
    if not path.exists():
        pytest.skip("the MedQuAD file is not here")
    # not `qid` as the record id: the file has it twice for some rows
    columns = {"prompt": "question", "completion": "answer"}
    splits = load_splits(config(path, columns=columns, column="source"))
    assert len(splits.train) + len(splits.test) == 5619
    assert len(set(splits.test.rows["silo"])) == 9
