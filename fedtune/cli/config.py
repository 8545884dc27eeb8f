"""`fedtune config`: the schema, a resolved file, a starter file, the reference."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="See and start config files.", no_args_is_help=True)


@app.command()
def schema() -> None:
    """Print the JSON schema of a config file, for an editor that checks as you type.

    Example: fedtune config schema > fedtune.schema.json
    """
    from fedtune.config.schema import RunConfig

    print(json.dumps(RunConfig.model_json_schema(), indent=2))


@app.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="CONFIG.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value")] = None,
) -> None:
    """Check a config file and print it resolved, as JSON with the settings' hash.

    Example: fedtune config show lora.yaml training.learning_rate=1e-3
    """
    from fedtune.config.load import load_config

    config = load_config(path, overrides or [])
    facts = {"settings_hash": config.hash, "config": config.model_dump(mode="json")}
    print(json.dumps(facts, indent=2))


@app.command()
def init(
    case: Annotated[str, typer.Argument(help="demo, lora, qlora, chat, text or classification.")],
    out: Annotated[Path | None, typer.Option(help="File to write; left out: print.")] = None,
) -> None:
    """Print or write a commented starter file.

    Example: fedtune config init lora --out lora.yaml
    """
    import difflib

    from fedtune.atomic import writable
    from fedtune.config.cases import CASES
    from fedtune.config.reference import starter
    from fedtune.errors import InputError

    if case not in CASES:
        close = difflib.get_close_matches(case, CASES, n=1)
        raise InputError(
            f"unknown case `{case}`",
            expected=f"one of {', '.join(CASES)}",
            mend=f"did you mean `{close[0]}`?" if close else None,
        )
    if out is None:
        print(starter(case), end="")
        return
    with writable(out, "choose another name with `--out`"):
        if out.exists():
            raise InputError("already exists", where=out, mend="choose another name")
        out.write_text(starter(case), encoding="utf-8")


@app.command()
def reference() -> None:
    """Print the config reference as Markdown.

    Example: fedtune config reference > reference.md
    """
    from fedtune.config.reference import reference as page

    print(page(), end="")
