"""The one thing that silos can reach: Flower's Fleet API, and of it what a silo's node needs.

Flower serves the API for nodes and the one that starts runs on the same port, and knows nodes by a
key in a header. The door stands before it: it speaks TLS with client certificates of the
consortium's authority, finds the silo of the certificate's key in the roster at every request, lets
nothing but the node's own calls pass, and only under that silo's own Flower key. Of two processes
with one silo's keys only the one that was there first is heard, and the log tells of the other: it
is a copy of the node's folder, or a thief's. SuperLink listens on loopback behind it.
"""

import asyncio
import base64
import binascii
import datetime
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from fedtune.identity.certificates import key_digest
from fedtune.identity.roster import Member, Roster
from fedtune.serving.line import NODE_HEADER, SMALLEST_REPLY_BYTES
from fedtune_server.letters import Answer, Letters, reply_in
from fedtune_server.refusals import Refusals
from fedtune_server.repeats import Repeats
from fedtune_server.under_way import NotNowError, TooLargeError, UnderWay

ALLOWED = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which the module `ssl` has no name."""
_SILENT_SECONDS = 60.0
_LARGEST_BODY_BYTES = 4 * 2**20  # a node sends pieces of 1 MiB
_PULL, _CONFIRM, _PUSH, _PIECE, _LEAVE = (
    f"/v1/fleet/{call}"
    for call in (
        "pull-messages",
        "confirm-message-received",
        "push-messages",
        "push-object",
        "deactivate-node",
    )
)
_ONCE = frozenset((_CONFIRM, _PUSH, _PIECE))
_OF_A_MESSAGE = frozenset(f"/v1/fleet/{call}" for call in ("get-run", "get-fab", "pull-object"))
"""What is asked before a message is confirmed; a 403 says that its run was stopped."""
_FLOWER_HEADERS = ("flwr-public-key", "flwr-signature", "flwr-timestamp", "content-type")
_log = logging.getLogger(__name__)


@dataclass
class Holder:
    """The process that speaks for a silo."""

    process: str
    heard: float
    line: asyncio.BaseTransport | None

    @property
    def is_there(self) -> bool:
        """Whether it holds its line, and was heard on it not long ago."""
        if self.line is None or self.line.is_closing():
            return False
        return time.monotonic() - self.heard < _SILENT_SECONDS


@dataclass
class Door:
    """Passes silos' calls on to the SuperLink at `inner` (`https://127.0.0.1:port`).

    `roster` gives the current version. `seen` counts calls and refusals by silo, for metrics.
    `largest_reply` is what a silo may send between two messages, in bytes.
    """

    inner: str
    inner_tls: ssl.SSLContext
    roster: Callable[[], Roster]
    seen: Callable[[str, str, int], None] = field(default=lambda silo, what, size: None)
    largest_reply: int = SMALLEST_REPLY_BYTES
    under_way: UnderWay = field(default_factory=UnderWay)
    _holders: dict[str, Holder] = field(default_factory=dict, init=False)
    _letters: Letters = field(default_factory=Letters, init=False)
    _repeats: Repeats = field(default_factory=Repeats, init=False)
    _refusals: Refusals = field(default_factory=lambda: Refusals(_log), init=False)
    _reply_bytes: Counter[str] = field(default_factory=Counter, init=False)
    _session: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        """What answers; every path goes through `answer`."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        app.cleanup_ctx.append(self._inside)
        return app

    async def _inside(self, _: web.Application) -> Any:
        connector = aiohttp.TCPConnector(ssl=self.inner_tls, limit=0)
        timeout = aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            yield
        self._refusals.end()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Pass on what this silo may ask; refuse the rest with 403 and a line in the log."""
        certificate = _certificate_of(request)
        member = self._silo_of(certificate)
        if certificate is None or member is None:
            return self._refuse("unknown", "its certificate's key is not in the roster", request)
        why_not_now = _out_of_date(certificate)
        if why_not_now is not None:
            return self._refuse(member.silo, why_not_now, request)
        if request.method != "POST" or request.raw_path not in ALLOWED:
            path = f" {request.raw_path[:80]!r}"
            return self._refuse(member.silo, "may not call", request, said=path)
        if not _is_key_of(member, request.headers.get("flwr-public-key", "")):
            return self._refuse(member.silo, "came with another node's Flower key", request)
        if "content-encoding" in request.headers:
            return self._refuse(member.silo, "sent a compressed body", request)
        holder = self._holder(member.silo, request)
        if holder is None:
            why = "another process with this silo's keys is here already: is its folder copied?"
            return self._refuse(member.silo, why, request, status=409)
        try:
            with self.under_way.call(member.silo) as call:
                body = await call.body(request.content, _LARGEST_BODY_BYTES)
                return await self._pass_on(request, member.silo, body)
        except TooLargeError:
            why = f"sent a body of more than {_LARGEST_BODY_BYTES} bytes"
            return self._refuse(member.silo, why, request, status=413)
        except NotNowError as error:  # a node makes a call again on a 503
            return self._refuse(member.silo, str(error), request, status=503)

    async def _pass_on(self, request: web.Request, silo: str, body: bytes) -> web.Response:
        """What the SuperLink answers to a call of this silo's node, if it is one to pass on."""
        self.seen(silo, "up", len(body))
        if request.path == _PUSH:
            answered = reply_in(body)
            if answered is None:
                return self._refuse(silo, "sent what is no reply of its own", request)
            if self._letters.answers(silo, answered):
                self._reply_bytes[silo] = 0
        if request.path in (_PUSH, _PIECE):
            self._reply_bytes[silo] += len(body)
            if self._reply_bytes[silo] > self.largest_reply:
                why = f"its reply is larger than {self.largest_reply} bytes"
                return self._refuse(silo, why, request, status=413)
        headers = {
            name: request.headers[name] for name in _FLOWER_HEADERS if name in request.headers
        }
        status, content, kind = await self._ask(request, silo, body, headers)
        if request.path == _LEAVE:
            self._holders.pop(silo, None)
        self.seen(silo, "down", len(content))
        return web.Response(status=status, body=content, headers={"content-type": kind})

    async def _ask(
        self, request: web.Request, silo: str, body: bytes, headers: dict[str, str]
    ) -> Answer:
        """The SuperLink's answer."""
        path = request.path
        if path == _PULL:

            def is_gone() -> bool:
                return request.transport is None or request.transport.is_closing()

            return await self._letters.next(
                silo, lambda: self._ask_once(path, body, headers), is_gone
            )
        if path in _ONCE:
            answer = await self._repeats.once(
                silo, path, body, lambda: self._ask_once(path, body, headers)
            )
        else:
            answer = await self._ask_once(path, body, headers)
        if path == _CONFIRM and answer.status == 200:
            self._letters.confirmed(silo, body)
        if path in _OF_A_MESSAGE and answer.status == 403:
            self._letters.void(silo)
        return answer

    async def _ask_once(self, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        assert self._session is not None  # noqa: S101 - made when the application starts
        try:
            async with self._session.post(self.inner + path, data=body, headers=headers) as given:
                content = await given.read()
                return Answer(given.status, content, given.headers.get("content-type", ""))
        except (aiohttp.ClientError, TimeoutError) as error:
            _log.warning("the SuperLink doesn't answer: %s", error)
            return Answer(503, b"", "text/plain")

    def _silo_of(self, certificate: x509.Certificate | None) -> Member | None:
        return self.roster().by_tls_key(key_digest(certificate)) if certificate else None

    def _holder(self, silo: str, request: web.Request) -> Holder | None:
        """The process that speaks for the silo, if this request is of it."""
        process = request.headers.get(NODE_HEADER, "")
        holder = self._holders.get(silo)
        if holder is None or not holder.is_there:
            holder = self._holders[silo] = Holder(process, 0.0, None)
        if holder.process != process:
            return None
        holder.heard, holder.line = time.monotonic(), request.transport
        return holder

    def _refuse(
        self, silo: str, why: str, request: web.Request, status: int = 403, said: str = ""
    ) -> web.Response:
        self._refusals.tell(silo, request.remote or "?", why, said)
        self.seen(silo, "refused", 0)
        return web.Response(status=status, text=why + said)


def outer_tls(certificate: str, key: str, authority: str) -> ssl.SSLContext:
    """TLS 1.2 or later that wants a client certificate of the consortium's authority.

    The door itself looks at the certificate's dates, at each call: a handshake that fails for them
    would tell nobody whose they are.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _NO_CHECK_TIME
    return context


def _certificate_of(request: web.Request) -> x509.Certificate | None:
    tls = request.transport.get_extra_info("ssl_object") if request.transport else None
    given = tls.getpeercert(binary_form=True) if tls is not None else None
    return x509.load_der_x509_certificate(given) if given is not None else None


def _out_of_date(certificate: x509.Certificate) -> str | None:
    """Why it is not good today, by this machine's clock."""
    now = datetime.datetime.now(datetime.UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > last:
        return f"its certificate has expired ({last:%Y-%m-%d}): enroll its request once more"
    if now < first:
        return f"its certificate is good from {first:%Y-%m-%d} on: which clock is wrong?"
    return None


def _is_key_of(member: Member, header: str) -> bool:
    """Whether the header, a public key in PEM and base64, is the roster's for this silo."""
    try:
        given = load_pem_public_key(base64.b64decode(header, validate=True))
        ours = load_ssh_public_key(member.flower_key.encode())
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        return given.public_bytes(*form) == ours.public_bytes(*form)
    except (ValueError, binascii.Error, UnsupportedAlgorithm):
        return False
