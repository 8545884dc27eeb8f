"""Order of arrival changes nothing, and a bad reply is a failure of its silo only."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from fedtune_client.app import LocalUpdate, reply
from fedtune_server.collect import Request, collect
from fedtune_server.messages import Update, instruction, read_update
from fedtune_simulations.grid import InProcessGrid
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from fedtune.tensors import TensorSet

STATE = TensorSet({"w": torch.zeros(2)})


class Backwards(InProcessGrid):
    """The last silo answers first, one reply a pull."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        return super().pull_messages(list(message_ids)[-1:])


def answer(message: Message, context: Context) -> Message:
    return reply(message, LocalUpdate(STATE, context.node_id))


def crooked(message: Message, context: Context) -> Message:
    good = answer(message, context)
    if context.node_config["silo"] == "b":
        return Message(RecordDict({"x": MetricRecord({"y": 1})}), reply_to=message)
    return good


def requests(grid: InProcessGrid) -> dict[str, Request]:
    content = instruction(STATE, 1, "run")
    return {name: Request(node, content, STATE.spec) for name, node in grid.nodes.items()}


def run(grid: InProcessGrid) -> tuple[list[str], list[tuple[str, str]]]:
    taken: list[str] = []

    def accept(silo: str, update: Update) -> None:
        taken.append(silo)

    failures = collect(
        grid, requests(grid), group="1", timeout_seconds=60.0, poll_seconds=0.0, accept=accept
    )
    return taken, [(failure.silo, failure.reason) for failure in failures]


def test_replies_are_taken_in_name_order_whoever_is_first():
    assert run(Backwards(answer, ["c", "a", "b"])) == (["a", "b", "c"], [])


@pytest.mark.parametrize("kind", [InProcessGrid, Backwards])
def test_a_bad_reply_does_not_hold_the_others_back(kind: type[InProcessGrid]):
    assert run(kind(crooked, ["a", "b", "c"])) == (["a", "c"], [("b", "bad_reply")])


def a_reply(delta: np.ndarray, numbers: dict[str, float]) -> Message:
    grid = InProcessGrid(answer, ["a"])
    message = grid.create_message(RecordDict(), "train", 2, "1")
    content = RecordDict(
        {
            "delta": ArrayRecord({"tensors": Array(delta)}),
            "numbers": MetricRecord(numbers),
        }
    )
    return Message(content, reply_to=message)


GOOD = np.frombuffer(STATE.to_bytes(), dtype=np.uint8)


@pytest.mark.parametrize(
    ("delta", "numbers", "message"),
    [
        (GOOD, {"examples": 0}, "examples is 0"),
        (GOOD, {"examples": 10**12}, "examples is 10"),
        (GOOD, {"examples": 1.5}, "examples is 1.5"),
        (GOOD, {}, "examples is None"),
        (GOOD[:-1], {"examples": 1}, "not safetensors"),
        (GOOD.astype(np.float32), {"examples": 1}, "want bytes"),
        (np.zeros(100_000, np.uint8), {"examples": 1}, "at most"),
    ],
)
def test_an_untrusted_reply_is_refused(delta: np.ndarray, numbers: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        read_update(a_reply(delta, numbers), STATE.spec)


def test_metrics_that_are_not_finite_are_dropped():
    told = read_update(a_reply(GOOD, {"examples": 1, "loss": float("nan"), "x": 2.0}), STATE.spec)
    assert told.metrics == {"examples": 1.0, "x": 2.0}
