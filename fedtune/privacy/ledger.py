"""A silo's budget ledger: every charge on the people in its data, made before training begins.

A charge is composed with all earlier ones that met the same people and is refused when any of them
would then have spent more than the budget. The budget is a row of the ledger itself. Only
`set_budget` writes one; no config and no message of a coordinator reaches it.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedtune.errors import InputError
from fedtune.privacy.chained_rows import Addition, ChainedRows, Damage, Row
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.exposure import Exposure, Figures, exposures, figures_of
from fedtune.privacy.fingerprints import People
from fedtune.privacy.joining import Met, Unit, meet
from fedtune.privacy.positions import Position, body_of, check_follows, latest_position
from fedtune.privacy.told import rounded_down, rounded_up

_ZERO = Figures(0.0, 0.0)
_SHOWN = 5
_VARIABLE = "FEDTUNE_LEDGER"
ACCOUNTANT = "pld"
"""Whose figures a budget is about; every accountant's is a bound, and this one's the tightest."""


@dataclass(frozen=True)
class Budget:
    """Most that any person may spend, over all runs of this ledger."""

    epsilon: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class Request:
    """`events` that are to be charged to all of `people`; `plan` is kept as it is.

    What is spent is told at `delta` if there is no budget. `limit` is a lower one, of this request
    alone. `course` tells this charged run from another of the same settings on the same data.
    """

    run: str
    purpose: str
    unit: Unit
    people: People
    events: Sequence[GaussianEvent]
    plan: Mapping[str, Any]
    delta: float
    limit: float | None = None
    course: str | None = None


@dataclass(frozen=True)
class Charge:
    """What was charged, and what the most exposed of these people have then spent.

    All at `delta`, the budget's, or the run's if none is set; `alone` is this charge by itself.
    `row` and `hash` find it in the ledger again.
    """

    row: int
    hash: str
    run: str
    unit: Unit
    before: Figures
    alone: Figures
    after: Figures
    delta: float
    budget: Budget | None
    earlier_runs: tuple[str, ...]


@dataclass(frozen=True)
class Spent:
    """How many units of a kind are known, and the most that one of them has spent."""

    units: int
    epsilon: Figures


def ledger_path(chosen: str | None = None) -> Path:
    """`chosen`, else `$FEDTUNE_LEDGER`, else `ledger.sqlite` in the user's data folder."""
    if named := chosen or os.environ.get(_VARIABLE):
        return Path(named).expanduser()
    home = os.environ.get("XDG_DATA_HOME")
    folder = Path(home) if home else Path.home() / ".local" / "share"
    return folder / "fedtune" / "ledger.sqlite"


def check_ledger(named: str | None) -> None:
    """Raise InputError where the ledger that a run's settings name would lead past this machine's.

    That is past `$FEDTUNE_LEDGER`, or past a budget that was set in the user's.
    """
    own = ledger_path()
    if ledger_path(named).resolve() == own.resolve():
        return
    told = f"`${_VARIABLE}` is" if os.environ.get(_VARIABLE) else None
    if told is None and budget_of_machine() is not None:
        told = "the budget was set in"
    if told is not None:
        raise InputError(
            f"a run's settings can't choose another ledger: {told} {own}",
            where="privacy.ledger",
            mend=f"leave it out; who answers for these data names the ledger by `${_VARIABLE}`",
        )


def budget_of_machine() -> Budget | None:
    """The budget in force where no settings name a ledger; looking makes no ledger."""
    path = ledger_path()
    return Ledger.open(path).budget() if is_ledger(path) else None


def is_ledger(path: Path) -> bool:
    """Whether any of a ledger's files is there."""
    return any(path.with_name(path.name + end).exists() for end in ("", ".key", ".head"))


