"""`fedtune merge`: adapter into base, saved in Hugging Face format."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from fedtune.loading import loading


def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder or an adapter's.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; left out: RUN/merged.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Merge a run's adapter into its base: one model that needs no `peft`.

    Example: fedtune merge runs/run --out merged
    """
    with loading():
        from fedtune.models.merge import merge as run_merge

    result = run_merge(run, out if out is not None else run / "merged")
    if as_json:
        print(json.dumps(dataclasses.asdict(result), default=str, indent=2))
        return
    print(f"merged model: {result.folder}")
    if result.dequantized:
        print(
            f"base: {result.base}, as dequantized from 4 bits: what the adapter was trained on, "
            "not the weights in the base's own files"
        )
    else:
        print(f"base: {result.base}")
    print(
        f"largest difference of logits: {result.largest_difference:.2g} "
        f"(allowed: {result.allowed_difference:.2g}; "
        f"the adapter moves them by up to {result.adapter_effect:.2g})"
    )
