"""A silo's budget and `fedtune train`: who was paid for is known, whatever became of the files."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedtune.cli.main import main
from fedtune.config.load import load_config
from fedtune.data.load import load_splits
from fedtune.errors import RunFailedError
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.exposure import of_group
from fedtune.privacy.ledger import Ledger
from fedtune.privacy.told import rounded_up
from fedtune.training.central import train
from fedtune.training.events import Evaluated, Event, Saved
from fedtune.training.private import private_steps
from fedtune.training.run_folder import LOCK

STEPS, KEPT = 8, 4
PARTS = ("", ".key", ".head")
SETTINGS: dict[str, Any] = {
    "data": {"source": "files", "columns": {"privacy_unit": "patient"}},
    "task": {"max_length": 32},
    "training": {"max_steps": STEPS, "batch_size": 6, "save_steps": KEPT},
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
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def started(config: str, home: Path, run: str = "run", *options: str) -> subprocess.Popen[bytes]:
    """`fedtune train` on this config in a process of its own."""
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fedtune", "train", config, f"output.dir={home / run}"]
    return subprocess.Popen([*command, *options], env={**os.environ, **own}, stderr=subprocess.PIPE)


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not file.exists():
        assert process.poll() is None, "ended before"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def in_force(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("FEDTUNE_CACHE", str(home / "cache"))
    patch.setenv("FEDTUNE_LEDGER", str(home / "ledger" / "l.sqlite"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run killed after its first checkpoint, its config, data and ledger."""
    home = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        in_force(home, patch)
        config = settings_for(home / "rows.jsonl", rows_of(range(40)), home / "run")
        budget = str(1.05 * epsilon([event_of(config)], 1e-3, "pld"))
        assert main(["budget", "set", "--epsilon", budget, "--delta", "0.001"]) == 0
        process = started(config, home)
        wait_for(home / "run" / "checkpoints" / f"step-{KEPT:08d}", process)
        kill(process)
    assert [p.name for p in (home / "run" / "checkpoints").iterdir()] == [f"step-{KEPT:08d}"]
    return home


