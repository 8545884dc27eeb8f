"""A checkpoint is whole or not there."""

from pathlib import Path

import pytest
import torch
from fedtune_server.checkpoints import Checkpoint, load_latest, save_checkpoint

from fedtune.aggregation.rule import GlobalState
from fedtune.errors import InputError
from fedtune.tensors import TensorSet


def checkpoint(number: int) -> Checkpoint:
    adapter = TensorSet({"w": torch.tensor([float(number)])})
    return Checkpoint(number, GlobalState(adapter, {"first": adapter * 2.0}), [{}] * number)


def test_the_latest_comes_back_and_old_ones_go(tmp_path: Path):
    for number in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint(number), "run")
    loaded = load_latest(tmp_path, "run")
    assert loaded is not None
    assert (loaded.round, loaded.reports) == (3, [{}, {}, {}])
    assert loaded.state.memory["first"]["w"].item() == 6.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000002", "round-000003"]


def test_an_unfinished_save_is_not_read(tmp_path: Path):
    (tmp_path / "round-000009.part").mkdir()
    assert load_latest(tmp_path, "run") is None


@pytest.mark.parametrize("name", ["round.json", "adapter.safetensors"])
def test_damage_is_told(name: str, tmp_path: Path):
    save_checkpoint(tmp_path, checkpoint(1), "run")
    (tmp_path / "round-000001" / name).write_bytes(b"{")
    with pytest.raises(InputError, match=r"damaged|not a safetensors"):
        load_latest(tmp_path, "run")


def test_changed_values_are_told(tmp_path: Path):
    save_checkpoint(tmp_path, checkpoint(1), "run")
    checkpoint(2).state.adapter.save(tmp_path / "round-000001" / "adapter.safetensors")
    with pytest.raises(InputError, match="digest"):
        load_latest(tmp_path, "run")
