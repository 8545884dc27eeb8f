"""Private keys on this machine's disk: made here, readable by their owner alone, never sent.

A silo has an Ed25519 identity for its whole life in the federation; the keys that others rely on
(TLS, Flower) may change, and it signs for the new ones. All are PKCS 8 in PEM, the Flower key
OpenSSH's format, which is the one that Flower reads.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedtune.atomic import writable
from fedtune.errors import InputError

PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PUBLIC_BYTES = 32
_OWNER_ONLY = 0o600
_SSH_BEGINS = b"-----BEGIN OPENSSH"


@dataclass(frozen=True)
class NodeKeys:
    """A node's three private keys: who it is, how it talks, how Flower knows it."""

    identity: Ed25519PrivateKey
    tls: ec.EllipticCurvePrivateKey
    flower: ec.EllipticCurvePrivateKey

    @staticmethod
    def files(folder: Path) -> dict[str, Path]:
        """Where each key is kept in `folder`."""
        return {name: folder / f"{name}.pem" for name in ("identity", "tls", "flower")}


def new_identity() -> Ed25519PrivateKey:
    """A long-term identity: of a silo, or of the consortium that signs the roster."""
    return Ed25519PrivateKey.generate()


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """A key for a certificate: P-256, which every TLS library has."""
    return ec.generate_private_key(ec.SECP256R1())


def new_flower_key() -> ec.EllipticCurvePrivateKey:
    """A key with which a node signs its requests to Flower: P-384, as Flower's own tools make."""
    return ec.generate_private_key(ec.SECP384R1())


def save_private_key(key: PrivateKey, path: Path, *, ssh: bool = False) -> None:
    """Write `key` to a new file of mode 0600. Raises InputError if there is a file already."""
    form = serialization.PrivateFormat.OpenSSH if ssh else serialization.PrivateFormat.PKCS8
    content = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    with writable(path, "choose another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        except FileExistsError:
            raise InputError(
                "is there already, and a key is not replaced",
                where=path,
                mend="move it away if you mean to have a new one",
            ) from None
        try:
            with os.fdopen(opened, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def load_private_key(path: Path) -> PrivateKey:
    """The key in `path`. Raises InputError if others may read it, or it is none of ours."""
    content = _owners_secret(path)
    load = (
        serialization.load_ssh_private_key
        if content.startswith(_SSH_BEGINS)
        else serialization.load_pem_private_key
    )
    try:
        key = load(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(
            "is no private key, or has a passphrase", where=path, expected="a file of fedtune's own"
        ) from None
    if not isinstance(key, PrivateKey):
        raise InputError(
            f"is a {type(key).__name__}", where=path, expected="an Ed25519 or an elliptic-curve key"
        )
    return key


def load_identity(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 identity in `path`. Raises InputError as `load_private_key`."""
    key = load_private_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError("is no identity", where=path, expected="an Ed25519 key")
    return key


def _owners_secret(path: Path) -> bytes:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & ~_OWNER_ONLY & 0o777:
            raise InputError(
                f"others may read this private key (mode {mode:04o})",
                where=path,
                expected="mode 0600",
                mend=f"chmod 600 {path}; if others had access, make a new key",
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", where=path, expected="a private key") from None
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", where=path) from None


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the identity's public key."""
    return key.public_key().public_bytes_raw()


def verifier(public: bytes) -> Ed25519PublicKey:
    """The key that checks signatures of the identity with these 32 bytes; ValueError if none."""
    return Ed25519PublicKey.from_public_bytes(public)


def ssh_public(key: ec.EllipticCurvePrivateKey) -> str:
    """The public key in OpenSSH's one line, as Flower wants it registered."""
    form = serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, form).decode()


def fingerprint(public: bytes) -> str:
    """What two people compare over the telephone: SHA-256 of a public key, in groups of four."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public)
    text = digest.finalize().hex()
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def same_fingerprint(told: str, public: bytes) -> bool:
    """Whether somebody's typed fingerprint is that of `public`; case and gaps don't matter."""
    return "".join(told.lower().split()) == "".join(fingerprint(public).split())


def new_keys(folder: Path, identity: Ed25519PrivateKey | None = None) -> NodeKeys:
    """Make a node's keys and write them to `folder`; with an identity, new ones for it.

    Raises InputError when any of them is there already; then none is written.
    """
    keys = NodeKeys(identity or new_identity(), new_tls_key(), new_flower_key())
    for path in keys.files(folder).values():
        if path.exists():
            raise InputError(
                "is there already, and a key is not replaced",
                where=path,
                mend="use another folder for another node",
            )
    with writable(folder, "choose another folder"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, path in keys.files(folder).items():
        save_private_key(getattr(keys, name), path, ssh=name == "flower")
    return keys


def load_keys(folder: Path) -> NodeKeys:
    """The node's keys in `folder`. Raises InputError as `load_private_key`."""
    paths = NodeKeys.files(folder)
    return NodeKeys(
        load_identity(paths["identity"]),
        _load_curve_key(paths["tls"]),
        _load_curve_key(paths["flower"]),
    )


def _load_curve_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_private_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError("is an identity", where=path, expected="an elliptic-curve key")
    return key
