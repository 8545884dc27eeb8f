"""The coordinator's folder: its settings, the consortium's keys, certificates, the roster, runs.

server.yaml      what the operator sets
consortium.pem   the Ed25519 key that signs the roster; and the certificate authority's:
authority.pem    both belong in a safe, this folder needs them only to enrol and revoke
consortium.pub   its public key, in hex
certificates/    authority.crt, server.crt and server.pem
roster.json      who takes part, signed
admissions/      a file for each silo, to be sent to it
superlink/       Flower's state
runs/            a folder for each run
logs/
"""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from fedtune.atomic import writable, write_text
from fedtune.config.load import load_settings, save_config
from fedtune.config.section import Section
from fedtune.errors import InputError
from fedtune.identity import certificates, enrolment, roster
from fedtune.identity.keys import (
    fingerprint,
    load_identity,
    load_private_key,
    new_identity,
    new_tls_key,
    public_bytes,
    same_fingerprint,
    save_private_key,
)

SETTINGS = "server.yaml"
SERVER_FOLDER, SERVER_PROCESS = "FEDTUNE_SERVER", "FEDTUNE_SERVER_PROCESS"
"""Environment variables that tell a ServerApp's process which coordinator it belongs to."""
_Port = Annotated[int, Field(ge=0, le=65_535)]


class ServerConfig(Section):
    """What the coordinator's operator sets."""

    federation: Annotated[str, Field(min_length=1, max_length=200)]
    hosts: list[str] = Field(
        min_length=1, description="Names and addresses by which silos reach the coordinator."
    )
    port: _Port = Field(9092, description="Where silos connect to: the only port that is open.")
    bind: str = Field("0.0.0.0", description="Address to listen on for silos.")  # noqa: S104
    local_port: _Port = Field(
        9093, description="Health and metrics, on loopback; Flower's own port is the one after."
    )
    monitoring: bool = Field(True, description="Whether `local_port` tells health and metrics.")
    least_free_mb: Annotated[int, Field(ge=0, le=10**9)] = Field(
        1024, description="With less free disk the coordinator says that it isn't well."
    )
    certificate_days: Annotated[int, Field(ge=1, le=3650)] = Field(
        certificates.CERTIFICATE_DAYS, description="How long certificates are good for."
    )

    @property
    def address(self) -> str:
        """What silos are told to connect to."""
        return f"{self.hosts[0]}:{self.port}"


