"""Base models and their tokenizers: embedded, a local folder or a hub id."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from fedtune.config.schema import ModelConfig
from fedtune.errors import InputError

transformers_logging.disable_progress_bar()

_EMBEDDED = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class Base:
    """A float32 `transformers` model on the CPU and its tokenizer, whose pad token is not eos."""

    model: Any
    tokenizer: Any


def load_base(model: ModelConfig, task: str, labels: Sequence[str] = (), *, seed: int = 0) -> Base:
    """Load model and tokenizer. A new classification head comes from `seed` alone.

    Raises InputError when the model isn't there, or has no token to pad with.
    """
    if model.load_in_4bit:
        raise InputError("is not available yet", where="model.load_in_4bit")
    tokenizer = load_tokenizer(model)
    kind, heads = AutoModelForCausalLM, {}
    if task == "sequence_classification":
        kind = AutoModelForSequenceClassification
        heads = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded = _load(model, kind, dtype=torch.float32, **heads)
    loaded.config.pad_token_id = tokenizer.pad_token_id
    return Base(loaded, tokenizer)


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer, padding on the right. Were pad eos, a model would never learn to stop."""
    tokenizer = _load(model, AutoTokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        if tokenizer.unk_token_id in (None, tokenizer.eos_token_id):
            raise InputError(
                "the tokenizer has no token to pad with",
                where="model.path",
                expected="a pad token that is not the stop token",
                mend="add one to the tokenizer's files",
            )
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer


def _load(model: ModelConfig, kind: Any, **settings: Any) -> Any:
    path = str(_EMBEDDED) if model.path == "embedded" else model.path
    settings |= {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    settings["local_files_only"] = Path(path).is_dir()
    try:
        return kind.from_pretrained(path, **{k: v for k, v in settings.items() if v is not None})
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"`{model.path}` can't be loaded ({str(error).strip().splitlines()[0][:200]})",
            where="model.path",
            expected="`embedded`, a folder with config.json, weights and tokenizer, or a hub id",
        ) from None
