"""A run's folder has one process at a time, and a lock that nobody holds any more blocks nobody."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fedtune_simulations.simulate import simulate

from fedtune.cli.main import main
from fedtune.config.schema import RunConfig
from fedtune.reports.manifest import check_manifest
from fedtune.training.central import train

SMALL = {
    "data": {"embedded_patients": 16},
    "task": {"max_length": 96},
    "training": {"max_steps": 8, "batch_size": 2},
    "federation": {"rounds": 4},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("verb", ["train", "simulate"])
def test_a_second_run_is_refused_while_the_first_lives_and_goes_on_once_it_was_killed(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, more = tmp_path / "run", ["--no-compare"] if verb == "simulate" else []
    (tmp_path / "run.yaml").write_text(json.dumps({**SMALL, "output": {"dir": str(folder)}}))
    command = [verb, str(tmp_path / "run.yaml"), *more]
    first = subprocess.Popen(
        [sys.executable, "-m", "fedtune", *command],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        deadline = time.monotonic() + 60
        while not list(folder.glob("checkpoints/*[0-9]")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)  # it is still there, however fast it is
        for extra in ([], ["--resume"], ["--dry-run"], ["--resume", "--dry-run"]):
            assert main([*command, *extra]) == 2
            err = capsys.readouterr().err
            assert f"{folder}: another run is at work in this folder (process {first.pid})" in err
    finally:
        first.kill()
        first.wait(timeout=60)
    assert (folder / ".lock").exists()
    assert main([*command, "--resume"]) == 0
    assert not (folder / ".lock").exists()
    assert check_manifest(folder) == []


def test_what_a_run_killed_in_its_first_seconds_left_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (tmp_path / "run.yaml").write_text(json.dumps({**SMALL, "output": {"dir": str(folder)}}))
    folder.mkdir()
    (folder / ".lock").write_text(f"{os.getpid()}\n")
    assert main(["train", str(tmp_path / "run.yaml"), "training.max_steps=1"]) == 0
    assert not (folder / ".lock").exists()


def test_a_run_that_a_program_started_keeps_its_folder_to_itself(tmp_path: Path) -> None:
    config = RunConfig.model_validate({**SMALL, "training": {"max_steps": 2, "batch_size": 2}})
    refused = []

    def try_another(_: object) -> None:
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(train, config, tmp_path / "run", resume=True)
            refused.append(second.exception(timeout=60))

    simulate(config, tmp_path / "run", compare=False, on_round=try_another)
    assert len(refused) == config.federation.rounds
    shutil.rmtree(tmp_path / "run")
    train(config, tmp_path / "run", listeners=[try_another])
    assert len(refused) > config.federation.rounds
    assert all("another run is at work in this folder" in str(error) for error in refused)
    assert not (tmp_path / "run" / ".lock").exists()
