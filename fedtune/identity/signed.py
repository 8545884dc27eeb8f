"""A text and an Ed25519 signature over exactly its bytes, in one JSON object.

The text is carried as a string and not as nested JSON, so that what is verified is what is read:
no canonical form is needed. A signature is bound to the kind of text, so that none can be passed
off as another kind.
"""

import base64
import json

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtune.identity.keys import PUBLIC_BYTES, verifier

MAX_BYTES = 16 * 2**20


def seal(kind: str, content: str, key: Ed25519PrivateKey) -> str:
    """`content` with the signature of `key`, as JSON."""
    signature = base64.b64encode(key.sign(_bound(kind, content))).decode()
    return json.dumps({"kind": kind, "content": content, "signature": signature}, indent=2) + "\n"


def contents(kind: str, text: str) -> str:
    """The content of an untrusted `text`, whoever signed it. Raises ValueError if it is none."""
    return _parse(kind, text)[0]


def unseal(kind: str, text: str, public: bytes) -> str:
    """The content of an untrusted `text`, which the identity `public` (32 bytes) has signed.

    Raises ValueError on another kind, another signer, and on what isn't a signed text.
    """
    content, signature = _parse(kind, text)
    if len(public) != PUBLIC_BYTES:
        raise ValueError(f"a public key has {PUBLIC_BYTES} bytes, not {len(public)}")
    try:
        verifier(public).verify(signature, _bound(kind, content))
    except InvalidSignature:
        raise ValueError(f"the {kind}'s signature is not of the key that it should be") from None
    return content


def _bound(kind: str, content: str) -> bytes:
    return f"fedtune {kind} v1\n{content}".encode()


def _parse(kind: str, text: str) -> tuple[str, bytes]:
    if len(text) > MAX_BYTES:
        raise ValueError(f"is over {MAX_BYTES:,} characters long")
    try:
        signed = json.loads(text)
        said, content, signature = signed["kind"], signed["content"], signed["signature"]
        content.encode()
        raw = base64.b64decode(signature, validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"is no signed {kind}") from None
    if said != kind:
        raise ValueError(f"is a signed {said!s:.40}, not a {kind}")
    return content, raw
