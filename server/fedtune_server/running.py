"""The coordinator at work: SuperLink behind its door, and what starts runs."""

import json
import logging
import os
import secrets
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from fedtune import telemetry
from fedtune.atomic import write_text
from fedtune.errors import FedtuneError, InputError
from fedtune.identity.loopback import new_loopback
from fedtune.identity.roster import Roster, load
from fedtune.serving.kept import Kept
from fedtune.serving.line import PIECES
from fedtune.serving.local import HOST
from fedtune.serving.served import Served
from fedtune_server.door import Door, outer_tls
from fedtune_server.flower_link import Link, NoAnswerError, superexec_command, superlink_command
from fedtune_server.health import Calls, Coordinator, monitoring
from fedtune_server.project import SERVER_FOLDER, SERVER_PROCESS, Project
from fedtune_server.run_start import largest_reply, take_up, watch

_CHECK_SECONDS = 1.0
_STARTING_SECONDS = 60.0
_PORT_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass
class CurrentRoster:
    """The roster, read again when its file changes."""

    project: Project
    consortium: bytes
    _seen: tuple[int, Roster] | None = field(default=None, init=False)

    def __call__(self) -> Roster:
        """The current version."""
        changed = self.project.roster_file.stat().st_mtime_ns
        if self._seen is None or self._seen[0] != changed:
            self._seen = changed, load(self.project.roster_file, self.consortium)
        return self._seen[1]


def start(project: Project, stop: threading.Event) -> None:
    """Serve until `stop`. Raises InputError where a port is taken or the folder can't be used."""
    config, place = project.config, project.folder / "superlink"
    roster = CurrentRoster(project, project.consortium())
    certificate, _ = new_loopback(place)
    port = config.local_port + 1
    secret = place / "secret"
    _write_secret(secret)
    environment = {
        **telemetry.OFF,
        **PIECES,
        SERVER_FOLDER: str(project.folder.absolute()),
        SERVER_PROCESS: str(os.getpid()),
        "FLWR_HOME": str((place / "home").absolute()),
    }
    children = [
        Kept(name, command, environment, project.logs / f"{name}.log")
        for name, command in (
            ("superlink", superlink_command(place, port, secret=secret, tls=place)),
            ("superexec", superexec_command(port, secret=secret, tls=place)),
        )
    ]
    link = Link(f"127.0.0.1:{port}", certificate)
    inner = ssl.create_default_context(cafile=str(certificate))
    calls = Calls()
    door = Door(f"https://127.0.0.1:{port}", inner, roster, calls.seen)
    outer = outer_tls(
        str(project.certificates / "server.crt"),
        str(project.certificates / "server.pem"),
        str(project.certificates / "authority.crt"),
    )
    served = Served(door.application(), config.bind, config.port, outer)
    watched = Coordinator(project, link, children, served, calls)
    health = Served(monitoring(watched), HOST, config.local_port)
    try:
        if config.monitoring:  # from the first moment on, and unwell until all is up
            _serve(health, config.local_port, "local_port")
        _wait_for_port(port, stop)
        _begin(children[0], f"https://127.0.0.1:{port}", certificate, stop)
        link.register(roster())
        registered = roster().version
        _serve(served, config.port, "port")
        take_up(project, link)
        facts = {"process": os.getpid(), "superlink": link.address, "port": config.port}
        write_text(project.folder / "running.json", json.dumps(facts) + "\n")
        _log.info("the coordinator of %s answers at port %d", config.federation, config.port)
        while not stop.is_set():
            for child in children:
                child.check()
            door.largest_reply = largest_reply(project)
            _watch(project, link)
            if roster().version != registered and _registered(link, roster()):
                registered = roster().version
                _log.info("roster version %d", registered)
            stop.wait(_CHECK_SECONDS)
    finally:
        (project.folder / "running.json").unlink(missing_ok=True)
        served.stop()
        health.stop()
        for child in reversed(children):
            child.stop()
        secret.unlink(missing_ok=True)


def _wait_for_port(port: int, stop: threading.Event) -> None:
    """Whoever is there may be about to end, as a coordinator before this one does."""
    over = time.monotonic() + _PORT_SECONDS
    while not stop.is_set():
        with socket.socket() as asked:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                asked.bind(("127.0.0.1", port))
            except OSError as error:
                if time.monotonic() > over:
                    raise _taken(port, error, "local_port") from None
            else:
                return
        stop.wait(0.2)


def _begin(child: Kept, url: str, certificate: Path, stop: threading.Event) -> None:
    """Start the SuperLink and wait until it answers."""
    over = time.monotonic() + _STARTING_SECONDS
    with httpx.Client(verify=ssl.create_default_context(cafile=str(certificate))) as client:
        while not stop.is_set() and time.monotonic() < over:
            child.check()
            try:
                client.get(url)
            except httpx.HTTPError:
                stop.wait(0.2)
            else:
                return
    raise InputError("Flower's SuperLink did not start", where=child.log, mend="its log says why")


def _watch(project: Project, link: Link) -> None:
    try:
        watch(project, link)
    except FedtuneError as error:  # of the SuperLink or the disk: both may mend
        _log.warning("runs can't be looked at: %s", error)


def _registered(link: Link, roster: Roster) -> bool:
    try:
        link.register(roster)
    except NoAnswerError as error:  # it is asked again
        _log.warning("the roster can't be handed to Flower: %s", error)
        return False
    return True


def _serve(served: Served, port: int, setting: str) -> None:
    try:
        served.start()
    except OSError as error:
        raise _taken(port, error, setting) from None


def _taken(port: int, error: OSError, field: str) -> InputError:
    return InputError(
        f"port {port} can't be listened on ({error.strerror})",
        where=field,
        mend=f"set another `{field}` in server.yaml",
    )


def _write_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(32))
