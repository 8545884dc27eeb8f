"""The memory estimate against the peak of a real training process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from fedtune.config.model import ModelConfig
from fedtune.models.base import load_tokenizer

MEASURE = """
import json, resource, sys
import psutil, torch
from fedtune.config.schema import RunConfig
from fedtune.models.adapters import attach_adapter
from fedtune.models.base import load_base
from fedtune.models.outline import load_outline
from fedtune.reports.memory import estimate_memory
from fedtune.tasks import build_task
from fedtune.tasks.task import Encoded
from fedtune.training.trainer import Trainer

config = RunConfig.model_validate(json.loads(sys.argv[1]))
data = [Encoded([7] * 256, [7] * 256)] * config.training.batch_size
if sys.argv[2] == "estimate":
    base = load_outline(config.model, "causal_lm")
    model = attach_adapter(base.model, config.adapter, seed=0, task="causal_lm")
    task = build_task(config.task, base.tokenizer)
    batch = task.collate(data[: config.training.micro_batch_size])
    print(estimate_memory(model, config, task, batch, copies=2).total)
else:
    # a first step on a tiny model, so that torch's own memory is there before counting begins
    small = load_base(RunConfig().model, "causal_lm")
    task = build_task(config.task, small.tokenizer)
    model = attach_adapter(small.model, config.adapter, seed=0, task="causal_lm")
    Trainer(task, config.training, seed=0).fit(model, data[:1])
    del small, model
    before = psutil.Process().memory_info().rss
    base = load_base(config.model, "causal_lm")
    model = attach_adapter(base.model, config.adapter, seed=0, task="causal_lm")
    Trainer(task, config.training, seed=0).fit(model, data)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 59 million parameters with random weights."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = load_tokenizer(ModelConfig())
    settings = LlamaConfig(
        vocab_size=8192,
        hidden_size=640,
        intermediate_size=1792,
        num_hidden_layers=10,
        num_attention_heads=10,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def told(settings: dict[str, object], what: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(settings), what],
        capture_output=True,
        text=True,
        check=True,
        env={
            "PYTHONPATH": ":".join(sys.path),
            "PATH": "",
            "OMP_NUM_THREADS": "1",
            # freed memory goes back to the system at once, so that the peak is of what is in use
            "MALLOC_MMAP_THRESHOLD_": "65536",
        },
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "adapter", "training"),
    [
        ("LoRA", {"method": "lora"}, {}),
        ("LoRA, micro-batches of 2", {"method": "lora"}, {"micro_batch_size": 2}),
        ("full fine-tuning", {"method": "full"}, {}),
    ],
)
def test_the_estimate_is_near_the_measured_peak(
    base: Path, name: str, adapter: dict[str, object], training: dict[str, object]
) -> None:
    settings: dict[str, object] = {
        "model": {"path": str(base)},
        "adapter": adapter,
        "training": {"max_steps": 2, "batch_size": 8, **training},
    }
    estimated, measured = told(settings, "estimate"), told(settings, "measure")
    ratio = estimated / measured
    print(f"{name}: estimated {estimated >> 20} MiB, measured {measured >> 20}, ratio {ratio:.2f}")
    assert 0.8 < ratio < 1.3
