"""Private steps are charged to the machine's ledger before the first of them is taken."""

import dataclasses
import json
import secrets
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtune.atomic import write_text
from fedtune.config.privacy_unit import unit_of
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.errors import InputError
from fedtune.privacy.chained_rows import Row
from fedtune.privacy.done import Done
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.exposure import Figures
from fedtune.privacy.fingerprints import People, fingerprints
from fedtune.privacy.ledger import Budget, Charge, Ledger, Request, is_ledger, ledger_path
from fedtune.privacy.plan import ExecutionPlan
from fedtune.privacy.positions import Position, next_position

CHARGED = "charged.json"
"""In a run's folder: what was charged for it, so that a resumed run knows and no other run does."""
_Place = tuple[int, str, str]
"""Where a charge is in the ledger, and for what purpose it was made."""


@dataclass(frozen=True)
class Party:
    """Whose `rows` pay for the steps of `plan`, under the `purpose` that the ledger keeps.

    `each` of the steps are taken between one position of the run and the next.
    """

    purpose: str
    rows: ExampleSet
    plan: ExecutionPlan
    each: int = 1


@dataclass(frozen=True)
class Charged:
    """What was charged for one party's data by this run so far; `charge` is the last of it.

    What copies of the run's folder were charged is in it: they are the same run.
    """

    charge: Charge
    events: tuple[GaussianEvent, ...]

    def done(self, plan: ExecutionPlan) -> Done:
        """What the statement tells of `plan`: everything that was charged counts as released.

        Where silos are promised something, their people were charged for more.
        """
        steps = plan.steps_of(self.events)
        events = (plan.event(steps),) if plan.unit == "silo" else self.events
        return Done(plan, events, steps, self.charge)


@dataclass
class Course:
    """The way of a charged run, which the ledger is told before anything new of it can be seen."""

    ledger: Ledger
    position: Position
    at: int

    def reach(self, at: int) -> None:
        """Note that what comes of `at` steps (or rounds) is about to be seen.

        Raises RunFailedError when a copy of the run has taken what was paid for.
        """
        if at <= self.at:
            return
        position = next_position(self.position, self.position.left - (at - self.at))
        self.ledger.move(position)
        self.position, self.at = position, at


@dataclass(frozen=True)
class Paid:
    """A run whose steps are paid for: what was charged for each party, and its course."""

    parties: tuple[Charged, ...]
    course: Course


def charge_run(
    config: RunConfig,
    parties: Sequence[Party],
    *,
    folder: Path,
    run: str,
    done: int,
    to_come: int,
) -> Paid:
    """Charge each party's steps to everybody in its rows; `run` is told by its hash.

    A run that goes on was charged when it began: of the positions `to_come` after those `done` only
    what the ledger doesn't have left for it is charged again, be it that they were taken before, or
    that the ledger knows nothing of it. Where the run's folder knows of no charge, the plan is.
    What was charged to other parties for the same run (`train` and `simulate` of one config share
    its hash) pays for nothing here, whatever the folder says.

    Raises InputError, with nothing charged to any party, when somebody's budget doesn't allow it
    or the ledger is damaged.
    """
    ledger = Ledger.open(ledger_path(config.privacy.ledger))
    due = _due(config, parties, ledger, folder / CHARGED, run, to_come)
    entries, requests = due.entries, due.requests
    # also of none: what the ledger said to be known is checked
    charges = ledger.charge(requests, due.start if requests else None)
    if charges:
        entries = [entry for entry in entries if _place_of(entry) in due.known]
        entries += map(_entry, requests, charges)
        write_text(folder / CHARGED, json.dumps(entries, indent=2) + "\n")
    position = due.start if charges or due.last is None else due.last
    rows = ledger.charges(run)
    charged = tuple(_charged(party.purpose, entries, rows) for party in parties)
    return Paid(charged, Course(ledger, position, done))


def ask_ledger(
    config: RunConfig, parties: Sequence[Party], *, folder: Path, run: str, to_come: int
) -> dict[str, Charge]:
    """What `charge_run` would charge, by purpose; nothing is charged and no ledger is made.

    Raises InputError, in the same words, where `charge_run` would.
    """
    path = ledger_path(config.privacy.ledger)
    if not is_ledger(path):  # where there is no budget, none is passed
        return {}
    ledger = Ledger.open(path)
    due = _due(config, parties, ledger, folder / CHARGED, run, to_come)
    charges = ledger.ask(due.requests, due.start if due.requests else None)
    return {request.purpose: charge for request, charge in zip(due.requests, charges, strict=True)}


@dataclass(frozen=True)
class _Due:
    """What is to be charged, and where the run then starts; `last` is where it was, if anywhere.

    `entries` are those of the run's folder, `known` the places of those that the ledger has.
    """

    requests: list[Request]
    start: Position
    last: Position | None
    entries: list[dict[str, Any]]
    known: Container[_Place]


def _due(
    config: RunConfig,
    parties: Sequence[Party],
    ledger: Ledger,
    record: Path,
    run: str,
    to_come: int,
) -> _Due:
    before = ledger.charges(run)
    known = {_place(row) for row in before}
    entries = _read(record)
    course = entries[-1]["course"] if entries else None
    last = ledger.position(run, course) if _paid_by(parties, before, course) else None
    more = to_come - (last.left if last else 0)
    due = [(party, steps) for party in parties if (steps := _unpaid(party, entries, known, more))]
    start = _start(run, last, to_come)
    requests = [_request(config, party, n, start, ledger.key) for party, n in due]
    if any(party.plan.shares is not None for party in parties):
        _check_apart(requests)
    return _Due(requests, start, last, entries, known)


