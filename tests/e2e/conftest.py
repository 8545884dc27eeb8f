"""A federation of real processes on loopback: a coordinator and nodes, each started as users do."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import pytest
from ruamel.yaml import YAML

from fedtune.cli.main import main
from tests.e2e.line import Line

SILOS = ("north", "south", "west")
_ENDING_SECONDS = 30.0
_LONGEST_WAIT_SECONDS = 240.0


def environment(folder: Path, *, measured: bool = False, **settings: str) -> dict[str, str]:
    """What the processes of a test get: this tree's packages, a cache of their own, one thread.

    No virtual environment is activated: only the system's programs are on the path.
    Where this process's coverage is taken, that of `measured` ones is too, beside its data.
    """
    hostile = [str(Path(__file__).parent / "hostile")] if settings else []
    own = {
        "PYTHONPATH": os.pathsep.join(hostile + [path for path in sys.path if path]),
        "FEDTUNE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PATH": os.defpath,
        **settings,
    }
    taken = coverage.Coverage.current() if measured else None
    if taken is not None:
        file = folder / "coverage.ini"
        sources = "\n  ".join(str(Path(each).absolute()) for each in taken.config.source_dirs)
        data = Path(taken.config.data_file).absolute()
        file.write_text(f"[run]\nparallel = true\ndata_file = {data}\nsource_dirs =\n  {sources}\n")
        own["COVERAGE_PROCESS_START"] = str(file)
    return {**os.environ, **own}


def command(*arguments: str | Path) -> list[str]:
    """`fedtune` by this Python."""
    call = (
        "import sys, coverage; coverage.process_startup(); "
        "from fedtune.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-c", call, *map(str, arguments)]


def until(
    condition: Callable[[], Any],
    what: str,
    seconds: float = _LONGEST_WAIT_SECONDS,
    pause_seconds: float = 0.2,
) -> Any:
    """Wait for `condition` to give something true, and give that."""
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        if found := condition():
            return found
        time.sleep(pause_seconds)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


@dataclass
class Federation:
    """A coordinator's folder and its nodes' folders, and their processes.

    Python takes half as long again under coverage: it is taken of the processes of one module's
    federation, that of `test_federation.py`.
    """

    folder: Path
    measured: bool = False
    line: Line | None = None
    consortium: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def enrol(self, silo: str) -> None:
        """Make a silo's node and let it in."""
        rows, node = self.folder / f"{silo}.jsonl", self.folder / silo
        rows.write_text("".join(json.dumps(row) + "\n" for row in rows_of(silo)))
        said = self.said(
            *("client", "init", node, "--silo", silo, "--consortium", self.consortium),
            *("--data", rows),
        )
        identity = said.split("another way:")[1].splitlines()[0]
        request = node / "request.json"
        self.said("server", "enroll", self.server, request, "--fingerprint", identity)
        self.said("client", "join", node, self.server / "admissions" / f"{silo}.json")
        allow(node)

    @property
    def server(self) -> Path:
        return self.folder / "server"

    def fedtune(self, *arguments: str | Path, status: int = 0) -> str:
        """Run a command to its end; give what it printed on either stream."""
        ran = subprocess.run(
            command(*arguments),
            capture_output=True,
            text=True,
            env=environment(self.folder, measured=self.measured),
        )
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def said(self, *arguments: str | Path) -> str:
        """As `fedtune`, but in this process, which has loaded all that it needs."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main([*map(str, arguments)]) == 0
        return out.getvalue()

    def start(self, name: str, **settings: str) -> None:
        """Start the coordinator (`server`) or a silo's node, with `settings` in its environment.

        With any, `hostile/sitecustomize.py` is loaded, and does what they say.
        """
        kind = "server" if name == "server" else "client"
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command(kind, "start", self.folder / name),
                stdout=out,
                stderr=out,
                env=environment(self.folder, measured=self.measured, **settings),
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """SIGKILL to the process alone; what it started must end with it."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> None:
        """SIGTERM, and wait."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise

    def end(self) -> None:
        """Stop all, at once."""
        for process in self.processes.values():
            process.terminate()
        for name in [*self.processes]:
            self.stop(name)

    def told(self, name: str) -> str:
        """What the process has said so far."""
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def online(self, *silos: str) -> None:
        """Wait until these nodes are online."""

        def there() -> bool:
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not ended, f"{ended} ended: {self.told(ended[0])[-3000:]}"
            if not (self.server / "running.json").exists():
                return False
            standing = json.loads(self.said("server", "status", self.server, "--json"))
            return all(standing["silos"][silo] == "online" for silo in silos)

        until(there, f"nodes {silos}", pause_seconds=1.0)  # asking costs the SuperLink too

    def status(self, run: str) -> dict[str, Any]:
        """How a run is, by its own folder."""
        try:
            return dict(json.loads((self.server / "runs" / run / "status.json").read_text()))
        except (OSError, ValueError):
            return {}

    def rounds(self, run: str) -> list[dict[str, Any]]:
        """The finished rounds of a run."""
        file = self.server / "runs" / run / "metrics.jsonl"
        return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []


def rows_of(silo: str) -> list[dict[str, str]]:
    """A silo's made-up rows."""
    return [
        {"prompt": f"{silo} patient {i}", "completion": f"is well {i * 7 % 11}", "silo": silo}
        for i in range(24)
    ]


def free_ports() -> tuple[int, int]:
    """A free port, and the first of two that are free and follow each other."""
    for _ in range(100):
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            first = two.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):  # the next one may be taken
                three.bind(("127.0.0.1", first + 1))
                return one.getsockname()[1], first
    raise AssertionError("no two ports that follow each other are free")


def make(folder: Path, silos: tuple[str, ...] = SILOS, *, measured: bool = False) -> Federation:
    """Set a federation up by the commands of the two runbooks, up to its start."""
    made = Federation(folder, measured)
    port, local = free_ports()
    said = made.said(
        *("server", "init", made.server, "--federation", "Trial", "--host", "127.0.0.1"),
        *("--bind", "127.0.0.1", "--port", str(port), "--local-port", str(local)),
    )
    made.consortium = said.split("consortium:")[1].splitlines()[0]
    for silo in silos:
        made.enrol(silo)
    return made


def allow(node: Path) -> None:
    """What a silo's people would write: runs without privacy are allowed, counts may leave, and
    Fed-SB is a method beside LoRA.
    """
    yaml = YAML(typ="safe")
    tree = yaml.load((node / "node.yaml").read_text())
    tree["policy"]["privacy"] |= {"modes": ["none", "local", "distributed"], "unit": "record"}
    tree["policy"] |= {"send_counts": True, "send_metrics": True, "methods": ["lora", "fed_sb"]}
    with (node / "node.yaml").open("w") as file:
        yaml.dump(tree, file)


@pytest.fixture(scope="module")
def federation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Federation]:
    """A coordinator and three nodes that are online; shared by a module's tests."""
    measured = request.node.get_closest_marker("no_cover") is None
    made = make(tmp_path_factory.mktemp("federation"), measured=measured)
    try:
        for name in ("server", *SILOS):
            made.start(name)
        made.online(*SILOS)
        yield made
    finally:
        made.end()
