"""Lines of a log that is turned over at a size: the last ones, and those that come."""

import os
import re
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

_POLL_SECONDS = 0.3
_BEGINS = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")


def log_lines(log: Path, count: int, *, run: str | None, follow: bool) -> Iterator[str]:
    """The last `count` lines, of one run if it is named; with `follow`, then each that comes.

    A line without a time, as of a traceback, belongs to the one before. Raises OSError if there is
    no log.
    """
    about = _About(run)
    file = _opened(log)
    old = chain.from_iterable(
        path.read_text(errors="replace").splitlines(keepends=True) for path in _turned_over(log)
    )
    yield from deque(filter(about, chain(old, _written(file))), maxlen=count)
    while follow:
        time.sleep(_POLL_SECONDS)
        yield from filter(about, _written(file))
        if _is_turned_over(log, file):
            yield from filter(about, _written(file))  # what came before the new one was begun
            file.close()
            file = _opened(log)
    file.close()


class _About:
    def __init__(self, run: str | None) -> None:
        self._named = None if run is None else re.compile(rf"\brun {re.escape(run)}(?![\w.-])")
        self._is = run is None

    def __call__(self, line: str) -> bool:
        if self._named is not None and _BEGINS.match(line):
            self._is = self._named.search(line) is not None
        return self._is


def _written(file: TextIO) -> Iterator[str]:
    """The lines that are there whole; one that is still being written is left for the next call."""
    while True:
        at = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(at)
            return
        yield line


def _turned_over(log: Path) -> list[Path]:
    """What the log was before, oldest first."""
    files = [f for f in log.parent.glob(f"{log.name}.*") if f.suffix[1:].isdigit()]
    return sorted(files, key=lambda f: -int(f.suffix[1:]))


def _is_turned_over(log: Path, file: TextIO) -> bool:
    try:
        return log.stat().st_ino != os.fstat(file.fileno()).st_ino
    except FileNotFoundError:  # the new one is about to be made
        return False


def _opened(path: Path) -> TextIO:
    return path.open(encoding="utf-8", errors="replace")
