"""Another module tree over the same frozen weights: two models in little more than one's memory."""

import copy
import itertools
from typing import Any


def twin(model: Any) -> Any:
    """A copy of `model` that shares every tensor that isn't trained; what is trained is copied."""
    frozen = (p for p in model.parameters() if not p.requires_grad)
    shared = itertools.chain(frozen, model.buffers())
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in shared})


def bare_twin(model: Any) -> Any:
    """A twin of an adapted model without its adapter. Raises TypeError on a model without one."""
    if not hasattr(model, "peft_config"):
        raise TypeError("the model has no adapter to leave out")
    base = twin(model).unload()
    if hasattr(base, "peft_config"):
        del base.peft_config  # else `peft` takes it for a model that has an adapter
    return base
