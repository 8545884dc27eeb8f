"""Fed-SB (Singhal et al. 2025): B and A are fixed, only the small R of `B R A` is trained and sent.

R is linear in what is sent, so the mean of silos' R is the mean of their updates. That holds only
where all have the same B and A. So these are signs, drawn by SHAKE-256 from seed and layer: the
same bits on every machine, without linear algebra whose last digits differ, and no row is looked
at. An Adam step on R moves the weights about as far as one on LoRA's B, whatever the rank.
"""

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fedtune.errors import InputError

_ADAPTER = "default"


def put_between(model: Any, seed: int) -> None:
    """Give each LoRA layer of `model` an R of zeros behind its A, and freeze its A and B.

    Raises InputError on layers that aren't linear, and on a rank above a layer's smaller side.
    """
    for name, layer in _lora_layers(model):
        if _ADAPTER not in layer.lora_A or not isinstance(layer.lora_A[_ADAPTER], nn.Linear):
            raise InputError(
                f"`{name}` is no linear layer, and `fed_sb` adapts no others",
                where="adapter.target_modules",
            )
        a, b = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
        rank, least = a.out_features, min(a.in_features, b.out_features)
        if rank > least:
            raise InputError(
                f"{rank} is above the smaller side of `{name}`",
                where="adapter.lora_r",
                expected=f"at most {least}",
            )
        r = nn.Linear(rank, rank, bias=False, device=b.weight.device, dtype=torch.float32)
        nn.init.zeros_(r.weight)
        _fix(a, [seed, name, "A"], size=1 / math.sqrt(a.in_features))
        _fix(b, [seed, name, "B"], size=1 / math.sqrt(rank))
        layer.lora_B[_ADAPTER] = nn.Sequential(OrderedDict(R=r, B=b))


def as_plain_lora(model: Any) -> dict[str, Tensor] | None:
    """The state of a model with Fed-SB adapters as that of ordinary LoRA, whose B is `B R`.

    None for any other model.
    """
    pairs = [(name, layer.lora_B[_ADAPTER]) for name, layer in _fed_sb_layers(model)]
    if not pairs:
        return None
    state: dict[str, Tensor] = model.state_dict()
    for name, between in pairs:
        prefix = f"{name}.lora_B.{_ADAPTER}"
        del state[f"{prefix}.R.weight"], state[f"{prefix}.B.weight"]
        state[f"{prefix}.weight"] = between.B.weight.detach() @ between.R.weight.detach()
    return state


def factors_digest(model: Any) -> str:
    """SHA-256 over the frozen B and A of a model with Fed-SB adapters; of another: an empty text.

    Who averages R must have the same as those who trained it.
    """
    digest, layers = hashlib.sha256(), list(_fed_sb_layers(model))
    for name, layer in layers:
        a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].B.weight
        digest.update(json.dumps([name, list(a.shape), list(b.shape)]).encode())
        for factor in (a, b):
            digest.update(factor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest() if layers else ""


def _fix(factor: nn.Linear, key: list[Any], *, size: float) -> None:
    factor.requires_grad_(False)
    if factor.weight.is_meta:  # a dry run's model is shapes only
        return
    scalars = factor.weight.numel()
    drawn = hashlib.shake_256(json.dumps(key).encode()).digest(-(-scalars // 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8), count=scalars)
    signs = torch.from_numpy(bits.astype(np.float32) * 2 - 1).view_as(factor.weight)
    factor.weight.data = (signs * size).to(factor.weight.device)


def _lora_layers(model: Any) -> Iterator[tuple[str, LoraLayer]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer))


def _fed_sb_layers(model: Any) -> Iterator[tuple[str, LoraLayer]]:
    for name, layer in _lora_layers(model):
        if _ADAPTER in layer.lora_B and isinstance(layer.lora_B[_ADAPTER], nn.Sequential):
            yield name, layer
