"""Files and folders known by what is in them."""

import hashlib
from pathlib import Path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of every file in a folder with its name."""
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix != ".pyc")
        parts = [f"{p.relative_to(path)} {file_digest(p)}" for p in inside]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
