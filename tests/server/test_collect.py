"""Order of arrival changes nothing, one reply is alive, and a bad one fails its silo only."""

import gc
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fedtune_client.app import reply
from fedtune_client.update import LocalUpdate
from fedtune_server.collect import Request, collect
from fedtune_server.messages import Update, instruction, read_update
from fedtune_simulations.grid import InProcessGrid
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import ErrorCode

from fedtune.tensors import TensorSet

STATE = TensorSet({"w": torch.zeros(2)})


class Apart(InProcessGrid):
    """Silos on machines of their own: each answers on the pull that `patience` says, or never."""

    patience: dict[str, int]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        names = {node: name for name, node in self.nodes.items()}
        for identifier in message_ids:
            silo = names[self._waiting[identifier].metadata.dst_node_id]
            self.patience[silo] -= 1
            if self.patience[silo] < 0:
                yield from super().pull_messages([identifier])


def answer(message: Message, context: Context) -> Message:
    return reply(message, LocalUpdate(STATE, context.node_id))


def crooked(message: Message, context: Context) -> Message:
    if context.node_config["silo"] == "b":
        return Message(RecordDict({"x": MetricRecord({"y": 1})}), reply_to=message)
    return answer(message, context)


def run(grid: InProcessGrid, timeout_seconds: float = 60.0) -> tuple[list[str], list[Any]]:
    taken: list[str] = []
    content = instruction(STATE, 1, "run")
    failures = collect(
        grid,
        {name: Request(node, content, STATE.spec) for name, node in grid.nodes.items()},
        group="1",
        timeout_seconds=timeout_seconds,
        poll_seconds=0.001,
        accept=lambda silo, update: taken.append(silo),
    )
    return taken, [(failure.silo, failure.reason) for failure in failures]


def test_replies_are_taken_in_name_order_whoever_is_first():
    grid = Apart(answer, ["c", "a", "b"])
    grid.patience = {"a": 3, "b": 0, "c": 1}
    assert run(grid) == (["a", "b", "c"], [])


def test_a_silent_silo_is_late_and_those_that_answered_in_time_count():
    grid = Apart(answer, ["a", "b", "c"])
    grid.patience = {"a": 10**9, "b": 0, "c": 0}
    assert run(grid, timeout_seconds=0.05) == (["b", "c"], [("a", "late")])


def test_a_bad_reply_does_not_hold_the_others_back():
    assert run(InProcessGrid(crooked, ["a", "b", "c"])) == (["a", "c"], [("b", "bad_reply")])


def test_what_answers_nothing_that_was_asked_is_nobody_s_reply():
    class Crowded(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
            unasked = Message(instruction(STATE, 1, "run"), 1, "train")
            yield reply(unasked, LocalUpdate(STATE, 99))
            yield from super().pull_messages(message_ids)

    grid, taken = Crowded(answer, ["a", "b"]), {}
    collect(
        grid,
        {
            n: Request(node, instruction(STATE, 1, "run"), STATE.spec)
            for n, node in grid.nodes.items()
        },
        group="1",
        timeout_seconds=60.0,
        poll_seconds=0.001,
        accept=lambda silo, update: taken.update({silo: update.examples}),
    )
    assert taken == {"a": 2, "b": 3}


def test_a_silo_s_words_are_one_line_that_steers_no_terminal():
    def broken(message: Message, context: Context) -> Message:
        why = "\x1b[2Jgone\n  b: late\u202e"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, why), reply_to=message)

    grid = InProcessGrid(broken, ["a"])
    (failure,) = collect(
        grid,
        {"a": Request(grid.nodes["a"], instruction(STATE, 1, "run"), STATE.spec)},
        group="1",
        timeout_seconds=60.0,
        poll_seconds=0.001,
        accept=lambda silo, update: None,
    )
    assert failure.detail == " [2Jgone   b: late "


def test_a_node_that_has_gone_is_unreachable():
    class Gone(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            return [i for i in super().push_messages(messages) if not i.endswith("-2")]

    assert run(Gone(answer, ["a", "b", "c"])) == (["a", "c"], [("b", "unreachable")])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ErrorCode.MESSAGE_UNAVAILABLE, "unreachable"),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "unreachable"),
        (ErrorCode.NODE_UNAVAILABLE, "unreachable"),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "client_error"),
        (ErrorCode.LOAD_CLIENT_APP_EXCEPTION, "client_error"),
    ],
)
def test_flowers_errors_are_told_apart(code: int, reason: str):
    def broken(message: Message, context: Context) -> Message:
        return Message(Error(code, "why"), reply_to=message)

    assert run(InProcessGrid(broken, ["a"])) == ([], [("a", reason)])


