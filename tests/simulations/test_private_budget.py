"""The ledger and a federation's run: what is refused stays refused, what is repeated counts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fedtune_simulations.setting import _own_words_only

from fedtune.cli.main import main
from fedtune.errors import InputError, RunFailedError

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
    assert len(ledger["hash"]) == 64
    shutil.rmtree(folder / "checkpoints" / "round-000002")
    assert run(folder, "--resume") == 0
    assert told(folder)["epsilon"] > before


def test_the_coordinators_record_can_not_be_deleted_for_a_fresh_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    central = ["privacy={mode: central, noise_multiplier: 1.0, delta: 0.001}"]
    assert run(folder, *central) == 0
    shutil.rmtree(folder / "checkpoints")
    assert run(folder, *central, "--resume") == 2
    assert "record of released rounds" in capsys.readouterr().err


def test_an_error_on_private_rows_keeps_its_text_at_home():
    private: Any = object()
    with pytest.raises(RunFailedError) as told, _own_words_only(private):
        raise KeyError("Mrs Miller, HIV positive")
    assert "Miller" not in str(told.value)
    assert "KeyError" in str(told.value)
    with pytest.raises(InputError, match="ours"), _own_words_only(private):
        raise InputError("ours")
    with pytest.raises(KeyError), _own_words_only(None):
        raise KeyError("no promise was made")


def test_json_tells_no_exact_count_of_private_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(tmp_path / "run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert "data" not in told
    assert "silos" not in told
    assert told["privacy"]["promise"]["unit"] == "patient"
