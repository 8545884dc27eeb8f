"""A merged model is the adapter's, or it isn't saved."""

from collections.abc import Callable
from pathlib import Path

import peft.tuners.lora.layer as lora_layer
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fedtune.config.load import save_config
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError, RunFailedError
from fedtune.models.adapters import attach_adapter, read_state, save_adapter, write_state
from fedtune.models.base import load_base
from fedtune.models.four_bit import dequantized
from fedtune.models.merge import merge
from fedtune.models.saved import load_saved

LABELS = ("flu", "asthma")
PROBE = torch.tensor([[5, 9, 77, 41, 12, 8]])
METHODS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "ia3": {"method": "ia3"},
    "fed_sb": {"method": "fed_sb"},
}


def left_by_a_run(
    folder: Path, path: str, adapter: dict, *, task: str = "causal_lm", four_bit: bool = False
) -> Path:
    """A run's folder with an adapter that moved."""
    config = RunConfig.model_validate(
        {
            "model": {"path": path, "load_in_4bit": four_bit},
            "task": {"name": task},
            "adapter": adapter,
        }
    )
    base = load_base(config.model, task, LABELS if task != "causal_lm" else ())
    model = attach_adapter(base.model, config.adapter, seed=1, task=task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = read_state(model)
        write_state(model, state.map(lambda t: t + 0.05 * torch.randn_like(t)))
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    save_adapter(model, base.tokenizer, folder / "adapter", base=path)
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=PROBE).logits


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("four_bit", [False, True])
def test_plain_transformers_loads_what_the_adapter_said(
    tmp_path: Path, tiny: Callable[[str], str], shape: str, method: str, four_bit: bool
):
    run = left_by_a_run(tmp_path / "run", tiny(shape), METHODS[method], four_bit=four_bit)
    told = merge(run, tmp_path / "merged")
    assert told.dequantized == four_bit
    assert told.largest_difference <= told.allowed_difference < 0.05 * told.adapter_effect
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    adapted = load_saved(run).model
    difference = float((logits(plain) - logits(adapted)).abs().max())
    assert difference <= told.allowed_difference
    assert plain.dtype == torch.float32
    assert not getattr(plain, "is_quantized", False)
    prompt = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(plain.generate(PROBE, **prompt), adapted.generate(input_ids=PROBE, **prompt))


def test_a_four_bit_run_is_merged_into_what_it_was_trained_on(tmp_path: Path):
    run = left_by_a_run(tmp_path / "run", "embedded", {"target_modules": ["q_proj"]}, four_bit=True)
    merge(run, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = load_base(RunConfig.model_validate({"model": {"load_in_4bit": True}}).model, "causal_lm")
    for name, weight in dequantized(base.model).items():
        if "q_proj" not in name:
            assert torch.equal(plain.get_parameter(name), weight), name


@pytest.mark.parametrize("shape", ["llama", "bert"])
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_a_classifier_is_merged_with_its_head_and_labels(
    tmp_path: Path, tiny: Callable[[str], str], shape: str, method: str
):
    task = "sequence_classification"
    run = left_by_a_run(tmp_path / "run", tiny(shape), METHODS[method], task=task)
    merge(run, tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(plain), logits(load_saved(run).model), atol=1e-5, rtol=1e-5)
    assert plain.config.id2label == dict(enumerate(LABELS))
    assert load_saved(tmp_path / "merged").labels == LABELS


def test_tokenizer_template_and_generation_settings_come_along(tmp_path: Path):
    run = left_by_a_run(tmp_path / "run", "embedded", {})
    merge(run, tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == load_saved(run).tokenizer.chat_template is not None
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert plain.generation_config.eos_token_id == tokenizer.eos_token_id
    assert not [p for p in (tmp_path / "merged").iterdir() if "adapter" in p.name]
    here = str(Path(lora_layer.__file__).parents[4])
    texts = [p for p in (tmp_path / "merged").iterdir() if p.suffix in (".json", ".jinja")]
    assert not [p.name for p in texts if here in p.read_text() or str(run) in p.read_text()]


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.1])
def test_a_merge_that_does_nothing_or_harm_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
):
    run = left_by_a_run(tmp_path / "run", "embedded", {})
    exact = lora_layer.Linear.get_delta_weight
    monkeypatch.setattr(
        lora_layer.Linear, "get_delta_weight", lambda self, name: factor * exact(self, name)
    )
    with pytest.raises(RunFailedError, match="differ by up to"):
        merge(run, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_adapter_that_barely_moved_is_not_lost_in_the_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = left_by_a_run(tmp_path / "run", "embedded", {"lora_alpha": 0.02})
    told = merge(run, tmp_path / "merged")
    assert told.adapter_effect < 0.05
    monkeypatch.setattr(lora_layer.Linear, "get_delta_weight", lambda self, name: 0.0)
    with pytest.raises(RunFailedError, match="differ by up to"):
        merge(run, tmp_path / "again")


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning", "full"])
def test_what_has_no_place_in_the_weights_is_refused(tmp_path: Path, method: str):
    run = left_by_a_run(tmp_path / "run", "embedded", {"method": method})
    with pytest.raises(InputError, match="nothing to merge" if method == "full" else "positions"):
        merge(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
