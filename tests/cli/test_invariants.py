"""What must not depend on how a run is cut, seen through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedtune.cli.main import main

# the whole data in each batch, so that the order in it can't matter
BASE: dict[str, Any] = {
    "data": {"embedded_patients": 24},
    "task": {"max_length": 160},
    "training": {
        "optimizer": "sgd",
        "learning_rate": 0.5,
        "max_steps": 3,
        "batch_size": 1000,
        "micro_batch_size": 16,
        "max_grad_norm": None,
    },
    "federation": {
        "partition": {"by": "iid", "silos": 1},
        "rounds": 1,
        "min_silos": 1,
    },
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


def adapter(verb: str, folder: Path, *extra: str) -> dict[str, torch.Tensor]:
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps({**BASE, "output": {"dir": str(folder)}}))
    flags = ["--no-compare"] if verb == "simulate" else []
    assert main([verb, str(file), *extra, *flags]) == 0
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def moved(state: dict[str, torch.Tensor]) -> float:
    return max(float(t.abs().max()) for name, t in state.items() if "lora_B" in name)


def test_one_silo_and_one_round_is_train(tmp_path: Path):
    central = adapter("train", tmp_path / "train")
    federated = adapter("simulate", tmp_path / "simulate")
    assert moved(central) > 1e-3
    assert distance(central, federated) < 1e-6


def test_three_rounds_of_one_step_are_one_round_of_three(tmp_path: Path):
    one = adapter("simulate", tmp_path / "one")
    many = ("federation.rounds=3", "training.max_steps=1")
    assert distance(one, adapter("simulate", tmp_path / "many", *many)) < 1e-6


def test_one_times_eight_is_eight_times_one(tmp_path: Path):
    # SGD: AdamW's first steps make a whole step of a rounding error
    eight = ("training.batch_size=8",)
    cuts = [
        adapter("train", tmp_path / f"cut-{size}", *eight, f"training.micro_batch_size={size}")
        for size in (8, 1)
    ]
    assert moved(cuts[0]) > 1e-3
    assert distance(*cuts) < 1e-5
