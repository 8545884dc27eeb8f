"""Every method on every family: one start, exact losses, and files that plain `peft` reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedtune.config.adapter import AdapterConfig
from fedtune.config.model import ModelConfig
from fedtune.config.schema import RunConfig
from fedtune.config.task import TaskConfig
from fedtune.errors import InputError
from fedtune.models.adapters import (
    attach_adapter,
    read_state,
    save_adapter,
    without_adapter,
    write_state,
)
from fedtune.models.base import load_base
from fedtune.models.saved import load_saved
from fedtune.tasks import build_task

LABELS = ("cough", "pain")
ROWS = [
    {"text": "A man of 54 with chest pain and fever, and cough.", "label": "pain", "where": "x:1"},
    {"text": "Fever!", "label": "cough", "where": "x:2"},
    {"text": "A woman with cough. Assessment: asthma!", "label": "cough", "where": "x:3"},
]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "ffa": {"freeze_a": True},
    "fed_sb": {"method": "fed_sb", "lora_r": 4},
    "ia3": {"method": "ia3"},
    "ia3_all": {"method": "ia3", "target_modules": "all-linear"},
    "prefix": {"method": "prefix_tuning", "num_virtual_tokens": 3},
    "prompt": {"method": "prompt_tuning", "num_virtual_tokens": 3},
    "full": {"method": "full"},
}
CASES = [
    (shape, task, method)
    for shape, task in (
        ("llama", "causal_lm"),
        ("gpt2", "causal_lm"),
        ("llama", "sequence_classification"),
        ("gpt2", "sequence_classification"),
        ("bert", "sequence_classification"),
    )
    for method in METHODS
    if (method != "prompt" or task == "causal_lm" or shape == "bert")
    and (method not in ("rslora", "ffa", "full") or shape == "llama")
]


def base_and_task(path: str, name: str):
    labels = LABELS if name == "sequence_classification" else ()
    base = load_base(ModelConfig(path=path), name, labels)
    return base, build_task(TaskConfig.model_validate({"name": name}), base.tokenizer, labels)


def attached(base: Any, method: str, task: str, *, seed: int = 0) -> Any:
    return attach_adapter(base.model, AdapterConfig(**METHODS[method]), seed=seed, task=task)


def move(model: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        write_state(model, read_state(model).map(lambda t: t + 0.1 * torch.randn_like(t)))


@pytest.mark.parametrize(("shape", "name", "method"), CASES)
def test_each_loss_is_the_one_alone_and_the_files_are_plain_peft(
    tmp_path: Path, tiny: Callable[[str], str], shape: str, name: str, method: str
):
    base, task = base_and_task(tiny(shape), name)
    with torch.no_grad():
        untouched = task.losses(base.model, task.collate([task.encode(row) for row in ROWS]))
    model = attached(base, method, name)
    move(model)
    model.eval()
    encoded = [task.encode(row) for row in ROWS]
    batch = task.collate(encoded)
    with torch.no_grad():
        together = task.losses(model, batch)
        alone = torch.cat([task.losses(model, task.collate([example])) for example in encoded])
    assert not torch.allclose(together, untouched, atol=1e-3)  # the adapter is in the loss
    if method != "full":
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad(), without_adapter(model):
            assert set(read_state(model)) == trained
            torch.testing.assert_close(task.losses(model, batch), untouched)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
        with torch.no_grad():
            assert torch.equal(task.losses(model, batch), together)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)

    save_adapter(model, base.tokenizer, tmp_path / "adapter", base=tiny(shape))
    with torch.no_grad():
        ours = task.losses(load_saved(tmp_path / "adapter").model, batch)
        # B R is saved as one matrix
        close = {"rtol": 0, "atol": 1e-5 if method == "fed_sb" else 0}
        torch.testing.assert_close(ours, together, **close)
        if method != "full":
            other, _ = base_and_task(tiny(shape), name)
            plain = PeftModel.from_pretrained(other.model, tmp_path / "adapter").eval()
            torch.testing.assert_close(task.losses(plain, batch), ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("shape", "name", "method"), CASES)
def test_all_that_is_trainable_learns_and_starts_from_the_seed_alone(
    tiny: Callable[[str], str], shape: str, name: str, method: str
):
    states = []
    for draws in (0, 7):
        torch.rand(draws)  # what was drawn before must not matter
        base, task = base_and_task(tiny(shape), name)
        model = attached(base, method, name)
        states.append(read_state(model))
    assert states[0].digest() == states[1].digest()
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    move(model)
    task.losses(model.train(), task.collate([task.encode(row) for row in ROWS])).sum().backward()
    still = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not still
    if name == "sequence_classification" and method != "full":
        assert any(
            t.shape[0] == len(LABELS) and "lora" not in n for n, t in states[0].tensors.items()
        )
        assert not [n for n in states[0] if ("score" in n or "classifier" in n) and "lora" in n]


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_another_seed_is_another_start(method: str):
    digests = set()
    for seed in (1, 2):
        base, _ = base_and_task("embedded", "causal_lm")
        digests.add(read_state(attached(base, method, "causal_lm", seed=seed)).digest())
    assert len(digests) == 2


def test_ffa_starts_b_at_zero_and_a_from_the_seed(tiny: Callable[[str], str]):
    factors = []
    for seed in (1, 2):
        base, _ = base_and_task("embedded", "causal_lm")
        model = attached(base, "ffa", "causal_lm", seed=seed)
        assert all("lora_B" in name for name in read_state(model))
        factors.append(
            torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n])
        )
    assert not torch.equal(*factors)


def test_a_layer_that_is_new_to_the_model_travels_with_the_adapter(
    tmp_path: Path, tiny: Callable[[str], str]
):
    """BERT without a pooler gets a random one: another machine's would be another."""
    base, task = base_and_task(tiny("bert"), "sequence_classification")
    model = attached(base, "lora", "sequence_classification").eval()
    move(model)
    save_adapter(model, base.tokenizer, tmp_path / "adapter", base=tiny("bert"))
    torch.manual_seed(99)
    other = AutoModelForSequenceClassification.from_pretrained(tiny("bert"), num_labels=2)
    plain = PeftModel.from_pretrained(other, tmp_path / "adapter").eval()
    batch = task.collate([task.encode(row) for row in ROWS])
    with torch.no_grad():
        torch.testing.assert_close(task.losses(plain, batch), task.losses(model, batch))


