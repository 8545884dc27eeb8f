"""A base model's outline: its shapes on the meta device, from its config alone."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from fedtune.config.model import ModelConfig
from fedtune.errors import InputError
from fedtune.models.base import Base, load_pretrained, load_tokenizer
from fedtune.models.padding import classifier_filler


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
    config = load_pretrained(model, AutoConfig)
    if task == "sequence_classification":
        config.num_labels = len(labels)
        made = _on_meta(AutoModelForSequenceClassification, config, model, dtype)
        config.pad_token_id = classifier_filler(tokenizer)
    else:
        made = _on_meta(AutoModelForCausalLM, config, model, dtype)
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no stop token (eos)", where="model.path")
    return Base(made, tokenizer)


def _on_meta(kind: Any, config: Any, model: ModelConfig, dtype: torch.dtype) -> Any:
    try:
        with torch.device("meta"):
            return kind.from_config(config, dtype=dtype, trust_remote_code=model.trust_remote_code)
    except ValueError as error:
        # a config of a kind of model that has no class for the task
        raise InputError(str(error).splitlines()[0][:200], where="model.path") from None