def test_flower_keeps_a_message_longer_than_its_deadline():
    """Else replies that came in time would be gone before they are fetched."""
    kept: list[float] = []

    def noted(message: Message, context: Context) -> Message:
        kept.append(message.metadata.ttl)
        return answer(message, context)

    run(InProcessGrid(noted, ["a"]), timeout_seconds=60.0)
    assert kept[0] >= 60.0 + 60.0


def test_one_reply_is_alive_at_a_time():
    alive: list[weakref.ref[Any]] = []
    seen: list[int] = []

    def watched(message: Message, context: Context) -> Message:
        seen.append(sum(ref() is not None for ref in alive))
        answered = answer(message, context)
        alive.append(weakref.ref(answered.content["delta"]["tensors"]))
        return answered

    gc.disable()  # nothing may wait in a cycle for the next collection
    try:
        assert run(InProcessGrid(watched, "abcdef")) == (list("abcdef"), [])
    finally:
        gc.enable()
    assert seen == [0] * 6


def test_a_silo_over_its_own_time_never_replies_and_makes_no_other_late():
    def slow(message: Message, context: Context) -> Message:
        time.sleep(0.3 if context.node_config["silo"] == "b" else 0.0)
        return answer(message, context)

    grid = InProcessGrid(slow, ["a", "b", "c"], timeout_seconds=0.25)
    assert run(grid, timeout_seconds=0.25) == (["a", "c"], [("b", "late")])


LAYOUT, GOOD = STATE.to_wire()
ONE = {"examples": 1}


def a_reply(
    array: tuple[Any, ...], numbers: dict[str, float], layout: dict[str, list[str]] = LAYOUT
) -> Message:
    grid = InProcessGrid(answer, ["a"])
    message = grid.create_message(RecordDict(), "train", 2, "1")
    content = RecordDict(
        {
            "delta": ArrayRecord({"tensors": Array(*array)}),
            "layout": ConfigRecord({**layout}),
            "numbers": MetricRecord(numbers),
        }
    )
    return Message(content, reply_to=message)


@pytest.mark.parametrize(
    ("array", "numbers", "message"),
    [
        (GOOD, {"examples": 0}, "examples is 0"),
        (GOOD, {"examples": 10**12}, "examples is 10"),
        (GOOD, {"examples": 1.5}, "examples is 1.5"),
        (GOOD, {}, "examples is None"),
        (("float64", *GOOD[1:]), ONE, "sent float64"),
        ((*GOOD[:2], "numpy.ndarray", GOOD[3]), ONE, "as numpy.ndarray"),
        ((*GOOD[:3], GOOD[3][:-1]), ONE, "not the 8 bytes"),
        ((*GOOD[:3], GOOD[3] * 1000), ONE, "not the 8 bytes"),
        ((*GOOD[:3], np.float32([np.inf, 1]).tobytes()), ONE, "infinite"),
        ((*GOOD[:3], np.float32([np.nan, 1]).tobytes()), ONE, "NaN"),
    ],
)
def test_an_untrusted_reply_is_refused(
    array: tuple[Any, ...], numbers: dict[str, float], message: str
):
    with pytest.raises(ValueError, match=message):
        read_update(a_reply(array, numbers), STATE.spec)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"names": [], "shapes": []}, "missing w"),
        ({"names": ["v"], "shapes": ["2"]}, "missing w; unexpected v"),
        ({"names": ["v", "w"], "shapes": ["2", "2"]}, "unexpected v"),
        ({"names": ["w"], "shapes": ["1x2"]}, "w is"),
        ({"names": ["w"]}, "no list of names"),
    ],
)
def test_a_reply_with_other_tensors_is_refused(layout: dict[str, list[str]], message: str):
    with pytest.raises(ValueError, match=message):
        read_update(a_reply(GOOD, ONE, layout), STATE.spec)


def test_data_that_is_not_bytes_is_refused():
    told = a_reply(GOOD, ONE)
    told.content.array_records["delta"]["tensors"].data = "12345678"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="not the 8 bytes"):
        read_update(told, STATE.spec)


def test_a_reply_without_its_records_is_refused():
    told = a_reply(GOOD, ONE)
    del told.content["delta"]
    with pytest.raises(ValueError, match="no delta"):
        read_update(told, STATE.spec)


def test_metrics_that_are_not_finite_are_dropped():
    told = read_update(a_reply(GOOD, {"examples": 1, "loss": float("nan"), "x": 2.0}), STATE.spec)
    assert told.metrics == {"examples": 1.0, "x": 2.0}


def test_an_update_is_accepted_as_it_was_sent():
    update: Update = read_update(a_reply(GOOD, {"examples": 5}), STATE.spec)
    assert (update.delta.digest(), update.examples) == (STATE.digest(), 5)
