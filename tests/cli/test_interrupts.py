"""Ctrl-C and SIGTERM through the command line: one message, its status, and a run to go on with."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedtune.cli import progress
from fedtune.cli.main import main

SMALL = {
    "data": {"embedded_patients": 16},
    "training": {"max_steps": 2, "batch_size": 4},
    "federation": {"rounds": 3},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


def config_file(folder: Path, out: str = "run") -> Path:
    path = folder / f"{out}.yaml"
    path.write_text(json.dumps({**SMALL, "output": {"dir": str(folder / out)}}))
    return path


@pytest.mark.parametrize(
    ("number", "word", "status"),
    [(signal.SIGTERM, "terminated", 143), (signal.SIGINT, "interrupted", 130)],
)
def test_a_signal_ends_a_simulation_that_can_go_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    word: str,
    status: int,
) -> None:
    path, before = config_file(tmp_path), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(progress.PlainRounds, "round", lambda *_: signal.raise_signal(number))
        assert main(["simulate", str(path), "--no-compare"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == f"fedtune: {word}"
    assert signal.getsignal(signal.SIGTERM) is before
    command = shlex.split(err.splitlines()[1].partition("to go on: ")[2])
    assert command == ["fedtune", "simulate", str(path), "--no-compare", "--resume"]
    assert main(command[1:]) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_stopped_before_it_wrote_anything_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("fedtune.training.prepare.load_splits", stop)
    assert main(["train", str(config_file(tmp_path))]) == 143
    assert capsys.readouterr().err == "fedtune: terminated\n  nothing was written\n"
    assert not (tmp_path / "run").exists()


def test_a_real_process_ends_with_143_and_training_goes_on_to_the_same_adapter(
    tmp_path: Path,
) -> None:
    code = "import sys; from fedtune.cli.main import main; sys.exit(main())"
    cut = [sys.executable, "-c", code, "train", str(config_file(tmp_path, "cut"))]
    steps = ["training.max_steps=40", "training.save_steps=5"]
    process = subprocess.Popen(
        [*cut, *steps],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stderr is not None
    first = next(line for line in process.stderr if line.startswith("step "))
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 143, first + rest
    assert "Traceback" not in rest
    assert "to go on: fedtune train" in rest
    assert not (tmp_path / "cut" / "adapter").exists()
    assert not list((tmp_path / "cut").rglob("*.part"))
    assert main(["train", str(config_file(tmp_path, "cut")), *steps, "--resume"]) == 0
    assert main(["train", str(config_file(tmp_path, "whole")), *steps]) == 0
    one, other = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("cut", "whole")
    )
    assert all((one[name] == other[name]).all() for name in other)
