"""`fedtune generate`: prompt in, text out."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedtune.errors import InputError
from fedtune.loading import loading


def generate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, an adapter's or a model's.")
    ],
    prompt: Annotated[str | None, typer.Argument(help="What to complete.")] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(help="Prompts instead: a .jsonl with `prompt` on each line, or a text file."),
    ] = None,
    no_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="The base alone, to compare.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt through the chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0: the likeliest token each time.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of drawn tokens.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Complete a prompt with a run's model, its adapter on or off.

    Example: fedtune generate runs/run "What is asthma?"
    """
    if not math.isfinite(temperature):
        raise InputError(f"`{temperature}` is no temperature", where="--temperature")
    prompts = _prompts(prompt, prompt_file)
    with loading():
        from fedtune.models.generation import Sampling
        from fedtune.models.generation import generate as complete
        from fedtune.models.saved import load_saved
        from fedtune.training import processes

    loaded = load_saved(run, with_adapter=not no_adapter)
    loaded.model.to(processes.device())
    sampling = Sampling(max_new_tokens, temperature, seed)
    completions = complete(loaded, prompts, sampling, chat=chat)
    if as_json:
        print(json.dumps([dataclasses.asdict(c) for c in completions], indent=2))
        return
    for number, completion in enumerate(completions, 1):
        print(completion.text)
        if completion.stopped and not completion.text:
            print(
                f"prompt {number} of {len(completions)}: the model stopped at once and wrote "
                "nothing",
                file=sys.stderr,
            )


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    if (prompt is None) == (file is None):
        raise InputError("give a prompt or `--prompt-file`, and not both")
    if file is None:
        return [str(prompt)]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"can't be read ({error})", where=file, expected="UTF-8 text") from None
    numbered = [(f"{file}:{i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError("has no prompt", where=file)
    if file.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_of_row(line, where) for where, line in numbered]


def _of_row(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise InputError("no prompt", where=where, expected='{"prompt": "..."}')
    return str(row["prompt"])
