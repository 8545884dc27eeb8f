"""`fedtune synthesize` through the command line, on runs of the embedded model."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedtune.cli.main import main
from fedtune.reports.manifest import file_digests


def train(folder: Path, *settings: str) -> Path:
    config = folder / "run.yaml"
    config.write_text(
        'data: {format: text_label, label_prompt: "label: {label}\\n", embedded_patients: 12}\n'
        "task: {max_length: 24}\n"
        "training: {max_steps: 2, batch_size: 4}\n"
    )
    assert main(["train", str(config), f"output.dir={folder / 'run'}", *settings]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def open_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without privacy."""
    return train(tmp_path_factory.mktemp("open"), "task.labels=[Asthma, Gout]")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private run, as `train` leaves it."""
    folder = tmp_path_factory.mktemp("private")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTUNE_LEDGER", str(folder / "ledger.sqlite"))
        return train(folder, "privacy.mode=local", "privacy.noise_multiplier=1")


@pytest.fixture
def private_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to tamper with."""
    run = tmp_path / "private"
    shutil.copytree(finished, run)
    return run


def statement(run: Path) -> dict[str, Any]:
    return json.loads((run / "privacy.json").read_text())


def state(run: Path, said: dict[str, Any]) -> None:
    """Put a statement in the run's folder, and into its manifest."""
    (run / "privacy.json").write_text(json.dumps(said))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"] = file_digests(run)
    (run / "manifest.json").write_text(json.dumps(manifest))


