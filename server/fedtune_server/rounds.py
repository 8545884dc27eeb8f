"""The round loop, the same over every Flower Grid: sample, collect, aggregate, checkpoint."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fedtune.aggregation.rules import GlobalState, Rule
from fedtune.config.schema import FederationConfig
from fedtune.errors import InputError, RunFailedError
from fedtune.tensors import TensorSet
from fedtune_server.checkpoints import Checkpoint, load_latest, save_checkpoint
from fedtune_server.collect import Failure, Request, collect
from fedtune_server.messages import Update, instruction

Evaluate = Callable[[TensorSet], dict[str, float]]


@dataclass(frozen=True)
class RoundReport:
    """A finished round. `loss` and `metric` are the coordinator's own evaluation if it has one;
    otherwise `loss` is the example-weighted training loss that silos told, and `metric` is None.
    Bytes are tensor payloads: up from silos, down to silos. `silos` are those aggregated.
    """

    round: int
    loss: float | None
    metric: float | None
    bytes_up: int
    bytes_down: int
    seconds: float
    silos: list[str]
    failures: list[Failure]


@dataclass(frozen=True)
class RunPlan:
    """Who takes part and what identifies the run. `nodes` maps silo names to Flower node ids."""

    nodes: Mapping[str, int]
    federation: FederationConfig
    seed: int
    run_hash: str
    poll_seconds: float = 1.0


def run_rounds(
    grid: Grid,
    rule: Rule,
    initial: TensorSet,
    plan: RunPlan,
    *,
    checkpoints: Path | None = None,
    resume: bool = False,
    on_round: Callable[[RoundReport], None] | None = None,
    evaluate: Evaluate | None = None,
) -> tuple[GlobalState, list[RoundReport]]:
    """Run what is left of the rounds; return the last state and the reports of all rounds.

    Raises RunFailedError when fewer than `min_silos` good replies came by a round's deadline
    (the last finished round stays in `checkpoints`), InputError when the plan can't ever meet
    the quorum or a checkpoint is not this run's.
    """
    check_quorum(plan)
    state, reports = _start(rule, initial, plan, checkpoints, resume)
    for number in range(len(reports) + 1, plan.federation.rounds + 1):
        state, report = _run_round(grid, rule, state, plan, number, evaluate)
        reports.append(report)
        if checkpoints is not None:
            saved = Checkpoint(number, state, [dataclasses.asdict(r) for r in reports])
            save_checkpoint(checkpoints, saved, plan.run_hash)
        if on_round is not None:
            on_round(report)
    return state, reports


def sample_silos(plan: RunPlan, number: int) -> list[str]:
    """The silos of round `number`, sorted: a pure function of the seed and the round."""
    names = sorted(plan.nodes)
    count = min(len(names), max(1, round(plan.federation.fraction * len(names))))
    rng = np.random.default_rng([plan.seed, number])
    return sorted(str(name) for name in rng.choice(names, size=count, replace=False))


def check_quorum(plan: RunPlan) -> None:
    """Raise InputError when no round can ever bring `min_silos` replies."""
    sampled = len(sample_silos(plan, 1)) if plan.nodes else 0
    if sampled < plan.federation.min_silos:
        raise InputError(
            f"{plan.federation.min_silos} replies are wanted, but a round asks {sampled} of "
            f"{len(plan.nodes)} silos",
            where="federation.min_silos",
            mend="lower it, raise `federation.fraction` or add silos",
        )


def check_fits(saved: Checkpoint, initial: TensorSet, folder: Path | None) -> None:
    """Raise InputError when a checkpoint's adapter is not of the model's shapes."""
    if saved.state.adapter.spec != initial.spec:
        raise InputError("the checkpoint's adapter is not the model's", where=folder)


def _start(
    rule: Rule, initial: TensorSet, plan: RunPlan, checkpoints: Path | None, resume: bool
) -> tuple[GlobalState, list[RoundReport]]:
    fresh = rule.start(initial)
    saved = load_latest(checkpoints, plan.run_hash) if checkpoints else None
    if saved is not None and not resume:
        raise InputError(
            f"the folder holds a run that finished round {saved.round}",
            where=checkpoints,
            mend="resume it, or use another output folder",
        )
    if saved is None:
        return fresh, []
    check_fits(saved, initial, checkpoints)
    return saved.state, [_report(values) for values in saved.reports]


def _report(values: dict[str, Any]) -> RoundReport:
    return RoundReport(**{**values, "failures": [Failure(**f) for f in values["failures"]]})


def _run_round(
    grid: Grid,
    rule: Rule,
    state: GlobalState,
    plan: RunPlan,
    number: int,
    evaluate: Evaluate | None,
) -> tuple[GlobalState, RoundReport]:
    began = time.monotonic()
    requests = _requests(rule, state, plan, number)
    tally = _Tally()
    fold = rule.fold(state)

    def accept(silo: str, update: Update) -> None:
        fold.add(silo, update.delta, float(update.examples))
        tally.add(silo, update)

    failures = collect(
        grid,
        requests,
        group=str(number),
        timeout_seconds=plan.federation.round_timeout_seconds,
        poll_seconds=plan.poll_seconds,
        accept=accept,
    )
    if len(tally.silos) < plan.federation.min_silos:
        raise RunFailedError(_quorum_lost(plan, number, tally, failures))
    state = fold.result()
    if not state.adapter.is_finite():
        raise RunFailedError(f"round {number}: the aggregated adapter has NaN or infinite values")
    told = evaluate(state.adapter) if evaluate else {}
    return state, RoundReport(
        round=number,
        loss=told.get("loss", tally.loss()),
        metric=told.get("accuracy"),
        bytes_up=tally.bytes,
        bytes_down=sum(_payload(request) for request in requests.values()),
        seconds=time.monotonic() - began,
        silos=tally.silos,
        failures=failures,
    )


def _requests(rule: Rule, state: GlobalState, plan: RunPlan, number: int) -> dict[str, Request]:
    requests: dict[str, Request] = {}
    shared: dict[int, Request] = {}
    for silo in sample_silos(plan, number):
        received = rule.received_by(silo, state)
        # silos that receive the same object share one serialized payload
        like = shared.get(id(received)) if received is state.adapter else None
        content = like.content if like else instruction(received, number, plan.run_hash)
        requests[silo] = Request(plan.nodes[silo], content, received.spec)
        shared.setdefault(id(received), requests[silo])
    return requests


def _payload(request: Request) -> int:
    return int(request.content.array_records["state"]["tensors"].shape[0])


def _quorum_lost(plan: RunPlan, number: int, tally: "_Tally", failures: list[Failure]) -> str:
    lines = [
        f"round {number}: {len(tally.silos)} good replies, "
        f"`federation.min_silos` is {plan.federation.min_silos}"
    ]
    lines += [f"  {failure.silo}: {failure.reason}: {failure.detail}" for failure in failures]
    return "\n".join(lines)


class _Tally:
    """What the good replies of a round add up to, without their deltas."""

    def __init__(self) -> None:
        self.silos: list[str] = []
        self.bytes = 0
        self._losses: list[tuple[float, int]] = []

    def add(self, silo: str, update: Update) -> None:
        self.silos.append(silo)
        self.bytes += update.bytes
        if "loss" in update.metrics:
            self._losses.append((update.metrics["loss"], update.examples))

    def loss(self) -> float | None:
        """Example-weighted mean of the told losses, or None if no silo told one."""
        examples = sum(count for _, count in self._losses)
        return math.fsum(loss * n for loss, n in self._losses) / examples if examples else None
