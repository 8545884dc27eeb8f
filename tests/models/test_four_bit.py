"""4 bits: NF4 on the CPU that is smaller, trains its adapter, and never changes."""

import hashlib
from collections.abc import Callable

import pytest
import torch

from fedtune.config.adapter import AdapterConfig
from fedtune.config.model import ModelConfig
from fedtune.config.task import TaskConfig
from fedtune.config.training import TrainingConfig
from fedtune.models.adapters import attach_adapter, read_state
from fedtune.models.base import load_base
from fedtune.models.four_bit import dequantized, is_four_bit
from fedtune.tasks import build_task
from fedtune.training.trainer import Trainer

ROWS = [
    {"prompt": "A man with cough.\nAssessment:", "completion": " asthma.", "where": "x:1"},
    {"prompt": "A woman with fever.\nAssessment:", "completion": " flu.", "where": "x:2"},
]
CLASSIFIED = [
    {"text": "A man with cough.", "label": "a", "where": "x:1"},
    {"text": "A woman with chest pain and fever.", "label": "b", "where": "x:2"},
]


def frozen_bytes(model) -> dict[str, str]:
    """A digest of each tensor that isn't trained, 4-bit weights with their scales."""
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        content = parameter.data.contiguous().view(torch.uint8).numpy().tobytes()
        scales = getattr(parameter, "quant_state", None)
        if scales is not None:
            for part in (scales.absmax, scales.offset, scales.state2.absmax):
                content += part.numpy().tobytes()
        state[name] = hashlib.sha256(content).hexdigest()
    return state


def size(model) -> int:
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        if (scales := getattr(parameter, "quant_state", None)) is not None:
            total += scales.absmax.numel() + 4 * scales.state2.absmax.numel()
    return total


def test_a_four_bit_base_is_nf4_with_double_quantization_and_small():
    model = load_base(ModelConfig(load_in_4bit=True), "causal_lm").model
    whole = load_base(ModelConfig(), "causal_lm").model
    layer = model.model.layers[0].mlp.up_proj.weight
    assert (layer.quant_state.quant_type, layer.quant_state.nested) == ("nf4", True)
    assert layer.dtype == torch.uint8
    assert layer.numel() * 2 == whole.model.layers[0].mlp.up_proj.weight.numel()
    embeddings = 4 * whole.get_input_embeddings().weight.numel()
    assert size(model) - embeddings < (size(whole) - embeddings) / 7
    assert is_four_bit(model)
    assert not is_four_bit(whole)
    for name, weight in dequantized(model).items():
        exact = whole.get_parameter(name)
        assert 0 < (weight - exact).norm() < 0.12 * exact.norm(), name


@pytest.mark.parametrize(
    ("shape", "name", "method"),
    [
        ("llama", "causal_lm", "lora"),
        ("gpt2", "causal_lm", "lora"),
        ("llama", "causal_lm", "fed_sb"),
        ("bert", "sequence_classification", "lora"),
        ("llama", "sequence_classification", "ia3"),
        ("llama", "causal_lm", "prompt_tuning"),
    ],
)
def test_training_on_four_bits_changes_the_adapter_alone(
    tiny: Callable[[str], str], shape: str, name: str, method: str
):
    classifies = name == "sequence_classification"
    labels = ("a", "b") if classifies else ()
    base = load_base(ModelConfig(path=tiny(shape), load_in_4bit=True), name, labels)
    task = build_task(TaskConfig.model_validate({"name": name}), base.tokenizer, labels)
    config = AdapterConfig.model_validate({"method": method})
    model = attach_adapter(base.model, config, seed=0, task=name)
    encoded = [task.encode(row) for row in (CLASSIFIED if classifies else ROWS)]
    before, start = frozen_bytes(model), read_state(model)
    training = TrainingConfig(max_steps=4, learning_rate=5e-3)
    first = Trainer(task, training, seed=0).fit(model, encoded)
    # evaluated in between: on some CPUs that repacks the base, which then gives no gradient
    with torch.no_grad():
        task.losses(model.eval(), task.collate(encoded))
    second = Trainer(task, training, seed=0).fit(model, encoded)
    assert frozen_bytes(model) == before
    assert second.loss < first.loss
    # at the end every layer moves, the first as well as the last
    end = read_state(model)
    still = [n for n in end if torch.equal(end[n], start[n]) and method != "ia3"]
    assert not still


def test_evaluation_leaves_a_gradient_through_every_layer():
    base = load_base(ModelConfig(load_in_4bit=True), "causal_lm")
    task = build_task(TaskConfig(), base.tokenizer)
    model = attach_adapter(base.model, AdapterConfig(), seed=0, task="causal_lm")
    batch = task.collate([task.encode(row) for row in ROWS])
    with torch.no_grad():
        task.losses(model.eval(), batch)
    task.losses(model.train(), batch).sum().backward()
    still = [n for n, p in model.named_parameters() if "lora_B" in n and not p.grad.any()]
    assert not still


def test_a_bf16_base_has_a_float32_adapter(tiny: Callable[[str], str]):
    for four_bit in (False, True):
        for shape, name in (("llama", "causal_lm"), ("bert", "sequence_classification")):
            labels = ("a", "b") if name == "sequence_classification" else ()
            config = ModelConfig(path=tiny(shape), load_in_4bit=four_bit)
            base = load_base(config, name, labels, dtype=torch.bfloat16)
            task = build_task(TaskConfig.model_validate({"name": name}), base.tokenizer, labels)
            model = attach_adapter(base.model, AdapterConfig(), seed=0, task=name)
            kinds = {p.dtype for p in model.parameters() if p.requires_grad}
            assert kinds == {torch.float32}
            assert torch.bfloat16 in {p.dtype for p in model.parameters() if not p.requires_grad}
            rows = CLASSIFIED if labels else ROWS
            with torch.autocast("cpu", torch.bfloat16):
                loss = task.losses(model, task.collate([task.encode(row) for row in rows])).sum()
            loss.backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
