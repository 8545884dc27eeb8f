"""Private steps are charged to the machine's ledger before the first of them is taken."""

import dataclasses
import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtune.atomic import write_text
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.errors import InputError
from fedtune.privacy.done import Done
from fedtune.privacy.dp_sgd import PrivateSteps
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.exposure import Figures
from fedtune.privacy.fingerprints import fingerprints
from fedtune.privacy.ledger import Budget, Charge, Ledger, Request, ledger_path
from fedtune.training.private import unit_of

CHARGED = "charged.json"
"""In a run's folder: what was charged for it, so that a resumed run knows and no other run does."""


@dataclass(frozen=True)
class Party:
    """Whose `rows` take the `private` steps, under the `purpose` that the ledger keeps.

    A run that goes on was charged when it began: then only `again` steps are, those that an
    interrupted round may have released before (0: none). Without `again` the plan is charged whole,
    and so are steps whose charge the run's folder doesn't know of, or the ledger doesn't.
    """

    purpose: str
    rows: ExampleSet
    private: PrivateSteps
    again: int | None = None


@dataclass(frozen=True)
class Charged:
    """All charges made for one party's data by this run so far, in order; never empty."""

    charges: tuple[Charge, ...]
    events: tuple[GaussianEvent, ...]

    def done(self, private: PrivateSteps) -> Done:
        """What the statement tells: everything that was charged counts as released."""
        steps = private.plan.steps_of(self.events)
        return Done(private.plan, self.events, steps, self.charges[-1])


def charge_run(
    config: RunConfig, parties: Sequence[Party], *, folder: Path, run: str
) -> list[Charged]:
    """Charge each party's steps to everybody in its rows; `run` is told by its hash.

    Raises InputError, with nothing charged to any party, when somebody's budget doesn't allow it
    or the ledger is damaged.
    """
    ledger = Ledger.open(ledger_path(config.privacy.ledger))
    known = {(row.number, row.hash) for row in ledger.charges(run)}
    entries = _read(folder / CHARGED)
    due = [(party, steps) for party in parties if (steps := _unpaid(party, entries, known))]
    requests = [_request(config, party, steps, run, ledger.key) for party, steps in due]
    charges = ledger.charge(requests)  # also of none: what it said to be known is checked
    if charges:
        entries = [entry for entry in entries if _place(entry) in known]
        entries += map(_entry, requests, charges)
        write_text(folder / CHARGED, json.dumps(entries, indent=2) + "\n")
    return [_charged(party.purpose, entries) for party in parties]


def _unpaid(
    party: Party, entries: Sequence[dict[str, Any]], known: Container[tuple[int, str]]
) -> int:
    """The steps to charge: those before, if the ledger doesn't know of them, and those to come."""
    mine = [entry for entry in entries if entry["purpose"] == party.purpose]
    lost = [_event(entry).count for entry in mine if _place(entry) not in known]
    if mine and party.again is not None:
        return sum(lost) + party.again
    return sum(lost) + party.private.plan.steps + (party.again or 0)


def _request(config: RunConfig, party: Party, steps: int, run: str, key: bytes) -> Request:
    unit, plan = unit_of(config), party.private.plan
    return Request(
        run=run,
        purpose=party.purpose,
        unit=unit,
        people=fingerprints(party.rows, key, unit),
        events=[plan.event(steps)],
        plan=plan.to_json(),
        delta=config.privacy.delta,
    )


def _entry(request: Request, charge: Charge) -> dict[str, Any]:
    (event,) = request.events
    told = {"purpose": request.purpose, "event": event.to_json()}
    return {**told, "charge": dataclasses.asdict(charge)}


def _charged(purpose: str, entries: Sequence[dict[str, Any]]) -> Charged:
    mine = [entry for entry in entries if entry["purpose"] == purpose]
    return Charged(tuple(_charge(entry["charge"]) for entry in mine), tuple(map(_event, mine)))


def _event(entry: dict[str, Any]) -> GaussianEvent:
    return GaussianEvent.from_json(entry["event"])


def _place(entry: dict[str, Any]) -> tuple[int, str]:
    return entry["charge"]["row"], entry["charge"]["hash"]


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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the record of charges is damaged ({error})", where=path) from None
    return list(entries)