def test_what_plain_peft_saved_opens(tmp_path: Path, tiny: Callable[[str], str]):
    base, task = base_and_task(tiny("gpt2"), "causal_lm")
    settings = LoraConfig(
        r=3, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    plain = get_peft_model(base.model, settings).eval()
    move(plain)
    plain.save_pretrained(tmp_path / "theirs")
    batch = task.collate([task.encode(row) for row in ROWS])
    loaded = load_saved(tmp_path / "theirs")
    with torch.no_grad():
        assert torch.equal(task.losses(loaded.model, batch), task.losses(plain, batch))


def test_the_tokenizer_and_its_chat_template_travel(tmp_path: Path, tiny: Callable[[str], str]):
    base, _ = base_and_task(tiny("gpt2"), "causal_lm")
    base.tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    model = attached(base, "lora", "causal_lm")
    save_adapter(model, base.tokenizer, tmp_path / "adapter", base=tiny("gpt2"))
    chat = [{"role": "user", "content": "Fever?"}]
    for tokenizer in (
        AutoTokenizer.from_pretrained(tmp_path / "adapter"),
        load_saved(tmp_path / "adapter").tokenizer,
        load_saved(tmp_path / "adapter", with_adapter=False).tokenizer,
    ):
        assert tokenizer.apply_chat_template(chat, tokenize=False) == "<Fever?>"
        assert tokenizer.pad_token is None  # what we pad with is none of its business
        text = "A man, 54!"
        assert tokenizer(text)["input_ids"] == base.tokenizer(text)["input_ids"]


def test_a_delta_is_read_written_applied_and_measured():
    base, _ = base_and_task("embedded", "causal_lm")
    model = attached(base, "lora", "causal_lm")
    start = read_state(model)
    move(model)
    delta = read_state(model) - start
    flat = torch.cat([t.flatten() for t in delta.tensors.values()]).double()
    assert delta.norm() == pytest.approx(float(flat.norm()))
    assert delta.payload_bytes == 4 * len(flat)
    moved = read_state(model)
    write_state(model, start)
    assert read_state(model).digest() == start.digest()
    write_state(model, start + delta)
    torch.testing.assert_close(read_state(model).tensors, moved.tensors, rtol=0, atol=1e-6)
    fewer = {name: start[name] for name in list(start)[1:]}
    with pytest.raises(ValueError, match="not this model's state"):
        write_state(model, type(start)(fewer))


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix", "prompt", "ffa"])
def test_a_run_can_start_from_a_saved_adapter(tmp_path: Path, method: str):
    base, _ = base_and_task("embedded", "causal_lm")
    first = attached(base, method, "causal_lm")
    move(first)
    save_adapter(first, base.tokenizer, tmp_path / "first", base="embedded")
    settings = {**METHODS[method], "init_from": str(tmp_path / "first")}
    other, _ = base_and_task("embedded", "causal_lm")
    second = attach_adapter(other.model, AdapterConfig(**settings), seed=9, task="causal_lm")
    assert read_state(second).digest() == read_state(first).digest()
    saved = load_file(tmp_path / "first/adapter_model.safetensors")
    frozen = {n: p for n, p in second.named_parameters() if "lora_A" in n}
    for name, parameter in frozen.items():
        assert torch.equal(parameter, saved[name.replace(".default", "")])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_r": 4}, "`r: 8`"),
        ({"lora_alpha": 8.0}, "lora_alpha"),
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"method": "ia3"}, "`peft_type: LORA`"),
        ({"target_modules": ["q_proj"]}, "other modules"),
    ],
)
def test_another_start_than_the_config_speaks_of_is_refused(
    tmp_path: Path, settings: dict[str, Any], says: str
):
    base, _ = base_and_task("embedded", "causal_lm")
    save_adapter(
        attached(base, "lora", "causal_lm"), base.tokenizer, tmp_path / "a", base="embedded"
    )
    config = AdapterConfig.model_validate({**settings, "init_from": str(tmp_path / "a")})
    other, _ = base_and_task("embedded", "causal_lm")
    with pytest.raises(InputError, match=r"adapter\.init_from") as told:
        attach_adapter(other.model, config, seed=0, task="causal_lm")
    assert says in str(told.value)