@dataclass(frozen=True)
class Ledger:
    """The ledger at `file.path`; every method opens the file anew, so forks may share it."""

    file: ChainedRows

    @staticmethod
    def open(path: Path) -> "Ledger":
        """The ledger at `path`, new if there is none. Raises InputError if it can't be trusted."""
        return Ledger(ChainedRows.open(path))

    @property
    def key(self) -> bytes:
        """The secret that `fingerprints` takes."""
        return self.file.key

    def charge(self, requests: Sequence[Request], position: Position | None = None) -> list[Charge]:
        """Charge all of `requests`, durably, or raise InputError and charge none of them.

        Refused when anybody would have spent more than the budget, or than a `limit` if that is
        less. Without both, everything is charged and nothing refused. Each is composed with those
        before it. `position` is where the run then begins; all is kept or nothing, as in `move`.
        """
        with self.file.adding() as file:
            return self._add_all(requests, position, file)

    def ask(self, requests: Sequence[Request], position: Position | None = None) -> list[Charge]:
        """What `charge` would give, or raise; nothing is charged."""
        with self.file.trying() as file:
            return self._add_all(requests, position, file)

    def _add_all(
        self, requests: Sequence[Request], position: Position | None, file: Addition
    ) -> list[Charge]:
        rows = file.rows()
        if position:
            _add_position(position, rows, file)
        budget, charges = _budget(rows), _charges(rows)
        met_before = zip(charges, _met(charges, file), strict=True)
        earlier = [(row.body["run"], met) for row, met in met_before]
        made = []
        for request in requests:
            charge = self._add(request, budget, earlier, file)
            made.append(charge)
            earlier.append((request.run, _asked(request)))
        return made

    def _add(
        self,
        request: Request,
        budget: Budget | None,
        earlier: Sequence[tuple[str, Met]],
        file: Addition,
    ) -> Charge:
        new, people = _asked(request), request.people
        at = budget.delta if budget else request.delta
        units = people.count(request.unit)
        self._check_delta(at, units, request.unit)
        runs = tuple(dict.fromkeys(run for run, met in earlier if meet(met, new)))
        nothing = Met(request.unit, people, (), request.run)
        met_by_then = exposures([*(met for _, met in earlier), nothing], new).values()
        after = _most([exposure.adding(new) for exposure in met_by_then], at)
        before = _most(met_by_then, at) if runs else _ZERO
        alone = _most([exposure.alone(new) for exposure in met_by_then], at) if runs else after
        figures = before, alone, after
        own = max(exposure.most_units(new) for exposure in met_by_then)
        self._refuse(request, own, figures, at, _least(budget, request.limit), runs)
        body = {
            **{"kind": "charge", "time": _now(), "run": request.run, "purpose": request.purpose},
            **{"course": request.course},
            **{"unit": request.unit, "units": units, "named": bool(len(people.patients))},
            **{"events": [event.to_json() for event in new.events], "plan": dict(request.plan)},
            **{"delta": at, "epsilon": asdict(after)},
        }
        row = file.add(body, blob=people.to_bytes())
        return Charge(row.number, row.hash, request.run, new.unit, *figures, at, budget, runs)

    def move(self, position: Position) -> None:
        """Note, durably, that a run has come to `position`; to be called before it can be seen.

        Raises RunFailedError, and notes nothing, when a copy of the run has come somewhere since.
        """
        with self.file.adding() as file:
            _add_position(position, file.rows(), file)

    def position(self, run: str, course: str | None) -> Position | None:
        """Where this course of a run was last; None if the ledger doesn't know it."""
        return latest_position(self.file.rows(), run, course)

    def set_budget(self, epsilon: float, delta: float) -> Row:
        """Set the most that anybody may spend from now on; for the local administrator only."""
        if not 0 < epsilon < math.inf or not 0 < delta < 1:
            raise InputError(
                f"epsilon {epsilon:g} and delta {delta:g} are no budget",
                expected="epsilon above 0, delta between 0 and 1",
            )
        with self.file.adding() as file:
            return file.add({"kind": "budget", "time": _now(), "epsilon": epsilon, "delta": delta})

    def budget(self) -> Budget | None:
        """The budget in force; None if none was ever set."""
        return _budget(self.file.rows())

    def charges(self, run: str | None = None) -> list[Row]:
        """Charges of all runs or of one, in order."""
        found = _charges(self.file.rows())
        return [row for row in found if run in (None, row.body["run"])]

    def spent(self, delta: float) -> dict[Unit, Spent]:
        """The most that anybody has spent at `delta`, by unit kind."""
        known = exposures(list(_met(_charges(self.file.rows()), self.file)))
        return {
            unit: Spent(exposure.units, exposure.figures(delta)) for unit, exposure in known.items()
        }

    def export(self, *, with_units: bool = False) -> Iterator[dict[str, Any]]:
        """Each row as plain values, with the people's fingerprints only if asked."""
        for row in self.file.rows():
            whole: dict[str, Any] = {"row": row.number, "hash": row.hash, **row.body}
            if with_units and row.body["kind"] == "charge":
                people = People.from_bytes(
                    self.file.blob(row.body["blob"]), named=row.body["named"]
                )
                whole["records"] = people.records.tolist()
                whole["patients"] = people.patients.tolist()
            yield whole

    def verify(self) -> list[Damage]:
        """Everything in the ledger's files that is not as it was written."""
        return self.file.damage()

    def _check_delta(self, delta: float, units: int, unit: Unit) -> None:
        if delta * units >= 1:
            raise InputError(
                f"the budget's delta {delta:g} is no less than one over the number of {unit}s "
                f"({units})",
                where=self.file.path,
                expected=f"below {1 / units:.2g}",
                mend="set one that is: fedtune budget set --epsilon ... --delta ...",
            )

    def _refuse(
        self,
        request: Request,
        own: int,
        figures: tuple[Figures, Figures, Figures],
        delta: float,
        most: float,
        runs: Sequence[str],
    ) -> None:
        before, alone, after = figures
        if after.pld <= most and after.pld < math.inf:
            return
        spent = f"{rounded_up(before.pld)} was spent on these people by earlier runs"
        if runs:
            spent += f" ({', '.join(runs[-_SHOWN:])})"
        shared, once = "", ""
        if own > 1:
            shared = f", since as many as {own} of its {request.unit}s may be one's own"
            once = "give each person one id and keep equal rows once, "
        raise InputError(
            f"the privacy budget doesn't allow this run ({request.purpose}): of epsilon "
            f"{rounded_down(most)} (delta {delta:g}) {spent}, "
            f"{rounded_down(max(0.0, most - before.pld))} is left; this run alone asks for "
            f"{rounded_up(alone.pld)}{shared}, and all together would be {rounded_up(after.pld)}; "
            "nothing was charged",
            where=self.file.path,
            expected=f"at most {rounded_down(most)} over all runs",
            mend=f"{once}lower `privacy.target_epsilon`, raise `privacy.noise_multiplier`, or take "
            "fewer steps; only who answers for these data may raise the budget (`fedtune budget "
            "set`)",
        )


