"""Flower's SuperLink on loopback: started, spoken to, and nothing of it touched anywhere else.

Of flwr==1.41.0 this file uses the commands `flower-superlink` and `flower-superexec`, and the
client of the Control API that its own `flwr` command uses.
"""

import contextlib
import ssl
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (  # pylint: disable=no-name-in-module
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedtune.bundle import bundle, bundle_digest
from fedtune.errors import RunFailedError
from fedtune.identity.roster import Member, Roster

OVER = "finished"
"""Flower's word for a run that has ended, however it did."""
_ANSWER_SECONDS = 2.0
_UNKNOWN_RUN, _ENDED_RUN = 404, 412


class NoAnswerError(RunFailedError):
    """The SuperLink doesn't answer, or not what it was asked."""

    def __init__(self, address: str, error: Exception) -> None:
        if isinstance(error, httpx.HTTPStatusError):
            found = f"answers with the status {error.response.status_code}"
        elif isinstance(error, httpx.HTTPError | OSError):
            found = f"doesn't answer ({error})"
        else:
            found = f"gives no answer that can be read ({error})"
        super().__init__(f"the SuperLink at {address} {found}; its log: logs/superlink.log")


@dataclass(frozen=True)
class Link:
    """Where the SuperLink is, and the certificate that it shows on loopback."""

    address: str
    certificate: Path

    @contextlib.contextmanager
    def _client(self) -> Iterator[ControlHttpClient]:
        """Raises NoAnswerError where what is asked of it inside isn't answered."""
        try:
            client = ControlHttpClient.from_server_address(
                server_address=self.address,
                insecure=False,
                root_certificates=self.certificate.read_bytes(),
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            )
            with contextlib.closing(client):
                yield client
        except (httpx.HTTPError, OSError, ValueError) as error:
            raise NoAnswerError(self.address, error) from None

    def answers(self) -> bool:
        """Whether it does so soon; the calls below would wait for half a minute."""
        try:
            context = ssl.create_default_context(cafile=str(self.certificate))
            httpx.get(f"https://{self.address}", verify=context, timeout=_ANSWER_SECONDS)
        except (httpx.HTTPError, OSError):
            return False
        return True

    def register(self, roster: Roster) -> None:
        """Make Flower's nodes those of the roster: new silos in, revoked ones and old keys out."""
        with self._client() as client:
            known = {
                node.public_key: node.node_id
                for node in client.ListNodes(ListNodesRequest()).nodes_info
                if node.status != "unregistered"
            }
            wanted = {pem_of(m): m for m in roster.members if not m.revoked}
            for key, member in wanted.items():
                if key not in known:
                    asked = RegisterNodeRequest(public_key=key, name=member.silo)
                    client.RegisterNode(request=asked)
            for key, number in known.items():
                if key not in wanted:
                    client.UnregisterNode(UnregisterNodeRequest(node_id=number))

    def nodes(self) -> dict[str, str]:
        """Flower's word on each node, by its public key in PEM: `online`, `offline` and so on."""
        with self._client() as client:
            given = client.ListNodes(ListNodesRequest()).nodes_info
            return {node.public_key.decode(): node.status for node in given}

    def start_run(self, run: str) -> int:
        """Have Flower start the ServerApp for the run's folder; give Flower's number of it."""
        with self._client() as client:
            fab = Fab(bundle_digest(), bundle(), {})
            asked = StartRunRequest(
                fab=fab_to_proto(fab), override_config=user_config_to_proto({"fedtune-run": run})
            )
            return int(client.StartRun(asked).run_id)

    def stop_run(self, number: int) -> bool:
        """Have Flower stop a run; whether there was one at work."""
        with self._client() as client:
            try:
                return bool(client.StopRun(StopRunRequest(run_id=number)).success)
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in (_UNKNOWN_RUN, _ENDED_RUN):
                    raise
                return False

    def run_status(self, number: int) -> tuple[str, str]:
        """Flower's word on a run: its status and, at the end, how it ended. A run that it doesn't
        know, as after its state was lost, has ended.
        """
        with self._client() as client:
            try:
                status = client.ListRuns(ListRunsRequest(run_id=number)).run_dict[number].status
                return str(status.status), f"{status.sub_status} {status.details}".strip()
            except httpx.HTTPStatusError as error:
                if error.response.status_code != _UNKNOWN_RUN:
                    raise
                return OVER, "the SuperLink doesn't know of it"


def pem_of(member: Member) -> bytes:
    """The silo's Flower key as Flower stores it."""
    key = load_ssh_public_key(member.flower_key.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - the request was checked
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def superlink_command(folder: Path, port: int, *, secret: Path, tls: Path) -> list[str]:
    """A SuperLink on loopback that keeps its state in `folder`, and starts no process itself."""
    return [
        *_flower("flower-superlink"),
        *("--ssl-ca-certfile", str(tls / "loopback.crt")),
        *("--ssl-certfile", str(tls / "loopback.crt")),
        *("--ssl-keyfile", str(tls / "loopback.pem")),
        "--enable-supernode-auth",
        *("--database", str(folder / "state.db")),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(secret)),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        "--disable-runtime-dependency-installation",
    ]


def superexec_command(port: int, *, secret: Path, tls: Path) -> list[str]:
    """What starts a ServerApp for each run that the SuperLink has."""
    return [
        *_flower("flower-superexec"),
        *("--runtime-api-address", f"127.0.0.1:{port}"),
        *("--root-certificates", str(tls / "loopback.crt")),
        *("--superexec-auth-secret-file", str(secret)),
    ]


def _flower(name: str) -> Iterable[str]:
    # by this very Python: what is first on the PATH may be another installation
    return [str(Path(sys.executable).parent / name)]
