"""Entry point of `fedtune`: telemetry off, then the subcommands, then one message on bad input."""

from fedtune import __version__, telemetry

telemetry.switch_off()

import logging  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated  # noqa: E402

import click  # noqa: E402
import typer  # noqa: E402

from fedtune.cli import budget, client, config, data, federation, privacy, server  # noqa: E402
from fedtune.cli.doctor import doctor  # noqa: E402
from fedtune.cli.evaluate import evaluate  # noqa: E402
from fedtune.cli.evaluate_synthetic import evaluate_synthetic  # noqa: E402
from fedtune.cli.generate import generate  # noqa: E402
from fedtune.cli.interrupts import TerminatedError, terminable  # noqa: E402
from fedtune.cli.merge import merge  # noqa: E402
from fedtune.cli.simulate import simulate  # noqa: E402
from fedtune.cli.synthesize import synthesize  # noqa: E402
from fedtune.cli.train import train  # noqa: E402
from fedtune.errors import InputError, RunFailedError  # noqa: E402

# what libraries say to their own developers is not a user's business
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

app = typer.Typer(
    name="fedtune",
    no_args_is_help=True,
    suggest_commands=False,  # click does
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"fedtune {__version__}")
        raise typer.Exit


@app.callback()
def _fedtune(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which it is."),
    ] = False,
) -> None:
    """Fine-tune language models, centrally or in a federation."""


app.add_typer(config.app, name="config")
app.add_typer(budget.app, name="budget")
app.add_typer(data.app, name="data")
app.add_typer(privacy.app, name="privacy")
app.add_typer(server.app, name="server")
app.add_typer(client.app, name="client")
app.add_typer(federation.app, name="federation")
app.command()(train)
app.command()(simulate)
app.command()(evaluate)
app.command()(generate)
app.command()(merge)
app.command()(synthesize)
app.command()(evaluate_synthetic)
app.command()(doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit status.

    2 for bad input, 1 for a failed run, 130 and 143 when Ctrl-C or SIGTERM ended it, 141 when
    nobody reads what it prints any more.
    """
    command = typer.main.get_command(app)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        # not `command.main`, which would swallow an interrupt and what it has to say
        with terminable(), command.make_context("fedtune", arguments) as context:
            result = command.invoke(context)
            sys.stdout.flush()
    except InputError as error:
        return _fail(str(error), 2)
    except RunFailedError as error:
        return _fail(_with_notes(str(error), error), 1)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "fedtune"
        return _fail(f"{error.format_message()}\n  to mend:  {where} --help", 2)
    except TerminatedError as stop:
        return _fail(_with_notes("terminated", stop), 143)
    except (KeyboardInterrupt, click.Abort) as stop:
        return _fail(_with_notes("interrupted", stop), 130)
    except BrokenPipeError:
        return _without_reader()
    return result if isinstance(result, int) else 0


def _without_reader() -> int:
    """The status of a program whose reader (`| head`) has gone; the last flush goes nowhere."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _with_notes(word: str, stop: BaseException) -> str:
    return "\n  ".join([word, *getattr(stop, "__notes__", [])])


def _fail(message: str, status: int) -> int:
    if message:
        print(f"fedtune: {message}", file=sys.stderr)
    return status
