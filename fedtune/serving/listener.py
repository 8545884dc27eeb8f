"""Lines are let in while there is room: strangers must not use up the files of a process that
listens, which could then write no more to its own.
"""

import logging
import resource
import socket
import time
from typing import Any

_MOST = 2000
_SAID_EVERY_SECONDS = 60.0
_log = logging.getLogger(__name__)


class Listener(socket.socket):
    """Has at most 2000 lines open, or half as many as this process may have files if that is less,
    and from one address half of these. Any more are closed at once, before a handshake.
    """

    def __init__(self, family: int, address: tuple[Any, ...]) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._lines: list[tuple[socket.socket, str]] = []
        self._said_at: float | None = None
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = _MOST if files == resource.RLIM_INFINITY else min(_MOST, files // 2)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            self.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            self.bind(address)
        except OSError:
            self.close()
            raise

    def accept(self) -> tuple[socket.socket, tuple[Any, ...]]:
        """The next line. Raises ConnectionAbortedError, which event loops pass over, where there is
        no room for it.
        """
        line, address = super().accept()
        self._lines = [(open_, of) for open_, of in self._lines if open_.fileno() != -1]
        ours = sum(of == address[0] for _, of in self._lines)
        if len(self._lines) >= self._most or ours >= self._most // 2:
            line.close()
            self._say(address[0], ours)
            raise ConnectionAbortedError
        self._lines.append((line, address[0]))
        return line, address

    def _say(self, address: str, ours: int) -> None:
        now = time.monotonic()
        if self._said_at is None or now - self._said_at > _SAID_EVERY_SECONDS:
            self._said_at = now
            _log.warning(
                "a line from %s is closed: %d are open, %d of them from there",
                *(address, len(self._lines), ours),
            )


def listeners(host: str, port: int) -> list[Listener]:
    """One for each address of `host`. Raises OSError where the port is taken."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [Listener(family, address) for family, _, _, _, address in found]
