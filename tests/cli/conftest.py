"""A run's folder, as `fedtune simulate` leaves it, for the commands that open one."""

from pathlib import Path

import pytest
import torch

from fedtune.config.load import save_config
from fedtune.config.schema import RunConfig
from fedtune.models.adapters import attach_adapter, read_state, save_adapter, write_state
from fedtune.models.base import load_base


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base with a LoRA adapter that moved."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = RunConfig()
    base = load_base(config.model, "causal_lm")
    model = attach_adapter(base.model, config.adapter, seed=0, task="causal_lm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = read_state(model)
        write_state(model, state.map(lambda t: t + 0.1 * torch.randn_like(t)))
    save_config(config, folder / "config.yaml")
    save_adapter(model, base.tokenizer, folder / "adapter", base="embedded")
    return folder
