"""`fedtune data`: what was understood of some files."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at data before a run.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at data before a run."""


@app.command()
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE...")],
    config: Annotated[Path | None, typer.Option(help="Config with columns and format.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what was understood: format, columns, rows, silos, labels, bad rows.

    Example: fedtune data inspect notes.jsonl --config lora.yaml
    """
    from fedtune.config.load import load_config
    from fedtune.data.inspect import inspect_files

    facts = dataclasses.asdict(inspect_files(files, load_config(config, [])))
    if as_json:
        print(json.dumps(facts, indent=2, default=str))
        return
    for name, value in facts.items():
        print(f"{name}: {value}")
