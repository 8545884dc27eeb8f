"""An operator's commands answer at once: they load no torch, which takes seconds."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "fedtune_server.running",
        "fedtune_server.run_start",
        "fedtune_server.dashboard",
        "fedtune_client.joining",
    ],
)
def test_what_loads_no_model_loads_no_torch(module: str) -> None:
    asked = f"import sys, {module}; print({{'torch', 'datasets', 'opacus'}} & {{*sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_a_run_s_own_process_at_the_coordinator_loads_nothing_that_reads_data() -> None:
    asked = "import sys, fedtune_server.deployed; print({'datasets', 'sklearn'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
