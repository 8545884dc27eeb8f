"""What Flower loads and calls in a run's own process.

Light, so that the process says which it is before it loads what takes seconds: from then on the
coordinator sees its end at once (Flower itself waits for a minute of missed heartbeats).
"""

import os
import threading
import time
from pathlib import Path

import psutil
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedtune.loading import loading
from fedtune_server.project import SERVER_FOLDER, SERVER_PROCESS, open_project
from fedtune_server.run_folder import RunFolder

_CHECK_SECONDS = 1.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Called by Flower, in a process of its own, once a run."""
    threading.Thread(target=_end_with_the_coordinator, daemon=True).start()
    project = open_project(Path(os.environ[SERVER_FOLDER]))
    name = str(context.run_config["fedtune-run"])
    folder = RunFolder(project.runs / name, context.run_id)
    folder.wait_for_its_number()
    folder.tell("starting", process=os.getpid())
    with loading():
        from fedtune_server.deployed import run_deployed  # here: it loads torch

    run_deployed(project, grid, folder)


def _end_with_the_coordinator() -> None:
    """Flower's launcher leaves this process behind. Whoever goes on with the run starts another."""
    try:
        coordinator = psutil.Process(int(os.environ[SERVER_PROCESS]))
        while coordinator.is_running() and coordinator.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_CHECK_SECONDS)
    except psutil.NoSuchProcess:
        pass
    os._exit(1)
