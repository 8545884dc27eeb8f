"""The one thing that silos can reach: Flower's Fleet API, and of it what a silo's node needs.

Flower serves the API for nodes and the one that starts runs on the same port, and knows nodes by a
key in a header. The door stands before it: it speaks TLS with client certificates of the
consortium's authority, finds the silo of the certificate's key in the roster at every request, lets
nothing but the node's own calls pass, and only under that silo's own Flower key. SuperLink listens
on loopback behind it.
"""

import asyncio
import base64
import binascii
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)
from flwr.proto.fleet_pb2 import PullMessagesResponse  # pylint: disable=no-name-in-module

from fedtune.identity.certificates import key_digest
from fedtune.identity.roster import Member, Roster

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
MAX_BODY_BYTES = 64 * 2**20
"""Flower cuts what is larger into pieces."""
_PULL = "/v1/fleet/pull-messages"
_HELD_SECONDS = 15.0
_ASKED_EVERY_SECONDS = 0.5
_FLOWER_HEADERS = ("flwr-public-key", "flwr-signature", "flwr-timestamp", "content-type")
_log = logging.getLogger(__name__)


@dataclass
class Door:
    """Passes silos' calls on to the SuperLink at `inner` (`https://127.0.0.1:port`).

    `roster` gives the current version. `seen` counts calls and refusals by silo, for metrics.
    """

    inner: str
    inner_tls: ssl.SSLContext
    roster: Callable[[], Roster]
    seen: Callable[[str, str, int], None] = field(default=lambda silo, what, size: None)
    _session: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        """What answers; every path goes through `answer`."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self.answer)
        app.cleanup_ctx.append(self._inside)
        return app

    async def _inside(self, _: web.Application) -> Any:
        connector = aiohttp.TCPConnector(ssl=self.inner_tls, limit=0)
        timeout = aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            yield

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Pass on what this silo may ask; refuse the rest with 403 and a line in the log."""
        member = self._silo_of(request)
        if member is None:
            return self._refuse("unknown", "its certificate's key is not in the roster", request)
        if request.method != "POST" or request.raw_path not in ALLOWED:
            return self._refuse(member.silo, f"may not call {request.raw_path[:80]!r}", request)
        if not _is_key_of(member, request.headers.get("flwr-public-key", "")):
            return self._refuse(member.silo, "came with another node's Flower key", request)
        body = await request.read()
        self.seen(member.silo, "up", len(body))
        headers = {
            name: request.headers[name] for name in _FLOWER_HEADERS if name in request.headers
        }
        status, content, kind = await self._ask(request.path, body, headers)
        self.seen(member.silo, "down", len(content))
        return web.Response(status=status, body=content, headers={"content-type": kind})

    async def _ask(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, str]:
        """The SuperLink's answer. Where a node asks for messages and there are none, it is held:
        a node that is told so at once would sleep for seconds."""
        over = asyncio.get_running_loop().time() + _HELD_SECONDS
        while True:
            status, content, kind = await self._ask_once(path, body, headers)
            empty = path == _PULL and status == 200 and _is_empty(content)
            if not empty or asyncio.get_running_loop().time() >= over:
                return status, content, kind
            await asyncio.sleep(_ASKED_EVERY_SECONDS)

    async def _ask_once(
        self, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes, str]:
        assert self._session is not None  # noqa: S101 - made when the application starts
        try:
            async with self._session.post(self.inner + path, data=body, headers=headers) as given:
                content = await given.read()
                return given.status, content, given.headers.get("content-type", "")
        except aiohttp.ClientError as error:
            _log.warning("the SuperLink doesn't answer: %s", error)
            return 503, b"", "text/plain"

    def _silo_of(self, request: web.Request) -> Member | None:
        tls = request.transport.get_extra_info("ssl_object") if request.transport else None
        given = tls.getpeercert(binary_form=True) if tls is not None else None
        if given is None:
            return None
        return self.roster().by_tls_key(key_digest(x509.load_der_x509_certificate(given)))

    def _refuse(self, silo: str, why: str, request: web.Request) -> web.Response:
        _log.warning("refused: silo %s at %s: %s", silo, request.remote, why)
        self.seen(silo, "refused", 0)
        return web.Response(status=403, text=why)


def outer_tls(certificate: str, key: str, authority: str) -> ssl.SSLContext:
    """TLS 1.2 or later that wants a client certificate of the consortium's authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _is_empty(content: bytes) -> bool:
    given = PullMessagesResponse()
    given.ParseFromString(content)
    return not given.messages_list


def _is_key_of(member: Member, header: str) -> bool:
    """Whether the header, a public key in PEM and base64, is the roster's for this silo."""
    try:
        given = load_pem_public_key(base64.b64decode(header, validate=True))
        ours = load_ssh_public_key(member.flower_key.encode())
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        return given.public_bytes(*form) == ours.public_bytes(*form)
    except (ValueError, binascii.Error):
        return False
