"""The ledger and a federation's run: what is refused stays refused, what is repeated counts."""

import json
import shutil
from pathlib import Path

import pytest

from fedtune.cli.main import main

CONFIG = """
data: {embedded_patients: 40}
training: {max_steps: 1, batch_size: 4}
federation: {rounds: 2, partition: {by: iid, silos: 2}}
privacy: {mode: local, noise_multiplier: 1.0, accountant: rdp, delta: 0.001}
"""


def run(folder: Path, *options: str) -> int:
    config = folder.parent / "c.yaml"
    config.write_text(CONFIG)
    return main(["simulate", str(config), f"output.dir={folder}", "--no-compare", *options])


def told(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "privacy.json").read_text())["promise"])


def test_a_refused_run_can_not_go_on_as_if_it_had_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(first) == 0
    spent = told(first)["second_accountant"]["epsilon"]  # type: ignore[index]
    assert main(["budget", "set", "--epsilon", str(1.1 * spent), "--delta", "0.001"]) == 0
    assert run(second) == 2
    assert run(second, "--resume") == 2
    assert "budget" in capsys.readouterr().err
    assert not (second / "adapter").exists()


def test_a_round_that_may_have_been_sent_twice_counts_twice(tmp_path: Path):
    folder = tmp_path / "run"
    assert run(folder) == 0
    before = told(folder)["epsilon"]
    assert run(folder, "--resume") == 0  # finished: nothing more is charged, the row stays known
    assert told(folder)["epsilon"] == before
    ledger = json.loads((folder / "privacy.json").read_text())["parties"]["silo-0"]["ledger"]
    assert ledger["row"] >= 1
    shutil.rmtree(folder / "checkpoints" / "round-000002")
    assert run(folder, "--resume") == 0
    assert told(folder)["epsilon"] > before
