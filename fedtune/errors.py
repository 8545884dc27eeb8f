"""The errors a user can cause, apart from the defects that are ours.

The command line prints an `InputError` as one message and exits with status 2; anything else
keeps its traceback, because it is a bug in fedtune.
"""

from pathlib import Path

from rich.filesize import decimal


class FedtuneError(Exception):
    """Base of every error that fedtune raises on purpose."""


class InputError(FedtuneError):
    """The user's input can't be used. The message says where, what was expected and the mend.

    `where` is a file, a `file:line` or a dotted config field; `expected` and `mend` are optional
    sentences. `str(error)` is the whole message as the command line prints it.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: str | Path | None = None,
        expected: str | None = None,
        mend: str | None = None,
    ) -> None:
        self.problem = problem
        self.where = str(where) if where is not None else None
        self.expected = expected
        self.mend = mend
        lines = [f"{self.where}: {problem}" if self.where else problem]
        if expected:
            lines.append(f"  expected: {expected}")
        if mend:
            lines.append(f"  to mend:  {mend}")
        super().__init__("\n".join(lines))


class RunFailedError(FedtuneError):
    """A run started and could not be finished (a quorum lost, a deadline passed, a full disk)."""


class NotWrittenError(RunFailedError):
    """A file or folder could not be written, and what was at `path` before is still there.

    `reason` is the system's; `needed` and `free` are bytes, `needed` 0 where it isn't known.
    """

    def __init__(self, path: Path, reason: str, *, needed: int, free: int) -> None:
        self.path, self.reason = path, reason
        needs = f"about {decimal(needed)} needed, " if needed else ""
        super().__init__(
            f"{path}: can't be written ({reason})\n  {needs}{decimal(free)} free there"
        )
