"""A frozen residual acts in the forward pass, trains nothing, and folds into one plain adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from fedtune.config.adapter import AdapterConfig
from fedtune.config.model import ModelConfig
from fedtune.models.adapters import attach_adapter, read_state, save_adapter, write_state
from fedtune.models.base import load_base
from fedtune.models.residual import folded, residual_added
from fedtune.models.twin import bare_twin, twin
from fedtune.tensors import TensorSet

TOKENS = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.ones(2, 6).long()}


@pytest.fixture(params=["plain", "rslora", "4bit", "classifier"])
def model(request: pytest.FixtureRequest) -> Any:
    kind = request.param
    task = "sequence_classification" if kind == "classifier" else "causal_lm"
    base = load_base(ModelConfig(load_in_4bit=kind == "4bit"), task, ["a", "b"]).model
    settings = AdapterConfig(lora_r=4, lora_alpha=6.0, use_rslora=kind == "rslora")
    adapted = attach_adapter(base, settings, seed=0, task=task).eval()
    torch.manual_seed(0)
    write_state(adapted, read_state(adapted).map(lambda t: t + 0.05 * torch.randn_like(t)))
    return adapted


def a_residual(model: Any) -> TensorSet:
    torch.manual_seed(1)
    tensors = {}
    for number, (name, shape) in enumerate(read_state(model).spec):
        rank = 1 + (number // 2) % 3  # other ranks in other layers
        if "lora_A" in name:
            tensors[name] = torch.randn(rank, shape[1]) * 0.1
            name_b = name.replace("lora_A", "lora_B")
            tensors[name_b] = torch.randn(dict(read_state(model).spec)[name_b][0], rank) * 0.1
    return TensorSet(tensors)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**TOKENS).logits


def test_folded_and_loaded_by_plain_peft_it_gives_the_same_logits(model: Any, tmp_path: Path):
    residual = a_residual(model)
    plain = logits(model)
    with residual_added(model, residual):
        wanted = logits(model)
    assert (wanted - plain).abs().max() > 0.01
    wide = folded(model, residual)
    assert torch.allclose(logits(wide), wanted, atol=1e-4)
    assert torch.equal(logits(model), plain)  # and the model itself is as before
    from transformers import AutoTokenizer

    from fedtune.models.base_files import embedded_folder

    save_adapter(
        wide, AutoTokenizer.from_pretrained(embedded_folder()), tmp_path / "adapter", base="x"
    )
    loaded = PeftModel.from_pretrained(bare_twin(model), tmp_path / "adapter").eval()
    assert torch.allclose(logits(loaded), wanted, atol=1e-4)


def test_nothing_of_it_trains_or_is_saved(model: Any):
    spec, residual = read_state(model).spec, a_residual(model)
    before = residual.digest()
    with residual_added(model, residual):
        assert read_state(model).spec == spec
        model(**TOKENS).logits.sum().backward()
    assert residual.digest() == before
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert any(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_without_a_residual_nothing_changes(model: Any):
    plain = logits(model)
    with residual_added(model, TensorSet({})):
        assert torch.equal(logits(model), plain)
    assert folded(model, TensorSet({})) is model


def test_a_twin_shares_what_is_frozen_and_nothing_else(model: Any):
    other = twin(model)
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    assert all((a.data_ptr() == b.data_ptr()) == (not a.requires_grad) for a, b in pairs)
    assert torch.equal(logits(other), logits(model))
