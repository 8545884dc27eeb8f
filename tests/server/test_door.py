"""The door with a silo's true credentials, and something behind it that takes whatever comes."""

import base64
import datetime
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fedtune_client.connector import Connector
from fedtune_client.connector import outer_tls as outward_tls
from fedtune_server.door import Door, outer_tls
from fedtune_server.project import open_project
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node as FlowerNode

from fedtune.identity.certificates import pem, signing_request
from fedtune.identity.keys import load_keys
from fedtune.identity.loopback import loopback_context, new_loopback
from fedtune.serving.line import NODE_HEADER
from fedtune.serving.served import Served
from tests.e2e.conftest import Federation, make
from tests.e2e.conftest import until as until_it_is

PULL, PUSH, PIECE = (
    f"/v1/fleet/{call}" for call in ("pull-messages", "push-messages", "push-object")
)
NORTH, SUPERLINK = 7, 1


@pytest.fixture
def came() -> list[str]:
    """What came through the door."""
    return []


@pytest.fixture
def door(tmp_path: Path, came: list[str]) -> Iterator[tuple[Door, Federation]]:
    """A door that serves, with `north` and `south` in its roster."""
    federation = make(tmp_path, ("north", "south"))
    project = open_project(federation.server)
    certificate, key = new_loopback(tmp_path / "loopback")
    asked = iter(range(100))

    async def take(request: web.Request) -> web.Response:
        came.append(request.path)
        given = PullMessagesResponse()
        if request.path == PULL:
            told = Metadata(message_id=f"asked-{next(asked)}")
            given.messages_list.append(Message(metadata=told))
        return web.Response(body=given.SerializeToString())

    behind = web.Application(client_max_size=2**30)
    behind.router.add_post("/{path:.*}", take)
    inside = Served(behind, "127.0.0.1", 0, loopback_context(certificate, key))
    trusted = ssl.create_default_context(cafile=str(certificate))
    made = Door(f"https://127.0.0.1:{inside.start()}", trusted, project.roster)
    place = project.certificates
    files = (str(place / name) for name in ("server.crt", "server.pem", "authority.crt"))
    outside = Served(made.application(), "127.0.0.1", project.config.port, outer_tls(*files))
    outside.start()
    yield made, federation
    outside.stop()
    inside.stop()


