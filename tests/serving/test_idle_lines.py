"""A line that nobody uses is not kept for ever."""

import socket

import pytest
from aiohttp import web

from fedtune.serving.served import Served


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nhost: "])
def test_a_line_on_which_no_whole_call_begins_is_closed(said: bytes) -> None:
    served = Served(web.Application(), "127.0.0.1", idle_seconds=0.5)
    port = served.start()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
            line.sendall(said)
            assert line.recv(1) == b""
    finally:
        served.stop()
