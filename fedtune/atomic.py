"""Files and folders that are either whole or not there, also after a crash or a power cut."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedtune.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a file that holds `text`; makes the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    flush(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A draft to fill, which takes the place of `path` when the block ends without an error.

    A folder has no atomic replacement: between two renames a crash leaves the old one beside, under
    `path.old`, and nothing at `path`.
    """
    draft, old = (path.with_name(path.name + end) for end in (".part", ".old"))
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for inside in [*draft.rglob("*"), draft]:
            flush(inside)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    draft.rename(path)
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def writable(path: Path, mend: str) -> Iterator[None]:
    """Inside, a file that can't be written is an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        problem = f"can't be written ({error.strerror or error})"
        raise InputError(problem, where=path, mend=mend) from None


def flush(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
