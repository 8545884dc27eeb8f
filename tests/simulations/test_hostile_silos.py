"""One of eight silos is hostile: FedAvg ends worse than it began, each robust rule does not.

The hostile silo is the product's own client, with what it sends changed on the way out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fedtune_client.app
import fedtune_simulations.engines
import pytest
import torch
from fedtune_simulations.setting import Setting, prepare
from fedtune_simulations.simulate import simulate
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message

from fedtune.aggregation.rule import GlobalState
from fedtune.config.schema import RunConfig
from fedtune.models.adapters import read_state
from fedtune.tensors import TensorSet

SMALL = {
    "data": {"embedded_patients": 64},
    "task": {"max_length": 160},
    "training": {"learning_rate": 0.004, "max_steps": 2, "batch_size": 8},
    "federation": {"rounds": 3},
}
HOSTILE = "cardiology"
Tamper = Callable[[str, Message], None]
"""Given a silo's name, change its reply."""


@pytest.fixture
def tamper(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tamper], None]:
    """Have all silos' replies changed as they leave."""

    def start(change: Tamper) -> None:
        def make(*given: Any, **named: Any) -> Callable[[Message, Context], Message]:
            app = fedtune_client.app.make_client_app(*given, **named)

            def changed(message: Message, context: Context) -> Message:
                reply = app(message, context)
                change(str(context.node_config["silo"]), reply)
                return reply

            return changed

        monkeypatch.setattr(fedtune_simulations.engines, "make_client_app", make)

    return start


def sent(reply: Message, setting: Setting) -> TensorSet:
    spec = read_state(setting.model).spec
    return TensorSet.from_wire(reply.content["layout"], reply.content["delta"]["tensors"], spec)


def send(reply: Message, delta: TensorSet) -> None:
    layout, array = delta.to_wire()
    reply.content["delta"] = ArrayRecord({"tensors": Array(*array)})
    reply.content["layout"] = ConfigRecord({**layout})


@pytest.fixture(scope="module")
def setting() -> Setting:
    return prepare(RunConfig.model_validate(SMALL))


@pytest.fixture(scope="module")
def base_loss(setting: Setting) -> float:
    return setting.score(GlobalState(read_state(setting.model)))["loss"]


def last_loss(federation: dict[str, Any], out: Path) -> float:
    settings = {**SMALL, "federation": {**SMALL["federation"], **federation}}
    loss = simulate(RunConfig.model_validate(settings), out, compare=False).rounds[-1].loss
    assert loss is not None
    return loss


RULES: dict[str, dict[str, Any]] = {
    "median": {"aggregation": "median", "min_silos": 3},
    "trimmed mean": {"aggregation": "trimmed_mean", "min_silos": 3},
    "multi-Krum": {"aggregation": "multi_krum", "min_silos": 5},
    "norm bounding": {"aggregation": "norm_bounding", "norm_bound": 0.5},
}


@pytest.mark.parametrize("rule", ["FedAvg", *RULES])
def test_minus_fifty_times_a_delta(
    rule: str, setting: Setting, base_loss: float, tamper: Any, tmp_path: Path
):
    def change(silo: str, reply: Message) -> None:
        if silo == HOSTILE:
            send(reply, sent(reply, setting) * -50.0)

    tamper(change)
    loss = last_loss(RULES.get(rule, {}), tmp_path / "run")
    print(f"{rule}: {loss:.4f}, base {base_loss:.4f}")
    if rule == "FedAvg":
        assert loss > base_loss
    else:
        assert loss < 0.97 * base_loss


def test_what_is_no_delta_is_refused_by_name_and_the_rest_goes_on(
    setting: Setting, tamper: Any, tmp_path: Path
):
    names = sorted(setting.silos)

    def change(silo: str, reply: Message) -> None:
        delta, record = sent(reply, setting), reply.content["delta"]
        first, number = min(delta), names.index(silo)
        if number == 0:
            send(reply, delta * float("nan"))
        elif number == 1:
            send(reply, delta.map(lambda tensor: torch.full_like(tensor, torch.inf)))
        elif number == 2:
            send(reply, TensorSet({n.replace("lora", "l0ra"): delta[n] for n in delta}))
        elif number == 3:
            send(reply, TensorSet({**delta.tensors, first: delta[first].repeat(1, 2)}))
        elif number == 4:
            whole = record["tensors"]
            content = Array("float64", whole.shape, whole.stype, whole.data)
            reply.content["delta"] = ArrayRecord({"tensors": content})

    tamper(change)
    settings = {**SMALL, "federation": {"rounds": 1, "aggregation": "median", "min_silos": 3}}
    run = simulate(RunConfig.model_validate(settings), tmp_path / "run", compare=False)
    told = {failure.silo: (failure.reason, failure.detail) for failure in run.rounds[0].failures}
    says = ["NaN or infinite", "NaN or infinite", "unexpected", "x", "sent float64"]
    assert [*told] == names[:5]
    assert run.rounds[0].silos == names[5:]
    for name, words in zip(names, says, strict=False):
        reason, detail = told[name]
        assert reason == "bad_reply"
        assert words in detail
