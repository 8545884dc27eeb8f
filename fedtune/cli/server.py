"""`fedtune server`: the coordinator of a federation, for its operator."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedtune.errors import InputError, RunFailedError
from fedtune.loading import loading

if TYPE_CHECKING:
    from fedtune_server.project import Project
    from fedtune_server.run_folder import RunFolder

app = typer.Typer(help="The coordinator of a federation.", no_args_is_help=True)
_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_POLL_SECONDS = 0.3
_ENDED = ("finished", "failed", "stopped")


@app.command()
def init(
    folder: _Folder,
    federation: Annotated[str, typer.Option(help="Its name, for people.")],
    host: Annotated[
        list[str], typer.Option(help="Name or address by which silos reach it; may be repeated.")
    ],
    port: Annotated[int, typer.Option(help="The one port that is open to silos.")] = 9092,
    bind: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104
    local_port: Annotated[int, typer.Option(help="First of two ports on loopback.")] = 9093,
) -> None:
    """Make a coordinator's folder: settings, keys, certificates and an empty roster.

    Example: fedtune server init trial --federation Trial --host coordinator.example
    """
    from fedtune_server import project

    config = project.ServerConfig(
        federation=federation, hosts=host, port=port, bind=bind, local_port=local_port
    )
    made = project.init(folder, config)
    print(f"made {folder}; silos will connect to {config.address}")
    print(f"fingerprint of the consortium: {project.consortium_fingerprint(made)}")
    print("tell it to each silo's people by another way than the files that you send them")


@app.command()
def enroll(
    folder: _Folder,
    request: Annotated[Path, typer.Argument(metavar="REQUEST.json", help="What a node made.")],
    fingerprint: Annotated[
        str, typer.Option(help="Of the silo's identity, as its people said it.")
    ],
) -> None:
    """Take a silo into the roster, and write the file that lets its node in.

    Example: fedtune server enroll trial north.json --fingerprint "9f2c ..."
    """
    from fedtune_server import project

    opened = project.open_project(folder)
    asked = project.read_request(request)
    file = project.enroll(opened, asked, fingerprint)
    print(f"{asked.silo} is in version {opened.roster().version} of the roster")
    print(f"send it {file}")


@app.command()
def revoke(folder: _Folder, silo: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Put a silo out of the roster: its next call is turned away.

    Example: fedtune server revoke trial north
    """
    from fedtune_server import project

    after = project.revoke(project.open_project(folder), silo)
    print(f"{silo} is revoked in version {after.version} of the roster")


@app.command()
def renew(folder: _Folder) -> None:
    """Make the coordinator's certificate and its key anew, for the `hosts` of its settings.

    Example: fedtune server renew trial
    """
    from fedtune_server import project

    until = project.renew(project.open_project(folder))
    print(f"the coordinator's certificate is good until {until:%Y-%m-%d}, from its next start")


@app.command()
def roster(folder: _Folder, as_json: _Json = False) -> None:
    """List who takes part.

    Example: fedtune server roster trial
    """
    from fedtune_server import project

    from fedtune.cli.rosters import print_roster

    print_roster(project.open_project(folder).roster(), as_json)


@app.command()
def start(folder: _Folder) -> None:
    """Serve silos and runs until Ctrl-C or SIGTERM.

    Example: fedtune server start trial
    """
    with loading():
        from fedtune_server.project import open_project
        from fedtune_server.running import start as serve

    from fedtune.cli.serving import until_stopped

    project = open_project(folder)
    with until_stopped(project.logs / "coordinator.log") as stop:
        serve(project, stop)


@app.command()
def run(
    folder: _Folder,
    path: Annotated[Path, typer.Argument(metavar="CONFIG.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value")] = None,
    name: Annotated[str | None, typer.Option(help="Its name; left out: date and time.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and don't wait.")] = False,
) -> None:
    """Start a federated run and show how it goes.

    Example: fedtune server run trial lora.yaml federation.rounds=5
    """
    from fedtune_server.project import open_project
    from fedtune_server.run_start import begin

    from fedtune.config.load import load_config

    project = open_project(folder)
    begun = begin(project, load_config(path, overrides or []), name)
    print(f"run {begun.name} begun: {begun.path}")
    if not detach:
        _follow(project, begun)


@app.command()
def resume(folder: _Folder, name: Annotated[str, typer.Argument(help="The run's name.")]) -> None:
    """Go on with a run that failed or was stopped, after its last finished round.

    Example: fedtune server resume trial 20260105-120000
    """
    from fedtune_server.project import open_project
    from fedtune_server.run_start import go_on

    project = open_project(folder)
    _follow(project, go_on(project, name))


