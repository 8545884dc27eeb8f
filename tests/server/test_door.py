"""The door with a silo's true credentials, and something behind it that takes whatever comes."""

import base64
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fedtune_server.door import Door, outer_tls
from fedtune_server.project import open_project
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node

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
    context = ssl.create_default_context(cafile=str(folder / "certificates" / "authority.crt"))
    context.load_cert_chain(folder / "certificates" / "node.crt", folder / "keys" / "tls.pem")
    public = load_keys(folder / "keys").flower.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    headers = {"flwr-public-key": base64.b64encode(pem).decode(), NODE_HEADER: "one"}

    def call(path: str, body: bytes) -> httpx.Response:
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
