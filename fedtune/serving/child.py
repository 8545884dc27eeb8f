"""A `fedtune` command in a process and a session of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedtune.serving.kept import end_with_the_parent

_ENDING_SECONDS = 20.0
_LAST_SECONDS = 5.0


@dataclass(frozen=True)
class Child:
    """A command at work. What it says is in `log`."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    def ended(self) -> str | None:
        """How it ended, in words; None while it is at work."""
        status = self.process.poll()
        return None if status is None else in_words(status)


def start(name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Child:
    """Start `fedtune` with these arguments. It ends when this process does, also if that is killed;
    Ctrl-C in the terminal is for this process alone.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedtune", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=end_with_the_parent,
        )
    return Child(name, log, process)


def stop(children: Sequence[Child], seconds: float = _ENDING_SECONDS) -> None:
    """End them, by force if they won't, and with them whatever they started."""
    over = time.monotonic() + seconds
    for child in children:
        child.process.terminate()
    for child in children:
        try:
            child.process.wait(max(0.0, over - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
    left = _of_sessions({child.process.pid for child in children})
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, _LAST_SECONDS)


def in_words(status: int) -> str:
    """How a process ended, by its status; below zero: by which signal."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _of_sessions(sessions: set[int]) -> list[psutil.Process]:
    """What is still there of these sessions, also where its parent is gone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) in sessions:
                found.append(process)
    return found
