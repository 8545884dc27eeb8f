"""Fed-SB through the commands that a user types: what is sent, resumed, scored and merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fedtune_simulations.simulate import simulate
from safetensors.torch import load_file

from fedtune.cli.main import main
from fedtune.config.schema import RunConfig

SMALL: dict[str, Any] = {
    "adapter": {"method": "fed_sb", "lora_r": 6},
    "data": {"embedded_patients": 32},
    "task": {"max_length": 160},
    "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 0.004},
    "federation": {"rounds": 2, "partition": {"by": "iid", "silos": 4}, "proximal_mu": 0.1},
}
LAYERS = 28  # 7 in each of the embedded model's 4 blocks
MOMENTUM = {"server_optimizer": {"name": "fedavgm", "momentum": 0.5}}


def tree_of(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    changed = {name: {**SMALL.get(name, {}), **part} for name, part in sections.items()}
    return {**SMALL, **changed, "output": {"dir": str(folder)}}


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_r_alone_is_sent_and_the_dry_run_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(tree_of(tmp_path / "run")))
    dry = told(capsys, "simulate", str(file), "--dry-run")
    assert dry["run"]["trainable_parameters"] == LAYERS * 6 * 6
    assert dry["run"]["memory"]["adapter"] == LAYERS * 6 * 6 * 4
    run = told(capsys, "simulate", str(file))
    for report in run["rounds"]:
        assert report["bytes_up"] == report["bytes_down"] == 4 * LAYERS * 6 * 6 * 4
    assert dry["bytes_up_a_round"] == run["rounds"][0]["bytes_up"]
    assert run["comparison"]["federated"]["loss"] < run["comparison"]["base"]["loss"]

    scored = told(capsys, "evaluate", str(tmp_path / "run"))
    want = run["comparison"]["federated"]["loss"]
    assert scored["metrics"]["loss"] == pytest.approx(want, rel=1e-5)
    assert main(["generate", str(tmp_path / "run"), "A man of 54", "--max-new-tokens", "4"]) == 0
    assert main(["merge", str(tmp_path / "run")]) == 0


def test_interrupted_and_resumed_is_the_uninterrupted_run(tmp_path: Path):
    settings = RunConfig.model_validate(
        tree_of(tmp_path / "run", federation={**MOMENTUM, "rounds": 3})
    )

    def stop(report: object) -> None:
        raise KeyboardInterrupt

    simulate(settings, tmp_path / "whole", compare=False)
    with pytest.raises(KeyboardInterrupt):
        simulate(settings, tmp_path / "cut", compare=False, on_round=stop)
    simulate(settings, tmp_path / "cut", compare=False, resume=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert max(float(t.abs().max()) for name, t in whole.items() if "lora_B" in name) > 1e-3


@pytest.mark.parametrize(
    ("command", "privacy"),
    [
        ("train", {"mode": "local", "noise_multiplier": 1.0, "delta": 1e-3}),
        ("simulate", {"mode": "local", "noise_multiplier": 1.0, "delta": 1e-3}),
        ("simulate", {"mode": "central", "noise_multiplier": 1.0, "delta": 1e-3}),
    ],
)
def test_it_trains_privately(tmp_path: Path, command: str, privacy: dict[str, Any]):
    tree = tree_of(tmp_path / "run", privacy=privacy, training={"batch_size": 2})
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(tree))
    # the run itself compares examples of its first batch with plain autograd, one by one
    assert main([command, str(file)]) == 0
    moved = weights(tmp_path / "run")
    assert max(float(t.abs().max()) for name, t in moved.items() if "lora_B" in name) > 1e-4
    statement = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert statement["mode"] == privacy["mode"]
