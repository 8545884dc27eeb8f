"""Keys that two silos, or one silo and its shareholders, can derive; and the masks they expand to.

A mask is the keystream of AES-256 in counter mode (NIST SP 800-38A, 6.5) under a key of
HKDF-SHA256 (RFC 5869), read as little-endian unsigned 64-bit words and added modulo 2^64. A key is
bound to the round's terms, to its purpose and to both silos, and expands to one mask only, so that
counters start from zero.
"""

import hashlib

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
WORD = np.dtype("<u8")
_CHUNK_BYTES = 1 << 18  # stays in a core's cache beside the part of the vector that it is added to
_ZEROS = bytes(_CHUNK_BYTES)


def pair_key(
    own: X25519PrivateKey, other: bytes, context: bytes, purpose: str, names: tuple[str, str]
) -> bytes:
    """32 bytes that only the two silos of `names` know. Raises ValueError on a degenerate key.

    `names` come in an order both know: for masks sorted, for messages sender first.
    """
    shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    return _derived(shared, context, purpose, *names)


def self_key(seed: bytes, context: bytes, silo: str) -> bytes:
    """The key of a silo's own mask, from its seed of 32 bytes."""
    return _derived(seed, context, "self mask", silo)


def commitment(seed: bytes, context: bytes, silo: str) -> bytes:
    """32 bytes by which a seed can be recognised and that tell nothing of it (it is random)."""
    return hashlib.sha256(_labelled("fedtune secagg commitment", silo) + context + seed).digest()


def add_mask(words: np.ndarray, key: bytes, *, subtract: bool = False) -> None:
    """Add the key's mask to `words`, uint64 [words], in place modulo 2^64, or take it away."""
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
    buffer = bytearray(_CHUNK_BYTES + 15)
    step = _CHUNK_BYTES // WORD.itemsize
    change = np.subtract if subtract else np.add
    for start in range(0, len(words), step):
        part = words[start : start + step]
        stream.update_into(_ZEROS[: part.nbytes], buffer)
        change(part, np.frombuffer(buffer, WORD, len(part)), out=part)


def _derived(secret: bytes, context: bytes, purpose: str, *names: str) -> bytes:
    info = _labelled("fedtune secagg", purpose, *names)
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=context, info=info).derive(secret)


def _labelled(*parts: str) -> bytes:
    # lengths keep the parts apart
    coded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in coded)
