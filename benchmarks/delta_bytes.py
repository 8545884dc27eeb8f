"""Bytes that a silo sends a round: a LoRA of rank 8 on the linear layers of a 1B-shaped Llama.

    python -m benchmarks.delta_bytes

The model is on the meta device: shapes without weights. Payloads only: names, shapes and Flower's
envelope come on top (some kilobytes).
"""

from typing import get_args

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fedtune.config.adapter import AdapterConfig
from fedtune.config.federation import Encoding
from fedtune.delta_encoding import encoded_size
from fedtune.models.adapters import attach_adapter, state_spec

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


def main() -> None:
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(SHAPE)
        parameters = sum(p.numel() for p in base.parameters())
        model = attach_adapter(base, AdapterConfig(lora_r=8), seed=0, task="causal_lm")
    spec = state_spec(model)
    scalars = encoded_size(spec, "float32") // 4
    print(f"base {parameters:,} parameters, adapter {scalars:,} in {len(spec)} tensors")
    print("encoding  bytes a round and silo  of float32")
    for encoding in get_args(Encoding):
        size = encoded_size(spec, encoding)
        print(f"{encoding:8}  {size:22,}  {size / scalars / 4:10.3f}")


if __name__ == "__main__":
    main()
