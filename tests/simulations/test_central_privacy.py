"""Central privacy in whole runs: who is asked, who fails, what is told, what is counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedtune_client.app import Instruction, make_client_app
from fedtune_client.update import LocalUpdate
from fedtune_server.reports import QuorumLostError, RoundReport
from fedtune_server.rounds import RunPlan, run_rounds, sample_silos
from fedtune_simulations.events import Working
from fedtune_simulations.grid import InProcessGrid
from fedtune_simulations.simulate import simulate as run
from flwr.app import Context

from fedtune.aggregation.rule import GlobalState
from fedtune.cli.main import main
from fedtune.config.load import load_config
from fedtune.config.schema import RunConfig
from fedtune.privacy.central import SiloLevel, build_central
from fedtune.privacy.noise import SeededNoise
from fedtune.tensors import Spec, TensorSet

START = TensorSet({"w": torch.zeros(3)})
NAMES = [f"clinic-{n}" for n in range(6)]
SMALL = [
    "data.embedded_patients=48",
    "training.max_steps=1",
    "training.batch_size=4",
    "federation.rounds=2",
    "federation.partition.by=iid",
    "federation.partition.silos=6",
    "adapter.lora_r=2",
    "privacy.mode=central",
    "privacy.noise_multiplier=1.0",
]


class NoNoise(SeededNoise):
    def normal(self, count: int, std: float) -> np.ndarray:
        return np.zeros(count)


class One:
    """A silo that always learns the same: one in its own place."""

    spec: Spec = START.spec
    run_hash = "run"

    def __init__(self, name: str, size: float = 0.3) -> None:
        self.name, self.size = name, size

    def train(self, told: Instruction) -> LocalUpdate:
        delta = torch.zeros(3)
        delta[NAMES.index(self.name) % 3] = self.size
        return LocalUpdate(TensorSet({"w": delta}), 1000 + NAMES.index(self.name), {"loss": 7.0})


def federate(
    *,
    source: SeededNoise,
    failing: Callable[[str], bool] = lambda silo: False,
    federation: dict[str, Any] | None = None,
    privacy: dict[str, Any] | None = None,
    size: float = 0.3,
    **kept: Any,
) -> tuple[GlobalState, list[RoundReport], SiloLevel]:
    def load(context: Context) -> One:
        name = str(context.node_config["silo"])
        if failing(name):
            raise RuntimeError("patient 4711 has no label")
        return One(name, size)

    config = RunConfig.model_validate(
        {
            "privacy": {"mode": "central", "noise_multiplier": 1.0, **(privacy or {})},
            "federation": {"rounds": 4, "min_silos": 2, **(federation or {})},
        }
    )
    rule = build_central(config, 6, source=source, checkpoints=kept.get("checkpoints"))
    grid = InProcessGrid(make_client_app(load), NAMES)
    plan = RunPlan(grid.nodes, config.federation, seed=3, run_hash="run", poll_seconds=0.0)
    return *run_rounds(grid, rule, START, plan, **kept), rule


def test_without_noise_and_with_all_silos_it_is_the_plain_mean():
    state, reports, rule = federate(source=NoNoise(0), federation={"rounds": 1})
    assert torch.allclose(state.adapter["w"], torch.full((3,), 2 * 0.3 / 6))
    assert reports[0].silos == NAMES
    assert rule.spending.events() == [rule.plan.event()]


def test_a_silo_that_sends_a_thousand_times_too_much_is_clipped_here():
    state, _, _ = federate(source=NoNoise(0), federation={"rounds": 1}, size=1000.0)
    assert torch.allclose(state.adapter["w"], torch.full((3,), 2 * 1.0 / 6))


def test_a_failed_silo_is_a_zero_and_its_words_are_not_told():
    state, reports, _ = federate(
        source=NoNoise(0), federation={"rounds": 1}, failing=lambda silo: silo == NAMES[0]
    )
    assert torch.allclose(state.adapter["w"], torch.tensor([1.0, 2.0, 2.0]) * 0.3 / 6)
    (failure,) = reports[0].failures
    assert (failure.silo, failure.reason, failure.detail) == (NAMES[0], "client_error", "")


def test_secret_draws_come_from_the_source_and_small_or_empty_ones_stand():
    """Twelve rounds at 0.3 of six: about every eighth is empty, and all count."""
    federation = {"rounds": 12, "fraction": 0.34}
    _, reports, rule = federate(source=SeededNoise(2), federation=federation)
    assert rule.spending.released == list(range(1, 13))
    (spent,) = rule.spending.events()
    assert (spent.sample_rate, spent.noise_multiplier, spent.count) == (0.34, 1.0, 12)
    assert len(reports) == 12
    for report in reports:
        told = (report.silos, report.failures, report.bytes_up, report.bytes_down, report.seconds)
        assert told == (None,) * 5
        assert report.loss is None
        assert set(report.numbers()) == set()


def test_the_denominator_of_a_secret_draw_is_the_expected_number():
    source = NoNoise(5)
    drawn = len([u for u in NoNoise(5).uniform(6) if u < 0.5])
    assert drawn not in (0, 3)
    state, _, _ = federate(source=source, federation={"rounds": 1, "fraction": 0.5})
    assert float(state.adapter["w"].sum()) == pytest.approx(drawn * 0.3 / 3, rel=1e-5)


def test_the_draw_is_not_the_one_that_the_seed_tells():
    asked: list[str] = []

    def note(silo: str) -> bool:
        asked.append(silo)
        return False

    federate(source=SeededNoise(8), federation={"rounds": 1, "fraction": 0.5}, failing=note)
    config = RunConfig.model_validate({"federation": {"fraction": 0.5}})
    nodes = {name: number for number, name in enumerate(NAMES)}
    by_seed = sample_silos(RunPlan(nodes, config.federation, 3, "run"), 1)
    wanted = [n for n, u in zip(NAMES, SeededNoise(8).uniform(6), strict=True) if u < 0.5]
    assert asked == wanted
    assert asked != by_seed


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_lost_quorum_releases_and_counts_nothing_and_its_line_tells_no_loss(fraction: float):
    with pytest.raises(QuorumLostError, match="patient 4711") as caught:
        federate(
            source=SeededNoise(8),
            federation={"rounds": 1, "fraction": fraction},
            failing=lambda silo: silo != NAMES[1],
        )
    assert caught.value.report.loss is None
    assert "4711" not in str(caught.value.report)


def test_losing_the_quorum_of_a_later_round_counts_the_released_ones(tmp_path: Path):
    finished: list[int] = []
    with pytest.raises(QuorumLostError):
        federate(
            source=SeededNoise(1),
            failing=lambda silo: len(finished) == 2,
            on_round=lambda report: finished.append(report.round),
            checkpoints=tmp_path,
        )
    assert json.loads((tmp_path / "released.json").read_text()) == {"rounds": [1, 2]}


class Killed(BaseException):
    """The process dies."""


@pytest.mark.parametrize("kind", ["gaussian", "tree", "banded"])
def test_killed_and_resumed_is_the_uninterrupted_run_epsilon_included(kind: str, tmp_path: Path):
    def die(report: RoundReport) -> None:
        if report.round == 2:
            raise Killed

    part: dict[str, Any] = {
        "federation": {"rounds": 5, "fraction": 0.5},
        "privacy": {"server_noise": kind},
    }
    whole, reports, counted = federate(source=SeededNoise(4), **part)
    source = SeededNoise(4)
    with pytest.raises(Killed):
        federate(source=source, **part, checkpoints=tmp_path, on_round=die)
    state, resumed, rule = federate(source=source, **part, checkpoints=tmp_path, resume=True)
    assert state.adapter.digest() == whole.adapter.digest()
    assert [(r.round, r.silos) for r in resumed] == [(r.round, r.silos) for r in reports]
    assert rule.spending.events() == counted.spending.events() == [rule.plan.event()]


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


def simulate(folder: Path, *arguments: str) -> int:
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps({"output": {"dir": str(folder)}}))
    return main(["simulate", str(file), *SMALL, *arguments])


@pytest.mark.usefixtures("_cache")
@pytest.mark.parametrize("fraction", ["1.0", "0.5"])
def test_a_run_tells_nothing_of_single_silos(
    fraction: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert simulate(tmp_path / "run", f"federation.fraction={fraction}") == 0
    seen = capsys.readouterr()
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "6 silos\n" in card
    lines = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    untold = [(line["loss"], line["metric"], line["seconds"]) for line in lines]
    assert untold == [(None, None, None)] * 2
    assert not (tmp_path / "run" / "comparison.json").exists()
    if fraction == "0.5":
        assert all(line["silos"] is line["failures"] is line["bytes_up"] is None for line in lines)
        assert "silo-" not in seen.out + seen.err
    assert "loss 0" not in seen.err


@pytest.mark.usefixtures("_cache")
def test_who_works_is_not_named_where_draws_are_secret(tmp_path: Path):
    seen: list[Working] = []
    for fraction in ("1.0", "0.9"):
        file = tmp_path / "run.yaml"
        file.write_text(json.dumps({"output": {"dir": str(tmp_path / "run")}}))
        config = load_config(file, [*SMALL, f"federation.fraction={fraction}"])
        run(config, tmp_path / fraction, compare=False, on_work=seen.append)
        names = {event.who for event in seen}
        assert ("silo-0" in names, "a silo" in names) == (fraction == "1.0", fraction != "1.0")
        seen.clear()


@pytest.mark.usefixtures("_cache")
def test_public_held_out_rows_may_be_scored(tmp_path: Path):
    assert simulate(tmp_path / "run", "privacy.held_out=public") == 0
    lines = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] > 0 and line["metric"] is not None for line in lines)
    scores = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert set(scores) == {"base", "federated"}


@pytest.mark.usefixtures("_cache")
def test_two_runs_of_one_seed_have_different_noise(tmp_path: Path):
    adapters = []
    for name in ("a", "b"):
        assert simulate(tmp_path / name, "--no-compare", "federation.rounds=1") == 0
        file = tmp_path / name / "adapter" / "adapter_model.safetensors"
        adapters.append(TensorSet.load(file))
    assert (adapters[0] - adapters[1]).norm() > 1.0


@pytest.mark.usefixtures("_cache")
def test_a_dry_run_refuses_what_a_run_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for extra in (["--dry-run"], []):
        assert simulate(tmp_path / "run", "privacy.delta=0.2", *extra) == 2
        assert "one over the number of silos (6)" in capsys.readouterr().err
    assert simulate(tmp_path / "run", "federation.aggregation=fedex") == 2
    assert "needs `federation.aggregation: fedavg`" in capsys.readouterr().err


@pytest.mark.usefixtures("_cache")
@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "6 silos, about 6 a step (full sampling"),
        (["federation.fraction=0.5"], "6 silos, about 3 a step (poisson sampling, rate 0.5)"),
        (
            ["federation.fraction=0.5", "privacy.server_noise=banded"],
            "6 silos, about 3 a step (no sampling, rate 0.5)",
        ),
    ],
)
def test_a_dry_run_tells_the_plan(
    more: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert simulate(tmp_path / "run", *more, "--dry-run") == 0
    seen = capsys.readouterr().out
    assert f"privacy: {told}" in seen
    assert "presence of one silo, against all who get the model; the coordinator is trusted" in seen


@pytest.mark.usefixtures("_cache")
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_training_in_one_place_refuses_central_privacy(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"output": {"dir": str(tmp_path / "run")}}))
    assert main(["train", str(file), *SMALL, *more]) == 2
    assert "`train` has no silos" in capsys.readouterr().err
