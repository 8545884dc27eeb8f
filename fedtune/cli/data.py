"""`fedtune data`: what was understood of some files, and what is kept of them."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedtune.reports.inspection import Inspection, TokenLengths

app = typer.Typer(help="Look at data before a run; clear what was kept.", no_args_is_help=True)
_MOST_SHOWN = 20


@app.command()
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE... [section.key=value ...]")],
    config: Annotated[
        Path | None, typer.Option(help="Config with columns, format, silos, model and task.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what was understood: format, columns, rows, silos, labels, lengths, one example.

    Example: fedtune data inspect notes.jsonl --config lora.yaml task.max_length=512
    """
    from fedtune.config.load import load_config
    from fedtune.errors import InputError
    from fedtune.reports.inspection import inspect_files

    overrides = [word for word in files if "=" in word and not Path(word).exists()]
    named = [word for word in files if word not in overrides]
    if not named:
        raise InputError("no file is named", where="command line", expected="FILE...")
    found = inspect_files(named, load_config(config, overrides))
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        _show(found)


@app.command()
def clear(
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove; left out: only say the size.")
    ] = False,
) -> None:
    """Say how much of the data is kept in the cache, and with --yes remove it.

    Example: fedtune data clear --yes
    """
    from rich.filesize import decimal

    from fedtune.data.cache import cache_folder, clear_cache, measure

    size, entries = measure()
    if yes:
        clear_cache()
    told = "removed" if yes else "--yes removes them"
    print(f"{cache_folder()}: {entries} data sets, {decimal(size)}; {told}")


def _show(found: "Inspection") -> None:
    from fedtune.cli.dry_run import tell_example

    _show_facts(_facts(found))
    if found.example:
        tell_example(found.example)
    if found.problem:
        print(f"not encoded: {found.problem}")


def _show_facts(facts: list[tuple[str, str]]) -> None:
    """Two columns: folded to a terminal's width, one fact a line for a pipe or a file."""
    from rich.console import Console
    from rich.table import Table

    # no markup: a file's words are shown as they are
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        width = max(len(name) for name, _ in facts) + 2
        for name, value in facts:
            print(name.ljust(width) + value.replace("\n", "\n" + " " * width))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, value)
    console.print(table)


def _facts(found: "Inspection") -> list[tuple[str, str]]:
    parts = ", ".join(f"{part}: `{column}`" for part, column in found.content.items())
    unit = found.identity["privacy_unit"]
    facts = [
        ("files", ", ".join(found.files)),
        ("columns", ", ".join(found.columns)),
        ("format", f"{found.format} ({parts})"),
        ("record id", _column(found.identity["record_id"], "file and line")),
        ("rows", f"{found.rows:,}"),
        ("bad rows", str(found.bad_rows) if found.bad_rows.count else "none"),
        ("privacy units", f"{found.privacy_units:,} ({_column(unit, 'every row is its own')})"),
        ("split", _split(found.split) or f"none: {found.unsplit}"),
        ("silos", _counts(found.silos) or "none named: `federation.partition.column`"),
    ]
    if found.labels:
        facts.append(("labels", _counts(found.labels)))
    if found.tokens:
        facts += _lengths(found.tokens, found.rows)
    return facts


def _lengths(tokens: "TokenLengths", rows: int) -> list[tuple[str, str]]:
    of = f"of {tokens.measured:,} evenly spaced rows" if tokens.measured < rows else "of all rows"
    share = 100 * tokens.truncated / tokens.measured
    cut = f"{tokens.truncated:,} {of} ({share:.1f} %) at `task.max_length: {tokens.max_length}`"
    if tokens.unlearnable:
        cut += f"; {tokens.unlearnable:,} of these can't be learned, their stop token is cut off"
    spread = f"median {tokens.median:,}, 95 % up to {tokens.p95:,}, longest {tokens.longest:,}"
    return [("tokens", f"shortest {tokens.shortest:,}, {spread}"), ("truncated", cut)]


def _column(name: str | None, otherwise: str) -> str:
    return f"`{name}`" if name else otherwise


def _split(parts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {part}" for part, count in parts.items())


def _counts(counts: dict[str, int]) -> str:
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{name} {count:,}" for name, count in largest[:_MOST_SHOWN])
    more = f", and {len(counts) - _MOST_SHOWN:,} more" if len(counts) > _MOST_SHOWN else ""
    return f"{len(counts):,}: {told}{more}" if counts else ""
