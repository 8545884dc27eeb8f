"""`fedtune train`: one model on all the data of one place."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtune.atomic import write_text
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.data.load import DataFacts
from fedtune.models.adapters import save_adapter, without_adapter
from fedtune.privacy.done import Done
from fedtune.privacy.dp_sgd import PrivateSteps
from fedtune.training import processes
from fedtune.training.charging import Paid, Party, charge_run
from fedtune.training.checkpoints import CheckpointFolder, run_hash
from fedtune.training.evaluation import evaluate_together
from fedtune.training.events import Evaluated, Event, Listener, Saved, StepDone
from fedtune.training.loggers import (
    JsonlLogger,
    Logger,
    check_loggers,
    metric_lines,
    open_loggers,
)
from fedtune.training.prepare import Prepared, prepare
from fedtune.training.private import check_one_place, check_private, private_steps, scores_shown
from fedtune.training.run_folder import claim_folder, kept_unless_refused
from fedtune.training.run_lock import alone_in
from fedtune.training.trainer import Trainer, TrainingResult

EVALUATION_BATCH = 32


@dataclass(frozen=True)
class CentralResult:
    """What a central run gave. `comparison` maps `base` and `trained` to held-out metrics.

    `loss` is the mean training loss over all steps; `kept_step` the step whose weights were kept.
    """

    adapter: Path
    steps: int
    kept_step: int
    loss: float | None
    processes: int
    comparison: dict[str, dict[str, float]]
    data: DataFacts
    done: Mapping[str, Done]


def train(
    config: RunConfig, out: Path, *, resume: bool = False, listeners: Iterable[Listener] = ()
) -> CentralResult:
    """Train, save the adapter under `out`, and score it against the untouched base.

    Raises InputError on settings, data or a model that can't be used, RunFailedError when training
    can't go on.
    """
    with alone_in(out, config, "train", resume=resume):
        check_loggers(config)
        check_one_place(config)
        check_private(config, resume=resume)
        prepared = prepare(config)
        private = private_steps(config, prepared.splits.train)
        facts, shown = prepared.splits.facts, scores_shown(config)
        _claim(prepared, out, resume=resume)
        comparison = {"base": _base_score(prepared)} if shown else {}
        checkpoints = CheckpointFolder(out / "checkpoints", run_hash(config, facts))
        with kept_unless_refused(out, resume=resume):
            paid = _charge(prepared, private, checkpoints, out) if private else None
        result = _fit(prepared, private, paid, checkpoints, out, listeners)
        if shown:
            comparison["trained"] = _score(prepared)
        if processes.is_main():
            _save(prepared, comparison, out)
        return CentralResult(
            adapter=out / "adapter",
            steps=result.steps,
            kept_step=result.kept_step,
            loss=result.loss,
            processes=processes.count(),
            comparison=comparison,
            data=facts,
            done={"run": paid.parties[0].done(private.plan)} if paid and private else {},
        )


def _claim(prepared: Prepared, out: Path, *, resume: bool) -> None:
    if processes.is_main():
        claim_folder(out, prepared.config, "train", resume=resume)
        if resume:
            check_progress(out, prepared.config, prepared.splits.facts)
    processes.wait_for_all()


def party_of(rows: ExampleSet, private: PrivateSteps) -> Party:
    """Whose rows a central run charges, and for what purpose."""
    return Party("train", rows, private.plan)


def _charge(
    prepared: Prepared, private: PrivateSteps, checkpoints: CheckpointFolder, out: Path
) -> Paid:
    party = party_of(prepared.splits.train, private)
    done = checkpoints.latest_step
    return charge_run(
        prepared.config,
        [party],
        folder=out,
        run=checkpoints.run_hash,
        done=done,
        to_come=private.plan.steps - done,
    )


def _fit(
    prepared: Prepared,
    private: PrivateSteps | None,
    paid: Paid | None,
    checkpoints: CheckpointFolder,
    out: Path,
    listeners: Iterable[Listener],
) -> TrainingResult:
    config = prepared.config
    with _log(config, out, checkpoints.latest_step) as log:
        trainer = Trainer(
            prepared.task, config.training, seed=config.seed, listeners=[log, *listeners]
        )
        return trainer.fit(
            prepared.model,
            prepared.train,
            validation=prepared.validation or (),
            checkpoints=checkpoints,
            private=private,
            before_release=paid.course.reach if paid else None,
        )


def _save(prepared: Prepared, comparison: Mapping[str, Any], out: Path) -> None:
    base = prepared.config.model
    save_adapter(
        prepared.model,
        prepared.tokenizer,
        out / "adapter",
        base=base.path,
        revision=base.revision,
    )
    write_text(out / "comparison.json", json.dumps(comparison, indent=2) + "\n")


def check_progress(out: Path, config: RunConfig, data: DataFacts) -> None:
    """Raise InputError when a run on `data` can't go on from what is in `out`."""
    CheckpointFolder(out / "checkpoints", run_hash(config, data)).check()
    metric_lines(out / "metrics.jsonl")


def _base_score(prepared: Prepared) -> dict[str, float]:
    with without_adapter(prepared.model):
        return _score(prepared)


def _score(prepared: Prepared) -> dict[str, float]:
    return evaluate_together(prepared.task, prepared.model, prepared.test, EVALUATION_BATCH)


@contextmanager
def _log(config: RunConfig, out: Path, resumed_step: int) -> Iterator[Listener]:
    """A listener that writes every number to metrics.jsonl and to `output.loggers`."""
    if not processes.is_main():
        yield lambda event: None
        return
    first = JsonlLogger(out / "metrics.jsonl", keep_until=resumed_step)
    loggers: list[Logger] = [first, *open_loggers(config, out)]

    def write(event: Event) -> None:
        if isinstance(event, Saved):
            return
        for logger in loggers:
            logger.write(event.step, _numbers(event))

    try:
        yield write
    finally:
        for logger in loggers:
            logger.close()


def _numbers(event: StepDone | Evaluated) -> dict[str, float]:
    if isinstance(event, Evaluated):
        return {f"eval_{name}": value for name, value in event.metrics.items()}
    common = {"learning_rate": event.learning_rate, "examples": event.examples}
    if event.loss is None:  # of a private step; its seconds tell how many units chance took
        return common
    return {"loss": event.loss} | common | {"seconds": event.seconds}
