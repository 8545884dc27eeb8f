"""Files and folders that are either whole or not there, also after a crash or a power cut."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedtune.errors import InputError, NotWrittenError

_SYSTEM_ERROR = re.compile(r"(\w[\w ]*) \(os error \d+\)")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a file that holds `text`; makes the folder if need be.

    Raises NotWrittenError where the disk is full or won't have it; the old file stays.
    """
    content = text.encode()
    draft = path.with_name(path.name + ".part")
    with written(path, needed=len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        flush(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add `line` to the end of `path`, whole or not at all; it is on the disk's way at once.

    Raises NotWrittenError where the disk is full or won't have it.
    """
    content = memoryview(f"{line}\n".encode())
    with written(path, needed=len(content)), path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[file.write(content) :]
        except BaseException:
            file.truncate(before)
            raise


@contextmanager
def new_folder(path: Path, *, needed: int = 0) -> Iterator[Path]:
    """A draft to fill, which takes the place of `path` when the block ends without an error.

    A folder has no atomic replacement: between two renames a crash leaves the old one beside, under
    `path.old`, and nothing at `path`. `needed` is about how many bytes it will hold. Raises
    NotWrittenError where the disk is full or won't have it; the old folder stays.
    """
    with written(path, needed=needed), _draft_of(path) as draft:
        yield draft


@contextmanager
def _draft_of(path: Path) -> Iterator[Path]:
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
        with written(path):
            yield
    except NotWrittenError as error:
        raise InputError(f"can't be written ({error.reason})", where=path, mend=mend) from None


@contextmanager
def written(path: Path, *, needed: int = 0) -> Iterator[None]:
    """Inside, where `path` is written, what the system refuses is a NotWrittenError of `path`."""
    try:
        yield
    except NotWrittenError:
        raise
    except Exception as error:
        if (reason := _system_words(error)) is None:
            raise
        raise NotWrittenError(path, reason, needed=needed, free=_free(path)) from None


def _system_words(error: Exception) -> str | None:
    """What the system said, also through a library in Rust, whose errors only quote it."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    quoted = _SYSTEM_ERROR.search(str(error))
    return quoted[1] if quoted else None


def _free(path: Path) -> int:
    there = path.absolute().parent
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def flush(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
