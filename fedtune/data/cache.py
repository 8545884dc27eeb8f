"""The cache folder: entries written whole or not at all, readable by their owner only.

They hold patients' text, so every folder is 0700 and every file 0600 whatever the umask.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from fedtune.atomic import writable

Kind = Literal["data", "encoded"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def cache_folder() -> Path:
    """`$FEDTUNE_CACHE`, or `fedtune` in the user's cache folder."""
    if chosen := os.environ.get("FEDTUNE_CACHE"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "fedtune"


def entry(kind: Kind, key: str, write: Callable[[Path], None]) -> Path:
    """The folder of `key` among entries of `kind`; if there's none, `write` fills a new one.

    Of two processes that write the same entry at once, one wins and both read it. Raises InputError
    where the disk is full.
    """
    folder = cache_folder() / kind / key
    if folder.exists():
        return folder
    with writable(folder, "make room, or set FEDTUNE_CACHE to a folder elsewhere"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.parent.chmod(0o700)
        draft = Path(tempfile.mkdtemp(prefix="draft-", dir=folder.parent))  # mode 0700
        try:
            write(draft)
            for path in draft.iterdir():
                path.chmod(0o600)
            _publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _publish(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was first with the same content
            raise


def measure() -> tuple[int, int]:
    """Bytes and number of the entries in the cache, drafts that were left behind included."""
    entries = _entries()
    files = (path for folder in entries for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files), len(entries)


def clear_cache() -> None:
    """Remove every entry. A run that has one open keeps it until it ends."""
    for folder in _entries():
        shutil.rmtree(folder)


def _entries() -> list[Path]:
    return [path for kind in KINDS for path in (cache_folder() / kind).glob("*")]
