"""Ctrl-C, SIGTERM and a full disk end a run the same way: one message, and how to go on."""

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fedtune.errors import NotWrittenError


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: what an interrupt does, under another status."""


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises TerminatedError where the program stands."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def resumable(command: list[str], out: Path) -> Iterator[None]:
    """An interrupt or a full disk inside learns how to go on, once `out` holds a run."""
    again = shlex.join(["fedtune", *command, "--resume"])
    try:
        yield
    except NotWrittenError as error:
        if (out / "config.yaml").exists():
            error.add_note(f"to go on from the last checkpoint, once there is room: {again}")
        raise
    except KeyboardInterrupt as stop:
        if (out / "config.yaml").exists():
            stop.add_note(f"to go on: {again}")
        else:
            stop.add_note("nothing was written")
        raise


def _terminate(number: int, frame: FrameType | None) -> None:
    raise TerminatedError