@pytest.fixture
def home(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `killed`, whose ledger is in force."""
    shutil.copytree(killed, tmp_path / "home")
    in_force(tmp_path / "home", monkeypatch)
    return tmp_path / "home"


def resumed(home: Path, run: str = "run") -> int:
    return main(["train", str(home / "run.yaml"), f"output.dir={home / run}", "--resume"])


def charged(home: Path) -> list[int]:
    """The steps of each charge in the ledger."""
    rows = Ledger.open(home / "ledger" / "l.sqlite").charges()
    return [event["count"] for row in rows for event in row.body["events"]]


def with_a_large_budget(home: Path) -> None:
    assert main(["budget", "set", "--epsilon", "1000", "--delta", "0.001"]) == 0


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


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


def test_another_label_and_another_label_prompt_make_nobody_new(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    def config_for(label: str, prompt: str) -> str:
        rows = [{"text": f"Note {n} of somebody.", "label": label} for n in range(40)]
        how = {"columns": {}, "format": "text_label", "label_prompt": prompt}
        return settings_for(home / f"{label}.jsonl", rows, home / label, **how)

    config = config_for("Gout", "label: {label}\n")
    for_once = str(1.05 * epsilon([event_of(config)], 1e-3, "pld"))
    assert main(["budget", "set", "--epsilon", for_once, "--delta", "0.001"]) == 0
    assert main(["train", config]) == 0
    assert main(["train", config_for("Asthma", "Write a note of {label}. ")]) == 2
    assert "was spent on these people by earlier runs" in capsys.readouterr().err


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


def test_a_dry_run_says_what_the_ledger_would_and_charges_nothing(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    before = files_of(home / "ledger")
    config = settings_for(home / "again.jsonl", rows_of(range(40)), home / "again")
    others = settings_for(home / "others.jsonl", rows_of(range(200, 240)), home / "other")
    said = []
    for more in (["--dry-run"], []):
        capsys.readouterr()
        assert main(["train", config, *more]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert "the privacy budget doesn't allow this run (train)" in said[0]
    assert main(["train", others, "--dry-run", "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)["ledger"]["train"]
    once = epsilon([event_of(others)], 1e-3, "pld")
    assert (asked["before"], asked["after"]) == (0, pytest.approx(once))
    assert asked["budget"] == pytest.approx(1.05 * once)
    assert main(["train", others, "--dry-run"]) == 0
    assert "ledger (train): it would allow this, and nothing was charged" in capsys.readouterr().out
    # what a killed run has left is paid for, and what a finished one takes again is not
    resume = ["train", str(home / "run.yaml"), f"output.dir={home / 'run'}", "--resume"]
    assert main([*resume, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ledger"] == {}
    assert files_of(home / "ledger") == before
    assert main(["train", others]) == 0
    shutil.rmtree(home / "other" / "checkpoints")
    before = files_of(home / "ledger")
    assert main(["train", others, "--resume", "--dry-run"]) == 2
    assert "the privacy budget doesn't allow this run" in capsys.readouterr().err
    assert files_of(home / "ledger") == before


def test_a_dry_run_makes_no_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    in_force(tmp_path, monkeypatch)
    config = settings_for(tmp_path / "rows.jsonl", rows_of(range(40)), tmp_path / "run")
    assert main(["train", config, "--dry-run"]) == 0
    assert not (tmp_path / "ledger").exists()


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


def test_a_killed_run_goes_on_for_nothing_and_its_copies_pay(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    for copy in ("second", "third"):
        shutil.copytree(home / "run", home / copy)
    assert resumed(home) == 0
    assert charged(home) == [STEPS]
    assert told(home / "run")["steps_released"] == STEPS
    before = files_of(home / "second")
    assert resumed(home, "second") == 2
    assert "the privacy budget doesn't allow this run" in capsys.readouterr().err
    assert files_of(home / "second") == before
    assert charged(home) == [STEPS]
    with_a_large_budget(home)
    first = home / "first"
    (home / "run").rename(first)
    shutil.copytree(home / "third", home / "run")  # put back where it was
    assert resumed(home) == resumed(home, "second") == 0
    assert charged(home) == [STEPS, STEPS - KEPT, STEPS - KEPT]
    assert told(home / "second")["steps_released"] == STEPS + 2 * (STEPS - KEPT)
    shown = Ledger.open(home / "ledger" / "l.sqlite").charges()[-1]
    assert told(home / "second")["ledger"]["hash"] == shown.hash
    assert adapter(first) != adapter(home / "run") != adapter(home / "second")
    # a finished run that is looked at again costs nothing, and tells what its copies cost
    assert resumed(home) == 0
    assert len(charged(home)) == 3
    assert told(home / "run")["steps_released"] == STEPS + 2 * (STEPS - KEPT)
    assert told(home / "run")["ledger"]["hash"] == shown.hash
    assert main(["budget", "verify"]) == 0


@pytest.mark.parametrize(
    ("lost", "paid"),
    [
        (("checkpoints/step-00000008", "adapter"), STEPS - KEPT),
        (("checkpoints", "adapter"), STEPS),
    ],
    ids=["the last checkpoint", "all checkpoints"],
)
def test_a_finished_run_whose_checkpoints_are_gone_pays_for_what_it_takes_again(
    home: Path, lost: tuple[str, ...], paid: int, capsys: pytest.CaptureFixture[str]
):
    assert resumed(home) == 0
    for name in lost:
        shutil.rmtree(home / "run" / name)
    before = files_of(home / "run")
    assert resumed(home) == 2
    assert "the privacy budget doesn't allow this run" in capsys.readouterr().err
    assert files_of(home / "run") == before
    with_a_large_budget(home)
    assert resumed(home) == 0
    assert charged(home) == [STEPS, paid]
    assert told(home / "run")["steps_released"] == STEPS + paid


def test_a_run_killed_before_its_first_checkpoint_begins_again_for_nothing(home: Path):
    fresh = home / "run"
    shutil.rmtree(fresh)
    with_a_large_budget(home)
    process = started(str(home / "run.yaml"), home)
    wait_for(fresh / "charged.json", process)
    kill(process)
    assert not (fresh / "checkpoints").exists()
    assert resumed(home) == 0
    assert charged(home) == [STEPS, STEPS]  # that of `home`, and this one
    assert told(fresh)["steps_released"] == STEPS


def test_of_two_copies_at_work_one_is_stopped_before_anything_can_be_seen(home: Path):
    with_a_large_budget(home)
    shutil.rmtree(home / "run")

    def overtaken(event: Event) -> None:
        if isinstance(event, Saved):
            shutil.copytree(home / "run", home / "second")
            copy = started(str(home / "run.yaml"), home, "second", "--resume")
            _, err = copy.communicate(timeout=300)
            assert copy.returncode == 0, err

    with pytest.raises(RunFailedError, match="a copy of this run went on"):
        train(load_config(home / "run.yaml"), home / "run", listeners=[overtaken])
    assert [p.name for p in (home / "run" / "checkpoints").iterdir()] == [f"step-{KEPT:08d}"]
    assert not (home / "run" / "adapter").exists()
    assert charged(home) == [STEPS, STEPS]
    assert resumed(home) == 0
    assert charged(home) == [STEPS, STEPS, STEPS - KEPT]


def test_a_checkpoint_that_was_begun_counts_as_seen(home: Path, capsys: pytest.CaptureFixture[str]):
    draft = home / "run" / "checkpoints" / f"step-{STEPS:08d}.part"
    draft.write_text("where the draft of the next checkpoint would be")
    assert resumed(home) == 1
    assert "can't be written" in capsys.readouterr().err
    draft.unlink()
    assert resumed(home) == 2
    assert "the privacy budget doesn't allow this run" in capsys.readouterr().err


def test_a_checkpoint_that_calls_itself_later_than_it_is_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoints = home / "run" / "checkpoints"
    (checkpoints / f"step-{KEPT:08d}").rename(checkpoints / f"step-{STEPS - 1:08d}")
    assert resumed(home) == 2
    assert f"checkpoint is damaged (of step {KEPT})" in capsys.readouterr().err


def test_a_score_that_is_told_is_kept_and_the_ledger_hears_of_it_first(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEDTUNE_LEDGER", str(home / "own.sqlite"))
    config = json.loads((home / "run.yaml").read_text())
    data = {**config["data"], "validation_fraction": 0.2}
    privacy = {**config["privacy"], "held_out": "public"}
    training = {**config["training"], "eval_steps": 2}
    config |= {"data": data, "privacy": privacy, "training": training}
    (home / "scored.yaml").write_text(json.dumps(config))
    left = []

    def listen(event: Event) -> None:
        if isinstance(event, Evaluated | Saved):
            rows = list(Ledger.open(home / "own.sqlite").export())
            left.append((event.step, rows[-1]["left"]))

    train(load_config(home / "scored.yaml"), home / "scored", listeners=[listen])
    assert left == [(n, STEPS - n) for n in range(2, STEPS + 1, 2) for _ in ("score", "kept")]


def test_a_charge_that_the_ledger_does_not_know_is_made_again_with_all_that_is_to_come(home: Path):
    shutil.rmtree(home / "ledger")
    assert resumed(home) == 0
    assert charged(home) == [STEPS + STEPS - KEPT]
    assert (
        told(home / "run")["ledger"]["hash"]
        == Ledger.open(home / "ledger" / "l.sqlite").charges()[0].hash
    )
    assert told(home / "run")["steps_released"] == STEPS + STEPS - KEPT


def test_a_charge_that_the_folder_does_not_know_is_made_again(home: Path):
    (home / "run" / "charged.json").unlink()
    with_a_large_budget(home)
    assert resumed(home) == 0
    assert charged(home) == [STEPS, STEPS]


def test_a_run_from_before_the_ledger_knew_positions_pays_for_what_is_to_come(home: Path):
    record = home / "run" / "charged.json"
    entries = json.loads(record.read_text())
    for entry in entries:
        del entry["course"]
    record.write_text(json.dumps(entries))
    with_a_large_budget(home)
    assert resumed(home) == 0
    assert charged(home) == [STEPS, STEPS - KEPT]
    assert told(home / "run")["steps_released"] == STEPS + STEPS - KEPT


def test_a_position_that_was_edited_is_found_and_nothing_goes_on(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    path = home / "ledger" / "l.sqlite"
    rows = list(Ledger.open(path).export())
    assert [row["kind"] for row in rows] == ["budget", "position", "charge", "position"]
    assert [row["left"] for row in rows if row["kind"] == "position"] == [STEPS, STEPS - KEPT]
    connection = sqlite3.connect(path)
    trigger = "SELECT sql FROM sqlite_master WHERE name = 'no_UPDATE_of_rows'"
    (text,) = connection.execute(trigger).fetchone()
    connection.execute("DROP TRIGGER no_UPDATE_of_rows")
    connection.execute("UPDATE rows SET body = replace(body, '\"left\":4', '\"left\":8')")
    connection.execute(text)
    connection.commit()
    connection.close()
    assert main(["budget", "verify"]) == 1
    assert "row 4: was edited" in capsys.readouterr().err
    assert resumed(home) == 2
    assert "the ledger is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("gone", PARTS)
@pytest.mark.parametrize("resume", [False, True])
def test_a_ledger_of_which_a_part_is_gone_lets_no_run_begin_or_go_on(
    home: Path, gone: str, resume: bool, capsys: pytest.CaptureFixture[str]
):
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
    before = json.loads((home / "run" / "charged.json").read_text())[0]["charge"]["hash"]
    shutil.rmtree(home / "ledger")
    config = settings_for(home / "again.jsonl", rows_of(range(40)), home / "again")
    assert main(["train", config]) == 0
    assert charged(home) == [STEPS]
    facts = told(home / "again")["ledger"]
    assert facts["budget"] is None
    assert facts["hash"] != before
