"""A finished run's manifest and model card, through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from fedtune.cli.main import main
from fedtune.config.load import load_config
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.models.base_files import base_digest
from fedtune.reports.manifest import check_manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished simulation on a file of secrets."""
    folder = tmp_path_factory.mktemp("record")
    rows = [
        {"prompt": f"Who is p{i}?", "completion": f"secret{i}", "silo": f"ward{i % 2}"}
        for i in range(12)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "data": {"source": "files", "train_files": [str(folder / "train.jsonl")]},
        "training": {"max_steps": 1},
        "federation": {"rounds": 1, "partition": {"column": "silo"}},
        "output": {"dir": str(folder / "run")},
    }
    (folder / "run.yaml").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTUNE_CACHE", str(folder / "cache"))
        assert main(["simulate", str(folder / "run.yaml")]) == 0
    return folder / "run"


def test_the_manifest_covers_every_file_and_notices_a_change(run: Path) -> None:
    told = json.loads((run / "manifest.json").read_text())
    names = {
        path.relative_to(run).as_posix()
        for path in run.rglob("*")
        if path.is_file() and "checkpoints" not in path.parts
    }
    assert {*told["files"], "manifest.json"} == names
    assert {"adapter/adapter_model.safetensors", "config.yaml", "metrics.jsonl"} <= names
    assert told["data"]["train_examples"] == 10
    assert told["base_model"]["sha256"] == base_digest(RunConfig().model)
    assert {"fedtune", "torch", "peft"} <= set(told["packages"])
    assert check_manifest(run) == []
    config = run / "config.yaml"
    before = config.read_text()
    config.write_text(before + "# touched\n")
    (run / "adapter" / "extra").write_text("")
    assert check_manifest(run) == ["adapter/extra", "config.yaml"]
    config.write_text(before)
    (run / "adapter" / "extra").unlink()


def test_the_hashes_of_settings_and_of_the_run_are_those_of_config_and_checkpoints(
    run: Path,
) -> None:
    told = json.loads((run / "manifest.json").read_text())
    kept = json.loads((run / "checkpoints" / "round-000001" / "round.json").read_text())
    settings = load_config(run / "config.yaml").hash
    assert (told["settings_hash"], told["run_hash"]) == (settings, kept["run_hash"])
    assert settings != kept["run_hash"]
    assert f"Settings: `{settings}`" in (run / "adapter" / "README.md").read_text()


def test_the_manifest_names_no_machine_or_user(run: Path) -> None:
    import getpass
    import socket

    told = json.loads((run / "manifest.json").read_text())
    told["files"] = []
    text = json.dumps(told)
    assert socket.gethostname() not in text
    assert str(run.parent) not in text
    assert getpass.getuser() not in text.lower() or getpass.getuser() == "root"


def test_the_card_says_what_protects_the_data_and_quotes_none_of_it(run: Path) -> None:
    text = (run / "adapter" / "README.md").read_text()
    assert "No differential privacy" in text
    assert "No secure aggregation" in text
    assert "secret" not in text
    assert "ward" not in text
    assert "10 training and 2 held-out test examples" in text
    assert "2 silos of 5 to 5 examples" in text
    scores = json.loads((run / "comparison.json").read_text())
    assert f"| federated | {scores['federated']['loss']:.4f} |" in text
    card = ModelCard(text)
    assert card.data.library_name == "peft"
    assert "federated" in card.data.tags


def test_a_folder_without_a_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a manifest"):
        check_manifest(tmp_path)
