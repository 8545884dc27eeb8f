"""Which Flower node is which silo: each node is asked for its name, until a deadline."""

import time
from collections.abc import Callable, Collection

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedtune.errors import RunFailedError
from fedtune_server.flower_grid import pieces_until

_LONGEST_NAME = 200
_KEPT_SECONDS = 600.0


def find_silos(
    grid: Grid,
    wanted: Collection[str],
    *,
    min_silos: int,
    timeout_seconds: float,
    poll_seconds: float,
    question: RecordDict | None = None,
    name_of: Callable[[Message], str | None] | None = None,
) -> dict[str, int]:
    """The node of each silo in `wanted`, as soon as all have answered or at the deadline.

    Each is sent `question`, and `name_of` reads an untrusted reply to it (left out: who it says it
    is). A node that names no silo, or one that isn't wanted, is left out. Raises RunFailedError
    when two nodes give the same name, or fewer than `min_silos` are there at the deadline.
    """
    deadline = time.monotonic() + timeout_seconds
    asked: dict[str, int] = {}
    seen: set[int] = set()
    lost: set[int] = set()
    found: dict[str, int] = {}
    while True:
        over = time.monotonic() >= deadline
        fresh = [node for node in grid.get_node_ids() if node not in seen]
        seen.update(fresh)
        for node in fresh:
            pushed = grid.push_messages([_question(node, question, timeout_seconds)])
            identifier = next(iter(pushed), None)
            if not identifier:  # Flower took no message; it is asked again while it is there
                seen.discard(node)
                lost.add(node)
                continue
            lost.discard(node)
            asked[str(identifier)] = node
        with pieces_until(deadline):
            replies = list(grid.pull_messages(list(asked))) if asked else []
        for reply in replies:
            node = asked.pop(str(reply.metadata.reply_to_message_id), None)
            if node is None:  # it answers nothing that was asked
                continue
            if reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE:
                seen.discard(node)  # Flower's word on one that was killed: it may be back soon
                continue
            name = (name_of or _name)(reply)
            if name in found:
                raise RunFailedError(f"two nodes say that they are the silo `{name}`")
            if name is not None and name in wanted:
                found[name] = node
        if over or len(found) == len(wanted):
            break
        time.sleep(max(0.0, min(poll_seconds, deadline - time.monotonic())))
    if len(found) < min_silos:
        untold = f"; {len(lost)} nodes could not be handed a message" if lost else ""
        raise RunFailedError(
            f"{len(found)} silos were there after {timeout_seconds:.0f} s, "
            f"`federation.min_silos` is {min_silos} ({', '.join(sorted(found)) or 'none'}){untold}"
        )
    return dict(sorted(found.items()))


def _question(node: int, content: RecordDict | None, timeout_seconds: float) -> Message:
    return Message(content or RecordDict(), node, "query", ttl=timeout_seconds + _KEPT_SECONDS)


def _name(reply: Message) -> str | None:
    """The name in an untrusted reply, or None."""
    record = None if reply.has_error() else reply.content.get("silo")
    name = record.get("name") if isinstance(record, ConfigRecord) else None
    if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME:
        return None
    return name