def _check_apart(requests: Sequence[Request]) -> None:
    """Raise InputError where two silos whose vectors are in one sum have a row in common: both
    would move that sum for one person, which charges of two sums don't count.
    """
    whose: dict[int, str] = {}
    for request in requests:
        for record in request.people.known_records.tolist():
            other = whose.setdefault(record, request.purpose)
            if other != request.purpose:
                raise InputError(
                    f"the same row is in {other} and {request.purpose}, and with `privacy.mode: "
                    "distributed` one sum would have both",
                    where="federation.partition",
                    mend="keep it in one of them, or set `privacy.mode: local`",
                )


def charged_to_these(config: RunConfig, party: Party, run: str) -> bool:
    """Whether all that `run` was charged for the party's purpose was charged to just its people.

    To be asked where a run's hash doesn't hold its data: rows that came later were not paid for.
    """
    ledger = Ledger.open(ledger_path(config.privacy.ledger))
    people = _people(config, party, ledger.key).to_bytes()
    mine = [row for row in ledger.charges(run) if row.body["purpose"] == party.purpose]
    return all(ledger.file.blob(row.body["blob"]) == people for row in mine)


def _paid_by(parties: Sequence[Party], rows: Sequence[Row], course: str | None) -> bool:
    """Whether a course was charged to just these parties: else its positions are other steps."""
    if course is None:
        return False
    charged = {row.body["purpose"] for row in rows if row.body.get("course") == course}
    return charged == {party.purpose for party in parties}


def _unpaid(
    party: Party,
    entries: Sequence[dict[str, Any]],
    known: Container[_Place],
    more: int,
) -> int:
    """The steps to charge: those before, if the ledger doesn't know of them, and `more` to come."""
    mine = [entry for entry in entries if entry["purpose"] == party.purpose]
    if not mine:
        return max(party.plan.steps, more * party.each)
    lost = sum(_event(entry).count for entry in mine if _place_of(entry) not in known)
    return lost + max(0, more) * party.each


def _start(run: str, last: Position | None, to_come: int) -> Position:
    """The position that a charge begins with: what it pays for is taken from there on."""
    if last is not None:
        return next_position(last, max(last.left, to_come))
    return Position(run=run, course=secrets.token_hex(16), left=to_come, follows=None)


def _request(config: RunConfig, party: Party, steps: int, start: Position, key: bytes) -> Request:
    plan = party.plan
    return Request(
        run=start.run,
        course=start.course,
        purpose=party.purpose,
        unit=unit_of(config),
        people=_people(config, party, key),
        events=[plan.event(steps)],
        plan=plan.to_json(),
        delta=config.privacy.delta,
    )


def _people(config: RunConfig, party: Party, key: bytes) -> People:
    prompted = config.data.label_prompt is not None
    return fingerprints(party.rows, key, unit_of(config), label_prompt=prompted)


def _entry(request: Request, charge: Charge) -> dict[str, Any]:
    (event,) = request.events
    told = {"purpose": request.purpose, "course": request.course, "event": event.to_json()}
    return {**told, "charge": dataclasses.asdict(charge)}


def _charged(purpose: str, entries: Sequence[dict[str, Any]], rows: Sequence[Row]) -> Charged:
    """What the ledger's `rows` say of the folder's `entries`, and of what its copies were charged.

    The last may be a copy's, whose own folder alone knows more of it than the ledger.
    """
    places = {_place_of(entry) for entry in entries}
    course = entries[-1]["course"]
    mine = [
        row
        for row in rows
        if row.body["purpose"] == purpose
        and (_place(row) in places or (course and row.body.get("course") == course))
    ]
    events = (GaussianEvent.from_json(event) for row in mine for event in row.body["events"])
    last = mine[-1]
    charge = dataclasses.replace(
        next(_charge(one["charge"]) for one in reversed(entries) if one["purpose"] == purpose),
        row=last.number,
        hash=last.hash,
        after=Figures(**last.body["epsilon"]),
        delta=last.body["delta"],
    )
    return Charged(charge, tuple(events))


def _event(entry: dict[str, Any]) -> GaussianEvent:
    return GaussianEvent.from_json(entry["event"])


def _place(row: Row) -> _Place:
    return row.number, row.hash, row.body["purpose"]


def _place_of(entry: dict[str, Any]) -> _Place:
    return entry["charge"]["row"], entry["charge"]["hash"], entry["purpose"]


def _charge(values: dict[str, Any]) -> Charge:
    figures = {name: Figures(**values[name]) for name in ("before", "alone", "after")}
    budget = Budget(**values["budget"]) if values["budget"] else None
    return Charge(
        **{**values, **figures, "budget": budget, "earlier_runs": tuple(values["earlier_runs"])}
    )


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text())
        for entry in entries:
            _charge(entry["charge"])
            _event(entry)
            str(entry["purpose"])
            entry.setdefault("course", None)  # of a run that began before there were courses
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the record of charges is damaged ({error})", where=path) from None
    return list(entries)
