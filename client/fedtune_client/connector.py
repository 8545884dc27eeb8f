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
import secrets
import ssl
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedtune.serving.line import MAX_BODY_BYTES, NODE_HEADER

_HEADERS = ("flwr-public-key", "content-type")
_PIECE = "/pull-object"
_TRIED_SECONDS = 60.0
_PAUSE_SECONDS = 1.0
_TAKEN_PAUSE_SECONDS = 5.0
_TAKEN = 409
_BEAT = "/send-node-heartbeat"
_SAID_EVERY_SECONDS = 30.0
_FARTHEST_OFF = datetime.timedelta(days=3650)
_LONGEST_WORDS = 200
_log = logging.getLogger(__name__)


@dataclass
class Connector:
    """Carries calls to `outside` (`https://host:port`) with the node's client certificate."""

    outside: str
    tls: ssl.SSLContext
    flower_key: ec.EllipticCurvePrivateKey
    process: str = field(default_factory=lambda: secrets.token_hex(16))
    _session: aiohttp.ClientSession | None = None
    _missed_at: float | None = None
    _calls: int = field(default=0, init=False)
    _last_call: float = field(default_factory=time.monotonic, init=False)
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
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        ) as self._session:
            yield

    async def carry(self, request: web.Request) -> web.Response:
        """One call there and back. While nobody answers it is tried again every second, and after
        a minute left to Flower with a 503: Flower's own pauses grow, and a node that sleeps for
        minutes misses a coordinator that is back.
        """
        if request.path.endswith(_BEAT):
            return await self._carry(request)
        self._calls += 1
        try:
            return await self._carry(request)
        finally:
            self._calls -= 1
            self._last_call = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """How long SuperNode has asked for nothing; its heart beats on when its work has ended."""
        return 0.0 if self._calls else time.monotonic() - self._last_call

    def begin_anew(self) -> None:
        """A SuperNode has just been started."""
        self._last_call = time.monotonic()

    async def _carry(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
        over = asyncio.get_running_loop().time() + _TRIED_SECONDS
        while True:
            pause = _PAUSE_SECONDS
            try:
                given = await self._carry_once(request.raw_path, body, headers)
                if given.status != _TAKEN:
                    return given
                pause = _TAKEN_PAUSE_SECONDS
            except (aiohttp.ClientError, TimeoutError) as error:
                self._missed(error)
            if asyncio.get_running_loop().time() >= over:
                return web.Response(status=503)
            await asyncio.sleep(pause)

    async def _carry_once(self, path: str, body: bytes, headers: dict[str, str]) -> web.Response:
        assert self._session is not None  # noqa: S101 - made when the application starts
        async with self._session.post(
            self.outside + path,
            data=body,
            headers={**headers, **self._signed(), NODE_HEADER: self.process},
            allow_redirects=False,
        ) as given:
            self._set_clock(given.headers.get("date", ""))
            content = await _read(given)
            if self._missed_at is not None:
                _log.info("the coordinator is reached again")
                self._missed_at = None
            status = given.status
            if status >= 500:  # SuperNode would end its work, and look alive
                raise aiohttp.ClientError(f"the coordinator answers with {status}")
            if status == _TAKEN:
                _log.error(
                    "another process with this node's keys is connected: %s", _words(content)
                )
            if status == 403:
                _log.error("the coordinator refuses this node: %s", _words(content))
                if path.endswith(_PIECE):
                    # a run was stopped while its message was on the way: on a 403 SuperNode keeps
                    # what it has of it and hands it out, on any other error it throws it away
                    status = 410
            kind = given.headers.get("content-type", "")
            return web.Response(status=status, body=content, headers={"content-type": kind})

    def _missed(self, error: Exception) -> None:
        """Say that nobody answers, at first and then now and again."""
        now = asyncio.get_running_loop().time()
        if self._missed_at is None or now - self._missed_at > _SAID_EVERY_SECONDS:
            _log.warning("the coordinator can't be reached: %s", error)
            self._missed_at = now

    def _signed(self) -> dict[str, str]:
        """The time, by the coordinator's clock, and the Flower key's signature over it."""
        stamp = (datetime.datetime.now(datetime.UTC) + self._ahead).isoformat()
        signature = self.flower_key.sign(stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        return {"flwr-timestamp": stamp, "flwr-signature": base64.b64encode(signature).decode()}

    def _set_clock(self, date: str) -> None:
        try:
            theirs = email.utils.parsedate_to_datetime(date)
            ahead = theirs - datetime.datetime.now(datetime.UTC)
        except (ValueError, TypeError, OverflowError):  # no date, or one without a zone
            return
        if abs(ahead) > _FARTHEST_OFF:
            return
        # the header has whole seconds
        if abs(ahead - self._ahead) > datetime.timedelta(seconds=2):
            _log.warning(
                "this machine's clock is %+.0f s off the coordinator's", -ahead.total_seconds()
            )
            self._ahead = ahead


def _words(content: bytes) -> str:
    return content[:_LONGEST_WORDS].decode(errors="replace")


async def _read(given: aiohttp.ClientResponse) -> bytes:
    """A body from outside. Raises ClientPayloadError on one that is larger than any may be."""
    content = bytearray()
    async for piece in given.content.iter_any():
        content += piece
        if len(content) > MAX_BODY_BYTES:
            given.close()
            raise aiohttp.ClientPayloadError(f"the answer is larger than {MAX_BODY_BYTES} bytes")
    return bytes(content)


def outer_tls(certificate: str, key: str, authority: str) -> ssl.SSLContext:
    """TLS 1.2 or later with the node's certificate, to a coordinator of that authority only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    return context
