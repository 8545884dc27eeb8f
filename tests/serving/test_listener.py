"""Who opens line after line keeps nobody else out, and takes no files from the process."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.conftest import until

FILES = 80
SERVES = f"""
import logging, pathlib, resource, threading
from aiohttp import web
from fedtune.serving.served import Served
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
logging.basicConfig()
async def read(_):
    return web.Response(body=pathlib.Path("/dev/null").read_bytes())
application = web.Application()
application.router.add_get("/", read)
print(Served(application, "127.0.0.1").start(), flush=True)
threading.Event().wait()
"""
LAST = {"connection": "close"}
STRANGER, OTHER, NODE = "127.0.0.2", "127.0.0.3", "127.0.0.4"


@pytest.fixture
def serving() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with few files that serves at a port."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVES], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def opened(port: int, address: str, kept: contextlib.ExitStack) -> int:
    """How many lines from this address, on which nothing is said, are left open of too many."""
    lines = []
    for _ in range(2 * FILES):
        line = socket.create_connection(("127.0.0.1", port), source_address=(address, 0))
        line.setblocking(False)
        lines.append(kept.enter_context(line))
    until(lambda: sum(map(is_closed, lines)) >= 2 * FILES - FILES // 4, "closed lines")
    return len(lines) - sum(map(is_closed, lines))


def is_closed(line: socket.socket) -> bool:
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def is_heard(port: int, address: str) -> bool:
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address)) as client:
        try:
            got = client.get(f"http://127.0.0.1:{port}/", headers=LAST, timeout=5)
            return got.status_code == 200
        except httpx.TransportError:
            return False


def test_a_stranger_s_lines_keep_nobody_else_out(
    serving: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = serving
    with contextlib.ExitStack() as kept:
        assert opened(port, STRANGER, kept) == FILES // 4
        assert is_heard(port, NODE)
        assert opened(port, OTHER, kept) == FILES // 4
        assert not is_heard(port, NODE)
    until(lambda: is_heard(port, STRANGER), "room")
    process.kill()
    (line,) = process.communicate()[1].splitlines()
    assert f"a line from {STRANGER} is closed: 20 are open, 20 of them from there" in line
