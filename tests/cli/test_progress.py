"""What is seen of a run: on a terminal and elsewhere, and that `--json` stays clean."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from fedtune_server.reports import RoundingReport, RoundReport
from fedtune_simulations.events import Working
from rich.console import Console

from fedtune.cli.main import main
from fedtune.cli.progress import LiveRounds, simulation_progress, training_progress
from fedtune.cli.server import _round as server_round
from fedtune.training.events import Evaluated, StepDone


def report(number: int) -> RoundReport:
    return RoundReport(number, 0.5 / number, 0.9, 10, 10, 1.5, ["a", "b"], [])


def test_lines_elsewhere_are_few_and_whole() -> None:
    text = io.StringIO()
    with training_progress(Console(file=text, width=40)) as shown:
        for step in range(1, 101):
            shown(StepDone(step, 100, 0.25, 1e-3, 8, 0.5))
        shown(Evaluated(100, {"loss": 0.2, "accuracy": 0.75}))
    lines = text.getvalue().splitlines()
    assert len(lines) == 12  # the first step, then each tenth, then the evaluation
    assert lines[0].endswith(", 50 s left")  # 99 steps of half a second
    assert lines[1].startswith("step 10/100: loss 0.2500, lr 1.00e-03, 16 examples/s, ")
    assert lines[-1] == "step 100, validation: loss 0.2000, accuracy 0.7500"


def test_a_resumed_run_tells_its_time_from_where_it_began() -> None:
    text = io.StringIO()
    with training_progress(Console(file=text)) as shown:
        shown(StepDone(99, 100, 0.25, 1e-3, 8, 0.5))
        shown(StepDone(100, 100, 0.25, 1e-3, 8, 0.5))
    assert text.getvalue().splitlines()[-1].endswith(", 0 s left")


def test_rounds_elsewhere_are_a_line_each() -> None:
    text = io.StringIO()
    with simulation_progress(2, Console(file=text)) as shown:
        for number in (1, 2):
            shown.work(Working(number, "a", 1, 1))
            shown.round(report(number))
        for who in ("a alone", "central"):
            shown.work(Working(None, who, 1, 1))
    assert text.getvalue().splitlines() == [
        "round 1: loss 0.5000, 2 silos, 1.5 s",
        "round 2: loss 0.2500, 2 silos, 1.5 s",
        "comparing: each silo alone, then central",
    ]


@pytest.mark.parametrize(
    ("error", "cut", "said"),
    [
        (4e-4, 0, ""),
        (0.0184, 0, ", rounded to 1.8%"),
        (4e-4, 1200, ", 1,200 of 5,000 numbers cut to their bounds"),
        (None, 0, ", lost in rounding"),
    ],
)
def test_a_secure_round_says_what_was_cut_or_lost_in_rounding(
    error: float | None, cut: int, said: str
) -> None:
    rounding = RoundingReport(99, [0], [3], 1e-6, error, 5000, cut)
    told, text = dataclasses.replace(report(1), rounding=rounding), io.StringIO()
    with simulation_progress(1, Console(file=text, width=120)) as shown:
        shown.round(told)
    assert text.getvalue() == f"round 1: loss 0.5000, 2 silos, 1.5 s{said}\n"
    line = json.loads(json.dumps(dataclasses.asdict(told)))  # as `server status` reads it
    assert server_round(line) == f"round 1, loss 0.5000, 2 silos, 1.5 s{said}"


def test_a_terminal_shows_the_latest_rounds_and_who_trains_now() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    shown = LiveRounds(console, 20)
    for number in range(1, 16):
        shown.round(report(number))
    shown.work(Working(16, "north", 3, 8))
    with console.capture() as seen:
        console.print(shown.render())
    text = seen.get()
    assert "round 16: north" in text
    assert "3/8" in text
    assert "15/20" in text
    assert "│ 15 " in text
    assert "│ 5 " not in text


def test_json_on_stdout_is_clean_and_progress_goes_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "run.yaml"
    settings = {
        "data": {"embedded_patients": 16},
        "training": {"max_steps": 2},
        "output": {"dir": str(tmp_path / "run")},
    }
    path.write_text(json.dumps(settings))
    assert main(["train", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["steps"] == 2
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["command"] == "train"
    assert [line for line in err.splitlines() if line.startswith("step 2/2: loss ")]
