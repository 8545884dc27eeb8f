"""Base models and their tokenizers: embedded, a local folder or a hub id."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from fedtune.config.model import ModelConfig
from fedtune.errors import InputError
from fedtune.models.base_files import hub_answers, local_folder, not_kept
from fedtune.models.four_bit import four_bit_settings, keep_layout
from fedtune.models.padding import check_classifier_padding, classifier_filler

transformers_logging.disable_progress_bar()
# a table on stderr for every new head; what it warns of is checked below
logging.getLogger("transformers.modeling_utils").addFilter(
    lambda record: "LOAD REPORT" not in record.getMessage()
)


@dataclass(frozen=True)
class Base:
    """A `transformers` model on the CPU and its tokenizer, which pads on the right."""

    model: Any
    tokenizer: Any


def load_base(
    model: ModelConfig,
    task: str,
    labels: Sequence[str] = (),
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Base:
    """Load model and tokenizer; in 4 bits, `dtype` is what is computed in.

    A new classification head comes from `seed` alone. Raises InputError when the model isn't
    there, lacks weights, has no token to stop or to pad with, or classifies padded text otherwise.
    """
    tokenizer = load_tokenizer(model)
    classifier = task == "sequence_classification"
    settings = {"dtype": dtype, "output_loading_info": True}
    if model.load_in_4bit:
        settings |= four_bit_settings(dtype, classifier=classifier)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if classifier:
            loaded = _load_classifier(model, labels, settings)
            loaded.config.pad_token_id = classifier_filler(tokenizer)
        else:
            loaded = _load_language_model(model, settings)
            if tokenizer.eos_token_id is None:
                raise InputError("the tokenizer has no stop token (eos)", where="model.path")
    if new := keep_layout(loaded):
        raise InputError(
            f"`{model.path}` has new layers that can't be 4-bit ({', '.join(new[:3])})",
            where="model.load_in_4bit",
        )
    if classifier:
        check_classifier_padding(loaded, tokenizer)
    return Base(loaded, tokenizer)


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer, padding on the right."""
    tokenizer = load_pretrained(model, AutoTokenizer)
    tokenizer.padding_side = "right"
    return tokenizer


def _load_language_model(model: ModelConfig, settings: dict[str, Any]) -> Any:
    loaded, info = load_pretrained(model, AutoModelForCausalLM, **settings)
    _check_whole(model, info)
    return loaded


def _load_classifier(model: ModelConfig, labels: Sequence[str], settings: dict[str, Any]) -> Any:
    loaded, info = load_pretrained(
        model,
        AutoModelForSequenceClassification,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **settings,
    )
    if type(loaded).__name__ in (loaded.config.architectures or ()):
        _check_whole(model, info)
    loaded.new_layers = sorted({name.rpartition(".")[0] for name in info["missing_keys"]})
    return loaded


def _check_whole(model: ModelConfig, info: dict[str, Any]) -> None:
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"`{model.path}` lacks weights ({', '.join(missing[:3])}, {len(missing)} in all)",
            where="model.path",
            expected="a model of this architecture, whole",
        )


def load_pretrained(model: ModelConfig, kind: Any, **settings: Any) -> Any:
    """What `kind`, a class of `transformers`, makes of the base model's files.

    Raises InputError when there are none, or they can't be read.
    """
    folder = local_folder(model)
    local = folder is not None or not hub_answers(model.path, model.revision)
    settings |= {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    settings = {name: value for name, value in settings.items() if value is not None}
    if kind in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        # it looks for an adapter among the files, and asks the hub unless it is told twice
        settings["adapter_kwargs"] = {"local_files_only": local}
    try:
        return kind.from_pretrained(str(folder or model.path), local_files_only=local, **settings)
    except Exception as error:
        if folder is None and local and isinstance(error, OSError):
            raise not_kept(model) from None
        # transformers, safetensors and tokenizers raise all kinds, the last a bare Exception
        if not (isinstance(error, _BAD_FILES) or type(error) is Exception):
            raise
        raise InputError(
            f"`{model.path}` can't be loaded ({str(error).strip().splitlines()[0][:200]})",
            where="model.path",
            expected="`embedded`, a folder with config.json, weights and tokenizer, or a hub id",
        ) from None


_BAD_FILES = (OSError, ValueError, RuntimeError, SafetensorError)
