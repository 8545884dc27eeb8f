"""A run between machines: the ServerApp that the SuperLink starts, and the folder it works in.

config.yaml     the run's settings
status.json     how far it is, rewritten as it goes
metrics.jsonl   a line a round
checkpoints/    the last rounds, from which it goes on
adapter/        at the end
"""

import contextlib
import dataclasses
import datetime
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedtune.aggregation.rule import GlobalState
from fedtune.atomic import write_text
from fedtune.config.load import load_config
from fedtune.config.published import deployed_hash, published
from fedtune.config.schema import RunConfig
from fedtune.errors import RunFailedError
from fedtune.identity.proof import is_proven, new_nonce
from fedtune.identity.roster import Roster
from fedtune.models.adapters import attach_adapter, read_state, save_adapter, write_state
from fedtune.models.base import load_base
from fedtune.models.base_files import base_digest
from fedtune.models.residual import folded
from fedtune.training import processes
from fedtune.training.prepare import base_dtype
from fedtune_server.project import Project, open_project
from fedtune_server.reports import RoundReport
from fedtune_server.roster import find_silos
from fedtune_server.rounds import RunPlan, run_rounds
from fedtune_server.rules import rule_of

SERVER_FOLDER = "FEDTUNE_SERVER"
"""Environment variable that tells the ServerApp's process which coordinator it belongs to."""
POLL_SECONDS = 0.2
_LONGEST_REASON = 2000
_NUMBER_SECONDS = 30.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Called by Flower, in a process of its own, once a run."""
    project = open_project(Path(os.environ[SERVER_FOLDER]))
    run_deployed(project, grid, str(context.run_config["fedtune-run"]), context.run_id)


class TakenOverError(RunFailedError):
    """What this process was at work on is no more its own."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder on the coordinator. A run that is stopped and gone on with is another run of
    Flower's: only the one with the number `flower_run` may say how it goes (None: the operator).
    """

    path: Path
    flower_run: int | None = None

    @property
    def name(self) -> str:
        """The run's name, which silos know it by."""
        return self.path.name

    def status(self) -> dict[str, Any]:
        """How far it is; empty before it begins."""
        try:
            return dict(json.loads((self.path / "status.json").read_text()))
        except (OSError, ValueError):
            return {}

    def wait_for_its_number(self) -> None:
        """Whoever had Flower start this process may still be writing down under which number."""
        over = time.monotonic() + _NUMBER_SECONDS
        while self.status().get("flower_run") is None and time.monotonic() < over:
            time.sleep(POLL_SECONDS)

    def tell(self, state: str, **facts: Any) -> None:
        """Rewrite how far it is. Raises TakenOverError when the run is another's by now."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        before = self.status()
        if self.flower_run is not None and before.get("flower_run") != self.flower_run:
            raise TakenOverError(f"run {self.name} was stopped, or is gone on with by another")
        told = {**before, "state": state, "updated": now, **facts}
        write_text(self.path / "status.json", json.dumps(told, indent=2) + "\n")


def run_deployed(project: Project, grid: Grid, name: str, flower_run: int) -> None:
    """Run what is left of the run's rounds and save its adapter; whatever happens is told."""
    folder = RunFolder(project.runs / name, flower_run)
    folder.wait_for_its_number()
    with _told(folder):
        config = load_config(folder.path / "config.yaml")
        folder.tell("starting", round=0, rounds=config.federation.rounds, reason="")
        model, tokenizer = _model(config)
        initial = read_state(model)
        nodes = _nodes(grid, config, project.roster(), name)
        folder.tell("running", silos=sorted(nodes))
        state, reports = _run(grid, config, initial, nodes, folder)
        write_state(model, state.adapter)
        whole, base = folded(model, state.residual), config.model
        save_adapter(
            whole, tokenizer, folder.path / "adapter", base=base.path, revision=base.revision
        )
        folder.tell("finished", round=len(reports))


@contextlib.contextmanager
def _told(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except TakenOverError:
        raise
    except Exception as error:  # who stops the process knows what to say of it
        reason = str(error) or type(error).__name__
        folder.tell("failed", reason=reason[:_LONGEST_REASON])
        raise


def _model(config: RunConfig) -> tuple[Any, Any]:
    """The base with the adapter that all start from, and its tokenizer."""
    labels, head = config.task.labels, config.task.head
    base = load_base(config.model, head, labels, seed=config.seed, dtype=base_dtype(config))
    model = attach_adapter(
        base.model.to(processes.device()), config.adapter, seed=config.seed, task=head
    )
    return model, base.tokenizer


def _nodes(grid: Grid, config: RunConfig, roster: Roster, run: str) -> dict[str, int]:
    """The nodes of the roster's silos that proved who they are, by the start's deadline."""
    nonce = new_nonce()

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
        question=RecordDict({"challenge": ConfigRecord({"run": run, "nonce": nonce})}),
        name_of=name_of,
    )


def _run(
    grid: Grid, config: RunConfig, initial: Any, nodes: dict[str, int], folder: RunFolder
) -> tuple[GlobalState, list[RoundReport]]:
    told = published(config)
    said = {
        "name": folder.name,
        "settings": told.model_dump_json(),
        "base_sha256": base_digest(config.model),
    }
    plan = RunPlan(
        nodes,
        config.federation,
        config.seed,
        deployed_hash(told, folder.name),
        POLL_SECONDS,
        {"run": ConfigRecord(said)},
        timed=not config.private,
    )
    checkpoints = folder.path / "checkpoints"

    def on_round(report: RoundReport) -> None:
        _write_metrics(folder, report)
        folder.tell("running", round=report.round)

    return run_rounds(
        grid,
        rule_of(config, len(nodes), checkpoints),
        initial,
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
