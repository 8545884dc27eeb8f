"""The silo's Flower ClientApp: check the instruction, train, reply with the delta."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedtune.aggregation.lora_names import residual_spec
from fedtune.delta_encoding import Encoded
from fedtune.tensors import Spec, TensorSet
from fedtune_client.encoders import Encoder, as_float32
from fedtune_client.secure import SecurePart
from fedtune_client.update import LocalUpdate

_MAX_ROUND = 100_000


@dataclass(frozen=True)
class Instruction:
    """What a silo is told. `adapter` is trained from; `residual` acts beside it, frozen.

    Both are views of the message's bytes.
    """

    adapter: TensorSet
    round: int
    residual: TensorSet = field(default_factory=lambda: TensorSet({}))


class Silo(Protocol):
    """One participant: its data, and a way to train on it from a received state."""

    @property
    def spec(self) -> Spec:
        """Names and shapes of the state it accepts."""

    @property
    def run_hash(self) -> str:
        """The only run that it takes part in."""

    def train(self, told: Instruction) -> LocalUpdate:
        """Train as told; a pure function of the instruction and the silo's data."""


def _configured_name(context: Context) -> str:
    return str(context.node_config["silo"])


def make_client_app(
    load_silo: Callable[[Context], Silo],
    name_of: Callable[[Context], str] = _configured_name,
    encoder_of: Callable[[Context], Encoder] = lambda context: as_float32,
    secure_of: Callable[[Context], SecurePart] | None = None,
) -> ClientApp:
    """A ClientApp that answers `train` with the silo of `load_silo`, `query` with its name.

    What the silo learned goes through its encoder of `encoder_of`, or with `secure_of` leaves it
    behind masks only.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        name = ConfigRecord({"name": name_of(context)})
        return Message(RecordDict({"silo": name}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        silo = load_silo(context)
        told = read_instruction(message, silo.spec, silo.run_hash)
        if secure_of is not None:
            secure_of(context).check_due(message, told.round, silo.spec)
            return secure_of(context).masked(message, silo.train(told), silo.spec)
        update = silo.train(told)
        return reply(message, update, encoder_of(context)(update.delta, told.round))

    @app.query("secure")
    def secure(message: Message, context: Context) -> Message:
        if secure_of is None:
            raise ValueError("this run is not one with secure aggregation")
        return secure_of(context).answer(message)

    return app


def read_instruction(message: Message, expected: Spec, run_hash: str) -> Instruction:
    """Parse an untrusted instruction. Raises ValueError unless it is of this run and spec."""
    # not by `content.array_records`: its cycle keeps the bytes until the next collection
    records = [message.content.get(name) for name in ("state", "layout", "round")]
    state, layout, settings = records
    if not (
        isinstance(state, ArrayRecord)
        and isinstance(layout, ConfigRecord)
        and isinstance(settings, ConfigRecord)
        and list(state) == ["tensors"]
    ):
        kinds = ", ".join(type(record).__name__ for record in records)
        raise ValueError(f"not an instruction ({kinds})")
    number, owner = settings.get("number"), settings.get("run_hash")
    if owner != run_hash:
        raise ValueError("the instruction is of a run with other settings or other data")
    if type(number) is not int or not 1 <= number <= _MAX_ROUND:
        raise ValueError(f"round is {number!r}, want 1 to {_MAX_ROUND}")
    adapter = TensorSet.from_wire(layout, state["tensors"], expected)
    return Instruction(adapter, number, _residual(message, expected))


def _residual(message: Message, adapter: Spec) -> TensorSet:
    array, layout = (message.content.get(name) for name in ("residual", "residual_layout"))
    if array is None and layout is None:
        return TensorSet({})
    if not (isinstance(array, ArrayRecord) and isinstance(layout, ConfigRecord)):
        raise ValueError("the residual is not an array and its layout")
    if list(array) != ["tensors"]:
        raise ValueError("the residual is not one array")
    return TensorSet.from_wire(layout, array["tensors"], residual_spec(adapter, layout))


def reply(message: Message, update: LocalUpdate, encoded: Encoded | None = None) -> Message:
    """The answer to `message`; the delta is float32 unless it comes `encoded`."""
    layout, array = encoded or update.delta.to_wire()
    numbers = {**{k: float(v) for k, v in update.metrics.items()}, "examples": update.examples}
    content = RecordDict(
        {
            "delta": ArrayRecord({"tensors": Array(*array)}),
            "layout": ConfigRecord({**layout}),
            "numbers": MetricRecord(numbers),
        }
    )
    return Message(content, reply_to=message)
