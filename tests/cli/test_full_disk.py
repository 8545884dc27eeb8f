"""A disk that takes no more ends a run with one message, whole files, and a run to go on with.

A limit on the size of files (`RLIMIT_FSIZE`) stands for the full disk: the same calls fail, for
real, with the system's own error.
"""

import json
import signal
from pathlib import Path

import pytest

from fedtune.cli.main import main
from fedtune.cli.progress import PlainRounds
from fedtune.data.digests import file_digest
from fedtune.reports.manifest import check_manifest
from tests.file_limit import files_end_at

SMALL = {
    "data": {"embedded_patients": 16},
    "task": {"max_length": 96},
    "training": {"max_steps": 4, "save_steps": 1, "batch_size": 2},
}
FEDERATED = {
    **SMALL,
    "training": {"max_steps": 2, "batch_size": 2},
    "federation": {"rounds": 2},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


FULL = 200_000
"""Bytes: an adapter is larger, all that comes before is smaller."""


def config_file(folder: Path, verb: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(
        json.dumps(
            {**(SMALL if verb == "train" else FEDERATED), "output": {"dir": str(folder / "run")}}
        )
    )
    return path


@pytest.mark.parametrize(
    ("verb", "named"),
    [("train", "checkpoints/step-00000001"), ("simulate", "checkpoints/round-000001")],
)
def test_a_run_that_finds_the_disk_full_says_so_and_goes_on_later(
    verb: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, more = tmp_path / "run", ["--no-compare"] if verb == "simulate" else []
    command = [verb, str(config_file(tmp_path, verb)), *more]
    assert main([*command, "--dry-run"]) == 0  # the cache is filled before the disk is
    with files_end_at(FULL):
        assert main(command) == 1
    err = capsys.readouterr().err
    told = err[err.index("fedtune: ") :].splitlines()
    assert told[0] == f"fedtune: {folder / named}: can't be written (File too large)"
    assert " needed, " in told[1]
    assert told[1].endswith(" free there")
    again = f"fedtune {' '.join(command)} --resume"
    assert told[2:] == [f"  to go on from the last checkpoint, once there is room: {again}"]
    assert not list(folder.rglob("*.part"))
    assert main([*command, "--resume"]) == 0
    assert check_manifest(folder) == []


def test_the_checkpoint_before_is_what_it_was_when_the_next_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["simulate", str(config_file(tmp_path, "simulate")), "--no-compare"]
    with monkeypatch.context() as patch:
        patch.setattr(PlainRounds, "round", lambda *_: signal.raise_signal(signal.SIGINT))
        assert main(command) == 130
    first = tmp_path / "run" / "checkpoints" / "round-000001"
    before = file_digest(first)
    with files_end_at(FULL):
        assert main([*command, "--resume"]) == 1
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert file_digest(first) == before
    assert main([*command, "--resume"]) == 0
    assert main([*command, f"output.dir={tmp_path / 'whole'}"]) == 0
    name = "adapter/adapter_model.safetensors"
    assert file_digest(tmp_path / "run" / name) == file_digest(tmp_path / "whole" / name)