@dataclass(frozen=True)
class Node:
    """A silo's node, with its true credentials; each call goes over a line of its own."""

    folder: Path
    port: int

    @property
    def tls(self) -> ssl.SSLContext:
        return outward_tls(
            str(self.folder / "certificates" / "node.crt"),
            str(self.folder / "keys" / "tls.pem"),
            str(self.folder / "certificates" / "authority.crt"),
        )

    @property
    def headers(self) -> dict[str, str]:
        public = load_keys(self.folder / "keys").flower.public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return {"flwr-public-key": base64.b64encode(pem).decode(), NODE_HEADER: "one"}

    def __call__(self, path: str, body: bytes) -> httpx.Response:
        with httpx.Client(base_url=f"https://127.0.0.1:{self.port}", verify=self.tls) as client:
            return client.post(path, content=body, headers=self.headers)

    @contextmanager
    def begun(self, body: bytes) -> Iterator[ssl.SSLSocket]:
        """A call that has sent this much of a longer body, and sends no more."""
        head = {**self.headers, "host": "127.0.0.1", "content-length": "1000000"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        with self.tls.wrap_socket(plain, server_hostname="127.0.0.1") as line:
            line.sendall(f"POST {PULL} HTTP/1.1\r\n{lines}\r\n".encode() + body)
            yield line


until = partial(until_it_is, seconds=10)


def node_of(door: tuple[Door, Federation], silo: str) -> Node:
    return Node(door[1].folder / silo, open_project(door[1].server).config.port)


@pytest.fixture
def north(door: tuple[Door, Federation]) -> Node:
    return node_of(door, "north")


@pytest.fixture
def south(door: tuple[Door, Federation]) -> Node:
    return node_of(door, "south")


def reply(to: str, sender: int = NORTH, count: int = 1) -> bytes:
    told = Metadata(message_id="own", reply_to_message_id=to, src_node_id=sender)
    asked = PushMessagesRequest(
        node=FlowerNode(node_id=NORTH), messages_list=[Message(metadata=told)] * count
    )
    return bytes(asked.SerializeToString())


def test_a_silo_answers_as_itself_and_speaks_to_nobody_unasked(
    north: Node, came: list[str]
) -> None:
    for body in (
        reply("asked-0", sender=8),
        reply("", sender=SUPERLINK),  # an instruction, as of the coordinator, to its own app
        reply(""),
        reply("asked-0", count=2),
        reply("asked-0", count=0),
        b"\xff\xff",
    ):
        assert north(PUSH, body).status_code == 403
    assert came == []
    assert north(PUSH, reply("asked-0")).status_code == 200


def test_what_a_silo_may_send_hangs_on_what_it_was_asked_not_on_how_it_connects(
    north: Node, door: tuple[Door, Federation]
) -> None:
    door[0].largest_reply = 1000
    piece = bytes(600)
    for number in range(2):
        assert north(PULL, b"").status_code == 200
        for _ in range(20):  # until the message is taken for undeliverable, and the next is given
            north(PULL, b"")
        assert north(PUSH, reply(f"asked-{number}")).status_code == 200
        assert north(PIECE, piece).status_code == 200
        assert north(PIECE, piece + b"1").status_code == 413
        assert north(PUSH, reply(f"asked-{number}")).status_code == 413
        assert north(PUSH, reply("made up")).status_code == 413
        assert north(PIECE, piece + b"2").status_code == 413


def test_a_body_larger_than_any_piece_is_not_taken_in(north: Node, came: list[str]) -> None:
    assert north(PULL, bytes(5 * 2**20)).status_code == 413
    assert came == []


def test_who_is_turned_away_writes_a_line_a_minute_whatever_it_calls(
    north: Node, door: tuple[Door, Federation], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(30):
        assert north(f"/v1/control/{number}", b"").status_code == 403
        assert north("/v1/fleet/pull messages", b"").status_code == 403
    (line,) = caplog.messages
    assert line == "refused: silo north at 127.0.0.1: may not call '/v1/control/0'"


@pytest.mark.parametrize(
    ("days", "why"),
    [
        ((-400, -3), "its certificate has expired ({last}): enroll its request once more"),
        ((3, 400), "its certificate is good from {first} on: which clock is wrong?"),
    ],
)
def test_a_certificate_out_of_date_is_turned_away_and_its_silo_named(
    north: Node,
    door: tuple[Door, Federation],
    days: tuple[int, int],
    why: str,
    came: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert north(PULL, b"").status_code == 200
    first, last = give_north(door[1], days)
    refused = north(PULL, b"")
    said = why.format(first=f"{first:%Y-%m-%d}", last=f"{last:%Y-%m-%d}")
    assert (refused.status_code, refused.text) == (403, said)
    assert caplog.messages == [f"refused: silo north at 127.0.0.1: {said}"]
    assert came == [PULL]


def test_a_certificate_that_another_signed_is_not_even_heard(
    north: Node, door: tuple[Door, Federation], came: list[str]
) -> None:
    give_north(door[1], (-1, 1), by_authority=False)
    with pytest.raises(httpx.HTTPError):
        north(PULL, b"")
    assert came == []


def give_north(
    federation: Federation, days: tuple[int, int], *, by_authority: bool = True
) -> tuple[datetime.datetime, ...]:
    """Give the node a certificate for its true key, of these days from today; tells them."""
    folder, now = federation.folder / "north", datetime.datetime.now(datetime.UTC)
    authority, signer = open_project(federation.server).authority()
    key = load_keys(folder / "keys").tls
    first, last = (now + datetime.timedelta(days=number) for number in days)
    builder = x509.CertificateBuilder(
        authority.subject,
        signing_request(key, "north").subject,
        key.public_key(),
        x509.random_serial_number(),
        first,
        last,
    )
    made = builder.sign(signer if by_authority else key, hashes.SHA256())
    (folder / "certificates" / "node.crt").write_text(pem(made))
    return first, last


def test_a_silo_s_calls_and_bytes_under_way_are_limited_and_given_back(
    north: Node, south: Node, door: tuple[Door, Federation]
) -> None:
    limits = door[0].under_way
    limits.calls_of_silo, limits.bytes_of_silo, limits.bytes_of_all = 2, 1000, 1500
    for _ in range(3):
        assert north(PULL, bytes(1001)).status_code == 503
        assert north(PULL, bytes(1000)).status_code == 200
    with north.begun(bytes(900)):
        until(lambda: north(PULL, bytes(200)).status_code == 503, "the first bytes")
        assert north(PULL, bytes(50)).status_code == 200
        with north.begun(b"1"):
            until(lambda: north(PULL, b"").status_code == 503, "the second call")
            assert south(PULL, bytes(500)).status_code == 200
            assert south(PULL, bytes(700)).status_code == 503
    until(lambda: north(PULL, bytes(1000)).status_code == 200, "room")
    assert south(PULL, bytes(700)).status_code == 200


def test_a_body_that_stalls_is_given_up(north: Node, door: tuple[Door, Federation]) -> None:
    door[0].under_way.stalls_seconds, door[0].under_way.calls_of_silo = 0.5, 1
    with north.begun(b"and no more") as line:
        until(lambda: north(PULL, b"").status_code == 200, "room")
        assert line.recv(100).startswith(b"HTTP/1.1 503 ")


def test_a_node_makes_a_call_again_until_there_is_room(
    north: Node, door: tuple[Door, Federation], came: list[str]
) -> None:
    door[0].under_way.calls_of_silo = 1
    key = load_keys(north.folder / "keys").flower
    connector = Connector(f"https://127.0.0.1:{north.port}", north.tls, key, process="one")
    inside = Served(connector.application(), "127.0.0.1")
    url = f"http://127.0.0.1:{inside.start()}"
    try:
        with ThreadPoolExecutor() as pool:
            with north.begun(b"1"):
                until(lambda: north(PULL, b"").status_code == 503, "the first call")
                call = pool.submit(
                    httpx.post, url + PULL, headers=north.headers, content=bytes(9), timeout=30
                )
                with pytest.raises(TimeoutError):
                    call.result(timeout=1.5)
            assert call.result(timeout=10).status_code == 200
    finally:
        inside.stop()
    assert came == [PULL]
