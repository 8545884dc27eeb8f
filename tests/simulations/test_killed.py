"""A run killed at any moment loses at most the round in progress."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedtune.cli.main import main

SMALL = {
    "data": {"embedded_patients": 16},
    "task": {"max_length": 96},
    "training": {"max_steps": 2, "batch_size": 2},
    "federation": {
        "rounds": 4,
        "partition": {"by": "iid", "silos": 4},
        "server_optimizer": {"name": "fedavgm"},
    },
}
CODE = "import sys; from fedtune.cli.main import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


def command(folder: Path, *more: str) -> list[str]:
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps({**SMALL, "output": {"dir": str(folder)}}))
    return ["simulate", str(file), "--no-compare", *more]


def finished_rounds(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_killed_with_sigkill_and_resumed_is_the_uninterrupted_run(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *command(tmp_path / "cut")],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    while finished_rounds(tmp_path / "cut") < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=60)
    assert not (tmp_path / "cut/adapter").exists()
    kept = sorted(path.name for path in (tmp_path / "cut/checkpoints").glob("round-??????"))
    assert kept[-1] >= "round-000002"  # the two that were told are not lost
    assert main(command(tmp_path / "cut", "--resume")) == 0
    assert main(command(tmp_path / "whole")) == 0
    one, other = (
        load_file(tmp_path / name / "adapter/adapter_model.safetensors")
        for name in ("cut", "whole")
    )
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    assert finished_rounds(tmp_path / "cut") == 4


def test_killed_before_its_first_round_a_run_can_be_resumed(tmp_path: Path):
    assert main(command(tmp_path / "run", "federation.rounds=1")) == 0
    for left in ("partition.json", "metrics.jsonl"):
        (tmp_path / "run" / left).unlink()
    for folder in ("adapter", "checkpoints"):
        (tmp_path / "run" / folder).rename(tmp_path / folder)
    assert main(command(tmp_path / "run", "federation.rounds=1", "--resume")) == 0
    assert (tmp_path / "run/partition.json").exists()
    one, other = (
        load_file(folder / "adapter/adapter_model.safetensors")
        for folder in (tmp_path, tmp_path / "run")
    )
    assert all((one[name] == other[name]).all() for name in one)


def test_a_round_given_up_is_told_with_each_silos_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(command(tmp_path / "run", "training.learning_rate=1e30")) == 1
    err = capsys.readouterr().err
    assert "round 1: 0 good replies, `federation.min_silos` is 2" in err
    assert "  silo-0: client_error: step 2: the loss is nan" in err
    assert "Traceback" not in err
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["round"], told["silos"], told["given_up"]) == (1, [], "quorum lost")
    assert [failure["silo"] for failure in told["failures"]] == [f"silo-{i}" for i in range(4)]
    assert {failure["reason"] for failure in told["failures"]} == {"client_error"}
    assert all("the loss is nan" in failure["detail"] for failure in told["failures"])
