"""A silo's budget ledger: every charge on the people in its data, made before training begins.

A charge is composed with all earlier ones that met the same people and is refused when any of them
would then have spent more than the budget. The budget is a row of the ledger itself. Only
`set_budget` writes one; no config and no message of a coordinator reaches it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedtune.errors import InputError
from fedtune.privacy.accounting import Accountant, epsilon
from fedtune.privacy.chained_rows import Addition, ChainedRows, Damage, Row
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.exposure import Exposure, Met, Unit, exposures
from fedtune.privacy.fingerprints import People

ACCOUNTANT: Accountant = "pld"


@dataclass(frozen=True)
class Budget:
    """Most that any person may spend, over all runs of this ledger."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Charge:
    """What was charged, and what the most exposed of these people have then spent.

    `epsilon_before` and `epsilon_after` are at `delta` (the budget's, or the run's if none is set)
    by `accountant`; `epsilon_alone` is this charge by itself. `row` and `hash` find it again.
    """

    row: int
    hash: str
    run: str
    unit: Unit
    epsilon_before: float
    epsilon_alone: float
    epsilon_after: float
    delta: float
    accountant: str
    budget: Budget | None
    earlier_runs: tuple[str, ...]


@dataclass(frozen=True)
class Spent:
    """How many units of a kind are known, and the most that one of them has spent."""

    units: int
    epsilon: float
    second_epsilon: float


def ledger_path(chosen: str | None = None) -> Path:
    """`chosen`, else `$FEDTUNE_LEDGER`, else `ledger.sqlite` in the user's data folder."""
    if named := chosen or os.environ.get("FEDTUNE_LEDGER"):
        return Path(named).expanduser()
    home = os.environ.get("XDG_DATA_HOME")
    folder = Path(home) if home else Path.home() / ".local" / "share"
    return folder / "fedtune" / "ledger.sqlite"


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

    def charge(
        self,
        *,
        run: str,
        purpose: str,
        unit: Unit,
        people: People,
        events: Sequence[GaussianEvent],
        plan: Mapping[str, Any],
        delta: float,
        limit: float | None = None,
    ) -> Charge:
        """Charge `events` to all of `people`, durably, or raise InputError and charge nothing.

        Refused when anybody would have spent more than the budget, or than `limit` if that is less.
        Without both, everything is charged and nothing refused. `plan` is kept as it is.
        """
        if not events:
            raise ValueError("nothing to charge")
        new = Met(unit, people, tuple(events))
        with self.file.adding() as file:
            rows = file.rows()
            budget = _budget(rows)
            at = budget.delta if budget else delta
            self._check_delta(at, people.count(unit), unit)
            charges = _charges(rows)
            earlier = list(_met(charges, file))
            before, after = _before(earlier, new), exposures([*earlier, new], new)
            figures = {
                "epsilon_before": _most(before, at),
                "epsilon_alone": _epsilon(new.events, at),
                "epsilon_after": _most(after, at),
                "delta": at,
                "accountant": ACCOUNTANT,
            }
            self._refuse_over(figures, budget, limit)
            row = file.add(
                {
                    "kind": "charge",
                    "time": _now(),
                    "run": run,
                    "purpose": purpose,
                    "unit": unit,
                    "units": people.count(unit),
                    "named": bool(len(people.patients)),
                    "events": [event.to_json() for event in events],
                    "plan": dict(plan),
                    **figures,
                },
                blob=people.to_bytes(),
            )
        met_before = _runs_met(charges, earlier, new)
        return Charge(
            row.number, row.hash, run, unit, budget=budget, earlier_runs=met_before, **figures
        )

    def set_budget(self, epsilon: float, delta: float) -> Row:
        """Set the most that anybody may spend from now on; for the local administrator only."""
        if not epsilon > 0 or not 0 < delta < 1:
            raise InputError(
                f"epsilon {epsilon:g} and delta {delta:g} are no budget",
                expected="epsilon above 0, delta between 0 and 1",
            )
        with self.file.adding() as file:
            return file.add(
                {"kind": "budget", "time": _now(), "epsilon": epsilon, "delta": delta}
            )

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
            unit: Spent(
                exposure.units, _largest(exposure, delta), exposure.epsilon(delta, "rdp")
            )
            for unit, exposure in known.items()
        }

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

    def _refuse_over(
        self, figures: Mapping[str, Any], budget: Budget | None, limit: float | None
    ) -> None:
        limits = [budget.epsilon if budget else None, limit]
        most = min((most for most in limits if most is not None), default=None)
        if most is None or figures["epsilon_after"] <= most:
            return
        before, at = figures["epsilon_before"], figures["delta"]
        raise InputError(
            f"the privacy budget doesn't allow this run: of epsilon {most:.4g} (delta {at:g}), "
            f"{before:.4g} was spent on these people by earlier runs, so {max(0, most - before):.4g} "
            f"is left; this run alone asks for {figures['epsilon_alone']:.4g}, and all together "
            f"would be {figures['epsilon_after']:.4g}",
            where=self.file.path,
            expected=f"at most {most:.4g} over all runs",
            mend="lower `privacy.target_epsilon`, raise `privacy.noise_multiplier`, or take fewer "
            "steps; only who answers for these data may raise the budget (`fedtune budget set`)",
        )


def _before(earlier: Sequence[Met], new: Met) -> dict[Unit, Exposure]:
    """What those whom `new` meets have met until now, among the promises that it makes."""
    return exposures([*earlier, Met(new.unit, new.people, ())], new)


def _runs_met(charges: Sequence[Row], earlier: Sequence[Met], new: Met) -> tuple[str, ...]:
    """Names of earlier runs that met any of the same people, in order, once each."""
    runs: dict[str, None] = {}
    for row, met in zip(charges, earlier, strict=True):
        if any(exposure.combinations != ((),) for exposure in _before([met], new).values()):
            runs[row.body["run"]] = None
    return tuple(runs)


def _charges(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.body["kind"] == "charge"]


def _met(charges: Sequence[Row], file: ChainedRows | Addition) -> Iterator[Met]:
    kept: dict[tuple[str, bool], People] = {}
    for row in charges:
        key = row.body["blob"], row.body["named"]
        if key not in kept:
            kept[key] = People.from_bytes(file.blob(key[0]), named=key[1])
        events = tuple(GaussianEvent.from_json(values) for values in row.body["events"])
        yield Met(row.body["unit"], kept[key], events)


def _budget(rows: Sequence[Row]) -> Budget | None:
    set_ = [row.body for row in rows if row.body["kind"] == "budget"]
    return Budget(set_[-1]["epsilon"], set_[-1]["delta"]) if set_ else None


def _most(found: Mapping[Unit, Exposure], delta: float) -> float:
    return max((_largest(exposure, delta) for exposure in found.values()), default=0.0)


def _largest(exposure: Exposure, delta: float) -> float:
    try:
        return exposure.epsilon(delta, ACCOUNTANT)
    except InputError:  # it can't count so many steps at so small a delta
        return exposure.epsilon(delta, "rdp")


def _epsilon(events: Sequence[GaussianEvent], delta: float) -> float:
    return _largest(Exposure(1, (events,)), delta)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
