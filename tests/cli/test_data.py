"""`fedtune data`: what inspect says of files, right to the number, and clearing what is kept."""

import json
from pathlib import Path

import pytest

from fedtune.cli.main import main

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(path: Path, rows: list, more: str = "") -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + more)
    return str(path)


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["data", "inspect", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


ROWS = [
    {"q": f"Q{i}", "a": "a " * (200 if i == 7 else 2), "site": f"s{i % 2}", "who": i // 2}
    for i in range(20)
]
COLUMNS = (
    "data.columns.prompt=q",
    "data.columns.completion=a",
    "data.columns.privacy_unit=who",
)


def test_facts_on_a_file_with_a_bad_row(tmp_path: Path, capsys):
    file = written(tmp_path / "x.jsonl", ROWS, "{\n")
    facts = inspected(capsys, file, *COLUMNS, "task.max_length=64")
    assert facts["format"] == "prompt_completion"
    assert facts["content"] == {"prompt": "q", "completion": "a"}
    assert (facts["rows"], facts["bad_rows"]["count"], facts["privacy_units"]) == (20, 1, 10)
    assert facts["bad_rows"]["first"][0].startswith(f"{file}:21: not JSON")
    assert facts["silos"] == {}
    tokens = facts["tokens"]
    assert (tokens["truncated"], tokens["unlearnable"], tokens["measured"]) == (1, 0, 20)
    assert tokens["shortest"] < 20 < 200 < tokens["longest"]
    learned = "".join(s["text"] for s in facts["example"]["segments"] if s["learned"])
    assert learned == "a a <eos>"


def test_the_rows_of_each_part_of_a_run_are_told(tmp_path: Path, capsys):
    file = written(tmp_path / "x.jsonl", ROWS)
    cut = (*COLUMNS, "data.test_fraction=0.2", "data.validation_fraction=0.25")
    cut = (*cut, "training.eval_steps=1")
    facts = inspected(capsys, file, *cut)
    assert facts["split"] == {"training": 12, "validation": 4, "test": 4}
    assert main(["data", "inspect", file, *cut]) == 0
    assert "split          12 training, 4 validation, 4 test\n" in capsys.readouterr().out
    one = written(tmp_path / "one.jsonl", ROWS[:1])
    assert main(["data", "inspect", one, *COLUMNS]) == 0
    assert "none: data.test_fraction: no test set" in capsys.readouterr().out


def test_silos_by_column_and_by_rule(tmp_path: Path, capsys):
    file = written(tmp_path / "x.jsonl", ROWS)
    column = inspected(capsys, file, *COLUMNS[:2], "federation.partition.column=site")
    assert column["silos"] == {"s0": 10, "s1": 10}
    rule = ("federation.partition.by=iid", "federation.partition.silos=4")
    assert sum(inspected(capsys, file, *COLUMNS, *rule)["silos"].values()) == 20


def test_a_readable_page(tmp_path: Path, capsys):
    file = written(tmp_path / "x.jsonl", [{"text": "[bold]x[/bold]", "label": "a"}] * 3)
    assert main(["data", "inspect", file, "task.name=sequence_classification"]) == 0
    page = capsys.readouterr().out
    for words in ("text_label", "1: a 3", "none named", "0 of all rows", "[bold]x[/bold]"):
        assert words in page


def test_a_long_line_stays_one_line_where_nobody_looks_at_it(tmp_path: Path, capsys):
    many = [f"column_number_{i}" for i in range(30)]
    file = written(tmp_path / "x.jsonl", [dict.fromkeys(many, "x") | {"text": "t"}] * 3)
    assert main(["data", "inspect", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"columns        {', '.join([*many, 'text'])}" in lines


def test_chats_whose_stop_token_is_cut_off_are_counted_and_a_missing_template_told(
    tmp_path: Path, capsys
):
    talks = [
        [{"role": "user", "content": "w " * n}, {"role": "assistant", "content": "yes"}]
        for n in (1, 1, 90)
    ]
    file = written(tmp_path / "x.jsonl", [{"messages": talk} for talk in talks])
    facts = inspected(capsys, file, "task.max_length=50")
    assert (facts["tokens"]["truncated"], facts["tokens"]["unlearnable"]) == (1, 1)
    model = SHARED.parent / "models" / "stories260K-hf"
    if not model.exists():
        pytest.skip("the stories260K model is not here")
    facts = inspected(capsys, file, f"model.path={model}")
    assert facts["tokens"] is None
    assert "chat template" in facts["problem"]


def test_inspect_needs_a_file(capsys):
    assert main(["data", "inspect", "task.max_length=5"]) == 2
    assert "no file is named" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "arguments", "status", "says"),
    [
        ("medquad/medquad.jsonl", (), 2, "data.columns.prompt=COLUMN"),
        (
            "medquad/medquad.jsonl",
            ("data.columns.prompt=question", "data.columns.completion=answer"),
            0,
            '"rows": 5619',
        ),
        ("medical_abstracts_tc/medical_abstracts_test.jsonl", (), 0, '"format": "text"'),
        ("self_instruct_human/self_instruct_human.jsonl", (), 0, '"instruction": "instruction"'),
        ("hh_harmless_test/hh_harmless_test.jsonl", (), 2, "preference data"),
        ("adult_income/adult.csv", (), 2, "`workclass`"),
    ],
)
def test_real_files(file: str, arguments: tuple[str, ...], status: int, says: str, capsys):
    if not (SHARED / file).exists():
        pytest.skip(f"{file} is not here")
    assert main(["data", "inspect", str(SHARED / file), *arguments, "--json"]) == status
    told = capsys.readouterr()
    assert says in told.out + told.err


def test_clear_says_the_size_and_removes_on_request_only(tmp_path: Path, cache: Path, capsys):
    inspected(capsys, written(tmp_path / "x.jsonl", ROWS), *COLUMNS)
    (cache / "data" / "draft-left-behind").mkdir()
    (cache / "notes.txt").write_text("not ours")
    assert main(["data", "clear"]) == 0
    assert "2 data sets" in capsys.readouterr().out
    assert len(list((cache / "data").iterdir())) == 2
    assert main(["data", "clear", "--yes"]) == 0
    assert "removed" in capsys.readouterr().out
    assert list((cache / "data").iterdir()) == []
    assert (cache / "notes.txt").exists()
    assert main(["data", "clear"]) == 0
    assert "0 data sets, 0 bytes" in capsys.readouterr().out
