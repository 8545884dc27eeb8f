"""Private steps are charged to the machine's ledger before the first of them is taken."""

import dataclasses
import json
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
from fedtune.privacy.ledger import Budget, Charge, Ledger, ledger_path
from fedtune.training.private import unit_of

CHARGED = "charged.json"
"""In a run's folder: what was charged for it, so that a resumed run knows and no other run does."""


@dataclass(frozen=True)
class Charged:
    """All charges made for one party's data by this run so far, in order; never empty."""

    charges: tuple[Charge, ...]
    events: tuple[GaussianEvent, ...]

    def done(self, private: PrivateSteps) -> Done:
        """What the statement tells: everything that was charged counts as released."""
        steps = sum(event.count for event in self.events)
        return Done(private.plan, self.events, steps, self.charges[-1])


def charge_run(
    config: RunConfig,
    rows: ExampleSet,
    private: PrivateSteps,
    *,
    folder: Path,
    run: str,
    purpose: str,
    again: int | None = None,
) -> Charged:
    """Charge the whole plan to everybody in `rows`; `run` is told by its hash.

    A run that goes on was charged when it began: then only `again` steps are, those that an
    interrupted round may have released before (0: none). Without `again`, or where `folder` and the
    ledger don't know of that charge, the plan is charged whole. Raises InputError, with nothing
    charged, when somebody's budget doesn't allow it.
    """
    ledger = Ledger.open(ledger_path(config.privacy.ledger))
    known = {(row.number, row.hash) for row in ledger.charges(run)}
    entries = _read(folder / CHARGED)
    mine = [e for e in entries if e["purpose"] == purpose and _place(e) in known]
    steps = again if mine else None
    if steps != 0:
        unit, event = unit_of(config), private.plan.event(steps)
        charge = ledger.charge(
            run=run,
            purpose=purpose,
            unit=unit,
            people=fingerprints(rows, ledger.key, unit),
            events=[event],
            plan=private.plan.to_json(),
            delta=config.privacy.delta,
        )
        entry = {
            "purpose": purpose,
            "event": event.to_json(),
            "charge": dataclasses.asdict(charge),
        }
        mine.append(entry)
        write_text(folder / CHARGED, json.dumps([*entries, entry], indent=2) + "\n")
    events = tuple(GaussianEvent.from_json(entry["event"]) for entry in mine)
    return Charged(tuple(_charge(entry["charge"]) for entry in mine), events)


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
            GaussianEvent.from_json(entry["event"])
            str(entry["purpose"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the record of charges is damaged ({error})", where=path) from None
    return list(entries)
