"""Messages on their way to silos, each kept until the silo has said that it has it.

SuperLink gives a message once. Where the line breaks as it travels, or the node has stopped waiting
for the call that it comes with, it would be lost, and its silo late for the round.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

_HELD_SECONDS = 15.0
_ASKED_EVERY_SECONDS = 0.5
_ASKS_A_SECOND = 25.0  # for all silos together: each takes SuperLink some 7 ms of processor
_TIMES = 10
_UNANSWERED_KEPT = 16


class Answer(NamedTuple):
    """What SuperLink says to a call."""

    status: int
    content: bytes
    kind: str


@dataclass
class Letter:
    """What was given for a silo, and how often it went out."""

    answer: Answer
    messages: frozenset[str]
    times: int = 0


@dataclass
class Letters:
    """The one letter of each silo that is on its way, and the latest that it has not answered."""

    _under_way: dict[str, Letter] = field(default_factory=dict, init=False)
    _unanswered: defaultdict[str, deque[str]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=_UNANSWERED_KEPT)), init=False
    )
    _waiting: int = field(default=0, init=False)
    _locks: defaultdict[str, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock), init=False
    )

    async def next(
        self, silo: str, ask: Callable[[], Awaitable[Answer]], is_gone: Callable[[], bool]
    ) -> Answer:
        """The silo's message: the last one again, if it was not confirmed, else what `ask` gives.

        Where there is none the node is held for some seconds, or until it `is_gone`: one that is
        told so at once would sleep for long.
        """
        over = time.monotonic() + _HELD_SECONDS
        async with self._locks[silo], self._counted():
            while True:
                letter = self._under_way.get(silo)
                if letter is not None and letter.times < _TIMES:
                    letter.times += 1
                    return letter.answer
                self._under_way.pop(silo, None)
                answer = await ask()
                messages = _messages_in(answer)
                if messages:
                    self._under_way[silo] = Letter(answer, messages, times=1)
                    self._unanswered[silo].extend(messages)
                if messages or answer.status != 200 or time.monotonic() >= over or is_gone():
                    return answer
                await asyncio.sleep(max(_ASKED_EVERY_SECONDS, self._waiting / _ASKS_A_SECOND))

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def confirmed(self, silo: str, body: bytes) -> None:
        """The silo has said in a `confirm-message-received` that it has a message."""
        said = ConfirmMessageReceivedRequest()
        try:
            said.ParseFromString(body)
        except DecodeError:
            return
        letter = self._under_way.get(silo)
        if letter is not None and said.message_object_id in letter.messages:
            del self._under_way[silo]

    def answers(self, silo: str, message: str) -> bool:
        """Whether a reply to this message is the first to one that the silo was given."""
        if message not in self._unanswered[silo]:
            return False
        self._unanswered[silo].remove(message)
        return True

    def void(self, silo: str) -> None:
        """The message can't be had any more: its run was stopped."""
        self._under_way.pop(silo, None)


def reply_in(body: bytes) -> str | None:
    """The message that a `push-messages` answers; None unless it is one reply, of the very node
    that calls. Flower takes the sender's word for who it is, and what answers nothing for a message
    to the coordinator's own app.
    """
    said = PushMessagesRequest()
    try:
        said.ParseFromString(body)
    except DecodeError:
        return None
    if len(said.messages_list) != 1:
        return None
    told = said.messages_list[0].metadata
    return told.reply_to_message_id or None if told.src_node_id == said.node.node_id else None


def _messages_in(answer: Answer) -> frozenset[str]:
    if answer.status != 200:
        return frozenset()
    given = PullMessagesResponse()
    given.ParseFromString(answer.content)
    return frozenset(message.metadata.message_id for message in given.messages_list)
