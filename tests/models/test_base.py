"""A base model that can't be read is the user's to mend: one message, no traceback."""

import shutil
from pathlib import Path

import pytest

import fedtune
from fedtune.config.model import ModelConfig
from fedtune.errors import InputError
from fedtune.models.base import load_base


def test_cut_off_weights_are_told(tmp_path: Path):
    broken = tmp_path / "model"
    shutil.copytree(Path(fedtune.__file__).parent / "models" / "embedded", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"model\.path"):
        load_base(ModelConfig(path=str(broken)), "causal_lm")
