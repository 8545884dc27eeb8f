"""Work for several in processes of one program: they begin and end together."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import until

PROGRAM = """
import sys, time
from pathlib import Path
from fedtune.cli.interrupts import terminable
from fedtune.errors import RunFailedError
from fedtune.serving.forked import forked

def work(name):
    Path(sys.argv[1], name).touch()
    try:
        time.sleep(0.5 if name == sys.argv[2] else 60)
    except KeyboardInterrupt:
        Path(sys.argv[1], name + " was asked to end").touch()
    return 3

try:
    with terminable():
        forked(work, ["a", "b", "c"])
except RunFailedError as error:
    print(error)
"""


def program(folder: Path, first: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    began = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder, first], stdout=subprocess.PIPE, text=True
    )
    until(lambda: len([*folder.iterdir()]) == 3, "all three to work", 20)
    return began, psutil.Process(began.pid).children()


def test_when_one_ends_the_others_are_asked_to_and_it_is_named(tmp_path: Path) -> None:
    began, workers = program(tmp_path, "b")
    said, _ = began.communicate(timeout=20)
    assert said.strip() == "b ended with status 3"
    assert {path.name for path in tmp_path.glob("*end")} == {f"{x} was asked to end" for x in "ac"}
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_end_in_order_when_the_program_is_told_to(
    tmp_path: Path, number: signal.Signals
) -> None:
    began, workers = program(tmp_path, "none")
    began.send_signal(number)
    assert began.wait(20) == 0
    assert len([*tmp_path.glob("*end")]) == 3
    assert not any(worker.is_running() for worker in workers)


def test_all_end_when_the_program_is_killed(tmp_path: Path) -> None:
    began, workers = program(tmp_path, "none")
    began.kill()
    began.wait(20)
    assert not psutil.wait_procs(workers, 10)[1]
