"""A frozen residual beside a LoRA adapter: added in the forward pass, or folded into one adapter.

The base weights are never edited, so 4-bit bases do, and a run that goes on starts from equal bits.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from torch.nn.functional import linear

from fedtune.aggregation.lora_names import lora_pairs
from fedtune.models.adapters import read_state, write_state
from fedtune.models.twin import bare_twin
from fedtune.tensors import TensorSet

_PREFIX = "base_model.model."


@contextmanager
def residual_added(model: Any, residual: TensorSet) -> Iterator[None]:
    """Inside, each LoRA layer's output has the residual's `B A x` added; nothing of it trains.

    `residual` has the adapter's names; empty: nothing is added. Raises AttributeError on a name
    that the model doesn't have.
    """
    pairs = lora_pairs(residual.spec) if len(residual) else []
    hooks = []
    try:
        for name_a, name_b in pairs:
            layer = model.get_submodule(name_a.partition(".lora_A.")[0])
            hook = _Added(residual[name_a], residual[name_b], model.device)
            hooks.append(layer.register_forward_hook(hook))
        yield
    finally:
        for handle in hooks:
            handle.remove()


class _Added:
    def __init__(self, a: Tensor, b: Tensor, device: torch.device) -> None:
        self._a, self._b = a.to(device), b.to(device)

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].to(self._a.dtype)
        return output + linear(linear(x, self._a), self._b).to(output.dtype)


def folded(model: Any, residual: TensorSet) -> Any:
    """A twin of `model` whose one LoRA adapter is the adapter and the residual together.

    The factors are put side by side, so the rank is the sum of both; exact up to float32 rounding.
    Without a residual: the model itself.
    """
    if not len(residual):
        return model
    state, tensors, ranks = read_state(model), {}, {}
    for name_a, name_b in lora_pairs(residual.spec):
        layer = name_a.partition(".lora_A.")[0]
        scale = model.get_submodule(layer).scaling["default"]
        tensors[name_a] = torch.cat([state[name_a], residual[name_a]])
        tensors[name_b] = torch.cat([state[name_b] * scale, residual[name_b]], dim=1)
        ranks[re.escape(layer.removeprefix(_PREFIX))] = tensors[name_a].shape[0]
    settings = copy.deepcopy(model.peft_config["default"])
    settings.r = settings.lora_alpha = max(ranks.values())
    settings.rank_pattern = settings.alpha_pattern = ranks
    settings.use_rslora, settings.lora_dropout = False, 0.0
    with torch.random.fork_rng(devices=[]):
        wide = get_peft_model(bare_twin(model), settings)
    for parameter in wide.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    write_state(wide, TensorSet({**state.tensors, **tensors}))
    return wide.eval()
