"""Flower's Grid between machines: a reply's pieces are waited for until a deadline, no longer.

A silo's reply is given out as soon as its first word is there. Flower then waits for the pieces,
for up to two hours if one comes now and again, and all other silos with it. Of flwr==1.41.0 this
file touches what its Grid fetches pieces with.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_GRID = "flwr.superlink.grid.http_grid"
_LONGEST_PAUSE_SECONDS = 1.0


@contextmanager
def pieces_until(deadline: float) -> Iterator[None]:
    """Inside, a reply that isn't whole by `deadline` (of `time.monotonic`) is one that can't be
    had. One that is whole is fetched, whenever that is.
    """
    grid: Any = sys.modules.get(_GRID)  # a simulation doesn't load it, and has replies whole
    if grid is None:
        yield
        return
    fetch = grid.pull_objects

    def in_time(*given: Any, **named: Any) -> dict[str, bytes]:
        left = max(0.0, deadline - time.monotonic())
        pieces: dict[str, bytes] = fetch(
            *given, **named, max_time=left, backoff_cap=_LONGEST_PAUSE_SECONDS
        )
        return pieces

    grid.pull_objects = in_time
    try:
        yield
    finally:
        grid.pull_objects = fetch
