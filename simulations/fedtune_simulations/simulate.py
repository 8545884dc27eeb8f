"""A whole federated run on this machine, from settings to a scored adapter."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedtune_server.checkpoints import latest_round, load_latest
from fedtune_server.reports import QuorumLostError, RoundReport
from fedtune_server.rounds import RunPlan, check_quorum, run_rounds, sample_silos
from fedtune_server.rules import rule_of
from fedtune_server.secure_sum import plan_round
from flwr.serverapp import Grid

from fedtune.aggregation.rule import GlobalState, Rule
from fedtune.atomic import append_line, write_text
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.data.load import DataFacts
from fedtune.data.partition import Partition, check_partition, save_partition
from fedtune.errors import InputError
from fedtune.models.adapters import read_state, save_adapter, write_state
from fedtune.models.read_json import read_json
from fedtune.models.residual import folded
from fedtune.privacy.central import SiloLevel
from fedtune.privacy.done import Done
from fedtune.privacy.spending import RELEASED
from fedtune.secagg.terms import Terms
from fedtune.tensors import Spec, TensorSet
from fedtune.training.charging import Paid, Party, charge_run
from fedtune.training.loggers import check_loggers, open_loggers
from fedtune.training.private import Protection, check_private
from fedtune.training.run_folder import PARTITION, claim_folder, kept_unless_refused
from fedtune.training.run_lock import alone_in
from fedtune_simulations.comparison import compare as compare_with
from fedtune_simulations.engines import Outcome, check_engine, engine_of
from fedtune_simulations.events import Listener, unnamed
from fedtune_simulations.setting import Setting, prepare

Scores = dict[str, dict[str, float]]
OnRound = Callable[[RoundReport], None]


@dataclass(frozen=True)
class SimulationResult:
    """The rounds, where the adapter is, and scores on the held-out test set.

    `comparison` maps base, best silo alone, mean silo alone, federated and central to metrics;
    `silos` each silo to its examples, or to None where silos are promised privacy. `done` is the
    record of private steps, by silo.
    """

    rounds: list[RoundReport]
    adapter: Path
    comparison: Scores
    data: DataFacts
    silos: dict[str, int | None]
    done: Mapping[str, Done]


def simulate(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    compare: bool = True,
    on_round: OnRound | None = None,
    on_work: Listener | None = None,
) -> SimulationResult:
    """Run every round, save the adapter, and score it against what it must beat.

    `on_round` hears of finished rounds, `on_work` of every optimizer step between.
    Raises InputError on settings, data or a model that can't be used, RunFailedError when too few
    silos answered.
    """
    with alone_in(out, config, "simulate", resume=resume):
        check_available(config, resume=resume)
        setting = prepare(config)
        rule = rule_of(config, len(setting.silos), out / "checkpoints")
        private = isinstance(rule, SiloLevel)
        if isinstance(rule, SiloLevel) and rule.secret_sample:
            on_work = unnamed(on_work)
        initial = read_state(setting.model)
        rule.start(initial)
        nodes = {name: number for number, name in enumerate(sorted(setting.silos))}
        timed = not config.private
        plan = RunPlan(
            nodes,
            config.federation,
            config.seed,
            setting.run_hash,
            timed=timed,
            secure=setting.secure_run(),
        )
        check_quorum(plan)
        check_secure(config, initial.spec, plan)
        _claim(setting, rule, out, resume=resume)
        with kept_unless_refused(out, resume=resume):
            paid = _charge(setting, out)
        with _log(config, out, on_round) as log:

            def coordinate(grid: Grid, nodes: Mapping[str, int], poll_seconds: float) -> Outcome:
                return run_rounds(
                    grid,
                    rule,
                    initial,
                    dataclasses.replace(plan, nodes=nodes, poll_seconds=poll_seconds),
                    checkpoints=out / "checkpoints",
                    resume=resume,
                    before_round=paid.course.reach if paid else None,
                    on_round=log,
                    evaluate=setting.score,
                )

            state, reports = engine_of(config)(setting, out / "silos", on_work, coordinate)
        _save(setting, state, reports, out)
        shutil.rmtree(out / "silos", ignore_errors=True)  # whom a round asked may be secret
        scores = _compare(setting, initial, state, out, on_work, resume=resume) if compare else {}
        sizes = {name: None if private else len(data) for name, data in setting.silos.items()}
        done = _done(setting, rule, paid)
        return SimulationResult(reports, out / "adapter", scores, setting.splits.facts, sizes, done)


def _claim(setting: Setting, rule: Rule, out: Path, *, resume: bool) -> None:
    """Make `out` the folder of this run, with its division into silos, or go on with it."""
    claim_folder(out, setting.config, "simulate", resume=resume)
    rows, divided = setting.splits.train, out / PARTITION
    if resume:
        _check_record(rule, out)
        load_latest(out / "checkpoints", setting.run_hash)  # a refusal comes before any file
    if resume and divided.exists():
        check_partition(divided, setting.partition, rows)
    else:
        save_partition(setting.partition, divided, fingerprint=rows.fingerprint)


@contextmanager
def _log(config: RunConfig, out: Path, on_round: OnRound | None) -> Iterator[OnRound]:
    """Who hears of a finished round: metrics.jsonl, `output.loggers`, then `on_round`."""
    loggers = open_loggers(config, out)

    def told(report: RoundReport) -> None:
        _append(out, dataclasses.asdict(report))
        for logger in loggers:
            logger.write(report.round, report.numbers())
        if on_round is not None:
            on_round(report)

    try:
        yield told
    except QuorumLostError as error:
        _append(out, {**dataclasses.asdict(error.report), "given_up": "quorum lost"})
        raise
    finally:
        for logger in loggers:
            logger.close()


def parties_of(
    config: RunConfig,
    train: ExampleSet,
    partition: Partition,
    private: Mapping[str, Protection],
) -> list[Party]:
    """Each silo's rows, and the purpose that they are charged for."""
    return [
        Party(
            f"silo {name}",
            train.select(partition[name]),
            promised.charged,
            promised.charged.steps // config.federation.rounds,
        )
        for name, promised in sorted(private.items())
    ]


