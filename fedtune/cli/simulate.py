"""`fedtune simulate`: a federated run in one process."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedtune.cli.dry_run import tell
from fedtune.cli.finished import tell_promise, told_as_json
from fedtune.cli.interrupts import resumable
from fedtune.loading import loading

if TYPE_CHECKING:
    from fedtune_simulations.simulate import SimulationResult

    from fedtune.cli.progress import Rounds
    from fedtune.config.schema import RunConfig


def simulate(
    path: Annotated[Path, typer.Argument(metavar="CONFIG.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last finished round.")
    ] = False,
    compare: Annotated[
        bool, typer.Option(help="Also train each silo alone and centrally, and compare.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and tell what a run would do.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a federation in this process and compare it with each silo alone.

    Example: fedtune simulate lora.yaml federation.rounds=3
    """
    from fedtune.config.load import load_config

    config = load_config(path, overrides or [])
    out = config.output.folder
    if dry_run:
        with loading():
            from fedtune_simulations.dry_run import dry_run as plan

        found = plan(config, out, resume=resume)
        tell(found.run, found, as_json=as_json)
        return
    from fedtune.cli.progress import simulation_progress

    options = [] if compare else ["--no-compare"]
    with (
        resumable(["simulate", str(path), *(overrides or []), *options], out),
        simulation_progress(config.federation.rounds) as shown,
    ):
        result, promised = _run(config, out, shown, resume=resume, compare=compare)
    if as_json:
        print(told_as_json(result, promised))
    else:
        _show(result)
        tell_promise(promised)
        print(f"run folder: {out}")


def _run(
    config: "RunConfig", out: Path, shown: "Rounds", *, resume: bool, compare: bool
) -> "tuple[SimulationResult, dict[str, Any]]":
    """Run and record it, with nobody else in the folder until the last file is written."""
    with loading():
        from fedtune_simulations.simulate import simulate as run

        from fedtune.reports.record import record_run
        from fedtune.training.run_lock import alone_in

    with alone_in(out, config, "simulate", resume=resume):
        result = run(
            config, out, resume=resume, compare=compare, on_round=shown.round, on_work=shown.work
        )
        scores = result.comparison or _federated(result)
        promised = record_run(
            out, config, result.data, scores, result.done, command="simulate", silos=result.silos
        )
    return result, promised


def _federated(result: "SimulationResult") -> dict[str, dict[str, float]]:
    """The last round's scores, for a run without a comparison; empty if it may tell none."""
    last = result.rounds[-1]
    told = {"loss": last.loss, "accuracy": last.metric}
    known = {name: value for name, value in told.items() if value is not None}
    return {"federated": known} if known else {}


def _show(result: "SimulationResult") -> None:
    from rich.console import Console
    from rich.table import Table

    rounds = Table("round", "loss", "accuracy", "bytes up", "bytes down", "seconds")
    for r in result.rounds:
        cells = [
            "" if value is None else format(value, form)
            for value, form in (
                (r.loss, ".4f"),
                (r.metric, ".3f"),
                (r.bytes_up, ","),
                (r.bytes_down, ","),
                (r.seconds, ".1f"),
            )
        ]
        rounds.add_row(str(r.round), *cells)
    console = Console()
    console.print(rounds)
    if result.comparison:
        scores = Table("held-out test", "loss", "accuracy")
        for name, metrics in result.comparison.items():
            scores.add_row(name, f"{metrics['loss']:.4f}", f"{metrics['accuracy']:.3f}")
        console.print(scores)
