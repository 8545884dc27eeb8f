"""`fedtune server logs`: the coordinator's log, also when it is turned over under its reader."""

import itertools
import logging
import subprocess
import sys
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path

import pytest
from fedtune_server.project import ServerConfig, init
from fedtune_server.run_folder import RunFolder

from fedtune.cli.log_lines import log_lines
from fedtune.cli.main import main
from fedtune.cli.serving import until_stopped

Logs = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    config = ServerConfig(federation="Trial", hosts=["localhost"])  # type: ignore[call-arg]
    made = init(tmp_path / "trial", config)
    made.logs.mkdir()
    return made.folder


@pytest.fixture
def logs(project: Path, capsys: pytest.CaptureFixture[str]) -> Logs:
    def printed(*options: str) -> str:
        assert main(["server", "logs", str(project), *options]) == 0
        return capsys.readouterr().out

    return printed


def entry(second: int, words: str) -> str:
    return f"2026-01-05 12:00:{second:02d},000 INFO fedtune_server.running: {words}\n"


def test_the_last_lines_are_printed_across_the_place_where_the_log_was_turned_over(
    project: Path, logs: Logs
) -> None:
    folder = project / "logs"
    (folder / "coordinator.log.10").write_text(entry(1, "oldest"))
    (folder / "coordinator.log.2").write_text(entry(2, "older"))
    (folder / "coordinator.log.1").write_text(entry(3, "old"))
    (folder / "coordinator.log").write_text(entry(4, "new"))
    assert logs("--lines", "3") == entry(2, "older") + entry(3, "old") + entry(4, "new")
    assert logs() == entry(1, "oldest") + logs("--lines", "3")
    assert logs("--lines", "0") == ""


def test_one_run_s_lines_are_its_own_with_their_tracebacks(project: Path, logs: Logs) -> None:
    (project / "runs" / "one").mkdir(parents=True)
    mine = entry(2, "run one: failed") + "Traceback (most recent call last):\n  somewhere\n"
    other = entry(3, "run one-more: failed") + "Traceback\n" + entry(4, "run someone: x")
    last = entry(5, "run one, round 2: trained")
    (project / "logs" / "coordinator.log").write_text(
        "the rest of a traceback\n" + entry(1, "roster version 2") + mine + other + last
    )
    assert logs("--run", "one") == mine + last
    assert logs("--run", "one", "--lines", "1") == last


def test_what_is_not_there_is_one_message(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["server", "logs", str(project)]) == 2
    assert "nothing was logged yet" in capsys.readouterr().err
    assert main(["server", "logs", str(project), "--run", "none"]) == 2
    assert "there is no such run" in capsys.readouterr().err


def test_a_follower_misses_nothing_when_the_log_is_turned_over(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    handler = RotatingFileHandler(log, maxBytes=100, backupCount=50)
    seen = log_lines(log, 1, run=None, follow=True)
    for number in range(30):
        handler.emit(logging.makeLogRecord({"msg": f"line {number:03d} " + 20 * "x"}))
        assert next(seen).startswith(f"line {number:03d} ")
    assert (tmp_path / "x.log.9").exists()
    with log.open("a") as file:
        file.write("half ")
        file.flush()
        assert not next(log_lines(log, 1, run=None, follow=False)).startswith("half")
        file.write("and whole\n")
    assert next(seen) == "half and whole\n"
    handler.close()


def test_runs_tell_the_coordinator_s_log_how_they_go(project: Path, logs: Logs) -> None:
    run = RunFolder(project / "runs" / "one")
    run.tell("waiting", round=0, rounds=3)
    run.tell("waiting", flower_run=7)  # nothing new
    run.tell("running", round=1)
    forged = f"no quorum\n{entry(9, 'run two: finished')}"
    run.tell("failed", reason=forged)
    told = logs("--run", "one").splitlines()
    ends = [line.split("run one: ")[1] for line in told]
    assert ends[:2] == ["waiting, round 0 of 3", "running, round 1 of 3"]
    assert len(ends) == 3, "a silo's words made a line of their own"
    assert ends[2].startswith("failed, round 1 of 3: no quorum 2026-")


def test_several_processes_write_whole_lines_into_one_log(project: Path) -> None:
    call = (
        "import sys, pathlib; from fedtune_server.run_folder import RunFolder\n"
        "run = RunFolder(pathlib.Path(sys.argv[1]))\n"
        "for number in range(100): run.log(f'{number} ' + 200 * 'x')"
    )
    several = [
        subprocess.Popen([sys.executable, "-c", call, str(project / "runs" / name)])
        for name in ("a", "b")
    ]
    assert [process.wait() for process in several] == [0, 0]
    lines = (project / "logs" / "coordinator.log").read_text().splitlines()
    wanted = itertools.product(("a", "b"), range(100))
    ends = {f"run {name}: {number} " + 200 * "x" for name, number in wanted}
    assert {line.split("run_folder: ")[1] for line in lines} == ends


def test_a_log_that_can_not_be_written_stops_no_run(project: Path) -> None:
    (project / "logs").rmdir()
    (project / "logs").write_text("no folder")
    run = RunFolder(project / "runs" / "one")
    run.tell("running", round=1, rounds=2)
    assert run.status()["round"] == 1


def test_nobody_s_words_begin_an_entry_of_their_own(tmp_path: Path) -> None:
    forged = "\n2026-01-05 12:00:00,000 INFO fedtune_client.node: run first: all is well\x1b[2J"
    log = tmp_path / "logs" / "node.log"
    with until_stopped(log):
        logger = logging.getLogger("fedtune_client.node")
        logger.error("refused: %s", forged)
        try:
            raise ValueError(forged)
        except ValueError:
            logger.exception("a message failed")
    entries = [line for line in log.read_text().splitlines() if not line.startswith("  ")]
    assert [line.split(" ")[2] for line in entries] == ["ERROR", "ERROR"]
    assert "\x1b" not in log.read_text()
