"""Central LoRA training: fedtune's Trainer against `transformers.Trainer` with `peft`.

    python -m benchmarks.central_training [--steps 20] [--repeats 5]

The same model, adapter, examples, batch size and precision (float32 on a CPU, bf16 where `auto`
means it). Both take turns, so that a busy machine slows both; a first turn of each warms up.
Printed: seconds a step of each, and the ratio (below 1: fedtune is faster).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainingArguments
from transformers import Trainer as HuggingFaceTrainer

from benchmarks.machine import machine
from fedtune.config.adapter import AdapterConfig
from fedtune.config.model import ModelConfig
from fedtune.config.task import TaskConfig
from fedtune.config.training import TrainingConfig
from fedtune.models.adapters import attach_adapter
from fedtune.models.base import load_tokenizer
from fedtune.tasks.causal_lm import CausalLm
from fedtune.tasks.task import Encoded
from fedtune.training.trainer import Trainer

BATCH, LENGTH, RATE = 16, 128, 1e-3


def adapted(width: int, layers: int) -> Any:
    """A random Llama with a LoRA on all linear layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        pad_token_id=0,
    )
    return attach_adapter(LlamaForCausalLM(config), AdapterConfig(), seed=0, task="causal_lm")


def examples(count: int, *, ragged: bool) -> list[Encoded]:
    """Random tokens; ragged: of 16 to 128 tokens each."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(count):
        size = int(torch.randint(16, LENGTH + 1, (1,), generator=generator)) if ragged else LENGTH
        rows.append(torch.randint(5, 1024, (size,), generator=generator).tolist())
    return [Encoded(row, row) for row in rows]


def with_fedtune(task: CausalLm, data: Sequence[Encoded], steps: int, model: Any) -> float:
    settings = TrainingConfig(
        learning_rate=RATE, max_steps=steps, batch_size=BATCH, lr_schedule="linear"
    )
    began = time.perf_counter()
    Trainer(task, settings, seed=0).fit(model, data)
    return (time.perf_counter() - began) / steps


def with_transformers(task: CausalLm, data: Sequence[Encoded], steps: int, model: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=RATE,
            lr_scheduler_type="linear",
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = HuggingFaceTrainer(
            model, arguments, train_dataset=data, data_collator=task.collate
        )
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
        return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(machine())
    task = CausalLm(TaskConfig(), load_tokenizer(ModelConfig()))
    sides: dict[str, Callable[..., float]] = {
        "fedtune": with_fedtune,
        "transformers": with_transformers,
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for width, layers, ragged in ((128, 4, False), (256, 6, False), (256, 6, True)):
        data = examples(BATCH * 8, ragged=ragged)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(options.repeats + 1):
            for name, train in sides.items():
                took = train(task, data, options.steps, adapted(width, layers).to(device))
                if turn:
                    seconds[name].append(took)
        pairs = zip(seconds["fedtune"], seconds["transformers"], strict=True)
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        shown = [f"{n} {1000 * statistics.median(s):.1f} ms a step" for n, s in seconds.items()]
        print(
            f"width {width}, {layers} layers, {'ragged' if ragged else 'equal'} rows: "
            f"{', '.join(shown)}; ratio {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


if __name__ == "__main__":
    main()
