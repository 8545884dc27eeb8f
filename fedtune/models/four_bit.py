"""4-bit base weights: NF4 with double quantization (QLoRA, Dettmers et al. 2023).

The one module that touches bitsandbytes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor
from transformers import BitsAndBytesConfig

_NEW_LAYERS = [".*score", ".*classifier", ".*pooler"]


def four_bit_settings(dtype: torch.dtype, *, classifier: bool) -> dict[str, Any]:
    """What `from_pretrained` needs to quantize linear layers on the CPU and compute in `dtype`.

    A language model's output layer keeps its precision, as do a classifier's new layers.
    """
    return {
        "device_map": "cpu",
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=_NEW_LAYERS if classifier else None,
        ),
    }


def keep_layout(model: Any) -> list[str]:
    """Stop bitsandbytes from repacking weights when a model is first evaluated.

    On CPUs with AVX512-BF16 it would round the quantization's scales to bfloat16 in place, and
    training after that would get no gradient through the layer. Gives the names of layers that
    were to be 4-bit and had no weights to quantize.
    """
    for _, layer in _layers(model):
        layer.support_avx512bf16_for_cpu = False
    return [name for name, layer in _layers(model) if layer.weight.quant_state is None]


def is_four_bit(model: Any) -> bool:
    """Whether any layer is 4-bit."""
    return any(True for _ in _layers(model))


def dequantized(model: Any) -> dict[str, Tensor]:
    """Each 4-bit weight as it is computed with, float32 [out, in], by its parameter's name."""
    return {
        f"{name}.weight": dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        for name, layer in _layers(model)
    }


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, Linear4bit))
