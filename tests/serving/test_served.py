"""What is served to many says what went wrong here, and nothing of what strangers send."""

import socket

import httpx
import pytest
from aiohttp import web

from fedtune.serving.served import Served


def test_what_is_not_http_writes_nothing_and_a_failure_of_ours_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_: web.Request) -> web.Response:
        raise RuntimeError("broken")

    application = web.Application()
    application.router.add_get("/", fail)
    served = Served(application, "127.0.0.1")
    port = served.start()
    try:
        for said in (b"GET / HTTP/1.1\r\nno header\r\n\r\n", b"\x16\x03\x01 / HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
                line.sendall(said)
                assert b" 400 " in line.recv(100)
        assert caplog.messages == []
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 500
        assert "RuntimeError: broken" in caplog.text
    finally:
        served.stop()
