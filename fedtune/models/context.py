"""How many tokens a model can read at once."""

from typing import Any

from fedtune.config.adapter import AdapterConfig
from fedtune.errors import InputError

# what transformers writes for "no limit" is far above any real one
_NO_LIMIT = 10**9


def context_length(model: Any, tokenizer: Any) -> int | None:
    """The most tokens of one row, or None if neither the model nor its tokenizer has a limit.

    The tokenizer's counts too: some models keep a few of their positions for themselves.
    """
    limits = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min((int(limit) for limit in limits if limit and limit < _NO_LIMIT), default=None)


def check_context(model: Any, tokenizer: Any, adapter: AdapterConfig, max_length: int) -> None:
    """Raise InputError when examples of `max_length` tokens, with a prompt's own, don't fit."""
    prompted = adapter.method in ("prompt_tuning", "prefix_tuning")
    virtual = adapter.num_virtual_tokens if prompted else 0
    limit = context_length(model, tokenizer)
    if limit is None or max_length + virtual <= limit:
        return
    beside = f" and {virtual} virtual tokens" if virtual else ""
    raise InputError(
        f"{max_length} tokens{beside} are more than the model can read, which is {limit}",
        where="task.max_length",
        mend=f"set it to {limit - virtual} or less",
    )