def written(run: Path, out: Path, *arguments: str, labels: str = "Asthma,Gout") -> list[dict]:
    named = ["--labels", labels] if labels else []
    command = ["synthesize", str(run), *named, "--per-label", "3", "--out", str(out)]
    assert main([*command, "--max-new-tokens", "8", *arguments]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def refused(capsys: pytest.CaptureFixture[str], run: Path, out: Path, *arguments: str) -> str:
    before = sorted(out.parent.rglob("*"))
    capsys.readouterr()
    command = ["synthesize", str(run), "--per-label", "3", "--out", str(out), *arguments]
    assert main(command) == 2
    printed, err = capsys.readouterr()
    assert printed == ""
    assert err.startswith("fedtune: ")
    assert err.count("fedtune: ") == 1
    assert "Traceback" not in err
    assert sorted(out.parent.rglob("*")) == before
    return err


def test_texts_inherit_the_statement_of_the_run(private_run: Path, tmp_path: Path):
    out = tmp_path / "texts.jsonl"
    rows = written(private_run, out)
    assert [row["label"] for row in rows] == ["Asthma"] * 3 + ["Gout"] * 3
    assert all(row.keys() == {"text", "label"} and row["text"].strip() for row in rows)
    said = json.loads((tmp_path / "texts.jsonl.privacy.json").read_text())
    assert said["protected"] is True
    own = statement(private_run)
    assert said["inherited"] == own
    assert said["texts"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert said["texts"]["labels"] == {"Asthma": 3, "Gout": 3}
    page = (tmp_path / "texts.jsonl.privacy.md").read_text()
    # the figure in full and never bare
    epsilon = own["promise"]["epsilon"]
    assert epsilon > 0
    claim = (
        f"epsilon {epsilon!r} at delta 1e-05, unit patient, relation add_remove, sampling poisson, "
        "by the pld accountant. It holds against everybody outside the place whose data these are"
    )
    assert claim in said["summary"]
    assert claim in page
    prose = (private_run / "privacy.md").read_text()
    assert "### Privacy\n" in page
    assert set(prose.splitlines()) - {""} <= {line.removeprefix("##") for line in page.splitlines()}
    assert "post-processing" in page
    assert str(tmp_path) not in page + json.dumps(said)


def test_texts_of_a_run_without_privacy_need_an_admission_and_say_so(
    open_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "texts.jsonl"
    err = refused(capsys, open_run, out, "--labels", "Gout")
    assert "without differential privacy" in err
    assert "--not-private" in err
    # labels that the config names
    rows = written(open_run, out, "--not-private", labels="")
    assert {row["label"] for row in rows} == {"Asthma", "Gout"}
    assert "not protected" in capsys.readouterr().out
    said = json.loads((tmp_path / "texts.jsonl.privacy.json").read_text())
    assert (said["protected"], said["inherited"]) == (False, {})
    for words in (said["summary"], (tmp_path / "texts.jsonl.privacy.md").read_text()):
        assert "not protected" in words
        assert "epsilon" not in words


def test_a_private_run_without_its_own_statement_is_refused(
    private_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "texts.jsonl"
    err = refused(capsys, private_run, out, "--labels", "Gout", "--not-private")
    assert "--not-private: the run is private" in err
    for name in ("privacy.md", "privacy.json"):
        (private_run / name).unlink()
        assert f"{name}: there is no privacy st" in refused(
            capsys, private_run, out, "--labels", "Gout"
        )


@pytest.mark.parametrize("name", ["privacy.json", "privacy.md", "adapter", "config.yaml"])
def test_a_statement_of_another_model_is_refused(
    private_run: Path,
    open_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
):
    path = private_run / name
    if name == "adapter":
        shutil.rmtree(path)
        shutil.copytree(open_run / name, path)
    else:
        path.write_text(path.read_text() + "\n")
    err = refused(capsys, private_run, tmp_path / "texts.jsonl", "--labels", "Gout")
    assert f"{name}" in err.partition("is not what the run left")[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"promise": {"unit": None}}, "says no `promise.unit`"),
        ({"promise": {"adversary": None}}, "says no `promise.adversary`"),
        ({"parties": {}}, "says no `parties`"),
        ({"promise": None}, "promises nothing under the run's mode"),
        ({"mode": "central"}, "promises nothing under the run's mode"),
    ],
)
def test_a_statement_that_leaves_a_part_out_is_refused(
    private_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    says: str,
):
    said = statement(private_run)
    if changes.get("promise"):
        changes = {"promise": said["promise"] | changes["promise"]}
    state(private_run, said | changes)
    assert says in refused(capsys, private_run, tmp_path / "texts.jsonl", "--labels", "Gout")


def test_the_runs_card_names_the_rows_own_format(open_run: Path):
    card = (open_run / "adapter" / "README.md").read_text()
    assert "of format `text_label`, each text learned after a prompt of its label;" in card
    assert "prompt_completion" not in card


def test_the_seed_decides_and_a_label_does_not_depend_on_others(open_run: Path, tmp_path: Path):
    def drawn(*arguments: str, labels: str = "Asthma,Gout") -> list[dict]:
        out = tmp_path / "texts.jsonl"
        return written(open_run, out, "--not-private", "--force", *arguments, labels=labels)

    both = drawn("--seed", "1")
    assert both == drawn("--seed", "1") != drawn("--seed", "2")
    assert drawn("--seed", "1", labels="Gout") == both[3:]
    assert len({row["text"] for row in both}) == 6


def test_top_p_and_temperature_narrow_the_draw(open_run: Path, tmp_path: Path):
    for narrow in (("--top-p", "0.000001"), ("--temperature", "0.0001")):
        out = tmp_path / f"{narrow[1]}.jsonl"
        rows = written(open_run, out, "--not-private", *narrow, labels="Gout")
        assert len({row["text"] for row in rows}) == 1


def test_nothing_is_overwritten_without_a_word(
    open_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("texts.jsonl", "texts.jsonl.privacy.json", "texts.jsonl.privacy.md"):
        (tmp_path / name).write_text("mine")
        out = tmp_path / "texts.jsonl"
        err = refused(capsys, open_run, out, "--labels", "Gout", "--not-private")
        assert f"{name}: is there already" in err
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "texts.jsonl").write_text("mine")
    assert len(written(open_run, tmp_path / "texts.jsonl", "--not-private", "--force")) == 6


def test_json_tells_what_was_written(
    open_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    written(open_run, tmp_path / "texts.jsonl", "--not-private", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["protected"]) == (6, False)
    assert told["file"] == str(tmp_path / "texts.jsonl")
    assert 0 <= told["cut"] <= 6


BAD: list[tuple[tuple[str, ...], str]] = [
    (("--labels", "Gout,,Asthma"), "one of the labels is empty"),
    (("--labels", "Gout,Gout"), "`Gout` is there twice"),
    (("--labels", "Gut"), "`Gut` is no label of the run"),
    (("--temperature", "0"), "--temperature: 0 can't be used"),
    (("--temperature", "nan"), "--temperature: nan can't be used"),
    (("--temperature", "inf"), "--temperature: inf can't be used"),
    (("--top-p", "1.5"), "--top-p: 1.5 can't be used"),
    (("--top-p", "0"), "--top-p: 0 can't be used"),
    (("--max-new-tokens", "0"), "--max-new-tokens"),
    (("--per-label", "0"), "--per-label"),
    (("--seed", "-1"), "--seed"),
    (("--prompt-template", "{label}?"), "by another prompt"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda value: str(value))
def test_bad_input_is_told(
    open_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
):
    assert says in refused(capsys, open_run, tmp_path / "t.jsonl", "--not-private", *arguments)


def test_bad_folders_and_files_are_told(
    open_run: Path,
    private_run: Path,
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    out, gout = tmp_path / "t.jsonl", ("--labels", "Gout", "--not-private")
    assert "is no run's folder" in refused(capsys, tmp_path / "none", out, *gout)
    assert "is no run's folder" in refused(capsys, open_run / "adapter", out, *gout)
    assert "is no .jsonl file" in refused(capsys, open_run, tmp_path / "t.csv", *gout)
    (tmp_path / "file").write_text("")
    assert "can't be written" in refused(capsys, open_run, tmp_path / "file" / "t.jsonl", *gout)
    assert "no label is named" in refused(capsys, private_run, out)
    # a run that learned no texts by label
    assert "label_prompt" in refused(capsys, run_folder, out, *gout)
    no_place = ("--prompt-template", "label")
    assert "no `{label}`" in refused(capsys, run_folder, out, *gout, *no_place)


def test_rows_of_ones_own_prompts_are_written_by_a_template(run_folder: Path, tmp_path: Path):
    shutil.copytree(run_folder, tmp_path / "run")
    rows = written(
        tmp_path / "run",
        tmp_path / "texts.jsonl",
        *("--not-private", "--prompt-template", r"label: {label}\n"),
    )
    assert len(rows) == 6
    said = json.loads((tmp_path / "texts.jsonl.privacy.json").read_text())
    assert said["texts"]["prompt"] == "label: {label}\n"
