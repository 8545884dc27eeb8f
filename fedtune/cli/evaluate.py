"""`fedtune evaluate`: scores of a finished run on held-out rows."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from fedtune.loading import loading
from fedtune.reports.privacy_prose import EXACT


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run, adapter or model folder.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Files to score on; left out: the run's test set.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="How rows are read; left out: the run's own config.")
    ] = None,
    adapter: Annotated[bool, typer.Option(help="With the adapter, or the base alone.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score what a run left on its held-out test set, or on files of your own.

    The own rows of a private run are refused, unless the run says `privacy.held_out: public`.

    Example: fedtune evaluate runs/demo --data new.jsonl
    """
    with loading():
        from fedtune.config.load import load_config
        from fedtune.training.scoring import score_saved

    settings = load_config(config) if config else None
    scores = score_saved(folder, data or (), with_adapter=adapter, config=settings)
    if as_json:
        told = dataclasses.asdict(scores)
        uncovered = told.pop("uncovered")
        print(json.dumps({**told, "who_may_see": EXACT} if uncovered else told, indent=2))
        return
    print(f"{scores.examples} examples, adapter {'on' if scores.adapter else 'off'}")
    for name, value in scores.metrics.items():
        print(f"{name}: {value:.4f}")
    if scores.uncovered:
        print(EXACT)
