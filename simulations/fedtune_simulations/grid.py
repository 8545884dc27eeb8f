"""A Flower Grid in this process: a silo runs when its reply is pulled, so one reply is alive.

Flower has no public way to do this. The private fields of flwr==1.41.0 that it needs (a message's
id and source, the task's identity) are touched in this file only.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedtune.errors import FedtuneError

_RUN_ID = 1
_SERVER_NODE = 1
_CLIENT_RAISED = 2  # Flower's error code

_log = logging.getLogger(__name__)


class InProcessGrid(Grid):
    """Runs `app` for the named silos, one after another, in the order pulled.

    Node ids start at 2 in silo-name order; `nodes` maps names to them, and a silo's name is
    `context.node_config["silo"]`. An exception in the app becomes an error reply. A silo that takes
    longer than `timeout_seconds` never replies: counted from its own start, since silos stand for
    machines that work side by side, and how many came before must not decide who is late.
    """

    def __init__(
        self,
        app: Callable[[Message, Context], Message],
        silos: Iterable[str],
        timeout_seconds: float = math.inf,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, _SERVER_NODE, 1
        self.nodes: Mapping[str, int] = {
            name: node for node, name in enumerate(sorted(silos), start=_SERVER_NODE + 1)
        }
        self._app, self._timeout_seconds = app, timeout_seconds
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Message] = {}
        self._contexts = {
            node: Context(
                run_id=_RUN_ID,
                node_id=node,
                node_config={"silo": name},
                state=RecordDict(),
                run_config={},
            )
            for name, node in self.nodes.items()
        }

    def set_run(self, run: object) -> None:
        """Nothing to set: there is one run."""

    @property
    def run(self) -> None:
        """No SuperLink, no run record."""
        return None

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one silo."""
        return Message(
            content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl
        )

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all silos."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; no silo runs yet."""
        return [self._queue(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Run each silo as its reply is asked for, in the order of `message_ids`."""
        for identifier in list(message_ids):
            message = self._waiting.pop(identifier, None)
            if message is None:
                continue
            due = time.monotonic() + self._timeout_seconds
            reply = self._run(message)
            if time.monotonic() < due:
                yield reply

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """All replies at once; `timeout` can't cut a silo short here."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _queue(self, message: Message) -> str:
        identifier = f"message-{next(self._numbers)}"
        vars(message.metadata).update(
            _run_id=_RUN_ID, _src_node_id=_SERVER_NODE, _message_id=identifier
        )
        self._waiting[identifier] = message
        return identifier

    def _run(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except FedtuneError as error:
            return _failed(message, str(error))
        except Exception as error:
            _log.warning("a silo failed", exc_info=True)
            return _failed(message, repr(error))


def _failed(message: Message, reason: str) -> Message:
    return Message(Error(code=_CLIENT_RAISED, reason=reason), reply_to=message)
