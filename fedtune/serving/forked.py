"""The same work for several, each in a process forked of this one.

What this process has loaded they share: it takes its seconds and its memory once.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from fedtune.errors import RunFailedError
from fedtune.serving.child import in_words
from fedtune.serving.kept import end_with_the_parent

_ENDING_SECONDS = 15.0
_LOOK_SECONDS = 0.05


def forked(work: Callable[[str], int], names: Sequence[str]) -> None:
    """`work(name)` for each, at once, until Ctrl-C or SIGTERM; then all are asked to end.

    Raises RunFailedError when one ends before; then the others end too.
    """
    running: dict[int, str] = {}
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        for name in names:
            number = os.fork()
            if number == 0:
                _at_work(work, name)
            running[number] = name
        number, status = os.wait()
        name = running.pop(number)
        raise RunFailedError(f"{name} {in_words(os.waitstatus_to_exitcode(status))}")
    except KeyboardInterrupt:  # or SIGTERM: an orderly end
        pass
    finally:
        _end(set(running))


def _at_work(work: Callable[[str], int], name: str) -> None:
    status = 1
    try:
        end_with_the_parent()
        status = work(name)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _end(running: set[int]) -> None:
    for number in running:
        os.kill(number, signal.SIGTERM)
    over = time.monotonic() + _ENDING_SECONDS
    while running:
        for number in [*running]:
            if os.waitpid(number, os.WNOHANG)[0]:
                running.discard(number)
            elif time.monotonic() > over:
                os.kill(number, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)
