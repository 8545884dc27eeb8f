"""A federation whose coordinator sees sums only learns what one learns that sees every delta."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from fedtune_client.silo import LocalSilo
from fedtune_simulations.simulate import simulate

from fedtune.cli.main import main
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError, RunFailedError
from fedtune.tensors import TensorSet

BASE = {
    "data": {"embedded_patients": 60},
    "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 0.004},
    "federation": {"rounds": 1, "partition": {"by": "quantity", "silos": 5}},
}
SECURE = {"enabled": True, "max_weight": 80}


def run(
    out: Path, *, secure: bool, resume: bool = False, **sections: dict
) -> tuple[TensorSet, list]:
    tree = {name: {**part, **sections.get(name, {})} for name, part in BASE.items()}
    tree |= {name: part for name, part in sections.items() if name not in BASE}
    if secure:
        tree["secure_aggregation"] = {**SECURE, **sections.get("secure_aggregation", {})}
    result = simulate(RunConfig.model_validate(tree), out, compare=False, resume=resume)
    return TensorSet.load(out / "adapter" / "adapter_model.safetensors"), result.rounds


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"federation": {"proximal_mu": 0.1}},
        {"federation": {"server_optimizer": {"name": "fedavgm", "momentum": 0.5}}},
        {"adapter": {"freeze_a": True}},
        {"adapter": {"method": "fed_sb"}},
    ],
    ids=["fedavg", "fedprox", "fedavgm", "ffa", "fed_sb"],
)
def test_the_adapter_is_that_of_the_plain_run_to_the_told_error(tmp_path: Path, sections: dict):
    secure, rounds = run(tmp_path / "secure", secure=True, **sections)
    plain, before = run(tmp_path / "plain", secure=False, **sections)
    # a silo's number is off by a step of 2 * 3.2 * 0.004 * 2 / (2,642,244 // 5) at most, the mean
    # by that times the largest weight over the mean weight, which is below 4 here
    worst, rounding = 4 * 2 * 3.2 * 0.004 * 2 / 528_448, rounds[0].rounding
    assert rounding.largest_error <= worst
    assert rounding.cut == 0
    fed_sb = "method" in sections.get("adapter", {})
    told = rounding.largest_error * (8**0.5 if fed_sb else 1)  # of B R: 8 of R, times 1 / sqrt(8)
    off = max(float((secure[n] - plain[n]).abs().max()) for n in plain)
    assert 0.1 * told < off <= told + 1e-8
    assert (secure - plain).norm() < 1e-3 * plain.norm()
    assert rounds[0].silos == before[0].silos
    words = -(-rounding.numbers // 5 // 3) + 1 + 2 * len(rounding.halvings)
    assert rounds[0].bytes_up == 5 * 8 * words < 0.75 * before[0].bytes_up


def test_bounds_follow_the_rounds_and_a_resumed_run_s_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the settings' bound alone a step as small as this would be lost in rounding."""
    sections = {"federation": {"rounds": 3}, "secure_aggregation": {"bound": 50.0}}
    whole = LocalSilo.train

    def train(self: LocalSilo, told):
        if told.round == 3:
            raise RunFailedError("no")
        return whole(self, told)

    monkeypatch.setattr(LocalSilo, "train", train)
    with pytest.raises(RunFailedError, match="round 3"):
        run(tmp_path / "run", secure=True, **sections)
    monkeypatch.setattr(LocalSilo, "train", whole)
    _, rounds = run(tmp_path / "run", secure=True, resume=True, **sections)
    told = [report.rounding for report in rounds]
    assert told[0].halvings == [0] * len(told[0].halvings)
    assert told[1].halvings == told[0].next_halvings
    assert told[2].halvings == told[1].next_halvings
    assert min(told[2].halvings) > 5
    assert told[0].relative_error > 0.01
    assert max(one.relative_error for one in told[1:]) < 1e-3
    assert [one.cut for one in told] == [0, 0, 0]


def test_silos_that_fail_are_left_out_of_the_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = LocalSilo.train

    def train(self: LocalSilo, told):
        if self.name.endswith("1"):
            raise RunFailedError("this silo's disk is full")
        return whole(self, told)

    monkeypatch.setattr(LocalSilo, "train", train)
    _, (report,) = run(tmp_path / "lost", secure=True)
    assert len(report.silos) == 4
    (failure,) = report.failures
    assert "disk is full" in failure.detail


def test_too_few_silos_open_nothing_and_the_run_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def train(self: LocalSilo, told):
        raise RunFailedError("no")

    whole = LocalSilo.train
    monkeypatch.setattr(LocalSilo, "train", train)
    with pytest.raises(RunFailedError, match="was not opened: too few"):
        run(tmp_path / "run", secure=True)
    monkeypatch.setattr(LocalSilo, "train", whole)
    tree = {**BASE, "secure_aggregation": SECURE}
    config = RunConfig.model_validate(tree)
    simulate(config, tmp_path / "run", compare=False, resume=True)
    again, _ = run(tmp_path / "again", secure=True)
    there = TensorSet.load(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert (there - again).norm() < 1e-3 * again.norm()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"secure_aggregation": {"max_dropouts": 3}}, "can't bear 0 colluders and 3 dropouts"),
        ({"federation": {"engine": "ray"}}, "Ray's workers"),
    ],
)
def test_what_can_not_be_secure_is_refused(tmp_path: Path, sections: dict, said: str):
    with pytest.raises(InputError, match=said):
        run(tmp_path / "run", secure=True, **sections)


def test_by_the_command_that_a_user_types(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {embedded_patients: 60}\n"
        "training: {max_steps: 1, batch_size: 4}\n"
        "federation: {rounds: 1, partition: {by: iid, silos: 4}}\n"
        "secure_aggregation: true\n"
    )
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["simulate", str(file), f"output.dir={tmp_path / 'out'}", "--json"]) == 0
    told = json.loads(out.getvalue())
    assert len(told["rounds"][0]["silos"]) == 4
    assert told["rounds"][0]["failures"] == []
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["simulate", str(file), "--dry-run", "--json"]) == 0
    assert json.loads(out.getvalue())["bytes_up_a_round"] == told["rounds"][0]["bytes_up"]
