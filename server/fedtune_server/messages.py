"""What the coordinator sends and how it reads a reply that it does not trust."""

import math
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedtune.tensors import Spec, TensorSet

MAX_EXAMPLES = 10**9


@dataclass(frozen=True)
class Update:
    """A silo's accepted reply. `metrics` are the silo's own finite numbers."""

    delta: TensorSet
    examples: int
    bytes: int
    metrics: dict[str, float] = field(default_factory=dict)


def instruction(state: TensorSet, round_number: int, run_hash: str) -> RecordDict:
    """The content of a `train` message: one uint8 array of safetensors bytes, and the round."""
    payload = np.frombuffer(state.to_bytes(), dtype=np.uint8)
    return RecordDict(
        {
            "state": ArrayRecord({"tensors": Array(payload)}),
            "round": ConfigRecord({"number": round_number, "run_hash": run_hash}),
        }
    )


def read_update(reply: Message, expected: Spec) -> Update:
    """Parse a reply. Raises ValueError unless it is a delta of spec `expected` with its count."""
    records = reply.content
    try:
        arrays, numbers = records.array_records["delta"], records.metric_records["numbers"]
        payload = arrays["tensors"].numpy()
    except Exception as error:
        raise ValueError(f"reply has no delta or numbers ({type(error).__name__})") from None
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise ValueError(f"payload is {payload.dtype} {payload.shape}, want bytes")
    delta = TensorSet.from_bytes(payload.tobytes(), expected)
    return Update(delta, _examples(numbers), payload.nbytes, _finite(numbers))


def _examples(numbers: MetricRecord) -> int:
    count = numbers.get("examples")
    if type(count) is not int or not 1 <= count <= MAX_EXAMPLES:
        raise ValueError(f"examples is {count!r}, want 1 to {MAX_EXAMPLES}")
    return count


def _finite(numbers: MetricRecord) -> dict[str, float]:
    plain = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in plain.items() if math.isfinite(value)}
