"""A run between machines, in the process that the SuperLink had started for it."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedtune.aggregation.rule import GlobalState
from fedtune.atomic import write_text
from fedtune.config.load import load_config
from fedtune.config.published import deployed_hash, published
from fedtune.config.schema import RunConfig
from fedtune.identity.proof import is_proven, new_nonce
from fedtune.models.adapters import (
    attach_adapter,
    read_state,
    save_adapter,
    state_spec,
    write_state,
)
from fedtune.models.base import load_base
from fedtune.models.base_files import base_digest
from fedtune.models.fed_sb import factors_digest
from fedtune.models.promise import write_promise
from fedtune.models.residual import folded
from fedtune.tensors import payload_size
from fedtune.training import processes
from fedtune_server.asked import write_asked
from fedtune_server.project import Project
from fedtune_server.reports import QuorumLostError, RoundReport
from fedtune_server.roster import find_silos
from fedtune_server.rounds import RunPlan, run_rounds
from fedtune_server.rules import rule_of
from fedtune_server.run_folder import RunFolder, TakenOverError
from fedtune_server.secure_sum import SecureRun

POLL_SECONDS = 0.2
_LONGEST_REASON = 2000


def run_deployed(project: Project, grid: Grid, folder: RunFolder) -> None:
    """Run what is left of the run's rounds and save its adapter; whatever happens is told."""
    with _told(folder):
        config = load_config(folder.path / "config.yaml")
        folder.tell("starting", round=0, rounds=config.federation.rounds, reason="")
        model, tokenizer = _model(config)
        nodes = _nodes(grid, config, project, folder.name)
        secure = _secure(config, project)
        folder.tell("running", silos=sorted(nodes), reply_bytes=payload_size(state_spec(model)))
        state, reports = _run(grid, config, model, nodes, folder, secure)
        write_state(model, state.adapter)
        whole, base = folded(model, state.residual), config.model
        save_adapter(
            whole, tokenizer, folder.path / "adapter", base=base.path, revision=base.revision
        )
        facts = write_asked(folder.path, config, len(nodes))
        write_promise(folder.path / "adapter", facts)
        folder.tell("finished", round=len(reports))


@contextlib.contextmanager
def _told(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except TakenOverError:
        raise
    except Exception as error:  # who stops the process knows what to say of it
        reason = str(error) or type(error).__name__
        lost = dataclasses.asdict(error.report) if isinstance(error, QuorumLostError) else None
        folder.tell("failed", reason=reason[:_LONGEST_REASON], given_up=lost)
        raise


def _model(config: RunConfig) -> tuple[Any, Any]:
    """The base with the adapter that all start from, and its tokenizer."""
    labels, head = config.task.labels, config.task.head
    base = load_base(
        config.model, head, labels, seed=config.seed, dtype=processes.base_dtype(config)
    )
    model = attach_adapter(
        base.model.to(processes.device()), config.adapter, seed=config.seed, task=head
    )
    return model, base.tokenizer


def _nodes(grid: Grid, config: RunConfig, project: Project, run: str) -> dict[str, int]:
    """The nodes of the roster's silos that proved who they are, by the start's deadline. Each is
    sent the roster, so that it knows who takes part.
    """
    nonce, roster = new_nonce(), project.roster()
    asked = {"run": run, "nonce": nonce, "roster": project.roster_file.read_text(encoding="utf-8")}

    def name_of(reply: Message) -> str | None:
        record = None if reply.has_error() else reply.content.get("silo")
        if not isinstance(record, ConfigRecord):
            return None
        name, proof = record.get("name"), record.get("proof")
        if not isinstance(name, str) or not isinstance(proof, str):
            return None
        member = roster.member(name)
        return name if member and is_proven(member, run, nonce, proof) else None

    return find_silos(
        grid,
        [member.silo for member in roster.members if not member.revoked],
        min_silos=config.federation.min_silos,
        timeout_seconds=min(60.0, config.federation.round_timeout_seconds),
        poll_seconds=POLL_SECONDS,
        question=RecordDict({"challenge": ConfigRecord(asked)}),
        name_of=name_of,
    )


def _secure(config: RunConfig, project: Project) -> SecureRun | None:
    if not config.secure_aggregation.enabled:
        return None
    members = project.roster().members
    return SecureRun(config, {m.silo: bytes.fromhex(m.identity) for m in members if not m.revoked})


def _run(
    grid: Grid,
    config: RunConfig,
    model: Any,
    nodes: dict[str, int],
    folder: RunFolder,
    secure: SecureRun | None,
) -> tuple[GlobalState, list[RoundReport]]:
    told = published(config)
    said = {
        "name": folder.name,
        "settings": told.model_dump_json(),
        "base_sha256": base_digest(config.model),
        "factors_sha256": factors_digest(model),
    }
    plan = RunPlan(
        nodes,
        config.federation,
        config.seed,
        deployed_hash(told, folder.name),
        POLL_SECONDS,
        {"run": ConfigRecord(said)},
        timed=not config.private,
        secure=secure,
    )
    checkpoints = folder.path / "checkpoints"

    def on_round(report: RoundReport) -> None:
        _write_metrics(folder, report)
        for failure in report.failures or ():
            why = f"{failure.reason}: {failure.detail}"
            folder.log(f"round {report.round}: {failure.silo} is missing ({why})")
        folder.tell("running", round=report.round)

    return run_rounds(
        grid,
        rule_of(config, len(nodes), checkpoints),
        read_state(model),
        plan,
        checkpoints=checkpoints,
        resume=checkpoints.exists(),
        on_round=on_round,
    )


def _write_metrics(folder: RunFolder, report: RoundReport) -> None:
    file = folder.path / "metrics.jsonl"
    before = file.read_text().splitlines() if file.exists() else []
    kept = [line for line in before if json.loads(line)["round"] < report.round]
    line = json.dumps(dataclasses.asdict(report))
    write_text(file, "".join(f"{one}\n" for one in [*kept, line]))
