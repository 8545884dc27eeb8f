"""The node's end of the line, with a coordinator at the other that says what it likes."""

import ssl

import httpx
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from fedtune_client.connector import Connector

from fedtune.serving.served import Served


@pytest.mark.parametrize(
    "date",
    [
        "Mon, 05 Jan 2026 12:00:00 -0000",  # without a zone, says RFC 5322
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "no date",
    ],
)
def test_no_date_and_no_words_of_a_coordinator_end_a_node_s_calls(date: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=403, body=b"\xff" * 300, headers={"Date": date})

    application = web.Application()
    application.router.add_post("/{path:.*}", answer)
    outside = Served(application, "127.0.0.1")
    key = ec.generate_private_key(ec.SECP384R1())
    tls = ssl.create_default_context()
    connector = Connector(f"http://127.0.0.1:{outside.start()}", tls, key)
    inside = Served(connector.application(), "127.0.0.1")
    port = inside.start()
    try:
        for _ in range(2):
            given = httpx.post(f"http://127.0.0.1:{port}/v1/fleet/get-run", timeout=30)
            assert given.status_code == 403
    finally:
        inside.stop()
        outside.stop()
