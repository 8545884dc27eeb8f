"""A run's folder on the coordinator, and how far the run is. Light: no model is loaded for it.

config.yaml     the run's settings
status.json     how far it is, rewritten as it goes; status.lock, which its writers take in turn
metrics.jsonl   a line a round
checkpoints/    the last rounds, from which it goes on
adapter/        at the end
"""

import contextlib
import datetime
import json
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from fedtune.atomic import append_line, write_text, written
from fedtune.errors import NotWrittenError, RunFailedError
from fedtune.plain import plain

COORDINATOR_LOG = "coordinator.log"
"""In the folder `logs`, beside that of the runs."""
ENDED = ("finished", "failed", "stopped")
"""The states of a run in which nothing more is told of it until it is begun again."""
_POLL_SECONDS = 0.2
_NUMBER_SECONDS = 30.0
_LOCK_SECONDS = 30.0


class TakenOverError(RunFailedError):
    """What this process was at work on is no more its own."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder on the coordinator. A run that is stopped and gone on with is another run of
    Flower's: only the one with the number `flower_run` may say how it goes (None: the operator).
    """

    path: Path
    flower_run: int | None = None

    @property
    def name(self) -> str:
        """The run's name, which silos know it by."""
        return self.path.name

    def status(self) -> dict[str, Any]:
        """How far it is; empty before it begins."""
        try:
            return dict(json.loads((self.path / "status.json").read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def wait_for_its_number(self) -> None:
        """Whoever had Flower start this process may still be writing down under which number."""
        over = time.monotonic() + _NUMBER_SECONDS
        while self.status().get("flower_run") is None and time.monotonic() < over:
            time.sleep(_POLL_SECONDS)

    def tell(self, state: str, *, after: Collection[str] | None = None, **facts: Any) -> bool:
        """Rewrite how far it is, unless it isn't in one of the states `after` (None: any but an
        end): then nothing is written. Gives whether it was.

        The operator, the coordinator and the run's process do so one after another, so that none
        overwrites what another has just said. Raises TakenOverError when the run is another's by
        now, or was ended by another.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with self._alone():
            before = self.status()
            if self.flower_run is not None and before.get("flower_run") != self.flower_run:
                raise TakenOverError(f"run {self.name} was stopped, or is gone on with by another")
            is_now = before.get("state")
            if is_now in ENDED if after is None else is_now not in after:
                if self.flower_run is not None:
                    raise TakenOverError(f"run {self.name} is {is_now}")
                return False
            told = {**before, "state": state, "updated": now, **facts}
            write_text(self.path / "status.json", json.dumps(told, indent=2) + "\n")
        words = [_words(status) for status in (before, told)]
        if words[1] != words[0]:
            self.log(words[1])
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        file = self.path / "status.lock"
        with contextlib.ExitStack() as stack:
            with written(file):
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(file, timeout=_LOCK_SECONDS))
            yield

    def log(self, words: str) -> None:
        """Add a line about this run to the coordinator's log, which several processes write to.

        `words` may be a silo's: they stay one line. A line that can't be written stops no run.
        """
        now = datetime.datetime.now()
        time_ = f"{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03d}"
        log = self.path.parent.parent / "logs" / COORDINATOR_LOG
        with contextlib.suppress(NotWrittenError):
            append_line(log, f"{time_} INFO {__name__}: {plain(f'run {self.name}: {words}')}")


def _words(told: Mapping[str, Any]) -> str:
    reason = f": {told['reason']}" if told.get("reason") else ""
    return f"{told.get('state')}, round {told.get('round', 0)} of {told.get('rounds', '?')}{reason}"
