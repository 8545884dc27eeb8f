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
BYTES = np.frombuffer(STATE.to_bytes(), dtype=np.uint8)


def message(payload: np.ndarray, settings: dict[str, Any]) -> Message:
    grid = InProcessGrid(lambda message, context: message, ["a"])
    content = RecordDict(
        {
            "state": ArrayRecord({"tensors": Array(payload)}),
            "round": ConfigRecord(settings),
        }
    )
    return grid.create_message(content, "train", 2, "1")


def test_a_good_instruction_is_read():
    state, number = read_instruction(
        message(BYTES, {"number": 3, "run_hash": "run"}), STATE.spec, "run"
    )
    assert (state.digest(), number) == (STATE.digest(), 3)


@pytest.mark.parametrize(
    ("payload", "settings", "problem"),
    [
        (BYTES, {"number": 1, "run_hash": "other"}, "other settings"),
        (BYTES, {"number": 0, "run_hash": "run"}, "round is 0"),
        (BYTES, {"number": "1", "run_hash": "run"}, "round is '1'"),
        (BYTES, {"run_hash": "run"}, "not an instruction"),
        (BYTES[:-1], {"number": 1, "run_hash": "run"}, "not safetensors"),
        (BYTES.astype(np.int64), {"number": 1, "run_hash": "run"}, "want bytes"),
    ],
)
def test_a_crooked_instruction_is_refused(
    payload: np.ndarray, settings: dict[str, Any], problem: str
):
    with pytest.raises(ValueError, match=problem):
        read_instruction(message(payload, settings), STATE.spec, "run")
