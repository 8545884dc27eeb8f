"""Ray's workers give the same adapter, bit for bit, as silos in this process."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

pytest.importorskip("ray", reason="the extra `fedtune[ray]` is not installed")

SMALL = {
    "data": {"embedded_patients": 16},
    "task": {"max_length": 96},
    "training": {"max_steps": 1, "batch_size": 2},
    "federation": {"rounds": 2, "partition": {"by": "iid", "silos": 3}},
}
CODE = "import sys; from fedtune.cli.main import main; sys.exit(main())"


def run(folder: Path, *arguments: str) -> str:
    """A process of its own, as Ray leaves settings behind in the one that it ran in."""
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps({**SMALL, "output": {"dir": str(folder)}}))
    command = [sys.executable, "-c", CODE, "simulate", str(file), "--no-compare", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_both_engines_give_the_same_adapter_and_no_process_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    encoded = "federation.delta_encoding=bfloat16"  # the workers make the encoders
    run(tmp_path / "inprocess", encoded)
    before = {process.pid for process in psutil.process_iter()}
    run(tmp_path / "ray", "federation.engine=ray", encoded)
    stayed = [p for p in psutil.process_iter(["name"]) if p.pid not in before]
    assert not [p for p in stayed if "ray" in p.name() or "gcs_server" in p.name()]
    files = [tmp_path / name / "adapter/adapter_model.safetensors" for name in ("inprocess", "ray")]
    one, other = (load_file(file) for file in files)
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.slow
def test_a_signal_ends_a_run_on_ray_with_one_message_and_no_process_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({**SMALL, "output": {"dir": str(tmp_path / "run")}}))
    given = ["simulate", str(file), "federation.engine=ray", "federation.rounds=1000"]
    process = psutil.Popen([sys.executable, "-c", CODE, *given], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    workers = process.children(recursive=True)
    assert workers
    process.terminate()
    assert process.wait(timeout=120) == 143
    assert "fedtune: terminated\n  to go on: fedtune simulate" in process.stderr.read()
    assert not [worker for worker in workers if worker.is_running()]
