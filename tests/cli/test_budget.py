"""`fedtune budget`: the administrator's view, and the one way to raise a budget."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fedtune.cli.main import main
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.fingerprints import People
from fedtune.privacy.ledger import Ledger, Request
from fedtune.privacy.told import rounded_up

EVENT = GaussianEvent(0.1, 1.0, 10)
PATIENTS = np.repeat(np.arange(10, dtype=np.uint64), 2)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDTUNE_LEDGER", str(tmp_path / "ledger.sqlite"))
    return tmp_path / "ledger.sqlite"


def charge(path: Path, run: str) -> None:
    people = People(np.arange(20, dtype=np.uint64), PATIENTS)
    request = Request(
        run=run, purpose="train", unit="patient", people=people, events=[EVENT],
        plan={"steps": 10}, delta=1e-5,
    )  # fmt: skip
    Ledger.open(path).charge([request])


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["budget", *words]) == 0
    return capsys.readouterr().out


def test_the_budget_is_set_raised_and_shown_with_all_that_was_spent(path: Path, capsys):
    assert "row 1" in printed(capsys, "set", "--epsilon", "5", "--delta", "1e-6")
    charge(path, "run-1")
    charge(path, "run-2")
    assert "was epsilon 5" in printed(capsys, "set", "--epsilon", "9", "--delta", "1e-6")
    facts = json.loads(printed(capsys, "show", "--json"))
    assert facts["budget"] == {"epsilon": 9.0, "delta": 1e-6}
    assert [run["run"] for run in facts["runs"]] == ["run-1", "run-2"]
    spent = facts["spent"]["patient"]
    assert spent["units"] == 10
    for accountant in ("pld", "rdp"):
        want = epsilon([EVENT, EVENT], 1e-6, accountant)
        assert spent["epsilon"][accountant] == pytest.approx(want)
    assert (facts["delta"], facts["relation"]) == (1e-6, "add_remove")
    other = json.loads(printed(capsys, "show", "--json", "--delta", "1e-4"))
    assert other["spent"]["patient"]["epsilon"]["pld"] < spent["epsilon"]["pld"]


def test_a_readable_page(path: Path, capsys):
    charge(path, "run-1")
    page = printed(capsys, "show")
    told = f"{rounded_up(epsilon([EVENT], 1e-5, 'pld'))} by pld"
    for words in (
        "none is set",
        "10 patients",
        told,
        "by rdp",
        "delta 1e-05",
        "add/remove",
        "run-1",
    ):
        assert words in page


def test_damage_is_told_by_row_with_status_1(path: Path, capsys):
    charge(path, "run-1")
    charge(path, "run-2")
    assert "2 rows, all as they were written" in printed(capsys, "verify")
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER no_UPDATE_of_rows")
    connection.execute("UPDATE rows SET body = replace(body, 'run-2', 'run-9')")
    connection.commit()
    connection.close()
    assert main(["budget", "verify"]) == 1
    told = capsys.readouterr().err
    assert "row 2: was edited" in told
    assert "row 1" not in told
    assert main(["budget", "verify", "--json"]) == 1
    assert {"row": 2, "problem": "was edited, or is not where it was"} in json.loads(
        capsys.readouterr().out
    )["damage"]
    assert main(["budget", "show"]) == 1
    assert "row 2: was edited" in capsys.readouterr().err
    assert main(["budget", "set", "--epsilon", "9", "--delta", "1e-6"]) == 2
    assert "damaged" in capsys.readouterr().err


def test_export_tells_the_rows_and_people_only_if_asked(path: Path, capsys):
    printed(capsys, "set", "--epsilon", "5", "--delta", "1e-6")
    charge(path, "run-1")
    rows = [json.loads(line) for line in printed(capsys, "export").splitlines()]
    assert [(row["row"], row["kind"]) for row in rows] == [(1, "budget"), (2, "charge")]
    assert rows[1]["plan"] == {"steps": 10}
    assert "patients" not in rows[1]
    row = json.loads(printed(capsys, "export", "--with-units").splitlines()[1])
    assert row["patients"] == PATIENTS.tolist()


@pytest.mark.parametrize("verb", ["show", "verify", "export"])
def test_looking_makes_no_ledger(path: Path, verb: str, capsys):
    assert main(["budget", verb]) == 2
    assert "no ledger yet" in capsys.readouterr().err
    assert list(path.parent.iterdir()) == []
    Ledger.open(path)
    path.unlink()
    assert main(["budget", verb]) == 2
    assert "only its head is left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("set", "--epsilon", "0", "--delta", "1e-6"), "no budget"),
        (("set", "--epsilon", "1", "--delta", "1"), "no budget"),
        (("set", "--epsilon", "1"), "--delta"),
        (("show", "--delta", "2"), "between 0 and 1"),
    ],
)
def test_what_can_not_be_is_refused(path: Path, words: tuple[str, ...], says: str, capsys):
    Ledger.open(path)
    assert main(["budget", *words]) == 2
    assert says in capsys.readouterr().err
    assert Ledger.open(path).budget() is None
