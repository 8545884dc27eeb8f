"""One round's messages: push, pull until the deadline, and say why a silo is missing."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedtune.config.federation import Encoding
from fedtune.plain import plain
from fedtune.tensors import Spec
from fedtune_server.flower_grid import pieces_until
from fedtune_server.messages import Update, read_update

Reason = Literal["late", "unreachable", "client_error", "bad_reply"]
_UNREACHABLE = {3, 4, 5}  # Flower's codes: message, reply or node unavailable
_LONGEST_DETAIL = 300
_Read = TypeVar("_Read")
# replies that came in time must outlive the deadline until each has been fetched
_FETCH_SECONDS = 600.0


@dataclass(frozen=True)
class Failure:
    """Why a silo's reply is missing from a round."""

    silo: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Request:
    """One silo's instruction, and the spec and encoding that its delta must have."""

    node: int
    content: RecordDict
    expected: Spec
    encoding: Encoding = "float32"

    @property
    def payload_bytes(self) -> int:
        """Bytes of tensors sent."""
        records = [r for r in self.content.values() if isinstance(r, ArrayRecord)]
        return sum(len(array.data) for record in records for array in record.values())


def collect(
    grid: Grid,
    requests: Mapping[str, Request],
    *,
    group: str,
    timeout_seconds: float,
    poll_seconds: float,
    accept: Callable[[str, Update], None],
) -> list[Failure]:
    """Call `accept` with each good delta, as `collect_replies` does."""

    def read(silo: str, reply: Message) -> Update:
        return read_update(reply, requests[silo].expected, requests[silo].encoding)

    return collect_replies(
        grid,
        {silo: (request.node, request.content) for silo, request in requests.items()},
        kind="train",
        group=group,
        timeout_seconds=timeout_seconds,
        poll_seconds=poll_seconds,
        read=read,
        accept=accept,
    )


def collect_replies(
    grid: Grid,
    asked: Mapping[str, tuple[int, RecordDict]],
    *,
    kind: str,
    group: str,
    timeout_seconds: float,
    poll_seconds: float,
    read: Callable[[str, Message], _Read],
    accept: Callable[[str, _Read], None],
) -> list[Failure]:
    """Ask each silo's node; call `accept` once a good reply, in silo-name order; return the
    failures in that order. `read` raises ValueError on a reply that is not good.

    Only the silo whose turn it is is asked for, and its reply is let go before the next is: those
    that are early wait where Flower keeps them, so that one reply is alive however many silos
    there are, and a result doesn't depend on who is fastest. What is there when the deadline
    passes still counts; a silo that is not heard by then is `late`.
    """
    deadline, ttl = time.monotonic() + timeout_seconds, timeout_seconds + _FETCH_SECONDS
    pushed = {
        silo: _push(grid, Message(content, node, kind, ttl=ttl, group_id=group))
        for silo, (node, content) in sorted(asked.items())
    }
    settled = (
        _settle(grid, silo, identifier, deadline, poll_seconds, read, accept)
        for silo, identifier in pushed.items()
    )
    return [failure for failure in settled if failure is not None]


def _push(grid: Grid, message: Message) -> str | None:
    """The message's id, or None when Flower took none (the node has gone)."""
    return next(iter(grid.push_messages([message])), None) or None


def _settle(
    grid: Grid,
    silo: str,
    identifier: str | None,
    deadline: float,
    poll_seconds: float,
    read: Callable[[str, Message], _Read],
    accept: Callable[[str, _Read], None],
) -> Failure | None:
    if identifier is None:
        return Failure(silo, "unreachable", "the message could not be handed over")
    reply = _wait(grid, identifier, deadline, poll_seconds)
    if reply is None:
        return Failure(silo, "late", "no reply before the round's deadline")
    if reply.has_error():
        code, text = reply.error.code, reply.error.reason or "no reason given"
        reason: Reason = "unreachable" if code in _UNREACHABLE else "client_error"
        return Failure(silo, reason, plain(text[:_LONGEST_DETAIL]))
    try:
        found = read(silo, reply)
    except ValueError as error:
        return Failure(silo, "bad_reply", plain(str(error)[:_LONGEST_DETAIL]))
    accept(silo, found)
    return None


def _wait(grid: Grid, identifier: str, deadline: float, poll_seconds: float) -> Message | None:
    """The reply, asked for at least once; None when the deadline passes without it."""
    while True:
        over = time.monotonic() >= deadline
        with pieces_until(deadline):
            for reply in grid.pull_messages([identifier]):
                # Flower also gives what somebody sent to the coordinator itself
                if reply.metadata.reply_to_message_id == identifier:
                    return reply
        if over:
            return None
        time.sleep(max(0.0, min(poll_seconds, deadline - time.monotonic())))
