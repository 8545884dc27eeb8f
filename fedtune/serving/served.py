"""An aiohttp application that answers in a thread of its own."""

import asyncio
import logging
import ssl
import threading
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.http import HttpProcessingError

from fedtune.serving.listener import listeners

_STARTING_SECONDS = 30.0
_ENDING_SECONDS = 15.0
_log = logging.getLogger(__name__)


def _is_ours(record: logging.LogRecord) -> bool:
    """Not of what isn't HTTP: whoever may connect would fill the log with tracebacks."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_log.addFilter(_is_ours)


@dataclass
class Served:
    """An application that answers at `host`:`port` (0: any free one) until `stop`."""

    application: web.Application
    host: str
    port: int = 0
    tls: ssl.SSLContext | None = None
    last_answers_seconds: float = 2.0
    """How long `stop` waits for calls that are under way."""
    idle_seconds: float = 75.0
    """How long a line is kept on which no whole call begins. A node keeps its own for 60."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> int:
        """Answer from now on; gives the port. Raises OSError when it is taken."""
        began: list[BaseException | int] = []
        there = threading.Event()

        def work() -> None:
            asyncio.set_event_loop(self._loop)
            runner = web.AppRunner(
                self.application,
                access_log=None,
                logger=_log,
                shutdown_timeout=self.last_answers_seconds,
                keepalive_timeout=self.idle_seconds,
            )
            try:
                self._loop.run_until_complete(runner.setup())
                for listener in listeners(self.host, self.port):
                    site = web.SockSite(runner, listener, ssl_context=self.tls)
                    self._loop.run_until_complete(site.start())
                began.append(runner.addresses[0][1])
            except BaseException as error:
                began.append(error)
                return
            finally:
                there.set()
            self._loop.run_forever()
            self._loop.run_until_complete(runner.cleanup())
            self._drop_the_rest()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        there.wait(_STARTING_SECONDS)
        if not began:
            raise TimeoutError("did not start")
        if isinstance(began[0], BaseException):
            raise began[0]
        return began[0]

    def answers(self, within_seconds: float = 2.0) -> bool:
        """Whether its thread is there and gets to what it is asked. Not for that thread itself."""
        if self._thread is None or not self._thread.is_alive():
            return False
        heard = threading.Event()
        try:
            self._loop.call_soon_threadsafe(heard.set)
        except RuntimeError:  # it has just ended
            return False
        return heard.wait(within_seconds)

    def _drop_the_rest(self) -> None:
        """What still waits for somebody who is not there."""
        waiting = asyncio.all_tasks(self._loop)
        for task in waiting:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        self._loop.close()

    def stop(self) -> None:
        """Answer no more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None:
            self._thread.join(_ENDING_SECONDS)
