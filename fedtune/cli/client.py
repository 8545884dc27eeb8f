"""`fedtune client`: a hospital's node, for its IT department."""

from pathlib import Path
from typing import Annotated

import typer

from fedtune.loading import loading

app = typer.Typer(help="A silo's node in a federation.", no_args_is_help=True)
_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.")]


@app.command()
def init(
    folder: _Folder,
    silo: Annotated[str, typer.Option(help="This silo's name: letters, digits and `._-`.")],
    consortium: Annotated[
        str, typer.Option(help="Fingerprint of the consortium, as its people told it.")
    ],
    data: Annotated[list[str], typer.Option(help="File of rows; may be repeated.")],
) -> None:
    """Make this node's keys, its settings to look through, and its request to join.

    Example: fedtune client init node --silo north --consortium "9f2c ..." --data notes.jsonl
    """
    from fedtune_client.joining import init as make
    from fedtune_client.node_config import new_config

    # a service is started from another folder than the one that this was typed in
    files = [str(Path(file).absolute()) for file in data]
    said = make(folder, new_config(silo, consortium, files))
    print(f"made {folder}; look through {folder / 'node.yaml'}: data, columns, policy")
    print(f"send {folder / 'request.json'} to the coordinator")
    print(f"and tell its people this silo's fingerprint by another way: {said}")


@app.command()
def join(
    folder: _Folder,
    admission: Annotated[Path, typer.Argument(metavar="ADMISSION.json", help="What came back.")],
) -> None:
    """Take the coordinator's answer, if the consortium with the right fingerprint gave it.

    Example: fedtune client join node north.json
    """
    from fedtune_client.joining import join as take

    listed = take(folder, admission)
    names = ", ".join(member.silo for member in listed.members if not member.revoked)
    print(f"let in; version {listed.version} of the roster: {names}")


@app.command()
def roster(
    folder: _Folder,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Who takes part, by the newest roster of the consortium that this node has seen.

    Example: fedtune client roster node
    """
    from fedtune_client.joining import roster_of

    from fedtune.cli.rosters import print_roster

    print_roster(roster_of(folder), as_json)


@app.command()
def renew(folder: _Folder) -> None:
    """Make new keys for talking to the coordinator, and a request for them by the same silo.

    The node goes on with the old ones until `fedtune client join` has taken the answer.

    Example: fedtune client renew node
    """
    from fedtune_client.joining import renew as make

    make(folder)
    print(f"send {folder / 'request.json'} to the coordinator; the silo's fingerprint is as before")


@app.command()
def start(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="The node's folder; or several, to try.")
    ],
) -> None:
    """Take part until Ctrl-C or SIGTERM. Several nodes on one machine end together.

    Example: fedtune client start node
    """
    import os

    from fedtune.serving.line import PIECES

    os.environ.update(PIECES)  # read when Flower is imported
    with loading():
        from fedtune_client.running import start as work

    from fedtune.cli.serving import until_stopped

    if len(folders) > 1:
        from fedtune.cli.main import main
        from fedtune.serving.forked import forked

        forked(lambda folder: main(["client", "start", folder]), [str(f) for f in folders])
        return
    with until_stopped(folders[0] / "logs" / "node.log") as stop:
        work(folders[0], stop)


@app.command()
def digest(
    path: Annotated[str, typer.Argument(help="`embedded` or a base model's folder.")],
) -> None:
    """Print the digest by which a policy names a base model.

    Example: fedtune client digest embedded
    """
    from fedtune.config.model import ModelConfig
    from fedtune.models.base_files import base_digest

    print(base_digest(ModelConfig(path=path)))
