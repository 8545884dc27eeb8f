"""Child processes that are kept alive."""

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_ENDING_SECONDS = 8.0
_LONGEST_PAUSE_SECONDS = 30.0
_LOG_BYTES = 10 * 2**20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded before a fork, which another thread's lock may be held across
_log = logging.getLogger(__name__)


@dataclass
class Kept:
    """A child process that is started again when it ends, later and later if it ends at once.

    It ends with the thread that calls `check`, which must be the program's main one, also if that
    is killed: one left over would keep its port, and speak with its old certificate.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    """Added to this process's own."""
    log: Path
    restarts: int = field(default=0, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _pause_seconds: float = field(default=1.0, init=False)
    _began: float = field(default=0.0, init=False)

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Start it if it doesn't run and its pause is over; see that its log stays bounded."""
        self._turn_log_over()
        now = time.monotonic()
        if self.is_up:
            if now - self._began > _LONGEST_PAUSE_SECONDS:
                self._pause_seconds = 1.0
            return
        if self._process is not None:
            if now - self._began < self._pause_seconds:
                return
            _log.error("%s ended with %s; started again", self.name, self._process.returncode)
            self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
            self.restarts += 1
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                list(self.command),
                stdout=out,
                stderr=out,
                env=self._whole_environment(),
                preexec_fn=end_with_the_parent,
            )
        self._began = now

    def _turn_log_over(self) -> None:
        """What a long log holds becomes `.1`, and the file is emptied under the child, which has it
        open for appending; a line that is written in between is lost.
        """
        if not self.log.exists() or self.log.stat().st_size < _LOG_BYTES:
            return
        with contextlib.suppress(OSError):  # a full disk has no room for the old lines
            shutil.copyfile(self.log, self.log.with_name(f"{self.log.name}.1"))
        os.truncate(self.log, 0)

    def _whole_environment(self) -> dict[str, str]:
        # Flower starts further programs by their bare names: this Python's come first, also when
        # no virtual environment is activated, as under systemd and cron
        programs = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        return {**os.environ, "PATH": os.pathsep.join(programs), **self.environment}

    def stop(self) -> None:
        """End it, by force if it won't."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def end_with_the_parent() -> None:
    """Ask Linux to kill this process when its parent ends (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
