"""The door with a silo's true credentials, and something behind it that takes whatever comes."""

import base64
import datetime
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fedtune_server.door import Door, outer_tls
from fedtune_server.project import open_project
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node

from fedtune.identity.certificates import pem, signing_request
from fedtune.identity.keys import load_keys
from fedtune.identity.loopback import loopback_context, new_loopback
from fedtune.serving.line import NODE_HEADER
from fedtune.serving.served import Served
from tests.e2e.conftest import Federation, make

PULL, PUSH, PIECE = (
    f"/v1/fleet/{call}" for call in ("pull-messages", "push-messages", "push-object")
)
NORTH, SUPERLINK = 7, 1
Call = Callable[[str, bytes], httpx.Response]


@pytest.fixture
def came() -> list[str]:
    """What came through the door."""
    return []


@pytest.fixture
def door(tmp_path: Path, came: list[str]) -> Iterator[tuple[Door, Federation]]:
    """A door that serves, with `north` in its roster."""
    federation = make(tmp_path, ("north",))
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


@pytest.fixture
def north(door: tuple[Door, Federation]) -> Call:
    """A call of the node `north`, each over a line of its own."""
    folder, port = door[1].folder / "north", open_project(door[1].server).config.port
    public = load_keys(folder / "keys").flower.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    headers = {"flwr-public-key": base64.b64encode(pem).decode(), NODE_HEADER: "one"}

    def call(path: str, body: bytes) -> httpx.Response:
        context = ssl.create_default_context(cafile=str(folder / "certificates" / "authority.crt"))
        context.load_cert_chain(folder / "certificates" / "node.crt", folder / "keys" / "tls.pem")
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context) as client:
            return client.post(path, content=body, headers=headers)

    return call


def reply(to: str, sender: int = NORTH, count: int = 1) -> bytes:
    told = Metadata(message_id="own", reply_to_message_id=to, src_node_id=sender)
    asked = PushMessagesRequest(
        node=Node(node_id=NORTH), messages_list=[Message(metadata=told)] * count
    )
    return bytes(asked.SerializeToString())


def test_a_silo_answers_as_itself_and_speaks_to_nobody_unasked(
    north: Call, came: list[str]
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
    north: Call, door: tuple[Door, Federation]
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


def test_a_body_larger_than_any_piece_is_not_taken_in(north: Call, came: list[str]) -> None:
    assert north(PULL, bytes(5 * 2**20)).status_code == 413
    assert came == []


def test_who_is_turned_away_writes_a_line_a_minute_whatever_it_calls(
    north: Call, door: tuple[Door, Federation], caplog: pytest.LogCaptureFixture
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
    north: Call,
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
    north: Call, door: tuple[Door, Federation], came: list[str]
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
