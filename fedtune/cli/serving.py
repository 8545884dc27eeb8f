"""What `start` commands share: a log in a file and on stderr, and an orderly end."""

import copy
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from fedtune.plain import plain

_LOG_BYTES, _LOGS_KEPT = 10 * 2**20, 5
_FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Lines(logging.Formatter):
    """One line an entry, and a traceback set in below it: entries quote what others sent, who must
    not be able to write entries of their own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The entry, whoever has formatted it before: logging keeps the first one's traceback."""
        own = copy.copy(record)
        own.exc_text = None
        return super().format(own)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The entry without its traceback."""
        return plain(super().formatMessage(record))

    def formatException(self, *given: Any) -> str:  # noqa: N802
        """The traceback."""
        return "\n".join(
            f"  {plain(line)}" for line in super().formatException(*given).splitlines()
        )


@contextmanager
def until_stopped(log: Path | None = None) -> Iterator[threading.Event]:
    """Gives an event that Ctrl-C and SIGTERM set; logs of fedtune go to stderr, and to `log`."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(RotatingFileHandler(log, maxBytes=_LOG_BYTES, backupCount=_LOGS_KEPT))
    loggers = [logging.getLogger(name) for name in ("fedtune", "fedtune_server", "fedtune_client")]
    for handler in handlers:
        handler.setFormatter(_Lines(_FORM))
        for logger in loggers:
            logger.addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield stop
    finally:
        for handler in handlers:
            for logger in loggers:
                logger.removeHandler(handler)
            handler.close()
        for number, old in before.items():
            signal.signal(number, old)
