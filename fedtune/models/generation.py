"""Complete prompts with a model that a run left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from fedtune.errors import InputError
from fedtune.models.context import context_length
from fedtune.models.padding import filler
from fedtune.models.saved import Loaded


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens: the likeliest at temperature 0, else drawn from `seed`.

    `top_p` below 1 draws from the likeliest tokens that have this share together.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Completion:
    """What followed a prompt. `stopped`: the model ended it, and not the limit of tokens."""

    prompt: str
    text: str
    tokens: int
    stopped: bool


def generate(
    loaded: Loaded, prompts: Sequence[str], sampling: Sampling, *, chat: bool = False
) -> list[Completion]:
    """Complete each prompt by itself; with `chat` each is a user's turn in the chat template.

    A prompt's completion does not depend on the others. Raises InputError if the model can't
    write, knows no chat template, or a prompt is empty or leaves it no room.
    """
    _check_writes(loaded)
    if chat and not loaded.tokenizer.chat_template:
        raise InputError(
            "the tokenizer has no chat template", mend="leave out `--chat` for this model"
        )
    encoded = [_encode(loaded.tokenizer, prompt, chat) for prompt in prompts]
    limits = [min(sampling.max_new_tokens, _room(loaded, len(ids))) for ids in encoded]
    return [
        _complete(loaded, prompt, ids, sampling, limit)[0]
        for prompt, ids, limit in zip(prompts, encoded, limits, strict=True)
    ]


def draw(loaded: Loaded, prompt: str, count: int, sampling: Sampling) -> list[Completion]:
    """`count` completions of one prompt, drawn at once from `sampling.seed`.

    Raises InputError as `generate` does, and at temperature 0, where all would be the same.
    """
    _check_writes(loaded)
    if sampling.temperature <= 0:
        raise InputError("texts are drawn: all would be the same at temperature 0")
    ids = _encode(loaded.tokenizer, prompt, chat=False)
    limit = min(sampling.max_new_tokens, _room(loaded, len(ids)))
    return _complete(loaded, prompt, ids, sampling, limit, count)


def _check_writes(loaded: Loaded) -> None:
    if loaded.task != "causal_lm":
        raise InputError(
            "a classifier writes no text", expected="a run with `task.name: causal_lm`"
        )


def _encode(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    """Token ids as training has them: no stop token before the completion."""
    if chat:
        turns = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
        return list(ids["input_ids"] if isinstance(ids, Mapping) else ids)
    ids = list(tokenizer(prompt)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    if not ids:
        raise InputError("the prompt is empty", expected="at least one token")
    return ids


def _room(loaded: Loaded, length: int) -> int:
    """Tokens that fit after a prompt of `length` and an adapter's virtual tokens."""
    settings = getattr(loaded.model, "peft_config", {}).get("default")
    virtual = getattr(settings, "num_virtual_tokens", None) or 0
    context = context_length(loaded.model, loaded.tokenizer)
    if context is None:
        return 2**31
    room = context - virtual - length
    if room < 1:
        raise InputError(
            f"the prompt has {length} tokens, and the model has room for {context - virtual}"
        )
    return room


def _complete(
    loaded: Loaded, prompt: str, ids: list[int], sampling: Sampling, limit: int, count: int = 1
) -> list[Completion]:
    stops, drawn = stop_tokens(loaded), sampling.temperature > 0
    settings = GenerationConfig(
        max_new_tokens=limit,
        num_return_sequences=count,
        do_sample=drawn,
        temperature=sampling.temperature or None,
        top_p=sampling.top_p if drawn else None,
        top_k=0 if drawn else None,  # left out, `transformers` would draw from the likeliest 50
        eos_token_id=sorted(stops),
        pad_token_id=filler(loaded.tokenizer),
    )
    device = loaded.model.device
    given = torch.tensor([ids], device=device)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(sampling.seed)
        whole = loaded.model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), generation_config=settings
        )
    rows = whole[:, len(ids) :].tolist()
    return [_completion(loaded.tokenizer, prompt, row, stops) for row in rows]


def _completion(tokenizer: Any, prompt: str, new: list[int], stops: set[int]) -> Completion:
    """What `new` tokens say up to the first stop; after it comes filler, if longer ones go on."""
    end = next((place for place, token in enumerate(new) if token in stops), None)
    text = tokenizer.decode(new[:end], skip_special_tokens=True)
    return Completion(prompt, text, len(new) if end is None else end + 1, end is not None)


def stop_tokens(loaded: Loaded) -> set[int]:
    """The tokenizer's stop token, and those that the model's generation settings name."""
    named = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return {int(token) for token in (loaded.tokenizer.eos_token_id, *several) if token is not None}
