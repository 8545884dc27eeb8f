"""Whole runs over the in-process grid: least squares, so each claim can be computed apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fedtune_client.app import Instruction, make_client_app
from fedtune_client.update import LocalUpdate
from fedtune_server.messages import instruction
from fedtune_server.reports import RoundReport
from fedtune_server.rounds import RunPlan, run_rounds, sample_silos
from fedtune_simulations.grid import InProcessGrid
from flwr.app import Context

from fedtune.aggregation.rule import GlobalState
from fedtune.aggregation.rules import FedAvg
from fedtune.config.federation import FederationConfig, ServerOptimizerConfig
from fedtune.errors import InputError, RunFailedError
from fedtune.tensors import Spec, TensorSet

RATE = 0.1
START = TensorSet({"w": torch.tensor([0.5, -1.0, 2.0])})
SIZES = {"a": 3, "b": 7, "c": 11, "d": 5}


def sgd(weights: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return weights - RATE * 2 * x.T @ (x @ weights - y) / len(x)


class LeastSquares:
    """One plain gradient step a round on its own rows."""

    spec: Spec = START.spec
    run_hash = "run"

    def __init__(self, name: str, steps: int = 1) -> None:
        generator = torch.Generator().manual_seed(ord(name))
        self.x = torch.randn(SIZES[name], 3, generator=generator)
        self.y = torch.randn(SIZES[name], generator=generator)
        self.steps = steps

    def train(self, told: Instruction) -> LocalUpdate:
        weights = told.adapter["w"]
        for _ in range(self.steps):
            weights = sgd(weights, self.x, self.y)
        loss = float((self.x @ weights - self.y).square().mean())
        return LocalUpdate(
            TensorSet({"w": weights - told.adapter["w"]}), len(self.x), {"loss": loss}
        )


class Killed(BaseException):
    """The process dies: no handler of ordinary errors may swallow it."""


def federate(
    *,
    failing: Callable[[str, int], bool] = lambda silo, number: False,
    optimizer: str = "none",
    steps: int = 1,
    hash_of_run: str = "run",
    federation: dict[str, Any] | None = None,
    **kept: Any,
) -> tuple[GlobalState, list[RoundReport]]:
    def load(context: Context) -> LeastSquares:
        name = str(context.node_config["silo"])
        silo = LeastSquares(name, steps)
        calls[name] = calls.get(name, 0) + 1
        if failing(name, calls[name]):
            raise RuntimeError("disk full")
        return silo

    calls: dict[str, int] = {}
    settings = FederationConfig(**{"rounds": 4, "min_silos": 2, **(federation or {})})
    grid = InProcessGrid(make_client_app(load), SIZES, settings.round_timeout_seconds)
    plan = RunPlan(grid.nodes, settings, seed=3, run_hash=hash_of_run, poll_seconds=0.0)
    rule = FedAvg(ServerOptimizerConfig.model_validate({"name": optimizer}))
    return run_rounds(grid, rule, START, plan, **kept)


def test_one_step_of_fedavg_is_one_central_step_on_the_pooled_batch():
    state, reports = federate(federation={"rounds": 1})
    silos = [LeastSquares(name) for name in SIZES]
    pooled = sgd(START["w"], torch.cat([s.x for s in silos]), torch.cat([s.y for s in silos]))
    assert torch.allclose(state.adapter["w"], pooled, atol=1e-6)
    assert not torch.allclose(state.adapter["w"], START["w"], atol=1e-2)
    assert reports[0].silos == ["a", "b", "c", "d"]


@pytest.mark.parametrize("optimizer", ["none", "fedavgm", "fedadam"])
def test_the_same_run_twice_is_bit_equal(optimizer: str):
    runs = [federate(optimizer=optimizer, steps=3)[0].adapter.digest() for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("optimizer", ["none", "fedavgm", "fedadam"])
def test_killed_and_resumed_is_the_uninterrupted_run(optimizer: str, tmp_path: Path):
    def die(report: RoundReport) -> None:
        if report.round == 2:
            raise Killed

    part = {"federation": {"fraction": 0.5, "rounds": 5}, "optimizer": optimizer}
    whole, reports = federate(**part)
    with pytest.raises(Killed):
        federate(**part, checkpoints=tmp_path, on_round=die)
    (tmp_path / "round-000003.part").mkdir()  # what a kill inside a save leaves behind
    state, resumed = federate(**part, checkpoints=tmp_path, resume=True)
    assert state.adapter.digest() == whole.adapter.digest()
    assert [(r.round, r.loss, r.silos) for r in resumed] == [
        (r.round, r.loss, r.silos) for r in reports
    ]


def test_states_memory_is_used_again_but_never_the_callers():
    seen: list[tuple[int, int]] = []
    initial = TensorSet.of_flat(START.flat().clone(), START.spec)

    def note(state: GlobalState) -> dict[str, float]:
        seen.append((state.adapter.flat().data_ptr(), initial.flat().data_ptr()))
        return {}

    silos = {name: LeastSquares(name) for name in SIZES}
    app = make_client_app(lambda context: silos[str(context.node_config["silo"])])
    grid = InProcessGrid(app, silos)
    plan = RunPlan(grid.nodes, FederationConfig(rounds=4), seed=0, run_hash="run")
    run_rounds(grid, FedAvg(ServerOptimizerConfig()), initial, plan, evaluate=note)
    assert initial.digest() == START.digest()
    assert len({ours for ours, _ in seen}) == 1
    assert all(ours != callers for ours, callers in seen)


def test_a_failing_silo_does_not_stop_the_round_and_is_left_out_of_the_mean():
    state, reports = federate(failing=lambda silo, n: silo == "b", federation={"rounds": 1})
    kept = [LeastSquares(name) for name in "acd"]
    pooled = sgd(START["w"], torch.cat([s.x for s in kept]), torch.cat([s.y for s in kept]))
    assert torch.allclose(state.adapter["w"], pooled, atol=1e-6)
    assert reports[0].silos == ["a", "c", "d"]
    (failure,) = reports[0].failures
    assert (failure.silo, failure.reason) == ("b", "client_error")
    assert "disk full" in failure.detail


def test_a_lost_quorum_stops_the_run_and_keeps_the_last_finished_round(tmp_path: Path):
    def failing(silo: str, number: int) -> bool:
        return number >= 2 and silo != "a"

    with pytest.raises(RunFailedError, match=r"(?s)round 2: 1 good.*  b: client_error: .*disk"):
        federate(failing=failing, checkpoints=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]
    state, _ = federate(checkpoints=tmp_path, resume=True)
    assert state.adapter.digest() == federate()[0].adapter.digest()


def test_an_aggregate_that_overflows_stops_the_run_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # each delta is finite, and so passes as a reply; momentum adds them up
    huge = LocalUpdate(TensorSet({"w": torch.full((3,), 2e38)}), 1)
    monkeypatch.setattr(LeastSquares, "train", lambda silo, told: huge)
    with pytest.raises(RunFailedError, match="round 2: the aggregated adapter has NaN or inf"):
        federate(optimizer="fedavgm", checkpoints=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]


def test_a_moment_that_overflows_stops_the_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # its square is infinite: FedAdam would never move these weights again
    huge = LocalUpdate(TensorSet({"w": torch.full((3,), 1e20)}), 1)
    monkeypatch.setattr(LeastSquares, "train", lambda silo, told: huge)
    with pytest.raises(RunFailedError, match="round 1: the aggregated second has NaN or inf"):
        federate(optimizer="fedadam", checkpoints=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_losses_of_any_size_do_not_stop_the_run(monkeypatch: pytest.MonkeyPatch):
    told = LocalUpdate(START, 5, {"loss": 1e308})
    monkeypatch.setattr(LeastSquares, "train", lambda silo, _: told)
    _, (report,) = federate(federation={"rounds": 1})
    assert report.loss == pytest.approx(1e308)


def test_silos_after_the_deadline_are_late():
    with pytest.raises(RunFailedError, match=r"(?s)0 good replies.*d: late"):
        federate(federation={"round_timeout_seconds": 1e-9})


def test_a_silo_refuses_a_run_that_is_not_its_own():
    with pytest.raises(RunFailedError, match="a run with other settings"):
        federate(hash_of_run="another")


def test_a_quorum_that_can_never_be_met_is_told_before_the_first_round():
    with pytest.raises(InputError, match="a round asks 2 of 4 silos"):
        federate(federation={"fraction": 0.5, "min_silos": 3})


@pytest.mark.parametrize(
    ("again", "message"),
    [
        ({}, "holds a run that finished round 4"),
        ({"resume": True, "hash_of_run": "another"}, "other settings"),
    ],
)
def test_a_used_folder_is_not_mixed_up(again: dict[str, Any], message: str, tmp_path: Path):
    federate(checkpoints=tmp_path)
    with pytest.raises(InputError, match=message):
        federate(**again, checkpoints=tmp_path)


def test_sampling_depends_on_seed_and_round_only():
    nodes = {f"s{i}": i for i in range(10)}
    plan = RunPlan(nodes, FederationConfig(fraction=0.3), seed=1, run_hash="run")
    turned = RunPlan(dict(reversed(nodes.items())), plan.federation, seed=1, run_hash="x")
    rounds = [sample_silos(plan, number) for number in range(1, 30)]
    assert rounds == [sample_silos(turned, number) for number in range(1, 30)]
    assert all(len(set(silos)) == 3 for silos in rounds)
    assert {silo for silos in rounds for silo in silos} == set(nodes)


def test_evaluation_and_bytes_are_reported():
    seen: list[RoundReport] = []
    federate(
        federation={"rounds": 1},
        on_round=seen.append,
        evaluate=lambda state: {"loss": 7.0, "accuracy": 0.25},
    )
    assert (seen[0].loss, seen[0].metric) == (7.0, 0.25)
    assert (seen[0].bytes_down, seen[0].bytes_up) == (4 * 12, 4 * 12)


def test_without_an_evaluation_the_silos_losses_are_weighted_by_their_examples():
    _, (report,) = federate(federation={"rounds": 1})
    told = [LeastSquares(name).train(Instruction(START, 1)) for name in SIZES]
    mean = sum(update.metrics["loss"] * update.examples for update in told) / sum(SIZES.values())
    assert report.loss == pytest.approx(mean)


def test_a_silo_runs_only_when_its_reply_is_pulled():
    ran: list[str] = []

    def load(context: Context) -> LeastSquares:
        ran.append(str(context.node_config["silo"]))
        return LeastSquares(ran[-1])

    grid = InProcessGrid(make_client_app(load), ["a", "b"])
    message = grid.create_message
    content = instruction(START, 1, "run")
    ids = grid.push_messages(message(content, "train", node, "1") for node in grid.nodes.values())
    replies = iter(grid.pull_messages(ids))
    assert ran == []
    next(replies)
    assert ran == ["a"]
