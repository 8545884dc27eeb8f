"""A node at work: the connector to the coordinator, Flower's SuperNode, and the worker, as one."""

import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from fedtune import telemetry
from fedtune.errors import RunFailedError
from fedtune.identity.expiry import Expiry
from fedtune.identity.keys import load_keys
from fedtune.identity.loopback import loopback_context, new_loopback
from fedtune.serving.kept import Kept
from fedtune.serving.line import PIECES
from fedtune.serving.served import Served
from fedtune_client.connector import Connector, outer_tls
from fedtune_client.flower_worker import serve
from fedtune_client.joining import admission_of
from fedtune_client.node import Node, node_app
from fedtune_client.node_config import load_node

_CHECK_SECONDS = 1.0
_SILENT_SECONDS = 90.0
_log = logging.getLogger(__name__)


def start(folder: Path, stop: threading.Event) -> None:
    """Take part until `stop`.

    Raises InputError on a folder that can't be used, RunFailedError if the node fails.
    """
    config, admission, keys = load_node(folder), admission_of(folder), load_keys(folder / "keys")
    node = Node(config, keys.identity, folder, bytes.fromhex(admission.consortium))
    place = folder / "loopback"
    certificate, key = new_loopback(place)
    secret = secrets.token_bytes(32)
    with _secret_file(place / "secret", secret) as secret_file:
        tls = outer_tls(
            str(folder / "certificates" / "node.crt"),
            str(folder / "keys" / "tls.pem"),
            str(folder / "certificates" / "authority.crt"),
        )
        connector = Connector(f"https://{admission.coordinator}", tls, keys.flower)
        served = Served(
            connector.application(),
            "127.0.0.1",
            tls=loopback_context(certificate, key),
            last_answers_seconds=0.1,  # whom they are for has ended by then
        )
        port, runtime = served.start(), _free_port()
        supernode = Kept(
            "SuperNode",
            [
                str(Path(sys.executable).parent / "flower-supernode"),
                *("--superlink", f"127.0.0.1:{port}"),
                *("--root-certificates", str(certificate)),
                *("--auth-supernode-private-key", str(folder / "keys" / "flower.pem")),
                *("--isolation", "process"),
                *("--superexec-auth-secret-file", str(secret_file)),
                *("--host", "127.0.0.1"),
                *("--port", str(runtime)),
            ],
            telemetry.OFF | PIECES,
            folder / "logs" / "supernode.log",
        )
        mend = f"send {folder / 'request.json'} to the coordinator once more"
        expiry = Expiry(folder / "certificates" / "node.crt", mend)
        until = f"{expiry.good_until:%Y-%m-%d}"
        _log.info(
            "node of %s: connecting to %s; its certificate is good until %s",
            *(config.silo, admission.coordinator, until),
        )
        failed: list[str] = []
        at_work = threading.Event()

        def work() -> None:
            try:
                serve(node_app(node), f"127.0.0.1:{runtime}", secret, stop, at_work)
            except Exception as error:
                _log.exception("the node can't answer any more")
                failed.append(type(error).__name__)
                stop.set()

        threading.Thread(target=work, daemon=True).start()
        try:
            while not stop.wait(_CHECK_SECONDS):
                supernode.check()
                if connector.silent_seconds > _SILENT_SECONDS and not at_work.is_set():
                    _log.error("SuperNode asks for nothing any more; it is started again")
                    supernode.stop()
                    connector.begin_anew()
                expiry.check()
        finally:
            # the worker may be in the middle of a round: what it needs to go on is on the disk
            supernode.stop()
            served.stop()
        if failed:  # a node that can't answer ends, rather than look alive
            raise RunFailedError(f"the node can't answer any more ({failed[0]}): see its log")


@contextlib.contextmanager
def _secret_file(path: Path, secret: bytes) -> Iterator[Path]:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])
