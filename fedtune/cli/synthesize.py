"""`fedtune synthesize`: synthetic texts of given labels, with their privacy."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated

import typer

from fedtune.errors import InputError
from fedtune.loading import loading


def synthesize(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Where the texts go.")],
    per_label: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Texts of each label: yours to choose.")
    ],
    labels: Annotated[
        str, typer.Option(help="Labels, with commas between; left out: the config's `task.labels`.")
    ] = "",
    prompt_template: Annotated[
        str | None,
        typer.Option(
            help=r"How `{label}` became a prompt, `\n` a line's end; left out: `data.label_prompt`."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Below 1: likelier words.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(help="Below 1: of the likeliest words with this share together.")
    ] = 1.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a text at most; left out: the run's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 0,
    not_private: Annotated[
        bool, typer.Option("--not-private", help="Also from a run without privacy.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write texts of each label with a run's model; they have the run's privacy, at no more cost.

    Example: fedtune synthesize runs/run --labels asthma,gout --per-label 100 --out notes.jsonl
    """
    _check_between("--temperature", temperature, math.inf)
    _check_between("--top-p", top_p, 1.0)
    with loading():
        from fedtune.config.load import load_config
        from fedtune.models.generation import Sampling
        from fedtune.models.saved import load_saved
        from fedtune.synthesis.protection import protection_of
        from fedtune.synthesis.synthesize import check_out
        from fedtune.synthesis.synthesize import synthesize as write
        from fedtune.synthesis.texts import Request, labels_of, template_of
        from fedtune.training import processes

    if not (run / "config.yaml").is_file():
        raise InputError("is no run's folder", where=run, expected="one with a config.yaml")
    config = load_config(run / "config.yaml")
    given = [label.strip() for label in labels.split(",")] if labels else []
    prompt = prompt_template and prompt_template.replace("\\n", "\n")
    limit = max_new_tokens or config.task.max_length
    request = Request(
        labels_of(config, given),
        per_label,
        template_of(config, prompt),
        Sampling(limit, temperature, seed, top_p),
    )
    check_out(out, force=force)
    protection = protection_of(run, config, not_private=not_private)
    loaded = load_saved(run)
    loaded.model.to(processes.device())
    from fedtune.cli.progress import counting

    with counting("texts", per_label * len(request.labels)) as count:
        done = write(loaded, run, request, protection, out, count)
    if as_json:
        print(json.dumps(dataclasses.asdict(done), default=str, indent=2))
        return
    print(f"{done.rows:,} texts in {done.file}, {done.cut:,} cut at {limit} tokens")
    print(done.summary)
    print(f"said in {done.statement} and {done.page}")


def _check_between(option: str, value: float, most: float) -> None:
    if not 0 < value <= most or math.isinf(value):
        upper = f" and at most {most:g}" if math.isfinite(most) else ""
        raise InputError(f"{value:g} can't be used", where=option, expected=f"above 0{upper}")
