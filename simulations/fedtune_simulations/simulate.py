"""A whole federated run in this process: one shared base model, one silo after another."""

import dataclasses
import hashlib
import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtune_client.app import LocalUpdate, make_client_app
from fedtune_server.reports import RoundReport
from fedtune_server.rounds import RunPlan, check_quorum, run_rounds

from fedtune.aggregation.rules import build_rule
from fedtune.config.schema import RunConfig
from fedtune.data.load import DataFacts
from fedtune.data.partition import partition, save_partition
from fedtune.errors import InputError
from fedtune.models.adapters import read_state, save_adapter, write_state
from fedtune.tasks.evaluation import evaluate
from fedtune.tasks.task import Encoded, Task
from fedtune.tensors import Spec, TensorSet
from fedtune.training.events import Event, StepDone
from fedtune.training.prepare import prepare as prepare_training
from fedtune.training.run_folder import claim_folder
from fedtune.training.sampling import steps_for
from fedtune.training.trainer import Trainer
from fedtune_simulations.events import Listener, Working
from fedtune_simulations.grid import InProcessGrid

_EVALUATION_BATCH = 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SimulationResult:
    """The rounds, where the adapter is, and scores on the held-out test set.

    `comparison` maps base, best silo alone, mean silo alone, federated and central to metrics;
    `silos` each silo to its examples.
    """

    rounds: list[RoundReport]
    adapter: Path
    comparison: dict[str, dict[str, float]]
    data: DataFacts
    silos: dict[str, int]


@dataclass(frozen=True)
class Setting:
    """All that a run needs, loaded once: the adapted model is shared by every silo.

    `pooled` is the silos' examples one silo after another, `test` what is held out.
    """

    config: RunConfig
    model: Any
    tokenizer: Any
    task: Task
    silos: Mapping[str, Sequence[Encoded]]
    pooled: Sequence[Encoded]
    test: Sequence[Encoded]
    data: DataFacts

    def score(self, state: TensorSet) -> dict[str, float]:
        """Metrics of `state` on the held-out test set."""
        write_state(self.model, state)
        return evaluate(self.task, self.model, self.test, _EVALUATION_BATCH)


@dataclass(frozen=True)
class SimulatedSilo:
    """A silo that borrows the shared model for the time of its training."""

    name: str
    setting: Setting
    spec: Spec
    listener: Listener | None = None

    @property
    def run_hash(self) -> str:
        """The run it takes part in."""
        return self.setting.config.hash

    def train(self, received: TensorSet, round_number: int) -> LocalUpdate:
        """Train from `received`; depends on seed, name, round and data only."""
        setting = self.setting
        write_state(setting.model, received)
        seed = silo_seed(setting.config.seed, self.name, round_number)
        told = _steps_of(self.listener, round_number, self.name)
        trainer = Trainer(setting.task, setting.config.training, seed=seed, listeners=told)
        mu = setting.config.federation.proximal_mu
        result = trainer.fit(setting.model, setting.silos[self.name], proximal_mu=mu)
        return LocalUpdate(result.delta, result.examples, {"loss": result.loss})


def simulate(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    compare: bool = True,
    on_round: Callable[[RoundReport], None] | None = None,
    on_work: Listener | None = None,
) -> SimulationResult:
    """Run every round, save the adapter, and score it against what it must beat.

    `on_round` hears of finished rounds, `on_work` of every optimizer step between.
    Raises InputError on settings, data or a model that can't be used, RunFailedError when too few
    silos answered.
    """
    check_available(config)
    rule = build_rule(config)
    setting, indices = prepare(config)
    initial = read_state(setting.model)
    grid = InProcessGrid(
        make_client_app(
            lambda context: SimulatedSilo(
                str(context.node_config["silo"]), setting, initial.spec, on_work
            )
        ),
        setting.silos,
        config.federation.round_timeout_seconds,
    )
    plan = RunPlan(grid.nodes, config.federation, config.seed, config.hash, poll_seconds=0.0)
    check_quorum(plan)
    claim_folder(out, config, resume=resume)
    if not (out / "partition.json").exists():
        save_partition(indices, out / "partition.json")

    def told(report: RoundReport) -> None:
        with (out / "metrics.jsonl").open("a") as file:
            file.write(_line(report))
        if on_round is not None:
            on_round(report)

    state, reports = run_rounds(
        grid,
        rule,
        initial,
        plan,
        checkpoints=out / "checkpoints",
        resume=resume,
        on_round=told,
        evaluate=lambda state: setting.score(state.adapter),
    )
    # a kill between a checkpoint and its line leaves a gap: the checkpoint has all rounds
    (out / "metrics.jsonl").write_text("".join(_line(report) for report in reports))
    write_state(setting.model, state.adapter)
    save_adapter(setting.model, setting.tokenizer, out / "adapter", base=config.model.path)
    scores = _compare(setting, initial, state.adapter, on_work) if compare else {}
    if scores:
        (out / "comparison.json").write_text(json.dumps(scores, indent=2) + "\n")
    sizes = {name: len(examples) for name, examples in setting.silos.items()}
    return SimulationResult(reports, out / "adapter", scores, setting.data, sizes)


