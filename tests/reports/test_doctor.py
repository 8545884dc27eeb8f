"""`fedtune doctor` through the command line, and its checks on machines that aren't fit."""

import importlib.metadata
import json
import os
import resource
import shutil
from pathlib import Path

import psutil
import pytest

from fedtune import telemetry
from fedtune.cli.main import main
from fedtune.config.schema import RunConfig
from fedtune.reports import doctor


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


def small(folder: Path, **sections: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(json.dumps({"data": {"embedded_patients": 16}, **sections}))
    return path


def test_a_fit_machine_ends_with_0_and_names_every_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(small(tmp_path)), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fit"]
    names = {check["name"] for check in told["checks"]}
    assert names >= {
        "python",
        "packages",
        "extra mlflow",
        "gpu",
        "output folder",
        "cache folder",
        "temporary folder",
        "memory",
        "open files",
        "model",
        "data",
        "telemetry",
    }
    assert main(["doctor", str(small(tmp_path))]) == 0
    assert capsys.readouterr().out.count("\nok    ") + 1 >= len(names) - 2


def test_a_missing_model_and_missing_data_are_two_failures_with_a_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    settings = {
        "model": {"path": str(tmp_path / "nowhere")},
        "data": {"source": "files", "train_files": [str(tmp_path / "none.jsonl")]},
    }
    config.write_text(json.dumps(settings))
    assert main(["doctor", str(config)]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [i for i, line in enumerate(lines) if line.startswith("FAIL")]
    assert [lines[i].split()[1] for i in failed] == ["model:", "data:"]
    assert all("to mend:" in lines[i + 1] for i in failed)


def test_versions_out_of_range_and_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "peft":
            return "0.1.0"
        if name == "mlflow-skinny":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (wrong,) = doctor.package_versions()
    assert (wrong.status, wrong.found) == ("fail", "peft 0.1.0")
    assert wrong.mend is not None
    assert wrong.mend.startswith('pip install "peft')
    config = RunConfig()
    assert {check.status for check in doctor.extras(config)} == {"ok"}
    asking = RunConfig.model_validate({"output": {"loggers": ["mlflow"]}})
    assert [c.name for c in doctor.extras(asking) if c.status == "fail"] == ["extra mlflow"]


def test_too_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    assert doctor.disk("output folder", tmp_path / "not" / "yet").status == "fail"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**30))
    assert doctor.disk("output folder", tmp_path).status == "warn"
    (tmp_path / "file").write_text("")
    assert "is a file" in doctor.disk("output folder", tmp_path / "file" / "run").found
    memory = psutil.virtual_memory()._replace(available=2**29)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert doctor.memory().status == "warn"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert doctor.open_files().status == "warn"


def test_telemetry_that_is_on_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry.switch_off()
    assert doctor.telemetry_off().status == "ok"
    monkeypatch.setitem(os.environ, "FLWR_TELEMETRY_ENABLED", "1")
    check = doctor.telemetry_off()
    assert check.status == "fail"
    assert check.mend == "set FLWR_TELEMETRY_ENABLED=0"


def test_settings_without_a_file_are_taken_and_a_mistyped_folder_is_told_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "model.path=./nope", "data.embedded_patients=16"]) == 1
    told = capsys.readouterr().out
    assert "FAIL  model: model.path: there is no folder `./nope`" in told
    assert "to mend: check the path" in told
