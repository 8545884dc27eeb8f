"""TLS on this machine's loopback: a certificate made here, good here only.

Flower speaks TLS or signs nothing; what is inside a machine needs a certificate too. It is made new
at every start, and its key never leaves the folder.
"""

import ssl
from pathlib import Path

from fedtune.atomic import write_text
from fedtune.identity.certificates import pem, self_signed
from fedtune.identity.keys import new_tls_key, save_private_key


def new_loopback(folder: Path) -> tuple[Path, Path]:
    """Files of a new certificate for 127.0.0.1, and of its key."""
    certificate, key_file = folder / "loopback.crt", folder / "loopback.pem"
    key = new_tls_key()
    key_file.unlink(missing_ok=True)
    save_private_key(key, key_file)
    write_text(certificate, pem(self_signed(key, ["127.0.0.1", "localhost"])))
    return certificate, key_file


def loopback_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server on loopback shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context
