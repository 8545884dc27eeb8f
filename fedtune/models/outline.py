"""A base model's outline: its shapes on the meta device, from its config alone."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from fedtune.config.schema import ModelConfig
from fedtune.models.base import Base, _load, load_tokenizer


def load_outline(
    model: ModelConfig,
    task: str,
    labels: Sequence[str] = (),
    *,
    dtype: torch.dtype = torch.float32,
) -> Base:
    """What `load_base` gives, without a byte of its weights: no weights file is opened.

    Raises InputError where `load_base` would, but for weights that are missing or damaged.
    """
    tokenizer = load_tokenizer(model)
    kind: Any = AutoModelForCausalLM
    config = _load(model, AutoConfig)
    if task == "sequence_classification":
        kind = AutoModelForSequenceClassification
        config.num_labels = len(labels)
    config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        made = kind.from_config(config, dtype=dtype, trust_remote_code=model.trust_remote_code)
    return Base(made, tokenizer)