def _least(budget: Budget | None, limit: float | None) -> float:
    return min(budget.epsilon if budget else math.inf, math.inf if limit is None else limit)


def _asked(request: Request) -> Met:
    if not request.events:
        raise ValueError("nothing to charge")
    return Met(request.unit, request.people, tuple(request.events), request.run)


def _add_position(position: Position, rows: Sequence[Row], file: Addition) -> None:
    check_follows(rows, position)
    file.add({"time": _now(), **body_of(position)})


def _charges(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.body["kind"] == "charge"]


def _met(charges: Sequence[Row], file: ChainedRows | Addition) -> Iterator[Met]:
    kept: dict[tuple[str, bool], People] = {}
    for row in charges:
        key = row.body["blob"], row.body["named"]
        if key not in kept:
            kept[key] = People.from_bytes(file.blob(key[0]), named=key[1])
        events = tuple(GaussianEvent.from_json(values) for values in row.body["events"])
        yield Met(row.body["unit"], kept[key], events, row.body["run"])


def _budget(rows: Sequence[Row]) -> Budget | None:
    set_ = [row.body for row in rows if row.body["kind"] == "budget"]
    return Budget(set_[-1]["epsilon"], set_[-1]["delta"]) if set_ else None


def _most(found: Iterable[Exposure], delta: float) -> Figures:
    return figures_of([events for exposure in found for events in exposure.combinations], delta)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
