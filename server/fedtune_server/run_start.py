"""Runs from the operator's side: begun, looked at, stopped, gone on with."""

import contextlib
import datetime
import json
import logging
import re
from typing import Any

import psutil

from fedtune.config.load import load_config, save_config
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError, NotWrittenError, RunFailedError
from fedtune.serving.line import SMALLEST_REPLY_BYTES
from fedtune_server.flower_link import OVER, Link, NoAnswerError, pem_of
from fedtune_server.project import Project
from fedtune_server.run_folder import ENDED, RunFolder

_log = logging.getLogger(__name__)
_ANEW = {"flower_run": None, "reason": "", "given_up": None, "process": None}
"""What is told of a run that is begun: from then on no earlier process may write in the folder."""
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


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
    one started on the same folder. One with which that can't be done has failed.
    """
    for run in _runs(project):
        told = run.status()
        if not told or told.get("state") in ENDED:
            continue
        try:
            if told.get("flower_run") is not None:
                link.stop_run(int(told["flower_run"]))
            if run.tell("waiting", **_ANEW):
                _start(run, link)
        except Exception as error:  # whatever it is, it is no other run's
            _log.exception("run %s: could not be taken up", run.name)
            with contextlib.suppress(NotWrittenError):
                run.tell("failed", reason=f"could not be taken up: {error}")
        else:
            _log.info("run %s: taken up after round %d", run.name, told.get("round", 0))


def largest_reply(project: Project) -> int:
    """Bytes that a silo may send in one reply by the runs that are at work. Pieces whose arrival
    was not heard of are sent twice, and Flower's own words come on top.
    """
    told = [run.status() for run in _runs(project)]
    deltas = [int(x.get("reply_bytes", 0)) for x in told if x.get("state") not in ENDED]
    return 2 * max(deltas, default=0) + SMALLEST_REPLY_BYTES


def begin(project: Project, config: RunConfig, name: str | None) -> RunFolder:
    """Make a run's folder and have it started. Raises InputError on a run that can't be."""
    _check(config)
    link = link_of(project)
    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}" if name is None else name
    run = _named(project, name)
    if run.path.exists():
        raise InputError("is a run already", where=run.path, mend="give it another name")
    save_config(config, run.path / "config.yaml")
    run.tell("waiting", round=0, rounds=config.federation.rounds, **_ANEW)
    _start_or_fail(run, link)
    return run


def go_on(project: Project, name: str) -> RunFolder:
    """Have a run that ended started again, from its last finished round."""
    run = _found(project, name)
    link = link_of(project)
    if not run.tell("waiting", after=("failed", "stopped"), **_ANEW):
        state = run.status().get("state")
        raise InputError(f"is {state}", where=run.path, expected="a run that failed")
    _start_or_fail(run, link)
    return run


def stop_run(project: Project, name: str) -> None:
    """Stop a run. Raises InputError if it ended already."""
    run, link = _found(project, name), link_of(project)
    told = run.status()
    if not run.tell("stopped", reason="by the operator", flower_run=None):
        raise InputError(f"is {run.status().get('state')} already", where=run.path)
    if told.get("flower_run") is not None:
        link.stop_run(int(told["flower_run"]))


def watch(project: Project, link: Link) -> None:
    """Tell of runs whose process has ended without a word of its own that they have failed."""
    for run in _runs(project):
        told = run.status()
        number = told.get("flower_run")
        if told.get("state") in ENDED or number is None:
            continue
        reason = _gone(told.get("process")) or died(link, int(number))
        if reason is None or run.status() != told:  # it goes on, or said so meanwhile
            continue
        run.tell("failed", reason=reason)
        link.stop_run(int(number))  # it may be waiting for the process


def _gone(process: int | None) -> str | None:
    """What is to say of a run's process that is no more there. Should another have its number by
    now, Flower tells of it, after a minute without a sign of life.
    """
    try:
        if process is None or psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        pass
    return "its process ended without a word, as one does that is killed (out of memory?)"


def died(link: Link, flower_run: int) -> str | None:
    """What Flower says of a run that it has ended; None of one that it goes on with."""
    status, how = link.run_status(flower_run)
    return f"its process ended: {how}" if status == OVER else None


def _start_or_fail(run: RunFolder, link: Link) -> None:
    """As `_start`; a run that Flower didn't take has failed, and waits for nobody."""
    try:
        _start(run, link)
    except NoAnswerError as error:
        reason = f"the SuperLink did not take it: {error}"
        run.tell("failed", reason=reason)
        raise RunFailedError(f"run {run.name}: {reason}") from None


def _start(run: RunFolder, link: Link) -> None:
    """Have Flower start the run's process, unless the operator stops the run meanwhile."""
    number = link.start_run(run.name)
    if not run.tell("waiting", flower_run=number):
        link.stop_run(number)


def standing(project: Project) -> dict[str, Any]:
    """All silos and runs: Flower's word on each node, and how each run is."""
    nodes = link_of(project).nodes()
    members = project.roster().members
    silos = {
        m.silo: "revoked" if m.revoked else nodes.get(pem_of(m).decode(), "unknown")
        for m in members
    }
    return {"silos": silos, "runs": {run.name: run.status() for run in _runs(project)}}


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
    if config.privacy.mode == "central":
        raise InputError(
            "`central` is not in a run between machines yet: its statement is not written there",
            where="privacy.mode",
            mend="set it to `local`, or use `fedtune simulate`",
        )
    if config.adapter.init_from is not None:
        raise InputError(
            "isn't sent to silos yet", where="adapter.init_from", mend="start from the base model"
        )


def _named(project: Project, name: str) -> RunFolder:
    """The folder of a run of that name, there or not; it can't lead out of `runs`."""
    if not re.fullmatch(_NAME, name):
        raise InputError(
            f"`{name}` can't be a run's name", where="--name", expected="letters, digits and `-_.`"
        )
    return RunFolder(project.runs / name)


def _found(project: Project, name: str) -> RunFolder:
    run = _named(project, name)
    if not (run.path / "config.yaml").exists():
        raise InputError("there is no such run", where=run.path)
    load_config(run.path / "config.yaml")
    return run
