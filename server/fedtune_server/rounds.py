"""The round loop, the same over every Flower Grid: sample, collect, aggregate, checkpoint.

Beyond the state that is being trained it needs the memory of two adapters: the running mean and
the one reply in hand (more for rules that keep factors or moments).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from fedtune.aggregation.rule import Fold, GlobalState, Rule
from fedtune.config.federation import FederationConfig
from fedtune.errors import InputError, RunFailedError
from fedtune.privacy.central import SiloLevel
from fedtune.tensors import TensorSet
from fedtune_server.checkpoints import Checkpoint, load_latest, save_checkpoint
from fedtune_server.collect import Failure, Request, collect
from fedtune_server.messages import Update, instruction, tensors_in
from fedtune_server.reports import QuorumLostError, RoundingReport, RoundReport, Tally, told
from fedtune_server.secure_sum import Asking, SecureRun, secure_sum

Evaluate = Callable[[GlobalState], dict[str, float]]


@dataclass(frozen=True)
class RunPlan:
    """Who takes part and what identifies the run. `nodes` maps silo names to Flower node ids.

    `said` goes with every instruction, beside what the round itself needs. `timed` is whether
    reports tell how long rounds took: in a private run that hangs on whom chance took for a step.
    With `secure` no delta is seen, but their sum.
    """

    nodes: Mapping[str, int]
    federation: FederationConfig
    seed: int
    run_hash: str
    poll_seconds: float = 1.0
    said: Mapping[str, ConfigRecord] = field(default_factory=dict)
    timed: bool = True
    secure: SecureRun | None = None


def run_rounds(
    grid: Grid,
    rule: Rule,
    initial: TensorSet,
    plan: RunPlan,
    *,
    checkpoints: Path | None = None,
    resume: bool = False,
    before_round: Callable[[int], None] | None = None,
    on_round: Callable[[RoundReport], None] | None = None,
    evaluate: Evaluate | None = None,
) -> tuple[GlobalState, list[RoundReport]]:
    """Run what is left of the rounds; return the last state and the reports of all rounds.

    `before_round` hears of a round before any silo does, `on_round` when it has ended.
    Raises QuorumLostError when fewer than `min_silos` good replies came by a round's deadline
    (the last finished round stays in `checkpoints`), InputError when the plan can't ever meet
    the quorum or a checkpoint is not this run's.
    """
    check_quorum(plan)
    state, reports = _start(rule, initial, plan, checkpoints, resume)
    del initial
    made_here = False
    for number in range(len(reports) + 1, plan.federation.rounds + 1):
        began = time.monotonic()
        if plan.secure is not None and reports:
            plan = dataclasses.replace(plan, secure=plan.secure.after(reports[-1]))
        if before_round is not None:
            before_round(number)
        published, requests = _publish(rule, state, plan, number)
        # from here on the state is a view of the bytes that are sent; its own memory is free
        spare = state.adapter.memory if made_here and published is not state else None
        state = published
        fold = rule.fold(state, spare)
        state, report = _run_round(grid, rule, fold, requests, plan, number, evaluate)
        made_here = True
        if report.seconds is not None:
            report = dataclasses.replace(report, seconds=time.monotonic() - began)
        # not the requests: the next round's bytes are made before these are let go, so that the
        # allocator has one free block for the replies and need not fetch fresh pages
        del published, fold, spare
        reports.append(report)
        if checkpoints is not None:
            values = [dataclasses.asdict(r) for r in reports]
            save_checkpoint(checkpoints, Checkpoint(number, state, values), plan.run_hash)
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
    failures, rounding = values["failures"], values.get("rounding")
    known = None if failures is None else [Failure(**f) for f in failures]
    read = None if rounding is None else RoundingReport(**rounding)
    return RoundReport(**{**values, "failures": known, "rounding": read})


def _publish(
    rule: Rule, state: GlobalState, plan: RunPlan, number: int
) -> tuple[GlobalState, dict[str, Request]]:
    """The round's requests; what the silos of a group are sent is made once."""
    published, made, requests = state, {}, {}
    for silo in _asked(rule, plan, number):
        group = rule.group_of(silo)
        if group not in made:
            received = rule.received_by(group, state)
            content = instruction(received, number, plan.run_hash, state.residual)
            for name, record in plan.said.items():
                content[name] = record
            made[group] = content, received.spec
            if received is state.adapter:
                published = dataclasses.replace(state, adapter=tensors_in(content, received.spec))
        encoding = plan.federation.delta_encoding
        requests[silo] = Request(plan.nodes[silo], *made[group], encoding)
    return published, requests


def _asked(rule: Rule, plan: RunPlan, number: int) -> list[str]:
    """The round's silos. A private rule draws them itself: its noise is meant for its own draw."""
    if isinstance(rule, SiloLevel):
        return rule.silos_of(list(plan.nodes), number)
    return sample_silos(plan, number)


def _needed(rule: Rule, plan: RunPlan, asked: int) -> int:
    """Replies without which a round of `asked` silos is given up.

    A private rule's draw may be small or empty and stands: were such rounds run again, the draw
    would no longer be the one that is accounted for. All of it must then answer.
    """
    drawn = isinstance(rule, SiloLevel) and rule.secret_sample
    return min(plan.federation.min_silos, asked) if drawn else plan.federation.min_silos


def _run_round(
    grid: Grid,
    rule: Rule,
    fold: Fold,
    requests: Mapping[str, Request],
    plan: RunPlan,
    number: int,
    evaluate: Evaluate | None,
) -> tuple[GlobalState, RoundReport]:
    began = time.monotonic()
    tally = Tally()
    failures = _collect(grid, requests, fold, tally, plan, number)
    full = RoundReport(
        round=number,
        loss=tally.loss(),
        metric=None,
        bytes_up=tally.bytes,
        bytes_down=sum(request.payload_bytes for request in requests.values()),
        seconds=time.monotonic() - began if plan.timed else None,
        silos=tally.silos,
        failures=failures,
        rounding=tally.rounding,
    )
    report = told(full, rule)
    if len(tally.silos) < _needed(rule, plan, len(requests)):
        raise QuorumLostError(report, tally, plan.federation.min_silos, failures)
    state = fold.result()
    for name, part in {"adapter": state.adapter, **state.memory}.items():
        if not part.is_finite():
            raise RunFailedError(
                f"round {number}: the aggregated {name} has NaN or infinite values"
            )
    scores = evaluate(state) if evaluate else {}
    return state, dataclasses.replace(
        report,
        loss=scores.get("loss", report.loss),
        metric=scores.get("accuracy"),
    )


def _collect(
    grid: Grid,
    requests: Mapping[str, Request],
    fold: Fold,
    tally: Tally,
    plan: RunPlan,
    number: int,
) -> list[Failure]:
    if plan.secure is not None:
        asked = Asking(grid, plan.run_hash, number, plan.poll_seconds, plan.said)
        total = secure_sum(asked, requests, plan.secure)
        fold.add("sum", total.mean, float(total.weight))
        tally.silos, tally.bytes = total.silos, total.payload_bytes
        tally.rounding = total.rounding
        return total.failures

    def accept(silo: str, update: Update) -> None:
        fold.add(silo, update.delta, float(update.examples))
        tally.add(silo, update)

    return collect(
        grid,
        requests,
        group=str(number),
        timeout_seconds=plan.federation.round_timeout_seconds,
        poll_seconds=plan.poll_seconds,
        accept=accept,
    )
