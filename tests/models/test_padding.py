"""What short rows are filled with is never the stop token that a model learns."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoTokenizer

from fedtune.config.model import ModelConfig
from fedtune.config.task import TaskConfig
from fedtune.errors import InputError
from fedtune.models.base import load_base
from fedtune.models.padding import check_classifier_padding, classifier_filler, filler
from fedtune.tasks import build_task

STOP = "<|endoftext|>"


@pytest.fixture
def gpt2(tiny: Callable[[str], str]):
    return AutoTokenizer.from_pretrained(tiny("gpt2"))


def test_a_tokenizer_without_a_pad_token_is_padded_with_no_stop_token(gpt2):
    assert gpt2.pad_token is None
    assert gpt2.eos_token_id == gpt2.unk_token_id
    assert filler(gpt2) != gpt2.eos_token_id
    gpt2.pad_token = STOP  # as many scripts do
    assert filler(gpt2) != gpt2.eos_token_id


def test_a_declared_pad_comes_first_then_a_reserved_token_then_the_unknown_one(gpt2):
    gpt2.add_special_tokens({"unk_token": "<unk>"})
    assert filler(gpt2) == gpt2.unk_token_id
    gpt2.add_special_tokens({"additional_special_tokens": ["<turn>", "<|reserved_0|>"]})
    assert filler(gpt2) == gpt2.convert_tokens_to_ids("<|reserved_0|>")
    gpt2.add_special_tokens({"pad_token": "<pad>"})
    assert filler(gpt2) == gpt2.convert_tokens_to_ids("<pad>") == gpt2.pad_token_id


def test_the_stop_token_is_learned_where_the_base_knows_no_padding(tiny: Callable[[str], str]):
    base = load_base(ModelConfig(path=tiny("gpt2")), "causal_lm")
    task = build_task(TaskConfig(), base.tokenizer)
    rows = [{"text": "A man of 54 with fever.", "where": "x:1"}, {"text": "Pain!", "where": "x:2"}]
    batch = task.collate([task.encode(row) for row in rows])
    stop = base.tokenizer.eos_token_id
    assert (batch["labels"] == stop).sum(1).tolist() == [1, 1]
    filled = batch["attention_mask"] == 0
    assert filled.any()
    assert not (batch["input_ids"][filled] == stop).any()
    assert (batch["labels"][filled] == -100).all()
    # what fills a row has no part in its loss
    with torch.no_grad():
        one = task.losses(base.model, batch)
        batch["input_ids"][filled] = 7
        assert torch.equal(task.losses(base.model, batch), one)


@pytest.mark.parametrize("text", ["Pain!", f"Pain{STOP}", f"Pain{STOP}{STOP}"])
def test_a_decoder_classifies_by_the_last_token_of_the_text(tiny: Callable[[str], str], text: str):
    base = load_base(ModelConfig(path=tiny("gpt2")), "sequence_classification", ("a", "b"))
    task = build_task(TaskConfig(name="sequence_classification"), base.tokenizer, ("a", "b"))
    rows = [
        {"text": text, "label": "a", "where": "x:1"},
        {"text": "A man of 54 with chest pain.", "label": "b", "where": "x:2"},
    ]
    encoded = [task.encode(row) for row in rows]
    with torch.no_grad():
        together = task.losses(base.model, task.collate(encoded))
        hidden = base.model.transformer(torch.tensor([encoded[0].input_ids])).last_hidden_state
        logits = base.model.score(hidden[:, -1])
    exact = torch.nn.functional.cross_entropy(logits, torch.tensor([0]))
    torch.testing.assert_close(together[0], exact)


def test_a_classifier_that_reads_padding_is_refused(tiny: Callable[[str], str]):
    base = load_base(ModelConfig(path=tiny("gpt2")), "sequence_classification", ("a", "b"))
    base.model.config.pad_token_id = 9  # now it takes the filler for text
    with pytest.raises(InputError, match=r"model\.path"):
        check_classifier_padding(base.model, base.tokenizer)


def test_a_classifier_without_pad_and_stop_token_is_refused(gpt2):
    gpt2.eos_token = None
    with pytest.raises(InputError, match="no token to pad with"):
        classifier_filler(gpt2)
