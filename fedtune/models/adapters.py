"""Adapters: attach one to a base model, read and write its state, save it for plain `peft`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from fedtune.atomic import new_folder
from fedtune.config.adapter import AdapterConfig
from fedtune.errors import InputError
from fedtune.models.adapter_settings import PEFT_TASKS, check_fits, peft_settings
from fedtune.models.base_files import published_name
from fedtune.models.fed_sb import as_plain_lora, put_between
from fedtune.models.labels import save_labels
from fedtune.models.warm_start import start_from
from fedtune.tensors import Spec, TensorSet, spec_difference


def attach_adapter(model: Any, config: AdapterConfig, *, seed: int, task: str) -> Any:
    """The model with its trainable parts in float32, the same for a seed whatever was drawn before.

    `full` leaves all weights trainable; an adapter on a classifier trains the new layers too. With
    `freeze_a` only B is trained (FFA-LoRA, Sun et al. 2024), with `fed_sb` only R between A and B.
    Raises InputError on modules that the model doesn't have, and on a method that this model can't
    be trained with.
    """
    if config.method == "full":
        return model.requires_grad_(True)
    check_fits(model, config, task)
    settings = peft_settings(config, model, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, settings)
        except ValueError as error:
            raise InputError(str(error), where="adapter.target_modules") from None
        if config.method == "fed_sb":
            put_between(adapted, seed)
    if config.init_from is not None:
        start_from(adapted, Path(config.init_from))
    if config.freeze_a:
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
    for _, parameter in _trainable(adapted):
        parameter.data = parameter.data.float()
    return adapted


def read_state(model: Any) -> TensorSet:
    """Copies of all trainable tensors, by parameter name."""
    return TensorSet({n: p.detach().float().cpu().clone() for n, p in _trainable(model)})


def state_spec(model: Any) -> Spec:
    """Names and shapes of what `read_state` reads."""
    return tuple(sorted((name, tuple(p.shape)) for name, p in _trainable(model)))


def write_state(model: Any, state: TensorSet) -> None:
    """Put `state` into the model. Raises ValueError unless it has exactly the trainable tensors."""
    spec = state_spec(model)
    if state.spec != spec:
        raise ValueError(f"not this model's state: {spec_difference(spec, state.spec)}")
    with torch.no_grad():
        for name, parameter in _trainable(model):
            parameter.copy_(state[name])


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The untouched base; a fully trained model is left as it is. What is trainable stays so."""
    if not hasattr(model, "peft_config"):
        yield
        return
    trained = {name for name, _ in _trainable(model)}
    prompts = model.peft_config["default"].is_prompt_learning
    try:
        with _prompt_left_out(model) if prompts else model.disable_adapter():
            # peft freezes what it disables, and then unfreezes all of it, with FFA-LoRA's A
            _train_only(model, trained)
            yield
    finally:
        _train_only(model, trained)


@contextmanager
def _prompt_left_out(model: Any) -> Iterator[None]:
    """What `peft`'s own `disable_adapter` fails to do for a classifier."""
    heads = [m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)]
    model.forward = model.get_base_model().forward
    for head in heads:
        head.enable_adapters(False)
    try:
        yield
    finally:
        del model.forward
        for head in heads:
            head.enable_adapters(True)


def save_adapter(
    model: Any, tokenizer: Any, folder: Path, *, base: str, revision: str | None = None
) -> None:
    """Write the adapter (or the full model), tokenizer and chat template; replaces `folder`.

    `base`, and its hub `revision`, are what the files call the base model: where the embedded one
    lies on this machine is nobody's concern. A `fed_sb` adapter is saved as the ordinary LoRA that
    it amounts to.
    """
    base = published_name(base)
    saved = (p for n, p in model.named_parameters() if p.requires_grad or "lora_" in n)
    needed = sum(p.numel() * p.element_size() for p in saved)
    with new_folder(folder, needed=needed) as draft:
        if hasattr(model, "peft_config"):
            model.peft_config["default"].base_model_name_or_path = base
            model.peft_config["default"].revision = revision
            # the model card takes its words from here
            model.config.name_or_path = model.get_base_model().name_or_path = base
            # embeddings aren't trained, and `auto` would ask the hub about them
            model.save_pretrained(
                draft, save_embedding_layers=False, state_dict=as_plain_lora(model)
            )
            if model.peft_config["default"].task_type == PEFT_TASKS["sequence_classification"]:
                save_labels(model, draft)
        else:
            model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def _train_only(model: Any, names: set[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def _trainable(model: Any) -> Iterator[tuple[str, Tensor]]:
    return ((n, p) for n, p in model.named_parameters() if p.requires_grad)