@app.command()
def stop(folder: _Folder, name: Annotated[str, typer.Argument(help="The run's name.")]) -> None:
    """Stop a run; its finished rounds stay, and it can be resumed.

    Example: fedtune server stop trial 20260105-120000
    """
    from fedtune_server.project import open_project
    from fedtune_server.run_start import stop_run

    stop_run(open_project(folder), name)
    print(f"run {name} is stopped")


@app.command()
def status(folder: _Folder, as_json: _Json = False) -> None:
    """Say how runs and silos are.

    Example: fedtune server status trial
    """
    from fedtune_server.project import open_project
    from fedtune_server.run_start import standing

    found = standing(open_project(folder))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for silo, word in found["silos"].items():
        print(f"silo {silo}: {word}")
    for name, told in found["runs"].items():
        print(f"run {name}: {_line(told)}")


@app.command()
def dashboard(
    folder: _Folder,
    port: Annotated[int, typer.Option(help="On loopback; 0: any free one.")] = 9095,
) -> None:
    """Serve a page for a browser on this machine: runs, silos, privacy, refusals. Changes nothing.

    Example: fedtune server dashboard trial
    """
    from fedtune_server.dashboard import dashboard as page_of
    from fedtune_server.project import open_project

    from fedtune.cli.serving import until_stopped
    from fedtune.serving.local import HOST
    from fedtune.serving.served import Served

    served = Served(page_of(open_project(folder)), HOST, port)
    with until_stopped() as stop:
        try:
            print(f"http://{HOST}:{served.start()}/", flush=True)
        except OSError as error:
            raise InputError(
                f"port {port} can't be listened on ({error.strerror})",
                where="--port",
                mend="give another one",
            ) from None
        stop.wait()
        served.stop()


@app.command()
def logs(
    folder: _Folder,
    lines: Annotated[int, typer.Option(min=0, help="How many, counted from the end.")] = 50,
    run: Annotated[str | None, typer.Option(help="Only those about the run of this name.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="And those that come.")] = False,
) -> None:
    """Print the end of the coordinator's log: runs, refusals, changes of the roster.

    Example: fedtune server logs trial -f
    """
    from fedtune_server.project import open_project
    from fedtune_server.run_folder import COORDINATOR_LOG

    from fedtune.cli.log_lines import log_lines

    project = open_project(folder)
    if run is not None and not (project.runs / run).is_dir():
        raise InputError("there is no such run", where=project.runs / run)
    try:
        for line in log_lines(project.logs / COORDINATOR_LOG, lines, run=run, follow=follow):
            print(line, end="", flush=True)
    except FileNotFoundError as error:
        raise InputError("nothing was logged yet", where=error.filename) from None


def _line(told: dict[str, Any]) -> str:
    rounds = f"round {told.get('round', 0)} of {told.get('rounds', '?')}"
    reason = f": {told['reason']}" if told.get("reason") else ""
    return f"{told.get('state', 'waiting')}, {rounds}{reason}"


def _follow(project: "Project", run: "RunFolder") -> None:
    """Print each round as it ends, and how the run ended."""
    from fedtune_server.run_start import link_of

    shown, last = 0, ""
    while True:
        link_of(project)  # a coordinator that has ended says so
        told = run.status()
        for line in _rounds(run)[shown:]:
            shown += 1
            print(_round(line), flush=True)
        if told.get("state") != last:
            last = told.get("state", "")
            print(_line(told), flush=True)
        if last in _ENDED:
            break
        time.sleep(_POLL_SECONDS)
    if last != "finished":
        raise RunFailedError(f"run {run.name} {last}: {told.get('reason', '')}")
    print(f"adapter: {run.path / 'adapter'}")


def _rounds(run: "RunFolder") -> list[dict[str, Any]]:
    try:
        text = (run.path / "metrics.jsonl").read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def _round(told: dict[str, Any]) -> str:
    from fedtune_server.reports import RoundingReport

    words = [f"round {told['round']}"]
    if told["loss"] is not None:
        words.append(f"loss {told['loss']:.4f}")
    if told["silos"] is not None:
        words.append(f"{len(told['silos'])} silos")
    if told["seconds"] is not None:
        words.append(f"{told['seconds']:.1f} s")
    if told.get("rounding"):
        words += RoundingReport(**told["rounding"]).remarks()
    for failure in told["failures"] or ():
        words.append(f"{failure['silo']} is missing ({failure['reason']}: {failure['detail']})")
    return ", ".join(words)