def test_a_start_of_another_base_is_refused(tmp_path: Path, tiny: Callable[[str], str]):
    base, _ = base_and_task("embedded", "causal_lm")
    model = attached(base, "prompt", "causal_lm")
    save_adapter(model, base.tokenizer, tmp_path / "a", base="embedded")
    settings = {**METHODS["prompt"], "init_from": str(tmp_path / "a")}
    other, _ = base_and_task(tiny("gpt2"), "causal_lm")
    with pytest.raises(InputError, match="another base"):
        attach_adapter(other.model, AdapterConfig(**settings), seed=0, task="causal_lm")
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(["no"]))
    with pytest.raises(InputError, match="JSON object"):
        attach_adapter(other.model, AdapterConfig(**settings), seed=0, task="causal_lm")


def test_prompt_tuning_of_a_decoder_that_classifies_is_refused(tiny: Callable[[str], str]):
    for shape in ("llama", "gpt2"):
        base, _ = base_and_task(tiny(shape), "sequence_classification")
        with pytest.raises(InputError, match=r"adapter\.method"):
            attached(base, "prompt", "sequence_classification")


def test_modules_that_are_not_there_are_refused(tiny: Callable[[str], str]):
    base, _ = base_and_task(tiny("gpt2"), "causal_lm")
    config = AdapterConfig(target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"adapter\.target_modules"):
        attach_adapter(base.model, config, seed=0, task="causal_lm")


@pytest.mark.parametrize(
    "tree",
    [
        {"adapter": {"method": "ia3", "lora_r": 4}},
        {"adapter": {"method": "prompt_tuning", "target_modules": ["q_proj"]}},
        {"adapter": {"method": "full", "init_from": "x"}},
        {"adapter": {"num_virtual_tokens": 4}},
        {"adapter": {"target_modules": "q_proj"}},
        {"adapter": {"target_modules": []}},
        {"adapter": {"use_dora": True, "freeze_a": True}},
        {"adapter": {"method": "prefix_tuning"}, "training": {"gradient_checkpointing": True}},
        {"adapter": {"method": "prompt_tuning"}, "task": {"packing": True}},
    ],
)
def test_settings_that_contradict_are_refused(tree: dict[str, Any]):
    with pytest.raises(ValueError, match=r"need|can't be used|is `all-linear`"):
        RunConfig.model_validate(tree)
