"""Runs from the operator's side: begun, looked at, stopped, gone on with."""

import datetime
import json
import logging
from typing import Any

from fedtune.config.load import load_config, save_config
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune_server.deployed import RunFolder
from fedtune_server.flower_link import Link, pem_of
from fedtune_server.project import Project

ENDED = ("finished", "failed", "stopped")
_log = logging.getLogger(__name__)
_OVER = "finished"  # Flower's word


def link_of(project: Project) -> Link:
    """The SuperLink of a coordinator that runs. Raises InputError if it doesn't."""
    try:
        facts = json.loads((project.folder / "running.json").read_text())
    except (OSError, ValueError):
        raise InputError(
            "the coordinator doesn't run",
            where=project.folder,
            mend=f"fedtune server start {project.folder}",
        ) from None
    return Link(facts["superlink"], project.folder / "superlink" / "loopback.crt")


def take_up(project: Project, link: Link) -> None:
    """Go on with the runs that were at work when the coordinator ended, after their last round.

    Flower keeps such a run as running, with nobody at work on it: it is stopped there, and a new
    one started on the same folder.
    """
    for run in _runs(project):
        told = run.status()
        if "flower_run" in told and told.get("state") not in ENDED:
            link.stop_run(int(told["flower_run"]))
            run.tell("waiting", flower_run=link.start_run(run.name))
            _log.info("run %s: taken up after round %d", run.name, told.get("round", 0))


def begin(project: Project, config: RunConfig, name: str | None) -> RunFolder:
    """Make a run's folder and have it started. Raises InputError on a run that can't be."""
    _check(config)
    link = link_of(project)
    name = name or f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    run = RunFolder(project.runs / name)
    if run.path.exists():
        raise InputError("is a run already", where=run.path, mend="give it another name")
    save_config(config, run.path / "config.yaml")
    run.tell("waiting", round=0, rounds=config.federation.rounds, reason="")
    run.tell("waiting", flower_run=link.start_run(name))
    return run


def go_on(project: Project, name: str) -> RunFolder:
    """Have a run that ended started again, from its last finished round."""
    run = _found(project, name)
    told = look(project, run)
    if told.get("state") not in ("failed", "stopped"):
        raise InputError(f"is {told.get('state')}", where=run.path, expected="a run that failed")
    run.tell("waiting", flower_run=link_of(project).start_run(name), reason="")
    return run


def stop_run(project: Project, name: str) -> None:
    """Stop a run. Raises InputError if it ended already."""
    run = _found(project, name)
    told = look(project, run)
    if told.get("state") in ENDED:
        raise InputError(f"is {told['state']} already", where=run.path)
    link_of(project).stop_run(int(told["flower_run"]))
    run.tell("stopped", reason="by the operator")


def look(project: Project, run: RunFolder) -> dict[str, Any]:
    """How a run is. One that Flower has ended without a word of its own is told to have failed."""
    told = run.status()
    if told.get("state") in ENDED or "flower_run" not in told:
        return told
    status, how = link_of(project).run_status(int(told["flower_run"]))
    if status == _OVER and run.status().get("state") not in ENDED:
        run.tell("failed", reason=f"its process ended: {how}")
    return run.status()


def standing(project: Project) -> dict[str, Any]:
    """All silos and runs: Flower's word on each node, and how each run is."""
    nodes = link_of(project).nodes()
    members = project.roster().members
    silos = {
        m.silo: "revoked" if m.revoked else nodes.get(pem_of(m).decode(), "unknown")
        for m in members
    }
    return {"silos": silos, "runs": {run.name: look(project, run) for run in _runs(project)}}


def _runs(project: Project) -> list[RunFolder]:
    folders = sorted(project.runs.iterdir()) if project.runs.exists() else []
    return [RunFolder(folder) for folder in folders]


def _check(config: RunConfig) -> None:
    """Refuse what a deployed run can't do."""
    if config.task.head == "sequence_classification" and not config.task.labels:
        raise InputError(
            "is empty: silos can't see each other's labels",
            where="task.labels",
            mend="name all labels, in order",
        )
    for name in ("eval_steps", "early_stopping_patience", "save_steps"):
        if getattr(config.training, name) is not None:
            raise InputError("is for `train` only", where=f"training.{name}", mend="set it to null")
    if config.adapter.init_from is not None:
        raise InputError(
            "isn't sent to silos yet", where="adapter.init_from", mend="start from the base model"
        )


def _found(project: Project, name: str) -> RunFolder:
    run = RunFolder(project.runs / name)
    if not (run.path / "config.yaml").exists():
        raise InputError("there is no such run", where=run.path)
    load_config(run.path / "config.yaml")
    return run
