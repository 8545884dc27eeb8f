"""Entry point of `fedtune`: telemetry off, then the subcommands, then one message on bad input."""

from fedtune import telemetry

telemetry.switch_off()

import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402

import click  # noqa: E402
import typer  # noqa: E402

from fedtune.cli import config, data  # noqa: E402
from fedtune.cli.doctor import doctor  # noqa: E402
from fedtune.cli.evaluate import evaluate  # noqa: E402
from fedtune.cli.generate import generate  # noqa: E402
from fedtune.cli.merge import merge  # noqa: E402
from fedtune.cli.simulate import simulate  # noqa: E402
from fedtune.cli.train import train  # noqa: E402
from fedtune.errors import InputError, RunFailedError  # noqa: E402

app = typer.Typer(
    name="fedtune",
    help="Fine-tune language models, centrally or in a federation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.command()(train)
app.command()(simulate)
app.command()(evaluate)
app.command()(generate)
app.command()(merge)
app.command()(doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit status: 2 for bad input, 1 for a failed run."""
    command = typer.main.get_command(app)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        result = command.main(args=arguments, prog_name="fedtune", standalone_mode=False)
    except InputError as error:
        return _fail(str(error), 2)
    except RunFailedError as error:
        return _fail(str(error), 1)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 130)
    return result if isinstance(result, int) else 0


def _fail(message: str, status: int) -> int:
    if message:
        print(f"fedtune: {message}", file=sys.stderr)
    return status
