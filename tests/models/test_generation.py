"""What is written is what the model finds likeliest, token by token, for every kind of adapter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedtune.config.adapter import AdapterConfig
from fedtune.config.model import ModelConfig
from fedtune.errors import InputError
from fedtune.models.adapters import attach_adapter, read_state, write_state
from fedtune.models.base import load_base
from fedtune.models.generation import Sampling, generate
from fedtune.models.saved import Loaded

PROMPT = "A man with chest pain"


def opened(path: str, adapter: dict[str, Any], task: str = "causal_lm") -> Loaded:
    config = ModelConfig(path=path)
    labels = () if task == "causal_lm" else ("a", "b")
    base = load_base(config, task, labels)
    model = attach_adapter(base.model, AdapterConfig(**adapter), seed=0, task=task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = read_state(model)
        write_state(model, state.map(lambda t: t + 0.1 * torch.randn_like(t)))
    return Loaded(model.eval(), base.tokenizer, task, labels, config)


def likeliest(loaded: Loaded, ids: list[int], count: int) -> list[int]:
    """Greedy, without a cache: the model is asked afresh for every token."""
    new: list[int] = []
    while len(new) < count and (not new or new[-1] != loaded.tokenizer.eos_token_id):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([[*ids, *new]]), use_cache=False).logits
        new.append(int(logits[0, -1].argmax()))
    return new


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "adapter",
    [
        {},
        {"method": "ia3"},
        {"method": "prefix_tuning", "num_virtual_tokens": 3},
        {"method": "prompt_tuning", "num_virtual_tokens": 3},
    ],
)
def test_greedy_is_the_likeliest_token_each_time(
    tiny: Callable[[str], str], shape: str, adapter: dict[str, Any]
):
    loaded = opened(tiny(shape), adapter)
    done = generate(loaded, [PROMPT, "Fever!"], Sampling(max_new_tokens=12))
    ids = loaded.tokenizer(PROMPT)["input_ids"]
    ids = [token for token in ids if token != loaded.tokenizer.eos_token_id]
    wanted = likeliest(loaded, ids, 12)
    assert done[0].tokens == len(wanted)
    assert done[0].text == loaded.tokenizer.decode(wanted, skip_special_tokens=True)
    assert [c.prompt for c in done] == [PROMPT, "Fever!"]


def test_it_stops_at_the_stop_token(monkeypatch: pytest.MonkeyPatch):
    loaded = opened("embedded", {})
    free = generate(loaded, [PROMPT], Sampling(max_new_tokens=8))[0]
    assert not free.stopped
    ids = likeliest(loaded, loaded.tokenizer(PROMPT)["input_ids"], 8)
    # the model's own settings name the third token it would write
    loaded.model.generation_config.eos_token_id = [1, ids[2]]
    first = ids.index(ids[2])
    done = generate(loaded, [PROMPT], Sampling(max_new_tokens=8))[0]
    assert (done.tokens, done.stopped) == (first + 1, True)
    assert done.text == loaded.tokenizer.decode(ids[:first])


def test_drawn_tokens_come_from_the_seed_alone():
    loaded = opened("embedded", {})
    sample = [
        generate(loaded, [PROMPT], Sampling(16, temperature=2.0, seed=seed))[0].text
        for seed in (1, 1, 2)
    ]
    assert sample[0] == sample[1] != sample[2]


def test_a_long_prompt_is_told_and_the_context_not_overrun(tiny: Callable[[str], str]):
    loaded = opened(tiny("gpt2"), {"method": "prompt_tuning", "num_virtual_tokens": 8})
    word = loaded.tokenizer.decode([loaded.tokenizer(PROMPT)["input_ids"][0]])
    length = len(loaded.tokenizer(word * 118)["input_ids"])
    assert length == 118
    done = generate(loaded, [word * 118], Sampling(max_new_tokens=50))[0]
    assert done.tokens <= 2
    with pytest.raises(InputError, match="room for 120"):
        generate(loaded, [word * 120], Sampling())


def test_what_can_not_be_written_is_refused(tiny: Callable[[str], str]):
    with pytest.raises(InputError, match="writes no text"):
        generate(opened("embedded", {}, "sequence_classification"), ["x"], Sampling())
    plain = opened(tiny("gpt2"), {})
    with pytest.raises(InputError, match="no chat template"):
        generate(plain, ["x"], Sampling(), chat=True)
    with pytest.raises(InputError, match="empty"):
        generate(plain, ["<|endoftext|>"], Sampling())
