"""`fedtune federation`: a whole federation on this machine, to look at."""

import datetime
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fedtune.errors import FedtuneError, InputError

app = typer.Typer(help="A whole federation on this machine.", no_args_is_help=True)


@app.callback()
def _federation() -> None:
    """A whole federation on this machine."""


@app.command()
def up(
    silos: Annotated[int, typer.Option(min=1, max=20, help="How many.")] = 3,
    demo: Annotated[
        bool, typer.Option("--demo", help="With the embedded model and made-up clinical notes.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 3,
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Where; all of it stays there.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the coordinator's and the silos' folders.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Start a coordinator and silos' nodes as processes on loopback, run, and take them down again.

    With TLS, keys and a roster as between machines. Afterwards the adapter and the logs are left.

    Example: fedtune federation up --silos 3 --demo
    """
    if not demo:
        raise InputError(
            "only the demo can be brought up by one command",
            where="--demo",
            mend="add --demo; for rows of your own follow docs/federation.md",
        )
    began = time.monotonic()
    name = f"federation-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    place = (folder or Path("runs") / name).absolute()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError("is not empty", where=place, mend="name a new folder")
    told = _bring_up(place, silos, rounds, kept=keep or folder is not None)
    seconds = time.monotonic() - began
    if as_json:
        print(json.dumps({**told, "seconds": round(seconds, 1)}, indent=2))
        return
    print(f"{silos} silos, {rounds} rounds, {seconds:.0f} s from start to finish")
    print(f"adapter: {told['adapter']}")
    print(f"logs: {told['logs']}")


def _bring_up(place: Path, silos: int, rounds: int, *, kept: bool) -> dict[str, Any]:
    """Run it and leave what is to be left; give what is told of it."""
    from fedtune.cli.trial import adapter_of, demo_run, set_up, tidy, undisturbed
    from fedtune.cli.trial_progress import trial_progress

    try:
        with trial_progress() as shown:
            trial = set_up(place, silos)
            reports = trial.take_place(demo_run(silos, rounds), shown)
    except KeyboardInterrupt as stop:
        if not kept:
            with undisturbed():
                tidy(place)
        stop.add_note(f"every process is ended; left in {place}: {', '.join(_inside(place))}")
        raise
    except FedtuneError as error:
        error.add_note(f"every process is ended; all is left as it was in {place}")
        raise
    if not kept:
        with undisturbed():
            tidy(place)
    left = {"folder": place, "adapter": adapter_of(place), "logs": place / "logs"}
    told = {name: str(path) for name, path in left.items()}
    return {**told, "silos": list(trial.silos), "rounds": reports}


def _inside(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir()) if place.exists() else ["nothing"]
