"""`fedtune evaluate` gives what the run itself told, and scores new files."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedtune.cli.main import main
from fedtune.data.embedded.clinical import generate_notes

CONFIG = {
    "data": {"embedded_patients": 24},
    "task": {"max_length": 160},
    "training": {"max_steps": 3, "batch_size": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps({**CONFIG, "output": {"dir": str(folder)}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTUNE_CACHE", str(folder.with_suffix(".cache")))
        assert main(["train", str(file)]) == 0
    return folder


@pytest.fixture(autouse=True)
def _cache(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(run.with_suffix(".cache")))


def scores(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["evaluate", *arguments, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_the_scores_are_those_that_the_run_told(run: Path, capsys: pytest.CaptureFixture[str]):
    told = json.loads((run / "comparison.json").read_text())
    on, off = scores(capsys, str(run)), scores(capsys, str(run), "--no-adapter")
    assert on["metrics"] == pytest.approx(told["trained"], abs=1e-6)
    assert off["metrics"] == pytest.approx(told["base"], abs=1e-6)
    assert on["metrics"]["loss"] < off["metrics"]["loss"]
    assert scores(capsys, str(run / "adapter"), "--config", str(run / "config.yaml")) == on


def test_new_files_are_scored(run: Path, capsys: pytest.CaptureFixture[str]):
    file = run.parent / "new.jsonl"
    notes = [{k: n[k] for k in ("prompt", "completion")} for n in generate_notes(5, seed=99)]
    file.write_text("".join(json.dumps(note) + "\n" for note in notes))
    told = scores(capsys, str(run), "--data", str(file))
    assert told["examples"] == len(notes)
    assert told["metrics"]["loss"] > 0


def test_what_can_not_be_scored_is_refused(run: Path, capsys: pytest.CaptureFixture[str]):
    config = run.parent / "classify.yaml"
    config.write_text("task: {name: sequence_classification}\n")
    for arguments, says in [
        ([str(run / "adapter")], "--config"),
        ([str(run), "--config", str(config)], "task.name"),
        ([str(run), "--data", "none.jsonl"], "none.jsonl"),
        (["nowhere"], "no such folder"),
    ]:
        assert main(["evaluate", *arguments]) == 2
        assert says in capsys.readouterr().err
