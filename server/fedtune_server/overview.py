"""How a federation stands, by its folder and Flower's word: read and never written.

A file that is damaged or not there makes its part of the picture empty; it hides nothing else.
"""

import datetime
import functools
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from fedtune.config.load import load_config
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.identity.roster import Member
from fedtune_server.flower_link import Link, NoAnswerError, pem_of
from fedtune_server.project import Project
from fedtune_server.run_folder import ENDED
from fedtune_server.run_start import died

State = Literal["waiting", "starting", "running", "finished", "failed", "stopped", "unreadable"]
_LOG_TAIL_BYTES = 2**18
_REFUSED = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ WARNING fedtune_server\.door: refused: "
    r"silo (\S+) at (\S+): (.*)"
)
_Read = TypeVar("_Read")
_log = logging.getLogger(__name__)


class _Told(BaseModel):
    """What another process has written down."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Missing(_Told):
    """A silo that is missing from a round, and why."""

    silo: str
    reason: str
    detail: str = ""


class Round(_Told):
    """A round as it may be told; None is what may not."""

    round: int
    loss: float | None = None
    metric: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    seconds: float | None = None
    silos: tuple[str, ...] | None = None
    failures: tuple[Missing, ...] | None = None


class Status(_Told):
    """How far a run is, by itself."""

    state: State = "waiting"
    updated: datetime.datetime | None = None
    reason: str = ""
    round: int = 0
    rounds: int | None = None
    flower_run: int | None = None
    given_up: Round | None = None


@dataclass(frozen=True)
class Run:
    """A run: its status, the finished rounds in order, and its settings if they can be read."""

    name: str
    status: Status
    rounds: tuple[Round, ...]
    config: RunConfig | None

    @property
    def at_work(self) -> bool:
        """Whether it has still to end."""
        return self.status.state in ("waiting", "starting", "running")

    @property
    def round(self) -> int:
        """The last finished round."""
        return self.rounds[-1].round if self.rounds else 0

    @property
    def told(self) -> tuple[Round, ...]:
        """Finished rounds, and the one that was given up."""
        return (*self.rounds, self.status.given_up) if self.status.given_up else self.rounds


@dataclass(frozen=True)
class Silo:
    """A member of the roster, and Flower's word on its node; `unknown` without one."""

    name: str
    node: str


@dataclass(frozen=True)
class Refusal:
    """A call that was turned away at the door."""

    when: datetime.datetime
    silo: str
    address: str
    why: str


@dataclass(frozen=True)
class Overview:
    """All of it, the newest run first. `superlink` is whether Flower answered."""

    federation: str
    roster_version: int | None
    silos: tuple[Silo, ...]
    runs: tuple[Run, ...]
    superlink: bool


def overview(project: Project, link: Link | None) -> Overview:
    """How things stand now. `link` is None where no coordinator runs."""
    try:
        roster = project.roster()
        members, version = roster.members, roster.version
    except InputError:
        members, version = (), None
    nodes = _asked(link)
    runs = [_run(folder, link if nodes is not None else None) for folder in _folders(project)]
    runs.sort(key=lambda run: (run.at_work, _seconds(run.status), run.name), reverse=True)
    return Overview(
        project.config.federation,
        version,
        tuple(_silo(member, nodes or {}) for member in members),
        tuple(runs),
        superlink=nodes is not None,
    )


def refusals(project: Project) -> list[Refusal]:
    """Calls that the coordinator's log says were turned away, the newest first."""
    lines = _tail(project.logs / "coordinator.log").splitlines()
    found = (_REFUSED.fullmatch(line) for line in reversed(lines))
    return [
        Refusal(
            datetime.datetime.strptime(when, "%Y-%m-%d %H:%M:%S").astimezone(datetime.UTC),
            silo,
            address,
            why,
        )
        for when, silo, address, why in (match.groups() for match in found if match)
    ]


def _folders(project: Project) -> list[Path]:
    try:
        return sorted(path for path in project.runs.iterdir() if path.is_dir())
    except OSError:
        return []


def _seconds(status: Status) -> float:
    return status.updated.timestamp() if status.updated else 0.0


def _silo(member: Member, nodes: Mapping[str, str]) -> Silo:
    word = "revoked" if member.revoked else nodes.get(pem_of(member).decode(), "unknown")
    return Silo(member.silo, word)


def _asked(link: Link | None) -> dict[str, str] | None:
    """Flower's word on each node; None where it gives none."""
    try:
        return link.nodes() if link is not None and link.answers() else None
    except NoAnswerError as error:
        _log.info("the SuperLink doesn't tell of its nodes: %s", error)
        return None


def _run(folder: Path, link: Link | None) -> Run:
    status = _now(folder / "status.json", link)
    rounds = _kept(folder / "metrics.jsonl", _rounds) or ()
    return Run(folder.name, status, rounds, _kept(folder / "config.yaml", _config))


def _now(file: Path, link: Link | None) -> Status:
    """How a run is. One that Flower has ended without a word of its own is seen to have failed."""
    status = _status(file)
    if link is None or status.state in (*ENDED, "unreadable") or status.flower_run is None:
        return status
    try:
        reason = died(link, status.flower_run)
    except NoAnswerError:
        return status
    again = _status(file)  # it may have ended well in the meantime
    if reason is None or again != status:
        return again
    return status.model_copy(update={"state": "failed", "reason": reason})


def _status(file: Path) -> Status:
    try:
        return Status.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return Status()
    except (OSError, ValidationError):
        return Status(state="unreadable", reason="its status.json can't be read")


def _rounds(file: Path) -> tuple[Round, ...]:
    """The rounds that can be read, one line each."""
    found = []
    for line in file.read_bytes().splitlines():
        try:
            found.append(Round.model_validate_json(line))
        except ValidationError:
            continue
    return tuple(sorted(found, key=lambda round: round.round))


def _config(file: Path) -> RunConfig | None:
    try:
        return load_config(file)
    except InputError:
        return None


def _kept(file: Path, read: Callable[[Path], _Read]) -> _Read | None:
    """What `read` gives of the file, read again when that changes; None where it is not there."""
    try:
        stat = file.stat()
        return cast(_Read, _read_once(read, file, stat.st_mtime_ns, stat.st_size))
    except OSError:
        return None


@functools.lru_cache(maxsize=256)
def _read_once(read: Callable[[Path], Any], file: Path, changed: int, size: int) -> Any:
    return read(file)


def _tail(file: Path) -> str:
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")
    except OSError:
        return ""
