"""One process at a time in a run's folder. A killed process's lock goes with the process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.training import processes
from fedtune.training.run_folder import LOCK, Command, check_folder


@contextmanager
def alone_in(out: Path, config: RunConfig, command: Command, *, resume: bool) -> Iterator[None]:
    """Inside, no other run is in `out`. Nothing of the lock is left behind.

    A run takes it itself; inside a block of the same thread, which wants to keep others out for
    longer, that changes nothing. Raises InputError at once while another run is there, and where
    `check_folder` would.
    """
    if not processes.is_main():
        yield
        return
    check_alone(out)
    check_folder(out, config, command, resume=resume)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with _locked(out) as lock:
            if lock.lock_counter > 1:
                yield
                return
            with suppress(OSError):  # the disk is full: the run itself will say so
                (out / LOCK).write_text(f"{os.getpid()}\n")
            try:
                yield
            finally:
                (out / LOCK).unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # there is a run in it now
            for folder in made:
                folder.rmdir()


def check_alone(out: Path) -> None:
    """Raise InputError while a run goes on in `out`; writes nothing."""
    if (out / LOCK).is_file():
        with _locked(out):
            pass


@contextmanager
def _locked(out: Path) -> Iterator[FileLock]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK, timeout=0, is_singleton=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another run is at work in this folder{_who(out)}",
            where=out,
            mend="wait until it has ended, or set another `output.dir`",
        ) from None
    except OSError as error:
        raise InputError(
            f"can't be written ({error.strerror})", where=out, mend="set another `output.dir`"
        ) from None
    try:
        yield lock
    finally:
        lock.release()


def _who(out: Path) -> str:
    try:
        number = int((out / LOCK).read_text())
    except (OSError, ValueError):  # it has not written its number yet
        return ""
    return f" (process {number})"
