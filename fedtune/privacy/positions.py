"""How many of its paid steps a run has left, told by the ledger and not by the run's folder.

A charge pays for each of a run's steps once. A folder can be copied, put back and gone on with, so
the ledger keeps a row for every place that the run has come to, written before anything of these
steps can be seen. Whoever goes on from an earlier place wants more steps than are left, and pays
for the difference. Rows of one run follow each other: of two copies at work the second to come to a
new place is stopped, since the first has taken what was paid for.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedtune.errors import RunFailedError
from fedtune.privacy.chained_rows import Row

POSITION = "position"
"""The kind of these rows in the ledger."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """So many paid steps (or rounds) are `left` of one charged `course` of a `run`.

    Two runs of the same settings on the same data are two courses. `follows` is the token of the
    course's position before; None begins a course.
    """

    run: str
    course: str
    left: int
    follows: str | None
    token: str = field(default_factory=lambda: secrets.token_hex(16))


def next_position(before: Position, left: int) -> Position:
    """The course's next position."""
    return Position(run=before.run, course=before.course, left=left, follows=before.token)


def latest_position(rows: Sequence[Row], run: str, course: str | None) -> Position | None:
    """Where the course is; None if these rows don't know it."""
    for row in reversed(rows):
        body = row.body
        if body["kind"] == POSITION and (body["run"], body["course"]) == (run, course):
            return Position(**{name: body[name] for name in Position.__dataclass_fields__})
    return None


def check_follows(rows: Sequence[Row], position: Position) -> None:
    """Raise RunFailedError unless `position` follows the latest of its course, with enough left."""
    if position.left < 0:
        raise RunFailedError("the run takes more steps than were charged")
    latest = latest_position(rows, position.run, position.course)
    if position.follows != (latest.token if latest else None):
        raise RunFailedError(
            "a copy of this run went on from here meanwhile, with the steps that were paid for; "
            "what this one did since is dropped. Resume it to go on: steps that the copy took are "
            "charged again"
        )


def body_of(position: Position) -> dict[str, Any]:
    """What the ledger keeps."""
    return {"kind": POSITION, **vars(position)}
