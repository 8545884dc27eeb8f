"""Bytes that a silo sends a round, with adapters on the linear layers of a 1B-shaped Llama.

    python -m benchmarks.delta_bytes

The model is on the meta device: shapes without weights. Payloads only: names, shapes and Flower's
envelope come on top (some kilobytes).
"""

from typing import Any, get_args

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fedtune.config.adapter import AdapterConfig
from fedtune.config.federation import Encoding
from fedtune.delta_encoding import encoded_size
from fedtune.models.adapters import attach_adapter, state_spec
from fedtune.tensors import Spec

# as Llama 3.2 1B
SHAPE = LlamaConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)


ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA, rank 8": {},
    "FFA-LoRA, rank 8": {"freeze_a": True},
    "Fed-SB, rank 8": {"method": "fed_sb"},
    "Fed-SB, rank 32": {"method": "fed_sb", "lora_r": 32},
    "Fed-SB, rank 64": {"method": "fed_sb", "lora_r": 64},
}


def spec_with(adapter: dict[str, Any]) -> tuple[Spec, int]:
    """Names and shapes of what is sent, and the base's parameters."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(SHAPE)
        parameters = sum(p.numel() for p in base.parameters())
        config = AdapterConfig.model_validate(adapter)
        return state_spec(attach_adapter(base, config, seed=0, task="causal_lm")), parameters


def main() -> None:
    print("adapter           scalars    bytes a round and silo, float32")
    for name, adapter in ADAPTERS.items():
        size = encoded_size(spec_with(adapter)[0], "float32")
        print(f"{name:16}  {size // 4:9,}  {size:10,}")
    spec, parameters = spec_with({})
    scalars = encoded_size(spec, "float32") // 4
    print(f"\nbase {parameters:,} parameters, LoRA of rank 8: {scalars:,} in {len(spec)} tensors")
    print("encoding  bytes a round and silo  of float32")
    for encoding in get_args(Encoding):
        size = encoded_size(spec, encoding)
        print(f"{encoding:8}  {size:22,}  {size / scalars / 4:10.3f}")


if __name__ == "__main__":
    main()
