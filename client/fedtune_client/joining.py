"""A node's folder: made, let in, and looked at.

node.yaml        what the hospital sets: data, base models, policy
keys/            identity.pem, tls.pem, flower.pem; mode 0600, never sent
keys.new/        after `renew`, until the coordinator's answer
request.json     what to send to the coordinator
request.number   of the last request, which the next one's is higher than
admission.json   what came back
roster.json      the newest roster that was seen
runs/  logs/
"""

import shutil
import time
from pathlib import Path

from fedtune.atomic import writable, write_text
from fedtune.config.load import save_config
from fedtune.errors import InputError
from fedtune.identity import enrolment, roster
from fedtune.identity.keys import NodeKeys, fingerprint, load_keys, new_keys, public_bytes
from fedtune_client.node_config import NODE_FILE, NodeConfig, load_node

ROSTER_FILE = "roster.json"
_RENEWED = "keys.new"


def init(folder: Path, config: NodeConfig) -> str:
    """Make a node's folder with its keys and its request; give its identity's fingerprint.

    Raises InputError if there is something in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError("is not empty", where=folder, mend="name a new folder")
    with writable(folder, "choose another folder"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # also one that was there
    keys = new_keys(folder / "keys")
    _write_request(folder, config.silo, keys)
    save_config(config, folder / NODE_FILE)
    return fingerprint(public_bytes(keys.identity))


def renew(folder: Path) -> None:
    """New TLS and Flower keys, and a request for them that this node's identity signs.

    The node goes on with the old keys until an admission for the new ones comes (`join`).
    """
    config, fresh = load_node(folder), folder / _RENEWED
    if fresh.exists():
        raise InputError(
            "new keys wait here already",
            where=fresh,
            mend=f"send {folder / 'request.json'} to the coordinator; or remove them, and again",
        )
    keys = new_keys(fresh, load_keys(folder / "keys").identity)
    _write_request(folder, config.silo, keys)


def _write_request(folder: Path, silo: str, keys: NodeKeys) -> None:
    """A new request. Its number is the time or, by a clock that goes back, one more than the last:
    so it is higher too in a folder that comes from a backup.
    """
    file = folder / "request.number"
    try:
        last = int(file.read_text())
    except (OSError, ValueError):
        last = 0
    number = max(int(time.time()), last + 1)
    write_text(file, f"{number}\n")
    write_text(folder / "request.json", enrolment.new_request(silo, keys, number))


def join(folder: Path, admission: Path) -> roster.Roster:
    """Take the coordinator's answer. Raises InputError unless the pinned consortium gave it.

    An answer to `renew` puts the new keys in the place of the old.
    """
    config = load_node(folder)
    try:
        text = admission.read_text(encoding="utf-8")
        renewed = _is_for_new_keys(folder, config, text)
        keys = load_keys(folder / (_RENEWED if renewed else "keys"))
        given, listed = enrolment.read_admission(text, config.consortium, config.silo, keys)
    except FileNotFoundError:
        raise InputError("no such file", where=admission, expected="an admission") from None
    except (OSError, ValueError) as error:
        raise InputError(str(error), where=admission, expected="this node's admission") from None
    if renewed:  # whatever a crash leaves of this, the same command mends
        shutil.rmtree(folder / "keys", ignore_errors=True)
        (folder / _RENEWED).rename(folder / "keys")
    write_text(folder / "certificates" / "authority.crt", given.authority)
    write_text(folder / "certificates" / "node.crt", given.certificate)
    newest = _newest(folder / ROSTER_FILE, given, listed)
    write_text(folder / "admission.json", text)
    return newest


def _newest(file: Path, given: enrolment.Admission, listed: roster.Roster) -> roster.Roster:
    """The admission's roster, or the newer one of the same consortium that this node has seen."""
    try:
        return roster.load(file, bytes.fromhex(given.consortium), at_least=listed.version)
    except InputError:  # none, an older one, or another consortium's
        write_text(file, given.roster)
        return listed


def _is_for_new_keys(folder: Path, config: NodeConfig, text: str) -> bool:
    if not (folder / _RENEWED).exists():
        return False
    keys = load_keys(folder / _RENEWED)
    try:
        enrolment.read_admission(text, config.consortium, config.silo, keys)
    except ValueError:
        return False
    return True


def admission_of(folder: Path) -> enrolment.Admission:
    """What the node was let in with. Raises InputError before it was."""
    config, file = load_node(folder), folder / "admission.json"
    if not file.exists():
        raise InputError(
            "this node was not let in yet",
            where=folder,
            mend=f"send {folder / 'request.json'} to the coordinator, then: "
            f"fedtune client join {folder} ADMISSION.json",
        )
    try:
        text = file.read_text(encoding="utf-8")
        keys = load_keys(folder / "keys")
        return enrolment.read_admission(text, config.consortium, config.silo, keys)[0]
    except (OSError, ValueError) as error:
        raise InputError(str(error), where=file) from None


def roster_of(folder: Path) -> roster.Roster:
    """Who takes part, as far as this node has heard. Raises InputError unless the consortium that
    it was let in by says so.
    """
    return roster.load(folder / ROSTER_FILE, bytes.fromhex(admission_of(folder).consortium))


def identities_of(folder: Path) -> dict[str, bytes]:
    """The public key of each silo that takes part, by the roster."""
    members = roster_of(folder).members
    return {m.silo: bytes.fromhex(m.identity) for m in members if not m.revoked}


def take_roster(folder: Path, text: str, consortium: bytes) -> roster.Roster:
    """Keep an untrusted roster that the coordinator carried. Raises ValueError unless it is the
    consortium's and no older than the newest that was seen.
    """
    file = folder / ROSTER_FILE
    try:
        seen = roster.load(file, consortium).version if file.exists() else 1
    except InputError as error:
        raise ValueError(f"this node's own roster file {error.problem}") from None
    given = roster.verify(text, consortium, at_least=seen)
    if given.version > seen or not file.exists():
        write_text(file, text)
    return given
