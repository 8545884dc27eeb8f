"""An application that answers in a thread of its own."""

import asyncio
import threading

import httpx
import pytest
from aiohttp import web

from fedtune.serving.served import Served


def test_who_hung_up_is_answered_no_more() -> None:
    asked, given_up, answered = threading.Event(), threading.Event(), threading.Event()

    async def hold(_: web.Request) -> web.Response:
        asked.set()
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            given_up.set()
            raise
        answered.set()
        return web.Response()

    application = web.Application()
    application.router.add_post("/", hold)
    served = Served(application, "127.0.0.1")
    port = served.start()
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"http://127.0.0.1:{port}/", timeout=0.5)
        assert asked.is_set()
        assert given_up.wait(3)
        assert not answered.is_set()
    finally:
        served.stop()
