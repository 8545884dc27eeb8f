"""What Flower distributes for a run: a fixed bundle without code.

Flower wants an app's files and sends them to every node. Ours are one `pyproject.toml`, the same
for every run of a release, so that a node knows beforehand the digest of the only bundle that it
takes; what runs is the installed release. Made here and not by Flower's own builder: bytes that
depend on nothing but this file can be known on both sides. The format is FAB: a zip of
`pyproject.toml` and a list of contents.
"""

import functools
import hashlib
import io
import zipfile

from fedtune import __version__

_PYPROJECT = f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedtune"
version = "{__version__}"
description = "No code: the installed release of fedtune runs."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedtune"

[tool.flwr.app.components]
serverapp = "fedtune_server.serverapp:app"
clientapp = "fedtune_client.nothing:app"

[tool.flwr.app.config]
fedtune-run = ""
"""
_ZIPS_FIRST_DAY = (1980, 1, 1, 0, 0, 0)


@functools.cache
def bundle() -> bytes:
    """The bundle of this release."""
    content = _PYPROJECT.encode()
    listed = f"pyproject.toml,{hashlib.sha256(content).hexdigest()},{len(content) * 8}"
    written = io.BytesIO()
    # not compressed: the bytes of a compressor change with its version
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as file:
        for name, text in (("pyproject.toml", content), (".info/CONTENT", listed.encode())):
            file.writestr(zipfile.ZipInfo(name, _ZIPS_FIRST_DAY), text)
    return written.getvalue()


def bundle_digest() -> str:
    """SHA-256 of the bundle, in hex: what Flower names it by."""
    return hashlib.sha256(bundle()).hexdigest()
