"""The silo's Flower ClientApp: check the instruction, train, reply with the delta."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedtune.tensors import Spec, TensorSet

_MAX_ROUND = 100_000


@dataclass(frozen=True)
class LocalUpdate:
    """What a silo learned: trained minus received, on `examples` examples."""

    delta: TensorSet
    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Silo(Protocol):
    """One participant: its data, and a way to train on it from a received state."""

    @property
    def spec(self) -> Spec:
        """Names and shapes of the state it accepts."""

    @property
    def run_hash(self) -> str:
        """The only run that it takes part in."""

    def train(self, received: TensorSet, round_number: int) -> LocalUpdate:
        """Train from `received`; a pure function of its arguments and the silo's data."""


def make_client_app(load_silo: Callable[[Context], Silo]) -> ClientApp:
    """A ClientApp that answers `train` messages with the silo that `load_silo` gives."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        silo = load_silo(context)
        received, number = read_instruction(message, silo.spec, silo.run_hash)
        return reply(message, silo.train(received, number))

    return app


def read_instruction(message: Message, expected: Spec, run_hash: str) -> tuple[TensorSet, int]:
    """Parse an untrusted instruction. Raises ValueError unless it is of this run and spec."""
    records = message.content
    try:
        payload = records.array_records["state"]["tensors"].numpy()
        settings = records.config_records["round"]
        number, owner = settings["number"], settings["run_hash"]
    except Exception as error:
        raise ValueError(f"not an instruction ({type(error).__name__})") from None
    if owner != run_hash:
        raise ValueError("the instruction is of a run with other settings")
    if type(number) is not int or not 1 <= number <= _MAX_ROUND:
        raise ValueError(f"round is {number!r}, want 1 to {_MAX_ROUND}")
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise ValueError(f"payload is {payload.dtype} {payload.shape}, want bytes")
    return TensorSet.from_bytes(payload.tobytes(), expected), number


def reply(message: Message, update: LocalUpdate) -> Message:
    """The answer to `message`."""
    payload = np.frombuffer(update.delta.to_bytes(), dtype=np.uint8)
    numbers = {**{k: float(v) for k, v in update.metrics.items()}, "examples": update.examples}
    content = RecordDict(
        {
            "delta": ArrayRecord({"tensors": Array(payload)}),
            "numbers": MetricRecord(numbers),
        }
    )
    return Message(content, reply_to=message)
