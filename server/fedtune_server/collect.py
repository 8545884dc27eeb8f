"""One round's messages: push, pull until the deadline, and say why a silo is missing."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedtune.tensors import Spec
from fedtune_server.messages import Update, read_update

Reason = Literal["late", "unreachable", "client_error", "bad_reply"]
_UNREACHABLE = {3, 4, 5}  # Flower's codes: message, reply or node unavailable
_LONGEST_DETAIL = 300


@dataclass(frozen=True)
class Failure:
    """Why a silo's reply is missing from a round."""

    silo: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Request:
    """One silo's instruction and the spec that its delta must have."""

    node: int
    content: RecordDict
    expected: Spec


def collect(
    grid: Grid,
    requests: Mapping[str, Request],
    *,
    group: str,
    timeout_seconds: float,
    poll_seconds: float,
    accept: Callable[[str, Update], None],
) -> list[Failure]:
    """Call `accept` once a good reply, in silo-name order; return the failures in that order.

    A reply that comes before an earlier silo's is held as bytes until its turn, so a result does
    not depend on who is fastest. A silo that is not heard by the deadline is `late`.
    """
    deadline = time.monotonic() + timeout_seconds
    turn = _Turns(requests, accept)
    waiting = _push(grid, requests, group, timeout_seconds)
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            silo = waiting.pop(reply.metadata.reply_to_message_id, None)
            in_time = time.monotonic() <= deadline
            if silo is not None:
                turn.settle(silo, reply if in_time else None)
            if not in_time:
                break
        if not waiting or time.monotonic() > deadline:
            break
        time.sleep(poll_seconds)
    for silo in waiting.values():
        turn.settle(silo, None)
    return [turn.failures[silo] for silo in sorted(turn.failures)]


def _push(
    grid: Grid, requests: Mapping[str, Request], group: str, timeout_seconds: float
) -> dict[str, str]:
    names = sorted(requests)
    # made as they are pushed, so that a grid that keeps none of them holds one at a time
    messages: Iterator[Message] = (
        grid.create_message(
            requests[name].content, "train", requests[name].node, group, timeout_seconds
        )
        for name in names
    )
    return dict(zip(grid.push_messages(messages), names, strict=True))


class _Turns:
    """Hands replies on in silo-name order, holding those that come early."""

    def __init__(
        self, requests: Mapping[str, Request], accept: Callable[[str, Update], None]
    ) -> None:
        self._requests, self._accept = requests, accept
        self._order = sorted(requests)
        self._held: dict[str, Message | None] = {}
        self.failures: dict[str, Failure] = {}

    def settle(self, silo: str, reply: Message | None) -> None:
        """Take a silo's reply, or None for `late`; accept all whose turn it now is."""
        self._held[silo] = reply
        while self._order and self._order[0] in self._held:
            name = self._order.pop(0)
            self._take(name, self._held.pop(name))

    def _take(self, silo: str, reply: Message | None) -> None:
        if reply is None:
            return self._fail(silo, "late", "no reply before the round's deadline")
        if reply.has_error():
            code, text = reply.error.code, reply.error.reason or "no reason given"
            return self._fail(silo, "unreachable" if code in _UNREACHABLE else "client_error", text)
        try:
            update = read_update(reply, self._requests[silo].expected)
        except ValueError as error:
            return self._fail(silo, "bad_reply", str(error))
        return self._accept(silo, update)

    def _fail(self, silo: str, reason: Reason, detail: str) -> None:
        self.failures[silo] = Failure(silo, reason, detail[:_LONGEST_DETAIL])
