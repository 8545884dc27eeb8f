"""The coordinator's start, up to what it starts."""

import socket
import threading
from pathlib import Path

import pytest
from fedtune_server.project import ServerConfig, init
from fedtune_server.running import start

from fedtune.errors import InputError


def test_a_loopback_port_that_is_taken_is_named_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = ServerConfig(federation="Trial", hosts=["127.0.0.1"], local_port=port - 1)
        project = init(tmp_path / "server", config)
        with pytest.raises(InputError, match=f"local_port: port {port} can't be listened on"):
            start(project, threading.Event())
    assert not project.logs.exists()
