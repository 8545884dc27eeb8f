"""A silo's budget and `fedtune train`: who was paid for is known, whatever became of the files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedtune.cli.main import main
from fedtune.config.load import load_config
from fedtune.data.load import load_splits
from fedtune.privacy.ledger import Ledger
from fedtune.training.private import private_steps

STEPS = 4
PARTS = ("", ".key", ".head")
SETTINGS: dict[str, Any] = {
    "data": {"source": "files", "columns": {"privacy_unit": "patient"}},
    "task": {"max_length": 32},
    "training": {"max_steps": STEPS, "batch_size": 6, "save_steps": 2},
    "privacy": {"mode": "local", "noise_multiplier": 1.0, "delta": 1e-3},
}


def rows_of(patients: range) -> list[dict[str, str]]:
    """Two notes each."""
    return [
        {"prompt": f"Visit {visit} of {number}.", "completion": " Well.", "patient": f"p{number}"}
        for number in patients
        for visit in (1, 2)
    ]


def settings_for(file: Path, rows: list[dict[str, str]], folder: Path) -> str:
    """Write the rows and a config that trains on them in `folder`; gives the config's path."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {**SETTINGS["data"], "train_files": [str(file)]}
    config = folder.with_suffix(".yaml")
    config.write_text(json.dumps({**SETTINGS, "data": data, "output": {"dir": str(folder)}}))
    return str(config)


def told(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "privacy.json").read_text())["parties"]["run"])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has ended, its config, its data and the ledger it was charged to."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTUNE_CACHE", str(home / "cache"))
        patch.setenv("FEDTUNE_LEDGER", str(home / "ledger" / "l.sqlite"))
        config = settings_for(home / "rows.jsonl", rows_of(range(40)), home / "run")
        cost = private_steps(
            load_config(Path(config)), load_splits(load_config(Path(config))).train
        )
        assert cost is not None
        budget = str(1.2 * cost.plan.epsilon())
        assert main(["budget", "set", "--epsilon", budget, "--delta", "0.001"]) == 0
        assert main(["train", config]) == 0
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained`, whose ledger is in force."""
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("FEDTUNE_LEDGER", str(tmp_path / "home" / "ledger" / "l.sqlite"))
    return tmp_path / "home"


def resumed(home: Path) -> int:
    return main(["train", str(home / "run.yaml"), f"output.dir={home / 'run'}", "--resume"])


def charged(home: Path) -> list[int]:
    """The steps of each charge in the ledger."""
    rows = Ledger.open(home / "ledger" / "l.sqlite").charges()
    return [event["count"] for row in rows for event in row.body["events"]]


def stopped_after_step_2(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    shutil.rmtree(run / "adapter")


def with_a_large_budget(home: Path) -> None:
    assert main(["budget", "set", "--epsilon", "1000", "--delta", "0.001"]) == 0


def test_the_same_people_in_another_file_that_has_grown_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    again, before = home / "again", files_of(home / "ledger")
    grown = [*rows_of(range(100, 104)), *rows_of(range(40))[::-1]]
    config = settings_for(home / "other name.jsonl", grown, again)
    assert main(["train", config]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for words in (
        "the privacy budget doesn't allow this run",
        "was spent on these people by earlier runs",
        "nothing was charged",
        "to mend:",
    ):
        assert words in err
    assert not again.exists()
    assert files_of(home / "ledger") == before
    assert main(["budget", "verify"]) == 0
    # it is the people: as many others may have the same run, and their file's order is no matter
    config = settings_for(home / "others.jsonl", rows_of(range(200, 244))[::-1], again)
    assert main(["train", config]) == 0
    assert charged(home) == [STEPS, STEPS]


def test_a_run_that_goes_on_pays_nothing_again(home: Path):
    stopped_after_step_2(home / "run")
    assert resumed(home) == 0
    assert charged(home) == [STEPS]
    assert told(home / "run")["steps_released"] == STEPS


@pytest.mark.parametrize(
    "lost",
    [
        lambda run: shutil.rmtree(run / "checkpoints" / "step-00000004"),  # it had ended
        lambda run: [shutil.rmtree(run / name) for name in ("checkpoints", "adapter")],
    ],
    ids=["the last checkpoint", "all checkpoints"],
)
def test_a_run_whose_steps_may_be_released_twice_pays_them_twice(
    home: Path, lost: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
):
    lost(home / "run")
    before = files_of(home / "run")
    assert resumed(home) == 2
    assert "the privacy budget doesn't allow this run" in capsys.readouterr().err
    assert files_of(home / "run") == before
    with_a_large_budget(home)
    assert resumed(home) == 0
    assert charged(home) == [STEPS, STEPS]
    assert told(home / "run")["steps_released"] == 2 * STEPS


def test_a_charge_that_the_ledger_does_not_know_is_made_again(home: Path):
    stopped_after_step_2(home / "run")
    shutil.rmtree(home / "ledger")
    assert resumed(home) == 0
    assert charged(home) == [STEPS]
    assert (
        told(home / "run")["ledger"]["hash"]
        == Ledger.open(home / "ledger" / "l.sqlite").charges()[0].hash
    )
    assert told(home / "run")["steps_released"] == STEPS


def test_a_charge_that_the_folder_does_not_know_is_made_again(home: Path):
    stopped_after_step_2(home / "run")
    (home / "run" / "charged.json").unlink()
    with_a_large_budget(home)
    assert resumed(home) == 0
    assert charged(home) == [STEPS, STEPS]


@pytest.mark.parametrize("gone", PARTS)
@pytest.mark.parametrize("resume", [False, True])
def test_a_ledger_of_which_a_part_is_gone_lets_no_run_begin_or_go_on(
    home: Path, gone: str, resume: bool, capsys: pytest.CaptureFixture[str]
):
    stopped_after_step_2(home / "run")
    (home / "ledger" / f"l.sqlite{gone}").unlink()
    before, kept = files_of(home / "run"), files_of(home / "ledger")
    fresh = home / "fresh"
    config = settings_for(home / "others.jsonl", rows_of(range(200, 240)), fresh)
    assert (resumed(home) if resume else main(["train", config])) == 2
    assert "is gone" in capsys.readouterr().err
    assert files_of(home / "run") == before
    assert not fresh.exists()
    assert files_of(home / "ledger") == kept


def test_a_ledger_of_which_all_is_gone_begins_anew_without_a_budget(home: Path):
    shutil.rmtree(home / "ledger")
    config = settings_for(home / "again.jsonl", rows_of(range(40)), home / "again")
    assert main(["train", config]) == 0
    assert charged(home) == [STEPS]
    facts = told(home / "again")["ledger"]
    assert facts["budget"] is None
    assert facts["hash"] != told(home / "run")["ledger"]["hash"]
