"""The same apps on Ray's workers, through Flower's Simulation Runtime.

Each worker process loads data and base model once, from the settings alone. A worker takes as many
cores as this process's torch has threads (`OMP_NUM_THREADS`), because the number of threads decides
the last bits of a sum: with equal numbers both engines give the same adapter.
"""

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from fedtune_client.app import make_client_app
from fedtune_server.roster import find_silos
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedtune import telemetry
from fedtune.config.schema import RunConfig
from fedtune.training.interrupts import deferred
from fedtune_simulations.engines import Coordinate, Outcome, simulated_encoder
from fedtune_simulations.events import Listener
from fedtune_simulations.setting import Setting, SimulatedSilo, prepare

_POLL_SECONDS = 0.05
_ENDING_SECONDS = 10.0


@dataclass(frozen=True)
class SiloOfWorker:
    """Builds a silo where it is called: what travels to a worker is the settings as JSON."""

    settings: str
    threads: int

    def __call__(self, context: Context) -> SimulatedSilo:
        """The silo of the node's partition. Data and model are loaded once a process."""
        torch.set_num_threads(self.threads)
        setting = _prepared(self.settings)
        return SimulatedSilo(self.name(context), setting)

    def name(self, context: Context) -> str:
        """Partitions are numbered in the order of silo names."""
        names = sorted(_prepared(self.settings).silos)
        return names[int(str(context.node_config["partition-id"]))]


def on_ray(
    setting: Setting, kept: Path, on_work: Listener | None, coordinate: Coordinate
) -> Outcome:
    """Run the coordinator against Ray's workers; steps inside them are not told to `on_work`.

    Raises RunFailedError when too few workers answer by the round's deadline.
    """
    telemetry.switch_off()
    from flwr.simulation import run_simulation

    config, outcome = setting.config, []
    load = SiloOfWorker(config.model_dump_json(), torch.get_num_threads())
    server, told_to_stop = ServerApp(), [lambda: False]

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        grid = _Stoppable(grid, lambda: told_to_stop[0]())
        try:
            nodes = find_silos(
                grid,
                setting.silos,
                min_silos=config.federation.min_silos,
                timeout_seconds=config.federation.round_timeout_seconds,
                poll_seconds=_POLL_SECONDS,
            )
            outcome.append(coordinate(grid, nodes, _POLL_SECONDS))
        finally:  # while Ray still runs
            started.extend(psutil.Process().children(recursive=True))

    started: list[psutil.Process] = []
    app = make_client_app(
        load, load.name, lambda context: simulated_encoder(config, load.name(context), kept)
    )
    try:
        _start_ray()
        # after Ray, which takes the signals for itself; before them the runtime ends in good order
        with deferred() as told_to_stop[0], _quiet():
            with contextlib.suppress(_StoppedError):
                run_simulation(server, app, len(setting.silos), "ray", _resources())
    finally:
        ray.shutdown()
        _await_end(started)
    return outcome[0]


def _start_ray() -> None:
    """A Ray of this process, or the cluster that RAY_ADDRESS names; workers see no telemetry on."""
    variables = {**telemetry.OFF, "PYTHONPATH": os.pathsep.join(sys.path)}
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(
        runtime_env={"env_vars": variables},
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@functools.lru_cache(maxsize=1)
def _prepared(settings: str) -> Setting:
    return prepare(RunConfig.model_validate_json(settings))


def _resources() -> dict[str, Any]:
    cores = min(torch.get_num_threads(), os.cpu_count() or 1)
    gpus = 1.0 if torch.cuda.is_available() else 0.0
    return {"client_resources": {"num_cpus": cores, "num_gpus": gpus}}


def _await_end(started: list[psutil.Process]) -> None:
    """Ray tells its processes to end and doesn't wait: wait, and kill what won't."""
    _, stayed = psutil.wait_procs(started, timeout=_ENDING_SECONDS)
    for process in stayed:
        process.kill()
    psutil.wait_procs(stayed, timeout=_ENDING_SECONDS)


class _StoppedError(Exception):
    """A signal came: the coordinator goes no further."""


class _Stoppable:
    """A grid on which the coordinator's thread ends when the main thread was told to stop."""

    def __init__(self, grid: Grid, told_to_stop: Callable[[], bool]) -> None:
        self._grid, self._told_to_stop = grid, told_to_stop
        self.get_node_ids, self.push_messages = grid.get_node_ids, grid.push_messages

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self._told_to_stop():
            raise _StoppedError
        return self._grid.pull_messages(message_ids)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Flower's own progress lines stay out of ours; failures are told in the rounds' reports."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
