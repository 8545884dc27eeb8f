"""A whole federation on this machine, to look at: a coordinator and nodes, each a process.

Set up and run by what `server init`, `client init`, `server enroll`, `client join`,
`server start`, `client start` and `server run` call. In the trial's folder:

notes/         each silo's made-up rows
coordinator/   as `server init` makes it
silos/NAME/    as `client init` makes it
cache/         what the processes keep of the rows
logs/          what the commands say; after `tidy`, the coordinator's and the silos' own logs too
run/           after `tidy`: the run's folder with its adapter
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedtune_client import joining
from fedtune_client.node_config import NodeConfig, new_config
from fedtune_server import project as coordinator
from fedtune_server.project import Project
from fedtune_server.run_folder import ENDED, RunFolder
from fedtune_server.run_start import begin, standing

from fedtune.config.schema import RunConfig
from fedtune.data.embedded.clinical import generate_notes
from fedtune.data.embedded.diagnoses import SPECIALTIES
from fedtune.errors import RunFailedError
from fedtune.serving import child
from fedtune.serving.child import Child

COORDINATOR, NODES, RUN = "coordinator", "nodes", "demo"
_PARTS = ("notes", COORDINATOR, "silos", "cache")
_PATIENTS = 320
_COLUMNS = ("record_id", "patient_id", "prompt", "completion")
_LOOK_SECONDS = 0.2
_ASK_SECONDS = 1.0
_STARTING_SECONDS = 180.0
_ENDING_SECONDS = 3.0
_TAIL_LINES = 15
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Standing:
    """How all are at a moment: a word on each process, its latest line, the run and its rounds."""

    words: Mapping[str, str]
    said: Mapping[str, str]
    run: Mapping[str, Any]
    rounds: list[dict[str, Any]]


Shown = Callable[[Standing], None]


@dataclass
class Trial:
    """A federation that is set up in `folder`."""

    folder: Path
    project: Project
    silos: tuple[str, ...]
    _children: list[Child] = field(default_factory=list, init=False)
    _online: dict[str, str] = field(default_factory=dict, init=False)

    @property
    def run(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.project.runs / RUN)

    def home(self, name: str) -> Path:
        """The folder of the coordinator or of a silo's node."""
        return self.project.folder if name == COORDINATOR else self.folder / "silos" / name

    def take_place(self, config: RunConfig, shown: Shown) -> list[dict[str, Any]]:
        """Start all, run `config` to its end and give its rounds. `shown` hears how all are.

        Raises RunFailedError when a process ends, or the run fails. Whatever happens, no process
        is left.
        """
        try:
            self._start(config, shown)
            self._follow(shown, lambda: self.run.status().get("state") in ENDED)
            told = self.run.status()
            if told["state"] != "finished":
                raise RunFailedError(f"the run {told['state']}: {told.get('reason', '')}")
            return self._rounds()
        finally:
            with undisturbed():
                for one in reversed(self._children):  # nodes first: they say goodbye
                    child.stop([one])

    def _start(self, config: RunConfig, shown: Shown) -> None:
        """Start the processes and the run; its own process loads while nodes come online."""
        threads = max(1, (os.cpu_count() or 1) // len(self.silos))
        environment = {
            "FEDTUNE_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        }
        nodes = [str(self.home(silo)) for silo in self.silos]
        for name, arguments in (
            (COORDINATOR, ["server", "start", str(self.project.folder)]),
            (NODES, ["client", "start", *nodes]),
        ):
            log = self.folder / "logs" / f"{name}.log"
            self._children.append(child.start(name, arguments, log, environment))
        self._follow(shown, (self.project.folder / "running.json").exists)
        try:
            begin(self.project, config, RUN)
        except Exception:
            # whoever should have answered may be about to end, which takes a moment to be seen
            over = time.monotonic() + _ENDING_SECONDS
            self._follow(shown, lambda: time.monotonic() > over)
            raise
        threading.Thread(target=self._ask, daemon=True).start()
        self._follow(shown, lambda: self.run.status().get("state") != "waiting")

    def _follow(self, shown: Shown, done: Callable[[], bool]) -> None:
        """Look on until `done`, or until a process has ended."""
        over = time.monotonic() + _STARTING_SECONDS
        while True:
            was_done = done()
            shown(self._standing())
            if was_done:
                return
            self._check()
            if self.run.status().get("state", "waiting") == "waiting" and time.monotonic() > over:
                raise RunFailedError(f"nothing began within {_STARTING_SECONDS:.0f} s")
            time.sleep(_LOOK_SECONDS)

    def _check(self) -> None:
        for one in self._children:
            if (how := one.ended()) is not None:
                raise RunFailedError(f"{one.name} {how}; its last words:\n{_tail(one.log)}")

    def _ask(self) -> None:
        """Hear of the coordinator which nodes are online, now and then. In a thread: where the
        coordinator doesn't answer, Flower's client waits."""
        while not self._over():
            with contextlib.suppress(Exception):
                self._online = standing(self.project)["silos"]
            time.sleep(_ASK_SECONDS)

    def _over(self) -> bool:
        return self.run.status().get("state") in ENDED or any(c.ended() for c in self._children)

    def _standing(self) -> Standing:
        begun = (self.project.folder / "running.json").exists()
        words = {COORDINATOR: "online" if begun else "starting"}
        for silo in self.silos:
            word = self._online.get(silo, "registered")
            words[silo] = "starting" if word == "registered" else word
        said = {name: _last_line(log) for name, log in self._logs()}
        return Standing(words, said, self.run.status(), self._rounds())

    def _logs(self) -> Iterator[tuple[str, Path]]:
        yield COORDINATOR, self.home(COORDINATOR) / "logs" / "coordinator.log"
        for silo in self.silos:
            yield silo, self.home(silo) / "logs" / "node.log"

    def _rounds(self) -> list[dict[str, Any]]:
        file = self.run.path / "metrics.jsonl"
        try:
            return [json.loads(line) for line in file.read_text().splitlines()]
        except OSError:
            return []


def set_up(folder: Path, silos: int) -> Trial:
    """Make the folders of a coordinator and its silos, with rows, up to their start."""
    port, local_port = _free_ports()
    settings = coordinator.ServerConfig(
        federation="Trial", hosts=["127.0.0.1"], bind="127.0.0.1", port=port, local_port=local_port
    )
    project = coordinator.init(folder / COORDINATOR, settings)
    dealt = deal(silos)
    trial = Trial(folder, project, tuple(dealt))
    for silo, rows in dealt.items():
        file = folder / "notes" / f"{silo}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        home = trial.home(silo)
        config = _node(silo, coordinator.consortium_fingerprint(project), file)
        said = joining.init(home, config)
        asked = coordinator.read_request(home / "request.json")
        joining.join(home, coordinator.enroll(project, asked, said))
    return trial


def deal(silos: int) -> dict[str, list[dict[str, str]]]:
    """Made-up notes of patients, by silo: each has specialties of its own, as hospitals have. With
    more silos than specialties some share one; nobody is a patient of two.
    """
    names = [f"silo-{number}" for number in range(1, silos + 1)]
    dealt: dict[str, list[dict[str, str]]] = {name: [] for name in names}
    homes: dict[str, str] = {}
    seen = dict.fromkeys(SPECIALTIES, 0)
    for note in generate_notes(_PATIENTS, seed=0):
        patient, specialty = note["patient_id"], note["specialty"]
        if patient not in homes:
            own = names[SPECIALTIES.index(specialty) % silos :: len(SPECIALTIES)]
            homes[patient] = own[seen[specialty] % len(own)]
            seen[specialty] += 1
        dealt[homes[patient]].append({column: note[column] for column in _COLUMNS})
    return dealt


def _node(silo: str, consortium: str, rows: Path) -> NodeConfig:
    """A node's settings, looked through: nobody's privacy is in these rows, and all may leave."""
    tree = new_config(silo, consortium, [str(rows)]).model_dump(exclude_unset=True)
    tree["data"] |= {
        "format": "prompt_completion",
        "columns": {"record_id": "record_id", "privacy_unit": "patient_id"},
    }
    tree["policy"] = {
        "privacy": {"modes": ["none"]},
        "send_metrics": True,
        "send_counts": True,
    }
    return NodeConfig.model_validate(tree)


def demo_run(silos: int, rounds: int) -> RunConfig:
    """A run that learns something in seconds, and misses nobody."""
    return RunConfig.model_validate(
        {
            "training": {"learning_rate": 0.004, "max_steps": 4, "batch_size": 16},
            "federation": {"rounds": rounds, "min_silos": silos, "round_timeout_seconds": 120},
        }
    )


def tidy(place: Path) -> None:
    """Take away all of a trial but its finished run, in `run/`, and the logs, in `logs/`."""
    for logs in sorted([*place.glob(f"{COORDINATOR}/logs"), *place.glob("silos/*/logs")]):
        logs.rename(place / "logs" / logs.parent.name)
    run = place / COORDINATOR / "runs" / RUN
    if (run / "adapter").exists():
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        run.rename(place / "run")
    for part in _PARTS:
        shutil.rmtree(place / part, ignore_errors=True)
    with contextlib.suppress(OSError):  # something is left, or nothing was begun
        place.rmdir()


def adapter_of(place: Path) -> Path:
    """Where a finished trial's adapter is."""
    tidied = place / "run" / "adapter"
    return tidied if tidied.exists() else place / COORDINATOR / "runs" / RUN / "adapter"


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM are not heard: what ends processes may not be ended itself."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_ports() -> tuple[int, int]:
    """A free port, and the first of two that are free and follow each other."""
    while True:
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            first = two.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                three.bind(("127.0.0.1", first + 1))
                return one.getsockname()[1], first


def _tail(log: Path) -> str:
    return "\n".join(_lines(log)[-_TAIL_LINES:])


def _last_line(log: Path) -> str:
    return next(reversed(_lines(log)), "")


def _lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
