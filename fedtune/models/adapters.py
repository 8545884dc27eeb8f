"""Adapters: attach one to a base model, read and write its state, save it for plain `peft`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from fedtune.atomic import new_folder
from fedtune.config.schema import AdapterConfig
from fedtune.errors import InputError
from fedtune.models.labels import save_labels
from fedtune.tensors import TensorSet, spec_difference

_PEFT_TASKS = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}


def attach_adapter(model: Any, config: AdapterConfig, *, seed: int, task: str) -> Any:
    """The model with its trainable parts, the same for a seed whatever was drawn before.

    `full` leaves all weights trainable; LoRA on a classifier trains the head too. With `freeze_a`
    only B is trained (FFA-LoRA, Sun et al. 2024). Raises InputError on other methods, which this
    release can't train, and on modules that the model doesn't have.
    """
    if config.method == "full":
        return model.requires_grad_(True)
    if config.method != "lora":
        raise InputError(
            f"`{config.method}` is not available yet",
            where="adapter.method",
            expected="`lora` or `full`",
        )
    settings = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        task_type=_PEFT_TASKS[task],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, settings)
        except ValueError as error:
            raise InputError(str(error), where="adapter.target_modules") from None
    if config.freeze_a:
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
    return adapted


def read_state(model: Any) -> TensorSet:
    """Copies of all trainable tensors, by parameter name."""
    return TensorSet({n: p.detach().float().cpu().clone() for n, p in _trainable(model)})


def write_state(model: Any, state: TensorSet) -> None:
    """Put `state` into the model. Raises ValueError unless it has exactly the trainable tensors."""
    spec = read_state(model).spec
    if state.spec != spec:
        raise ValueError(f"not this model's state: {spec_difference(spec, state.spec)}")
    with torch.no_grad():
        for name, parameter in _trainable(model):
            parameter.copy_(state[name])


def save_adapter(model: Any, tokenizer: Any, folder: Path, *, base: str) -> None:
    """Write the adapter (or the full model), tokenizer and chat template; replaces `folder`.

    `base` is what the files call the base model: where it lies on this machine is nobody's concern.
    """
    with new_folder(folder) as draft:
        if hasattr(model, "peft_config"):
            model.peft_config["default"].base_model_name_or_path = base
            # the model card takes its words from here
            model.config.name_or_path = model.get_base_model().name_or_path = base
            # embeddings aren't trained, and `auto` would ask the hub about them
            model.save_pretrained(draft, save_embedding_layers=False)
            if model.peft_config["default"].task_type == _PEFT_TASKS["sequence_classification"]:
                save_labels(model, draft)
        else:
            model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def _trainable(model: Any) -> Iterator[tuple[str, Tensor]]:
    return ((n, p) for n, p in model.named_parameters() if p.requires_grad)
