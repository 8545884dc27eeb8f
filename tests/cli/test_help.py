"""Help: every command has one with an example, and a mistyped word gets the nearest."""

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
import typer

from fedtune.cli.main import app, main


def commands(
    group: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in getattr(group, "commands", {}).items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path, "--help"]) == 0
    assert f"Example: fedtune {' '.join(path)}" in " ".join(capsys.readouterr().out.split())


def test_every_verb_is_there() -> None:
    verbs = {path[0] for path in COMMANDS}
    assert verbs >= {"train", "simulate", "evaluate", "generate", "merge", "config", "data"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian", "x.yaml"], "Did you mean 'train'?"),
        (["simulate", "x.yaml", "--dryrun"], "Did you mean '--dry-run'?"),
        (["config", "shwo"], "Did you mean 'show'?"),
        (["config", "init", "qlroa"], "did you mean `qlora`?"),
        (["simulate"], "Missing argument 'CONFIG.yaml'"),
    ],
)
def test_a_mistyped_word_gets_one_message_and_the_nearest(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count(says) == 1
    assert err.startswith("fedtune: ")


def test_a_reader_that_has_gone_gets_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fedtune", "config", "schema"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")
