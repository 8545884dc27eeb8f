"""`federation up`: a whole federation by one command, and nothing of it left afterwards."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fedtune.cli.trial import demo_run, set_up
from fedtune.errors import RunFailedError
from fedtune.models.saved import load_saved
from tests.e2e.conftest import command, environment, until


@dataclass
class Up:
    """The command at work in a folder, and every process that was seen of it."""

    folder: Path
    process: subprocess.Popen[str]
    seen: set[psutil.Process] = field(default_factory=set)

    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")

    def look(self) -> None:
        self.seen |= {*psutil.Process(self.process.pid).children(recursive=True)}

    def until(self, words: str) -> None:
        """Wait until it has said these words."""

        def there() -> bool:
            assert self.process.poll() is None, self.said()
            self.look()
            return words in self.said()

        until(there, words)

    def child(self, *words: str) -> psutil.Process:
        """Its own child with these words in its command."""
        children = psutil.Process(self.process.pid).children()
        return next(c for c in children if " ".join(words) in " ".join(c.cmdline()))

    def left(self, seconds: float) -> list[psutil.Process]:
        """What is at work after `seconds` of all that was seen."""
        there = psutil.wait_procs(self.seen, seconds)[1]
        return [one for one in there if _is_at_work(one)]


def _is_at_work(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            command("federation", "up", "--demo", "--silos", "2", "--rounds", "2", "--json"),
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=tmp_path,
            env=environment(tmp_path),
            start_new_session=True,
        )
    began = Up(tmp_path, process)
    yield began
    process.kill()
    for one in began.left(20):
        one.kill()


def test_two_silos_train_an_adapter_and_nothing_else_is_left(up: Up):
    up.until("run: running")
    assert len(up.seen) >= 9  # both commands, two nodes, two SuperNodes, Flower's three
    out, _ = up.process.communicate(timeout=120)
    assert up.process.returncode == 0, up.said()
    assert not up.left(0.5)
    told = json.loads(out)
    assert [line["round"] for line in told["rounds"]] == [1, 2]
    assert all(line["silos"] == told["silos"] == ["silo-1", "silo-2"] for line in told["rounds"])
    assert load_saved(Path(told["adapter"])).model.peft_config
    there = sorted(path.name for path in Path(told["folder"]).iterdir())
    assert there == ["logs", "run"]
    assert (Path(told["logs"]) / "silo-1" / "supernode.log").exists()
    assert "round 2: loss" in up.said()


def test_ctrl_c_twice_in_the_middle_leaves_no_process(up: Up):
    up.until("run: running")
    for _ in range(2):
        os.killpg(up.process.pid, signal.SIGINT)
        time.sleep(0.3)
    up.process.wait(60)
    assert up.process.returncode == 130, up.said()
    assert not up.left(0.5)
    assert [path.name for path in (up.folder / "runs").glob("*/*")] == ["logs"]


def test_no_process_outlives_a_killed_command(up: Up):
    up.until("run: starting")
    up.process.kill()
    assert not up.left(6)


def test_a_process_that_dies_is_named_and_the_rest_is_taken_down(up: Up):
    up.until("coordinator: online")
    up.child("server", "start").kill()
    up.process.wait(60)
    assert up.process.returncode == 1
    assert "coordinator was killed by SIGKILL; its last words:\n" in up.said()
    assert up.said().count("answers at port") >= 2  # as it went, and in the log's tail
    assert not up.left(0.5)


def test_a_port_that_is_taken_is_named(tmp_path: Path):
    trial = set_up(tmp_path / "trial", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file, was = trial.project.folder / "server.yaml", trial.project.config.port
        file.write_text(file.read_text().replace(f"\nport: {was}", f"\nport: {port}"))
        with pytest.raises(RunFailedError, match=f"(?s)coordinator ended.* port: port {port}"):
            trial.take_place(demo_run(1, 1), lambda standing: None)
