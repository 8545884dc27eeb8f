"""Nodes are matched to silos by what they answer, and nothing waits without a deadline."""

from collections.abc import Iterable, Iterator

import pytest
from fedtune_client.app import make_client_app
from fedtune_server.roster import find_silos
from fedtune_simulations.grid import InProcessGrid
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedtune.errors import RunFailedError


def named(message: Message, context: Context) -> Message:
    return make_client_app(_no_silo)(message, context)


def _no_silo(context: Context) -> None:
    raise AssertionError("a query needs no silo")


def find(grid: InProcessGrid, wanted: str, min_silos: int = 1) -> dict[str, int]:
    return find_silos(
        grid, list(wanted), min_silos=min_silos, timeout_seconds=0.05, poll_seconds=0.001
    )


def test_each_node_is_asked_for_its_name():
    grid = InProcessGrid(named, ["c", "a", "b"])
    assert find(grid, "abc") == {"a": 2, "b": 3, "c": 4}


def test_nodes_that_are_not_wanted_are_left_out():
    assert find(InProcessGrid(named, ["a", "b", "x"]), "ab") == {"a": 2, "b": 3}


def test_nodes_may_appear_late():
    class Growing(InProcessGrid):
        there = 0

        def get_node_ids(self) -> Iterable[int]:
            self.there += 1
            return list(super().get_node_ids())[: self.there]

    assert find(Growing(named, ["a", "b", "c"]), "abc", min_silos=3) == {"a": 2, "b": 3, "c": 4}


def test_what_answers_no_question_is_passed_over():
    class Crowded(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
            yield Message(RecordDict(), 1, "query")
            yield from super().pull_messages(message_ids)

    assert find(Crowded(named, ["a"]), "a") == {"a": 2}


@pytest.mark.parametrize(
    ("code", "silos"),
    [
        (ErrorCode.NODE_UNAVAILABLE, {"a": 2, "b": 3}),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, {"b": 3}),
    ],
)
def test_a_node_that_was_killed_is_asked_again_and_one_that_refuses_is_not(
    code: int, silos: dict[str, int]
):
    left = [code]

    def app(message: Message, context: Context) -> Message:
        if context.node_config["silo"] == "a" and left:
            return Message(Error(left.pop(), "why"), reply_to=message)
        return named(message, context)

    assert find(InProcessGrid(app, ["a", "b"]), "ab") == silos


def test_silence_ends_at_the_deadline_with_the_names_of_those_who_are_there():
    class Silent(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
            return super().pull_messages([i for i in message_ids if not i.endswith("-2")])

    grid = Silent(named, ["a", "b"])
    assert find(grid, "ab") == {"a": 2}
    with pytest.raises(RunFailedError, match=r"1 silos were there .* is 2 \(a\)"):
        find(Silent(named, ["a", "b"]), "ab", min_silos=2)


@pytest.mark.parametrize("identifiers", [[""], [None], []])
def test_a_node_that_no_message_could_be_handed_to_is_told(identifiers: list[str | None]):
    class Refusing(InProcessGrid):
        refusals = 10**9

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            kept = list(messages)
            if kept[0].metadata.dst_node_id == 2 and self.refusals:
                self.refusals -= 1
                return identifiers  # type: ignore[return-value]
            return super().push_messages(kept)

        def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
            asked = list(message_ids)
            assert all(asked)
            assert "None" not in asked
            return super().pull_messages(asked)

    assert find(Refusing(named, ["a", "b"]), "ab") == {"b": 3}
    with pytest.raises(RunFailedError, match="1 nodes could not be handed a message"):
        find(Refusing(named, ["a", "b"]), "ab", min_silos=2)
    grid = Refusing(named, ["a", "b"])
    grid.refusals = 1
    assert find(grid, "ab") == {"a": 2, "b": 3}


def test_two_nodes_of_one_name_are_refused():
    def same(message: Message, context: Context) -> Message:
        return Message(RecordDict({"silo": ConfigRecord({"name": "a"})}), reply_to=message)

    with pytest.raises(RunFailedError, match="two nodes say that they are the silo `a`"):
        find(InProcessGrid(same, ["a", "b"]), "ab")


@pytest.mark.parametrize("record", [{"name": 3}, {"name": "a" * 201}, {"name": ""}, {}])
def test_a_crooked_name_is_no_name(record: dict[str, object]):
    def crooked(message: Message, context: Context) -> Message:
        return Message(RecordDict({"silo": ConfigRecord({**record})}), reply_to=message)

    with pytest.raises(RunFailedError, match="0 silos"):
        find(InProcessGrid(crooked, ["a"]), "a")
