"""A trial's rows and its screen; its processes are in tests/e2e/test_up.py."""

import io
from collections import defaultdict

import pytest
from rich.console import Console

from fedtune.cli.main import main
from fedtune.cli.trial import Standing, deal
from fedtune.cli.trial_progress import LiveTrial, PlainTrial, without_stamp
from fedtune.data.embedded.clinical import generate_notes


@pytest.mark.parametrize("silos", [1, 3, 8, 11, 20])
def test_each_silo_has_patients_of_its_own_by_specialty(silos: int) -> None:
    dealt = deal(silos)
    specialty = {note["patient_id"]: note["specialty"] for note in generate_notes(320, seed=0)}
    homes, kinds = defaultdict(set), defaultdict(set)
    for silo, rows in dealt.items():
        assert len({row["patient_id"] for row in rows}) >= 10
        for row in rows:
            homes[row["patient_id"]].add(silo)
            kinds[specialty[row["patient_id"]]].add(silo)
    assert len(dealt) == silos
    assert homes.keys() == specialty.keys()
    assert all(len(where) == 1 for where in homes.values())
    if silos <= len(kinds):
        assert all(len(where) == 1 for where in kinds.values())


ROUND = {
    "round": 1,
    "loss": 0.41234,
    "silos": ["silo-1"],
    "bytes_up": 312320,
    "bytes_down": 312320,
    "seconds": 1.234,
}
STAMP = "2026-11-27 01:34:31,294"


def standing(rounds: int, line: str) -> Standing:
    return Standing(
        {"coordinator": "online", "silo-1": "online"},
        {"coordinator": "", "silo-1": f"{STAMP} {line}"},
        {"state": "running", "rounds": 3},
        [{**ROUND, "round": number} for number in range(1, rounds + 1)],
    )


def test_outside_a_terminal_each_change_is_a_line_and_nothing_is_told_twice() -> None:
    said = io.StringIO()
    shown = PlainTrial(Console(file=said, width=40))
    for rounds in (1, 1, 2):
        shown(standing(rounds, "INFO fedtune_client.node: run demo, round 1: trained"))
    lines = said.getvalue().splitlines()
    assert "silo-1: fedtune_client.node: run demo, round 1: trained" in lines
    assert "round 1: loss 0.4123, 1 silos, 312,320 bytes up, 312,320 down, 1.2 s" in lines
    assert lines.count("coordinator: online") == 1
    assert [line[:8] for line in lines if line.startswith("round")] == ["round 1:", "round 2:"]


def test_the_screen_has_all_processes_their_last_lines_and_the_rounds() -> None:
    said = io.StringIO()
    console = Console(file=said, width=100)
    shown = LiveTrial()
    console.print(shown.render())
    shown(standing(1, "WARNING fedtune_client.connector: the coordinator can't be reached"))
    console.print(shown.render())
    screen = said.getvalue()
    for part in ("silo-1", "WARNING fedtune_client.connector: the coo", "0.4123", "1 of 3 rounds"):
        assert part in screen


def test_what_is_wrong_keeps_its_level_and_what_is_no_log_line_is_kept_whole() -> None:
    assert without_stamp(f"{STAMP} INFO a: b") == "a: b"
    assert without_stamp(f"{STAMP} ERROR a: b") == "ERROR a: b"
    assert without_stamp("Traceback (most recent call last):").startswith("Traceback")


def test_what_can_not_be_brought_up_is_refused(
    tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.txt").write_text("mine")
    assert main(["federation", "up"]) == 2
    assert "--demo" in capsys.readouterr().err
    assert main(["federation", "up", "--demo", "--dir", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["federation", "up", "--demo", "--silos", "21"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]
