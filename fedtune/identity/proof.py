"""A silo proves who it is in a run: its identity signs the coordinator's fresh number.

Flower tells nodes apart, and TLS keys; this ties a node of a run to an identity of the roster. The
signature is bound to run and name, so that it is good for no other.
"""

import secrets

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtune.identity.keys import verifier
from fedtune.identity.roster import Member

NONCE_CHARACTERS = 64


def new_nonce() -> str:
    """32 bytes from the system's generator, in hex."""
    return secrets.token_hex(NONCE_CHARACTERS // 2)


def prove(identity: Ed25519PrivateKey, silo: str, run: str, nonce: str) -> str:
    """The silo's signature, in hex. Raises ValueError on a number that is no nonce."""
    if len(nonce) != NONCE_CHARACTERS:
        raise ValueError(f"a nonce has {NONCE_CHARACTERS} characters, not {len(nonce)}")
    return identity.sign(_said(silo, run, nonce)).hex()


def is_proven(member: Member, run: str, nonce: str, proof: str) -> bool:
    """Whether `proof` is of the identity that the roster has for this silo."""
    try:
        signature = bytes.fromhex(proof)
        key = verifier(bytes.fromhex(member.identity))
        key.verify(signature, _said(member.silo, run, nonce))
    except (ValueError, InvalidSignature):
        return False
    return True


def _said(silo: str, run: str, nonce: str) -> bytes:
    # lengths keep what is run and what is name apart
    parts = [part.encode() for part in (silo, run, nonce)]
    return b"fedtune proof v1\n" + b"".join(b"%d:%b\n" % (len(part), part) for part in parts)