@dataclass(frozen=True)
class Project:
    """A coordinator's folder that is there."""

    folder: Path
    config: ServerConfig

    @property
    def roster_file(self) -> Path:
        """Where the signed roster is."""
        return self.folder / "roster.json"

    @property
    def certificates(self) -> Path:
        """Where the certificates are, and the server's key."""
        return self.folder / "certificates"

    @property
    def runs(self) -> Path:
        """Where runs are, a folder each."""
        return self.folder / "runs"

    @property
    def logs(self) -> Path:
        """Where logs are."""
        return self.folder / "logs"

    def consortium_key(self) -> Ed25519PrivateKey:
        """The key that signs. Raises InputError if it is not there."""
        return load_identity(self._from_the_safe("consortium.pem"))

    def consortium(self) -> bytes:
        """The public key, 32 bytes. Raises InputError if it is not there."""
        file = self.folder / "consortium.pub"
        try:
            return bytes.fromhex(file.read_text())
        except (OSError, ValueError):
            raise InputError("is no public key", where=file, expected="32 bytes in hex") from None

    def roster(self) -> roster.Roster:
        """The roster as it is now, checked. Raises InputError."""
        return roster.load(self.roster_file, self.consortium())

    def _from_the_safe(self, name: str) -> Path:
        file = self.folder / name
        if not file.exists():
            raise InputError(
                "is not here", where=file, mend="put it back from its safe for this command"
            )
        return file

    def authority(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The certificate authority: its certificate and its key."""
        key = load_private_key(self._from_the_safe("authority.pem"))
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError("is no authority's key", where=self.folder / "authority.pem")
        content = (self.certificates / "authority.crt").read_bytes()
        return x509.load_pem_x509_certificate(content), key


def init(folder: Path, config: ServerConfig) -> Project:
    """Make a coordinator's folder. Raises InputError if there is something in it."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError("is not empty", where=folder, mend="name a new folder")
    with writable(folder, "choose another folder"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # also one that was there
    project = Project(folder, config)
    consortium, authority_key = new_identity(), new_tls_key()
    save_private_key(consortium, folder / "consortium.pem")
    save_private_key(authority_key, folder / "authority.pem")
    write_text(folder / "consortium.pub", public_bytes(consortium).hex() + "\n")
    authority = certificates.new_authority(authority_key, config.federation)
    write_text(project.certificates / "authority.crt", certificates.pem(authority))
    renew(project)
    empty = roster.Roster(federation=config.federation, version=1, members=())
    roster.save(empty, consortium, project.roster_file)
    save_config(config, folder / SETTINGS)  # last: a folder without it is not a project yet
    return project


def open_project(folder: Path) -> Project:
    """The coordinator's folder that is there. Raises InputError."""
    if not (folder / SETTINGS).exists():
        raise InputError(
            "is no coordinator's folder", where=folder, mend=f"fedtune server init {folder}"
        )
    return Project(folder, load_settings(folder / SETTINGS, ServerConfig))


def renew(project: Project) -> datetime.datetime:
    """A new key and certificate for the coordinator, from its next start; gives its last day."""
    authority, authority_key = project.authority()
    key, place = new_tls_key(), project.certificates
    made = certificates.server_certificate(
        key, project.config.hosts, authority, authority_key, days=project.config.certificate_days
    )
    (place / "server.pem.new").unlink(missing_ok=True)
    save_private_key(key, place / "server.pem.new")
    write_text(place / "server.crt", certificates.pem(made))
    (place / "server.pem.new").replace(place / "server.pem")
    return made.not_valid_after_utc


def consortium_fingerprint(project: Project) -> str:
    """What silos' people are told by another way."""
    return fingerprint(project.consortium())


def read_request(file: Path) -> enrolment.Request:
    """A silo's request. Raises InputError if it can't be trusted to be one."""
    try:
        return enrolment.read_request(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file", where=file, expected="a request.json of a node") from None
    except (OSError, ValueError) as error:
        raise InputError(str(error), where=file, expected="a request.json of a node") from None


def enroll(project: Project, asked: enrolment.Request, told: str) -> Path:
    """Take the silo into the roster; give the file that it is to be sent.

    `told` is the fingerprint of the silo's identity as its own people said it. Raises InputError
    if it is another, or the name is another silo's.
    """
    if not same_fingerprint(told, bytes.fromhex(asked.identity)):
        raise InputError(
            f"the request is of the identity {fingerprint(bytes.fromhex(asked.identity))}",
            where="fingerprint",
            expected=f"{told}, as the silo's people said it",
            mend="ask the silo for the file that its node made; somebody may have changed this one",
        )
    authority, key = project.authority()
    days = project.config.certificate_days
    try:
        after, certificate = enrolment.admit(asked, project.roster(), authority, key, days=days)
    except ValueError as error:
        raise InputError(str(error), where=asked.silo) from None
    consortium = project.consortium_key()
    admission = enrolment.Admission(
        federation=project.config.federation,
        silo=asked.silo,
        coordinator=project.config.address,
        consortium=public_bytes(consortium).hex(),
        authority=certificates.pem(authority),
        certificate=certificates.pem(certificate),
        roster=roster.sign(after, consortium),
    )
    file = project.folder / "admissions" / f"{asked.silo}.json"
    write_text(file, enrolment.sign_admission(admission, consortium))
    roster.save(after, consortium, project.roster_file)
    return file


def revoke(project: Project, silo: str) -> roster.Roster:
    """Put the silo out of the roster; from its next call on it is turned away."""
    try:
        after = project.roster().without(silo)
    except ValueError as error:
        raise InputError(str(error), where=project.roster_file) from None
    roster.save(after, project.consortium_key(), project.roster_file)
    return after
