"""What the door remembers of a silo: a message not confirmed, an answer that may be lost."""

import asyncio

import pytest
from fedtune_server.letters import Answer, Letters
from fedtune_server.repeats import Repeats
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Message, Metadata

KIND = "application/protobuf"
GOOD = Answer(200, b"stored", KIND)


class SuperLink:
    """Gives each message once, as Flower's does."""

    def __init__(self, *messages: str) -> None:
        self.waiting = [*messages]
        self.asked = 0

    async def __call__(self) -> Answer:
        self.asked += 1
        given = PullMessagesResponse()
        if self.waiting:
            told = Metadata(message_id=self.waiting.pop(0))
            given.messages_list.append(Message(metadata=told))
        return Answer(200, given.SerializeToString(), KIND)


def named(answer: Answer) -> list[str]:
    given = PullMessagesResponse()
    given.ParseFromString(answer.content)
    return [message.metadata.message_id for message in given.messages_list]


def confirmation(message: str) -> bytes:
    return bytes(ConfirmMessageReceivedRequest(message_object_id=message).SerializeToString())


def never() -> bool:
    return False


def test_a_message_is_given_until_it_is_confirmed():
    async def go() -> None:
        letters, link = Letters(), SuperLink("one", "two")
        for _ in range(3):
            assert named(await letters.next("north", link, never)) == ["one"]
        letters.confirmed("north", confirmation("two"))
        letters.confirmed("north", b"\xff\xff")
        assert named(await letters.next("north", link, never)) == ["one"]
        letters.confirmed("north", confirmation("one"))
        assert named(await letters.next("north", link, never)) == ["two"]
        assert link.asked == 2

    asyncio.run(go())


def test_two_calls_at_once_get_one_message_and_another_silo_its_own():
    async def go() -> None:
        letters, ours, theirs = Letters(), SuperLink("one", "two"), SuperLink("three")
        given = await asyncio.gather(
            letters.next("north", ours, never),
            letters.next("north", ours, never),
            letters.next("south", theirs, never),
        )
        assert [named(answer) for answer in given] == [["one"], ["one"], ["three"]]

    asyncio.run(go())


def test_a_message_of_a_stopped_run_is_let_go_and_one_that_no_silo_can_take_too():
    async def go() -> None:
        letters, link = Letters(), SuperLink("one", "two", "three")
        await letters.next("north", link, never)
        letters.void("north")
        seen = [named(await letters.next("north", link, never)) for _ in range(11)]
        assert seen == [["two"]] * 10 + [["three"]]

    asyncio.run(go())


def test_a_node_that_is_gone_is_not_held():
    async def go() -> None:
        letters, link = Letters(), SuperLink()
        assert named(await letters.next("north", link, lambda: True)) == []
        assert link.asked == 1

    asyncio.run(go())


def test_the_same_call_is_passed_on_once():
    async def go() -> None:
        repeats, asked = Repeats(), []

        async def ask() -> Answer:
            asked.append(1)
            await asyncio.sleep(0.01)
            return GOOD

        both = await asyncio.gather(
            repeats.once("north", "/push", b"piece", ask),
            repeats.once("north", "/push", b"piece", ask),
        )
        assert [*both, await repeats.once("north", "/push", b"piece", ask)] == [GOOD] * 3
        assert len(asked) == 1
        for silo, path, body in (
            ("south", "/push", b"piece"),
            ("north", "/other", b"piece"),
            ("north", "/push", b"other"),
        ):
            await repeats.once(silo, path, body, ask)
        assert len(asked) == 4

    asyncio.run(go())


def test_what_failed_is_asked_again():
    async def go() -> None:
        repeats, coming = Repeats(), [Answer(503, b"", KIND), GOOD]

        async def ask() -> Answer:
            return coming.pop(0)

        async def fail() -> Answer:
            raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            await repeats.once("north", "/push", b"piece", fail)
        assert (await repeats.once("north", "/push", b"piece", ask)).status == 503
        assert await repeats.once("north", "/push", b"piece", ask) == GOOD

    asyncio.run(go())


def test_a_hundred_silos_that_wait_do_not_wear_the_superlink_out():
    async def go() -> int:
        letters, link = Letters(), SuperLink()
        waiting = [
            asyncio.create_task(letters.next(f"silo-{number}", link, never))
            for number in range(100)
        ]
        await asyncio.sleep(1.3)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert letters._waiting == 0
        return link.asked

    assert 100 <= asyncio.run(go()) < 200  # 300 at half a second for each
