"""`fedtune train`: central fine-tuning."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedtune.cli.dry_run import tell
from fedtune.cli.finished import tell_promise, told_as_json
from fedtune.cli.interrupts import resumable
from fedtune.loading import loading

if TYPE_CHECKING:
    from fedtune.training.central import CentralResult


def train(
    path: Annotated[Path, typer.Argument(metavar="CONFIG.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and tell what a run would do.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fine-tune one model on all the data, and compare it with the untouched base.

    Example: fedtune train lora.yaml training.num_epochs=3
    """
    from fedtune.config.load import load_config

    config = load_config(path, overrides or [])
    out = config.output.folder
    if dry_run:
        with loading():
            from fedtune.reports.dry_run import dry_run as plan

        tell(plan(config, out, resume=resume), as_json=as_json)
        return
    from fedtune.cli.progress import training_progress

    with (
        resumable(["train", str(path), *(overrides or [])], out),
        training_progress() as shown,
    ):
        with loading():
            from fedtune.training import processes
            from fedtune.training.central import train as run
            from fedtune.training.run_lock import alone_in

        with alone_in(out, config, "train", resume=resume):
            result = run(config, out, resume=resume, listeners=[shown])
            if processes.is_main():
                from fedtune.reports.record import record_run

                promised = record_run(
                    out, config, result.data, result.comparison, result.done, command="train"
                )
    if not processes.is_main():
        return
    if as_json:
        print(told_as_json(result, promised))
    else:
        _show(result)
        tell_promise(promised)
        print(f"run folder: {out}")


def _show(result: "CentralResult") -> None:
    from rich.console import Console
    from rich.table import Table

    if not result.comparison:
        print("no held-out scores: they would tell of the people in those rows")
    scores = Table("held-out test", "loss", "accuracy")
    for name, metrics in result.comparison.items():
        scores.add_row(name, f"{metrics['loss']:.4f}", f"{metrics['accuracy']:.3f}")
    if result.comparison:
        Console().print(scores)
    print(f"{result.steps} steps, weights of step {result.kept_step}")
