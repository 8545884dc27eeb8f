"""`fedtune evaluate-synthetic` through the command line."""

import json
from pathlib import Path

import pytest

from fedtune.cli.main import main
from fedtune.config.load import load_config, save_config
from fedtune.data.load import load_splits
from fedtune.synthesis.rows import rows_of_run

GOUT = "A swollen toe and fever, seen in the clinic on a cold day in the north"
ASTHMA = "A wheezing breath and a cough, seen at home by the nurse on a warm evening"
REAL = [{"text": f"{text} {i}", "label": label} for i in range(4) for text, label in
        ((GOUT, "gout"), (ASTHMA, "asthma"))]  # fmt: skip


def jsonl(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    swapped = [{"text": "toe", "label": "asthma"}, {"text": f"x {GOUT}", "label": "gout"}]
    return {
        "synthetic": jsonl(tmp_path / "synthetic.jsonl", swapped),
        "train": jsonl(tmp_path / "train.jsonl", REAL),
        "test": jsonl(tmp_path / "test.jsonl", [*REAL[2:4], {"text": "a toe", "label": "gout"}]),
    }


def command(files: dict[str, str], *more: str) -> list[str]:
    real = ("--train", files["train"], "--test", files["test"])
    return ["evaluate-synthetic", files["synthetic"], *real, *more]


def test_both_are_scored_on_the_same_rows_and_it_says_who_may_see_them(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    assert main(command(files, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    scores = told["scores"]
    assert (scores["synthetic_rows"], scores["real_rows"], scores["test_rows"]) == (2, 8, 3)
    assert scores["real"]["accuracy"]["value"] == 1.0
    # "toe" was learned as asthma
    assert scores["synthetic"]["accuracy"]["value"] < 1.0
    assert "exact" in told["who_may_see"]
    assert "repeats" not in told
    assert main(command(files)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "no epsilon covers them" in out
    assert "characters of a training row" not in out


def test_repeats_are_counted_on_request_and_not_for_publication(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    assert main(command(files, "--repeats", "--json")) == 0
    told = json.loads(capsys.readouterr().out)["repeats"]
    assert told["synthetic"] == 0.5
    assert told["held_out"] == pytest.approx(2 / 3)
    assert "not for publication" in told["who_may_see"]
    assert main(command(files, "--repeats")) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "50.0% of the synthetic texts repeat 50 characters of a training row" in out
    assert "not for publication" in out


@pytest.mark.parametrize("by", ["quantity", "column"])
def test_a_run_is_its_own_rows_split_as_it_split_them(tmp_path: Path, by: str):
    column = ["federation.partition.column=specialty"] if by == "column" else []
    read = ["data.format=text_label", "data.label_prompt='{label}:'", "data.embedded_patients=40"]
    config = load_config(None, [*read, f"federation.partition.by={by}", "seed=3", *column])
    save_config(config, tmp_path / "config.yaml")
    train, test = rows_of_run(tmp_path)
    splits = load_splits(config)
    for found, own in ((train, splits.train), (test, splits.test)):
        assert found.texts == tuple(own.rows["completion"])
        assert tuple(f"{label}:" for label in found.labels) == tuple(own.rows["prompt"])
        assert found.units == tuple(own.rows["unit_id"])
    assert len(set(test.units)) < len(test)


def test_a_private_run_is_split_as_it_split_its_rows_that_have_no_ids(tmp_path: Path):
    file = jsonl(tmp_path / "rows.jsonl", [{**row, "text": f"{row['text']} {i}"} for row in REAL
                                           for i in range(5)])  # fmt: skip
    read = ["data.format=text_label", "data.label_prompt='{label}:'", "data.source=files"]
    promise = "privacy={mode: local, noise_multiplier: 1.0}"
    config = load_config(None, [*read, f"data.train_files=[{file}]", promise])
    save_config(config, tmp_path / "config.yaml")
    train, test = rows_of_run(tmp_path)
    splits = load_splits(config)
    for found, own in ((train, splits.train), (test, splits.test)):
        assert found.texts == tuple(own.rows["completion"])


def test_bad_input_is_told(
    files: dict[str, str], run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def refused(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["evaluate-synthetic", *arguments]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("fedtune: "), "Traceback" in err) == ("", 1, False)
        return err

    texts, train, test = files["synthetic"], files["train"], files["test"]
    real = ("--train", train, "--test", test)
    for some in ((), real[:2], real[2:], (*real, "--run", str(run_folder))):
        assert "give `--run`, or both" in refused(texts, *some)
    assert "no such file" in refused(str(tmp_path / "none.jsonl"), *real)
    assert "no such file" in refused(texts, *real[:3], str(tmp_path / "none.jsonl"))
    assert "no such file" in refused(texts, "--run", str(tmp_path / "none"))
    assert "read without labels" in refused(texts, "--run", str(run_folder))
    assert "also one of the train files" in refused(texts, "--train", train, "--test", train)
    no_label = jsonl(tmp_path / "no_label.jsonl", [{"text": "t"}])
    assert "no column `label`" in refused(no_label, *real)
    one = jsonl(tmp_path / "one.jsonl", [{"text": "t t", "label": "gout"}] * 2)
    assert "all synthetic texts have the label `gout`" in refused(one, *real)
