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
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.exposure import of_group
from fedtune.privacy.ledger import Ledger
from fedtune.privacy.told import rounded_up
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


def settings_for(file: Path, rows: list[dict[str, str]], folder: Path, **data: Any) -> str:
    """Write the rows and a config that trains on them in `folder`; gives the config's path."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {**SETTINGS["data"], "train_files": [str(file)], **data}
    config = folder.with_suffix(".yaml")
    config.write_text(json.dumps({**SETTINGS, "data": data, "output": {"dir": str(folder)}}))
    return str(config)


def event_of(config: str) -> GaussianEvent:
    """What the run's steps are counted as."""
    loaded = load_config(Path(config))
    steps = private_steps(loaded, load_splits(loaded).train)
    assert steps is not None
    return steps.plan.event()


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
        budget = str(1.2 * epsilon([event_of(config)], 1e-3, "pld"))
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


def notes(patient: Any, text: str, copies: int = 1) -> list[dict[str, Any]]:
    """One note, as often as asked; `patient` gives the id of each copy, or is None."""
    note = {"prompt": text, "completion": " Well."}
    return [{**note, "patient": patient(copy)} if patient else note for copy in range(copies)]


@pytest.mark.parametrize(
    ("again", "columns", "known", "own"),
    [
        (
            [row | {"patient": row["prompt"]} for row in rows_of(range(40))],
            {"privacy_unit": "patient"}, True, 2,
        ),
        (
            [n for p in range(40) for n in notes(f"{p}-{{}}".format, f"Visit 1 of {p}.", 5)],
            {"privacy_unit": "patient"}, True, 5,
        ),
        ([n for p in range(40) for n in notes(None, f"Visit 1 of {p}.", 5)], {}, True, 5),
        ([n for p in range(200, 240) for n in notes(None, f"Visit 1 of {p}.", 5)], {}, False, 5),
    ],
    ids=["a visit is the unit", "copies under new ids", "copies without ids", "of nobody known"],
)  # fmt: skip
def test_one_person_counts_for_each_unit_that_may_be_theirs(
    home: Path, again: list[dict[str, Any]], columns: dict[str, str], known: bool, own: int,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    config = settings_for(home / "again.jsonl", again, home / "again", columns=columns)
    first = settings_for(home / "rows.jsonl", rows_of(range(40)), home / "run")
    before, new = [event_of(first)] if known else [], event_of(config)
    spent = epsilon([*before, of_group(new, own)], 1e-3, "pld")
    for_once = 1.05 * epsilon([*before, new], 1e-3, "pld")
    assert for_once < spent
    assert main(["budget", "set", "--epsilon", str(for_once), "--delta", "0.001"]) == 0
    assert main(["train", config]) == 2
    err = capsys.readouterr().err
    assert f"as many as {own} of its " in err
    assert f"all together would be {rounded_up(spent)};" in err
    assert "give each person one id and keep equal rows once" in err
    assert charged(home) == [STEPS]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_settings_can_not_lead_past_the_ledger_of_the_machine(
    home: Path, more: list[str], capsys: pytest.CaptureFixture[str]
):
    config = settings_for(home / "again.jsonl", rows_of(range(40)), home / "again")
    other = home / "other.sqlite"
    assert main(["train", config, f"privacy.ledger={other}", *more]) == 2
    err = capsys.readouterr().err
    assert "privacy.ledger: a run's settings can't choose another ledger" in err
    assert str(home / "ledger" / "l.sqlite") in err
    assert not other.exists()
    assert not (home / "again").exists()


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
