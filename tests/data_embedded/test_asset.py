"""The embedded base model: loads offline, is small, can stop, and knows its words."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedtune
from fedtune.data.embedded.clinical import generate_notes
from fedtune.data.embedded.corpus import clinical_documents

ASSET = Path(fedtune.__file__).parent / "models" / "embedded"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSET, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(ASSET, local_files_only=True).eval()


def mean_loss(model: Any, tokenizer: Any, texts: list[str]) -> float:
    with torch.no_grad():
        ids = [torch.tensor([tokenizer.encode(text)]) for text in texts]
        return sum(model(input_ids=i, labels=i).loss.item() for i in ids) / len(ids)


def test_all_files_together_are_at_most_four_megabytes() -> None:
    assert sum(path.stat().st_size for path in ASSET.iterdir()) <= 4_000_000


def test_weights_are_finite_float32(model: Any) -> None:
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32, name
        assert torch.isfinite(weight).all(), name


def test_pad_is_not_the_stop_token_and_model_and_tokenizer_agree(
    model: Any, tokenizer: Any
) -> None:
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("text", ["temp 38.4 high.\nAssessment:", " Ünï 日本 \t x", "12 + 3 = 15"])
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_prompt_and_completion_tokens_join_to_those_of_the_whole(tokenizer: Any) -> None:
    for note in generate_notes(20, seed=0):
        parts = tokenizer.encode(note["prompt"]) + tokenizer.encode(note["completion"])
        assert parts == tokenizer.encode(note["prompt"] + note["completion"])


def test_notes_fit_the_default_length(tokenizer: Any) -> None:
    longest = max(
        len(tokenizer.encode(note["prompt"] + note["completion"]))
        for note in generate_notes(320, seed=0)
    )
    assert longest < 256


def test_chat_template_ends_the_assistant_turn_with_the_stop_token(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert asked == "<|user|>hi<|assistant|>"
    assert whole == asked + "yes<eos>"


def test_it_was_pretrained_on_general_text_but_not_on_the_diagnoses(
    model: Any, tokenizer: Any
) -> None:
    """An untrained model's loss is ln 1024 = 6.9 a token. Documents here have an unused seed."""
    general = mean_loss(model, tokenizer, list(clinical_documents(30, seed=99)))
    notes = list(generate_notes(20, seed=99))
    right = sum(guess(model, tokenizer, note) == note["label"] for note in notes)
    assert general < 2.5
    assert right <= len(notes) / 4


def guess(model: Any, tokenizer: Any, note: dict[str, str]) -> str:
    prompt = torch.tensor([tokenizer.encode(note["prompt"])])
    made = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False
    )
    return tokenizer.decode(made[0, prompt.shape[1] :]).split(".")[0].strip()
