"""What the coordinator sends and how it reads a reply that it does not trust."""

import math
from dataclasses import dataclass, field

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedtune.config.federation import Encoding
from fedtune.delta_encoding import decode
from fedtune.tensors import Spec, TensorSet

MAX_EXAMPLES = 10**9


@dataclass(frozen=True)
class Update:
    """A silo's accepted reply. `metrics` are the silo's own finite numbers.

    `delta`, sent in `payload_bytes`, is a view of the reply's bytes if these are float32.
    """

    delta: TensorSet
    payload_bytes: int
    examples: int
    metrics: dict[str, float] = field(default_factory=dict)


def instruction(
    state: TensorSet, round_number: int, run_hash: str, residual: TensorSet | None = None
) -> RecordDict:
    """The content of a `train` message: the state's tensors, the residual if any, and the round."""
    layout, array = state.to_wire()
    content = RecordDict(
        {
            "state": ArrayRecord({"tensors": Array(*array)}),
            "layout": ConfigRecord({**layout}),
            "round": ConfigRecord({"number": round_number, "run_hash": run_hash}),
        }
    )
    if residual:
        layout, array = residual.to_wire()
        content["residual"] = ArrayRecord({"tensors": Array(*array)})
        content["residual_layout"] = ConfigRecord({**layout})
    return content


def tensors_in(content: RecordDict, spec: Spec) -> TensorSet:
    """The state in an instruction, as a view of its bytes."""
    return TensorSet.from_wire(content["layout"], content["state"]["tensors"], spec)


def read_update(reply: Message, expected: Spec, encoding: Encoding = "float32") -> Update:
    """Parse a reply. Raises ValueError unless it is a delta of spec `expected` with its count."""
    # not by `content.array_records`: its cycle keeps the bytes until the next collection
    records = [reply.content.get(name) for name in ("delta", "layout", "numbers")]
    delta, layout, numbers = records
    if not (
        isinstance(delta, ArrayRecord)
        and isinstance(layout, ConfigRecord)
        and isinstance(numbers, MetricRecord)
        and list(delta) == ["tensors"]
    ):
        kinds = ", ".join(type(record).__name__ for record in records)
        raise ValueError(f"reply has no delta, layout and numbers ({kinds})")
    examples, metrics = _examples(numbers), _finite(numbers)
    array = delta["tensors"]
    return Update(decode(layout, array, expected, encoding), len(array.data), examples, metrics)


def _examples(numbers: MetricRecord) -> int:
    count = numbers.get("examples")
    if type(count) is not int or not 1 <= count <= MAX_EXAMPLES:
        raise ValueError(f"examples is {count!r}, want 1 to {MAX_EXAMPLES}")
    return count


def _finite(numbers: MetricRecord) -> dict[str, float]:
    plain = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in plain.items() if math.isfinite(value)}
