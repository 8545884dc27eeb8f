"""Secure aggregation between a coordinator and four nodes, some of which are lost on the way."""

import json
from collections.abc import Iterator

import pytest
import torch
from fedtune_simulations.simulate import simulate

from fedtune.config.schema import RunConfig
from fedtune.tensors import TensorSet
from tests.e2e.conftest import Federation, make, rows_of, until
from tests.e2e.runs import begin, end

pytestmark = pytest.mark.no_cover

FOUR = ("east", "north", "south", "west")
SECURE = {"secure_aggregation__enabled": "true", "federation__rounds": "1"}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = make(tmp_path_factory.mktemp("secure"), FOUR)
    try:
        for name in ("server", *FOUR):
            made.start(name)
        made.online(*FOUR)
        yield made
    finally:
        made.end()


def learned(federation: Federation, run: str) -> torch.Tensor:
    folder = federation.server / "runs" / run / "adapter"
    return TensorSet.load(folder / "adapter_model.safetensors").flat()


def alone(federation: Federation, silos: tuple[str, ...]) -> torch.Tensor:
    """What a simulation of these silos learns, every delta in the clear."""
    files = federation.folder / f"{len(silos)}.jsonl", federation.folder / "test.jsonl"
    rows = [row for silo in silos for row in rows_of(silo)]
    files[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    files[1].write_text('{"prompt": "a", "completion": "b"}\n')
    config = RunConfig.model_validate(
        {
            "task": {"max_length": 48},
            "training": {"max_steps": 20, "batch_size": 8},
            "federation": {"rounds": 1, "partition": {"by": "column", "column": "silo"}},
            "data": {
                "source": "files",
                "train_files": [str(files[0])],
                "test_files": [str(files[1])],
            },
        }
    )
    out = federation.folder / f"alone-{len(silos)}"
    if not out.exists():
        simulate(config, out, compare=False)
    return TensorSet.load(out / "adapter" / "adapter_model.safetensors").flat()


def near(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one - other).norm() < 1e-3 * other.norm()
    assert not torch.equal(one, other)  # it went through fixed point


def test_the_sum_of_four_is_what_they_learn_in_the_clear(federation: Federation):
    begin(federation, "calm", **SECURE)
    end(federation, "calm")
    near(learned(federation, "calm"), alone(federation, FOUR))
    (line,) = federation.rounds("calm")
    assert line["silos"] == [*FOUR]
    assert line["loss"] is None  # no silo's own is told
    assert line["rounding"]["cut"] == 0
    assert line["rounding"]["relative_error"] < 1e-3
    for silo in FOUR:
        said = federation.told(silo)
        for step in ("advertise", "share", "masked", "agree", "unmask"):
            assert f"secure round: {step}" in said


def test_a_node_killed_after_it_shared_its_keys_is_left_out(federation: Federation):
    before = federation.told("south").count("secure round: share")
    begin(federation, "lost", federation__round_timeout_seconds="60", **SECURE)
    until(lambda: federation.told("south").count("secure round: share") > before, "the shares")
    federation.kill("south")
    end(federation, "lost")
    federation.start("south")
    (line,) = federation.rounds("lost")
    assert line["silos"] == ["east", "north", "west"]
    near(learned(federation, "lost"), alone(federation, ("east", "north", "west")))
    federation.online(*FOUR)


def test_a_node_killed_after_it_sent_its_vector_is_in_the_sum(federation: Federation):
    def agreed() -> int:
        return federation.told("west").count("secure round: agree")

    before = agreed()
    begin(federation, "late", federation__round_timeout_seconds="45", **SECURE)
    until(lambda: agreed() > before, "west to have signed for the survivors")
    federation.kill("west")
    end(federation, "late")
    federation.start("west")
    (line,) = federation.rounds("late")
    assert line["silos"] == [*FOUR]
    near(learned(federation, "late"), alone(federation, FOUR))


RECORDS = {
    "privacy__sample_rate": "0.5",
    "training__max_steps": "1",
    "training__optimizer": "sgd",
    "training__learning_rate": "8.0",  # of sums over the batch of 8
}


@pytest.mark.parametrize(("unit", "changes"), [("silo", {}), ("record", RECORDS)])
def test_noise_in_shares_is_added_charged_and_told_by_each_silo(
    federation: Federation, unit: str, changes: dict[str, str]
):
    before = {*federation.folder.glob("*/runs/*/privacy.json")}
    begin(
        federation,
        f"noised-{unit}",
        secure_aggregation__enabled="true",
        secure_aggregation__max_dropouts="0",
        federation__rounds="1",
        federation__min_silos="4",
        privacy__mode="distributed",
        privacy__unit=unit,
        privacy__target_epsilon="2.0",
        **changes,
    )
    end(federation, f"noised-{unit}")
    noise = (learned(federation, f"noised-{unit}") - alone(federation, FOUR)).std()
    files = {*federation.folder.glob("*/runs/*/privacy.json")} - before
    told = federation.server / "runs" / f"noised-{unit}" / "privacy.json"
    assert {file.parents[2].name for file in files - {told}} == {*FOUR}
    for file in files - {told}:
        facts = json.loads(file.read_text())
        assert facts["promise"]["unit"] == unit
        assert facts["promise"]["epsilon"] <= 2.0
        (party,) = facts["parties"].values()
        assert party["shares"] == {"silos": 4, "colluders": 0}
        counted = party["person"] or party
        assert party["ledger"]["after"]["pld"] >= counted["epsilon"] * 0.999
        # a clipping norm of 1, and the mean of four
        assert float(noise) == pytest.approx(party["noise_multiplier"] / 4, rel=0.02)
    assert "add its share of the noise" in json.loads(told.read_text())["statement"]