def _charge(setting: Setting, out: Path) -> Paid | None:
    """Charge each silo's people for all rounds, before any is begun; all silos or none."""
    config, rounds = setting.config, setting.config.federation.rounds
    parties = parties_of(config, setting.splits.train, setting.partition, setting.private)
    if not parties:  # no promise, no ledger
        return None
    done = latest_round(out / "checkpoints")
    return charge_run(
        config, parties, folder=out, run=setting.run_hash, done=done, to_come=rounds - done
    )


def _done(setting: Setting, rule: Rule, paid: Paid | None) -> dict[str, Done]:
    """What the statement is about: each silo's steps in all rounds, or the coordinator's rounds."""
    if isinstance(rule, SiloLevel):
        spent = rule.spending
        return {"run": Done(rule.plan, spent.events(), len(spent.released))}
    if paid is None:
        return {}
    silos = zip(sorted(setting.private.items()), paid.parties, strict=True)
    return {name: charged.done(promised.plan) for (name, promised), charged in silos}


def _check_record(rule: Rule, out: Path) -> None:
    """Raise InputError when rounds were released whose record is gone."""
    if isinstance(rule, SiloLevel) and (out / "metrics.jsonl").exists():
        record = out / "checkpoints" / RELEASED
        if not record.exists():
            raise InputError(
                "the record of released rounds is gone, so what the silos have spent is not known",
                where=record,
                mend="put it back, or set another `output.dir` for a run of its own",
            )


def check_secure(config: RunConfig, spec: Spec, plan: RunPlan) -> Terms | None:
    """The first round's terms, if rounds are secure. Raises InputError where such rounds can't be,
    before anybody is charged.
    """
    if not config.secure_aggregation.enabled:
        return None
    silos = sample_silos(plan, 1)
    return plan_round(config, spec, silos, plan.run_hash, 1)[1]


def check_available(config: RunConfig, *, resume: bool = False) -> None:
    """Refuse what the schema knows and `simulate` can't do: nothing is accepted and ignored."""
    check_engine(config)
    check_loggers(config)
    check_private(config, resume=resume)
    if config.federation.engine == "ray" and config.privacy.sampling == "shuffle":
        raise InputError(
            "Ray's workers don't know each other's passes: `shuffle` needs `inprocess`",
            where="federation.engine",
        )
    if config.federation.engine == "ray" and config.federation.delta_encoding == "int8":
        raise InputError(
            "Ray's workers may be on several machines, and what `delta_encoding: int8` leaves of a "
            "delta stays with its silo: it needs `inprocess`",
            where="federation.engine",
        )
    if config.federation.engine == "ray" and config.secure_aggregation.enabled:
        raise InputError(
            "a silo's part in a secure round lives in one process: Ray's workers take turns",
            where="federation.engine",
            mend="set it to `inprocess`",
        )
    # a silo's local steps are few; the coordinator evaluates and checkpoints after each round
    for name in ("eval_steps", "early_stopping_patience", "save_steps"):
        if getattr(config.training, name) is not None:
            also = ", and `data.validation_...` too" if name != "save_steps" else ""
            raise InputError(
                "is for `train` only", where=f"training.{name}", mend=f"set it to null{also}"
            )


def _save(setting: Setting, state: GlobalState, reports: list[RoundReport], out: Path) -> None:
    # a kill between a checkpoint and its line leaves a gap: the checkpoint has all rounds
    lines = [json.dumps(dataclasses.asdict(report)) + "\n" for report in reports]
    write_text(out / "metrics.jsonl", "".join(lines))
    write_state(setting.model, state.adapter)
    whole = folded(setting.model, state.residual)
    base = setting.config.model
    save_adapter(whole, setting.tokenizer, out / "adapter", base=base.path, revision=base.revision)


def _compare(
    setting: Setting,
    initial: TensorSet,
    state: GlobalState,
    out: Path,
    on_work: Listener | None,
    *,
    resume: bool,
) -> Scores:
    """The comparison, which a finished run that is resumed has already."""
    kept = _kept_scores(out) if resume else {}
    scores = kept or compare_with(setting, initial, state, on_work)
    if scores:
        write_text(out / "comparison.json", json.dumps(scores, indent=2) + "\n")
    return scores


def _kept_scores(out: Path) -> Scores:
    """The comparison of a finished run; empty where there is none to be read."""
    try:
        return read_json(out / "comparison.json")
    except InputError:
        return {}


def _append(out: Path, record: dict[str, object]) -> None:
    append_line(out / "metrics.jsonl", json.dumps(record))
