"""`fedtune budget`: what the people in this silo's data have spent, and the most that they may."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedtune.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from fedtune.privacy.chained_rows import Damage
    from fedtune.privacy.joining import Unit
    from fedtune.privacy.ledger import Budget, Ledger, Spent

app = typer.Typer(help="This silo's privacy budget and its ledger.", no_args_is_help=True)
_Ledger = Annotated[
    Path | None, typer.Option("--ledger", help="Left out: $FEDTUNE_LEDGER or the user's own.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_DEFAULT_DELTA = 1e-5


@app.command()
def show(
    ledger: _Ledger = None,
    delta: Annotated[
        float | None, typer.Option(help="Tell epsilon at this delta; left out: the budget's.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Say what the budget is, what the most exposed person has spent, and by which runs.

    Example: fedtune budget show
    """
    from fedtune.privacy.ledger import ACCOUNTANT

    opened = _opened(ledger)
    if found := opened.verify():
        raise _damaged(opened, found)
    budget = opened.budget()
    at = delta if delta is not None else budget.delta if budget else _DEFAULT_DELTA
    if not 0 < at < 1:
        raise InputError(f"is {at:g}", where="--delta", expected="between 0 and 1")
    spent, runs = opened.spent(at), [_run(row.body) for row in opened.charges()]
    if as_json:
        facts = {
            "ledger": str(opened.file.path),
            "budget": dataclasses.asdict(budget) if budget else None,
            "delta": at,
            "relation": "add_remove",
            "accountant": ACCOUNTANT,
            "spent": {unit: dataclasses.asdict(most) for unit, most in spent.items()},
            "runs": runs,
        }
        print(json.dumps(facts, indent=2))
        return
    _tell(opened, budget, at, spent, runs)


@app.command()
def verify(ledger: _Ledger = None, as_json: _Json = False) -> None:
    """Check every row of the ledger against its chain; exit status 1 if any is not as written.

    Example: fedtune budget verify
    """
    opened = _opened(ledger)
    found = opened.verify()
    rows = 0 if found else len(opened.file.rows())
    if as_json:
        print(json.dumps({"rows": rows, "damage": [dataclasses.asdict(one) for one in found]}))
    if found:
        raise _damaged(opened, found)
    if not as_json:
        print(f"{opened.file.path}: {rows} rows, all as they were written")


@app.command()
def export(
    ledger: _Ledger = None,
    with_units: Annotated[
        bool, typer.Option("--with-units", help="Also the keyed fingerprints of the people.")
    ] = False,
) -> None:
    """Print the ledger as JSON lines, a row each; without the people's fingerprints unless asked.

    Example: fedtune budget export > ledger.jsonl
    """
    for row in _opened(ledger).export(with_units=with_units):
        print(json.dumps(row))


@app.command("set")
def set_(
    epsilon: Annotated[float, typer.Option(help="Most that anybody may spend over all runs.")],
    delta: Annotated[float, typer.Option(help="Less than one over the number of people.")],
    ledger: _Ledger = None,
    as_json: _Json = False,
) -> None:
    """Set the budget from now on, as a row of the ledger; the former ones stay to be read.

    Example: fedtune budget set --epsilon 8 --delta 1e-6
    """
    from fedtune.privacy.ledger import Ledger, ledger_path
    from fedtune.privacy.told import rounded_down

    path = ledger_path(str(ledger) if ledger else None)
    opened = Ledger.open(path)
    before = opened.budget()
    row = opened.set_budget(epsilon, delta)
    if as_json:
        print(json.dumps({"row": row.number, "hash": row.hash, **row.body}))
        return
    former = (
        f" (was epsilon {rounded_down(before.epsilon)}, delta {before.delta:g})" if before else ""
    )
    print(
        f"{path}: budget of epsilon {rounded_down(epsilon)} at delta {delta:g}{former}, "
        f"row {row.number}"
    )


def _opened(chosen: Path | None) -> "Ledger":
    """The ledger that is there; looking makes none."""
    from fedtune.privacy.ledger import Ledger, is_ledger, ledger_path

    path = ledger_path(str(chosen) if chosen else None)
    if not is_ledger(path):
        raise InputError(
            "there is no ledger yet",
            where=path,
            mend="the first private run or `fedtune budget set` makes one; or name it: --ledger",
        )
    return Ledger.open(path)


def _damaged(opened: "Ledger", found: "list[Damage]") -> RunFailedError:
    told = "\n  ".join(map(str, found))
    return RunFailedError(f"{opened.file.path}: the ledger is damaged\n  {told}")


def _run(body: Any) -> dict[str, Any]:
    names = ("time", "run", "purpose", "unit", "units", "epsilon", "delta")
    return {name: body[name] for name in names}


def _tell(
    opened: "Ledger",
    budget: "Budget | None",
    delta: float,
    spent: "Mapping[Unit, Spent]",
    runs: list[dict[str, Any]],
) -> None:
    from fedtune.privacy.told import rounded_down, rounded_up

    print(f"ledger: {opened.file.path}")
    allowed = "none is set: runs are counted, none is refused"
    if budget:
        allowed = f"epsilon {rounded_down(budget.epsilon)} at delta {budget.delta:g}, over all runs"
    print(f"budget: {allowed}")
    for unit, most in spent.items():
        print(
            f"{most.units:,} {unit}s: the most that one has spent is epsilon "
            f"{rounded_up(most.epsilon.pld)} by pld, {rounded_up(most.epsilon.rdp)} by rdp, "
            f"at delta {delta:g}, for the presence of one {unit} (add/remove)"
        )
    for run in runs:
        print(
            f"{run['time']}  {run['run']}: {run['purpose']}, {run['units']:,} {run['unit']}s, "
            f"then at most epsilon {rounded_up(run['epsilon']['pld'])} at delta {run['delta']:g}"
        )
