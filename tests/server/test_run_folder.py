"""How far a run is: several processes tell it, and none overwrites what another has said."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fedtune_server.run_folder import RunFolder, TakenOverError

TURNS = 100
TELLS_ON = (
    "import sys, pathlib; from fedtune_server.run_folder import RunFolder\n"
    "run = RunFolder(pathlib.Path(sys.argv[1]))\n"
    f"for turn in range({TURNS}): run.tell('running', **{{f'{{sys.argv[2]}}-{{turn}}': turn}})"
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run at work, as the operator and the coordinator have it."""
    (tmp_path / "logs").mkdir()
    run = RunFolder(tmp_path / "runs" / "one")
    run.tell("running", flower_run=7)
    return run


def test_what_several_processes_tell_is_all_kept(folder: RunFolder) -> None:
    several = [
        subprocess.Popen([sys.executable, "-c", TELLS_ON, str(folder.path), name])
        for name in ("a", "b", "c")
    ]
    assert [process.wait() for process in several] == [0, 0, 0]
    told = folder.status()
    assert {f"{name}-{turn}" for name in "abc" for turn in range(TURNS)} <= told.keys()


def test_a_stopped_run_stays_stopped_whoever_tells_of_it_meanwhile(folder: RunFolder) -> None:
    process = RunFolder(folder.path, flower_run=7)

    def rounds() -> None:
        for number in range(10_000):
            process.tell("running", round=number)

    def work() -> None:
        with pytest.raises(TakenOverError):
            rounds()

    with ThreadPoolExecutor() as pool:
        for _ in range(20):
            assert folder.tell("waiting", after=("running", "stopped"), flower_run=7)
            at_work = [pool.submit(work) for _ in range(2)]
            assert folder.tell("stopped", flower_run=None)
            for one in at_work:
                one.result()
            assert folder.status()["state"] == "stopped"


@pytest.mark.parametrize("end", ["finished", "failed", "stopped"])
def test_after_an_end_nothing_is_told_until_the_run_is_begun_again(
    folder: RunFolder, end: str
) -> None:
    process = RunFolder(folder.path, flower_run=7)
    assert folder.tell(end, reason="the first")
    assert not folder.tell("failed", reason="the second")
    with pytest.raises(TakenOverError):
        process.tell("running", round=3)
    assert folder.status()["reason"] == "the first"
    assert "round" not in folder.status()
    assert not folder.tell("waiting", after=("running",))
    assert folder.tell("waiting", after=(end,))
    assert process.tell("running", round=3)


def test_an_earlier_process_does_not_speak_for_the_one_that_goes_on(folder: RunFolder) -> None:
    earlier = RunFolder(folder.path, flower_run=7)
    assert folder.tell("waiting", flower_run=8)
    with pytest.raises(TakenOverError):
        earlier.tell("running", round=3)
    assert "round" not in folder.status()
