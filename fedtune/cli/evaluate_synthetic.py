"""`fedtune evaluate-synthetic`: what synthetic texts are good for, on real held-out rows."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedtune.errors import InputError
from fedtune.loading import loading
from fedtune.reports.privacy_prose import EXACT

if TYPE_CHECKING:
    from fedtune.synthesis.usefulness import Score, Usefulness

_NOT_FOR_PUBLICATION = "not for publication: it was counted on the training rows themselves"


def evaluate_synthetic(
    synthetic: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Synthetic texts.")],
    run: Annotated[
        Path | None,
        typer.Option(help="The run whose training and held-out rows are the real ones."),
    ] = None,
    train: Annotated[
        list[str] | None, typer.Option(help="Real training files, with `text` and `label`.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Real held-out files, with `text` and `label`.")
    ] = None,
    repeats: Annotated[
        bool,
        typer.Option("--repeats", help="Also count texts that repeat a real training row's words."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a classifier learned from synthetic texts, and one from real ones, on real rows.

    Example: fedtune evaluate-synthetic notes.jsonl --train train.jsonl --test test.jsonl
    """
    if bool(run) == bool(train or test) or bool(train) != bool(test):
        raise InputError("give `--run`, or both `--train` and `--test`")
    with loading():
        from fedtune.synthesis.repeats import repeating_share
        from fedtune.synthesis.rows import rows_of_files, rows_of_run, synthetic_rows
        from fedtune.synthesis.usefulness import usefulness

    texts = synthetic_rows(synthetic)
    real, held_out = rows_of_run(run) if run else rows_of_files(train or [], test or [])
    found = usefulness(texts, real, held_out, seed)
    shares = None
    if repeats:
        shares = {
            "synthetic": repeating_share(texts.texts, real.texts),
            "held_out": repeating_share(held_out.texts, real.texts),
        }
    if as_json:
        told = {"scores": dataclasses.asdict(found), "who_may_see": EXACT}
        if shares:
            told["repeats"] = {**shares, "who_may_see": _NOT_FOR_PUBLICATION}
        print(json.dumps(told, indent=2))
        return
    _show(found)
    if shares:
        _show_repeats(shares)


def _show(found: "Usefulness") -> None:
    from rich.console import Console
    from rich.table import Table

    scores = Table("learned from", "rows", "accuracy", "macro F1")
    for name, rows in (("synthetic", found.synthetic_rows), ("real", found.real_rows)):
        metrics = getattr(found, name)
        scores.add_row(name, f"{rows:,}", *(_range(metrics[m]) for m in ("accuracy", "macro_f1")))
    lost = (_range(found.lost[m]) for m in ("accuracy", "macro_f1"))
    scores.add_row("real less synthetic", "", *lost)
    scores.add_row("most common label", "", f"{found.most_common:.3f}", "")
    Console().print(scores)
    print(
        f"on {found.test_rows:,} held-out rows of {found.test_units:,} units; in brackets 95 % of "
        "1,000 bootstrap resamples of the units"
    )
    if found.unwritten:
        shown = ", ".join(found.unwritten[:5]) + (", ..." if len(found.unwritten) > 5 else "")
        print(f"{len(found.unwritten)} labels of held-out rows have no synthetic text: {shown}")
    print(EXACT)


def _range(score: "Score") -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _show_repeats(shares: dict[str, float]) -> None:
    from fedtune.synthesis.repeats import SPAN

    print(
        f"{shares['synthetic']:.1%} of the synthetic texts repeat {SPAN} characters of a training "
        f"row; {shares['held_out']:.1%} of the held-out rows do ({_NOT_FOR_PUBLICATION})"
    )
