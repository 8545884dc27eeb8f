"""A silo reads the coordinator's message as untrusted input."""

from typing import Any

import numpy as np
import pytest
import torch
from fedtune_client.app import read_instruction
from fedtune_simulations.grid import InProcessGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedtune.tensors import TensorSet

STATE = TensorSet({"w": torch.ones(2)})
LAYOUT, GOOD = STATE.to_wire()
OF_RUN = {"number": 1, "run_hash": "run"}


def message(array: Array, settings: dict[str, Any]) -> Message:
    grid = InProcessGrid(lambda message, context: message, ["a"])
    content = RecordDict(
        {
            "state": ArrayRecord({"tensors": array}),
            "layout": ConfigRecord({**LAYOUT}),
            "round": ConfigRecord(settings),
        }
    )
    return grid.create_message(content, "train", 2, "1")


def test_a_good_instruction_is_read():
    told = read_instruction(
        message(Array(*GOOD), {"number": 3, "run_hash": "run"}), STATE.spec, "run"
    )
    assert (told.adapter.digest(), told.round, len(told.residual)) == (STATE.digest(), 3, 0)


@pytest.mark.parametrize(
    ("array", "settings", "problem"),
    [
        (GOOD, {"number": 1, "run_hash": "other"}, "other settings"),
        (GOOD, {"number": 0, "run_hash": "run"}, "round is 0"),
        (GOOD, {"number": 10**9, "run_hash": "run"}, "round is 1000000000"),
        (GOOD, {"number": "1", "run_hash": "run"}, "round is '1'"),
        (GOOD, {"run_hash": "run"}, "round is None"),
        ((*GOOD[:3], GOOD[3][:-1]), OF_RUN, "not the 8 bytes"),
        ((*GOOD[:3], GOOD[3] * 1000), OF_RUN, "not the 8 bytes"),
        (("int64", *GOOD[1:]), OF_RUN, "sent int64"),
        (("float32", (2,), "pickle", GOOD[3]), OF_RUN, "as pickle"),
        ((*GOOD[:3], np.float32([1, np.nan]).tobytes()), OF_RUN, "NaN"),
    ],
)
def test_a_crooked_instruction_is_refused(
    array: tuple[Any, ...], settings: dict[str, Any], problem: str
):
    with pytest.raises(ValueError, match=problem):
        read_instruction(message(Array(*array), settings), STATE.spec, "run")
