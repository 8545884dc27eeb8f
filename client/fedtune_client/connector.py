"""The node's own end of the line: SuperNode speaks to it on loopback, it speaks to the coordinator.

A SuperNode has no option for a client certificate. It is given this address instead, with a
certificate made here for this machine alone; the connector carries each call over mutual TLS. It
also signs the time anew, by the coordinator's clock: a node whose own clock is off by minutes would
be turned away.
"""

import asyncio
import base64
import datetime
import email.utils
import logging
import ssl
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

MAX_BODY_BYTES = 64 * 2**20
_HEADERS = ("flwr-public-key", "content-type")
_PIECE = "/pull-object"
_TRIED_SECONDS = 60.0
_PAUSE_SECONDS = 1.0
_log = logging.getLogger(__name__)


@dataclass
class Connector:
    """Carries calls to `outside` (`https://host:port`) with the node's client certificate."""

    outside: str
    tls: ssl.SSLContext
    flower_key: ec.EllipticCurvePrivateKey
    _session: aiohttp.ClientSession | None = None
    _ahead: datetime.timedelta = field(default=datetime.timedelta())

    def application(self) -> web.Application:
        """What SuperNode speaks to."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/{path:.*}", self.carry)
        app.cleanup_ctx.append(self._outside)
        return app

    async def _outside(self, _: web.Application) -> Any:
        connector = aiohttp.TCPConnector(ssl=self.tls, keepalive_timeout=60)
        # a slow line may take long for a piece; one that says nothing for minutes is down
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=180)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            yield

    async def carry(self, request: web.Request) -> web.Response:
        """One call there and back. While nobody answers it is tried again every second, and after
        a minute left to Flower with a 503: Flower's own pauses grow, and a node that sleeps for
        minutes misses a coordinator that is back.
        """
        body = await request.read()
        headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
        over = asyncio.get_running_loop().time() + _TRIED_SECONDS
        while True:
            try:
                return await self._carry_once(request.raw_path, body, headers)
            except (aiohttp.ClientError, TimeoutError) as error:
                _log.warning("the coordinator can't be reached: %s", error)
            if asyncio.get_running_loop().time() >= over:
                return web.Response(status=503)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _carry_once(self, path: str, body: bytes, headers: dict[str, str]) -> web.Response:
        assert self._session is not None  # noqa: S101 - made when the application starts
        async with self._session.post(
            self.outside + path, data=body, headers={**headers, **self._signed()}
        ) as given:
            self._set_clock(given.headers.get("date", ""))
            content = await given.read()
            status = given.status
            if status == 403:
                _log.error("the coordinator refuses this node: %s", content[:200].decode())
                if path.endswith(_PIECE):
                    # a run was stopped while its message was on the way: on a 403 SuperNode keeps
                    # what it has of it and hands it out, on any other error it throws it away
                    status = 410
            kind = given.headers.get("content-type", "")
            return web.Response(status=status, body=content, headers={"content-type": kind})

    def _signed(self) -> dict[str, str]:
        """The time, by the coordinator's clock, and the Flower key's signature over it."""
        stamp = (datetime.datetime.now(datetime.UTC) + self._ahead).isoformat()
        signature = self.flower_key.sign(stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        return {"flwr-timestamp": stamp, "flwr-signature": base64.b64encode(signature).decode()}

    def _set_clock(self, date: str) -> None:
        try:
            theirs = email.utils.parsedate_to_datetime(date)
        except ValueError:
            return
        ahead = theirs - datetime.datetime.now(datetime.UTC)
        # the header has whole seconds
        if abs(ahead - self._ahead) > datetime.timedelta(seconds=2):
            _log.warning(
                "this machine's clock is %+.0f s off the coordinator's", -ahead.total_seconds()
            )
            self._ahead = ahead


def outer_tls(certificate: str, key: str, authority: str) -> ssl.SSLContext:
    """TLS 1.2 or later with the node's certificate, to a coordinator of that authority only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    return context