def prepare(config: RunConfig) -> tuple[Setting, dict[str, list[int]]]:
    """Load data and model; give the setting and each silo's row numbers."""
    ready = prepare_training(config)
    indices = partition(ready.splits.train, config.federation.partition, config.seed)
    silos = {name: ready.train.select(chosen) for name, chosen in indices.items()}
    pooled = ready.train.select([row for chosen in indices.values() for row in chosen])
    model, tokenizer, task, test = ready.model, ready.tokenizer, ready.task, ready.test
    facts = ready.splits.facts
    return Setting(config, model, tokenizer, task, silos, pooled, test, facts), indices


def silo_seed(seed: int, silo: str, round_number: int) -> int:
    """A seed for one silo's training in one round."""
    digest = hashlib.sha256(json.dumps([seed, silo, round_number]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def check_available(config: RunConfig) -> None:
    """Refuse what the schema knows and this release can't do: nothing is accepted and ignored."""
    refused = {
        "federation.silo_ranks": bool(config.federation.silo_ranks),
        "federation.engine": config.federation.engine != "inprocess",
        "output.loggers": bool(config.output.loggers),
    }
    for field, asked in refused.items():
        if asked:
            raise InputError("is not available yet in `simulate`", where=field)
    # a silo's local steps are few; the coordinator evaluates and checkpoints after each round
    for name in ("eval_steps", "early_stopping_patience", "save_steps"):
        if getattr(config.training, name) is not None:
            raise InputError("is for `train` only", where=f"training.{name}", mend="set it to null")


def _compare(
    setting: Setting, initial: TensorSet, federated: TensorSet, listener: Listener | None
) -> dict[str, dict[str, float]]:
    """Scores on the same test set. A silo alone takes its own steps of all rounds together; central
    takes the steps of all silos, from the same start and in batches of the same size.
    """
    alone: dict[str, dict[str, float]] = {}
    steps: dict[str, int] = {}
    for name, data in setting.silos.items():
        steps[name] = (
            steps_for(setting.config.training, len(data)) * setting.config.federation.rounds
        )
        told = _steps_of(listener, None, f"{name} alone")
        alone[name] = _trained_apart(setting, initial, data, name, steps[name], told)
        _log.info("alone: %s, loss %.4f", name, alone[name]["loss"])
    told = _steps_of(listener, None, "central")
    best = min(alone.values(), key=lambda metrics: metrics["loss"])
    return {
        "base": setting.score(initial),
        "best silo alone": best,
        "mean silo alone": {
            key: statistics.fmean(metrics[key] for metrics in alone.values()) for key in best
        },
        "federated": setting.score(federated),
        "central": _trained_apart(
            setting, initial, setting.pooled, "central", sum(steps.values()), told
        ),
    }


def _trained_apart(
    setting: Setting,
    initial: TensorSet,
    data: Sequence[Encoded],
    name: str,
    steps: int,
    listeners: Sequence[Callable[[Event], None]],
) -> dict[str, float]:
    write_state(setting.model, initial)
    training = setting.config.training.model_copy(update={"max_steps": steps})
    seed = silo_seed(setting.config.seed, name, 0)
    Trainer(setting.task, training, seed=seed, listeners=listeners).fit(setting.model, data)
    return evaluate(setting.task, setting.model, setting.test, _EVALUATION_BATCH)


def _steps_of(
    listener: Listener | None, round_number: int | None, who: str
) -> list[Callable[[Event], None]]:
    """A trainer's listeners: none, or one that tells `listener` who does which step."""
    if listener is None:
        return []

    def told(event: Event) -> None:
        if isinstance(event, StepDone):
            listener(Working(round_number, who, event.step, event.steps))

    return [told]


def _line(report: RoundReport) -> str:
    return json.dumps(dataclasses.asdict(report)) + "\n"
