"""The page's task, run as it stands there: found by its name, trained, and shown by a dry run."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fedtune.config.schema import RunConfig
from fedtune.config.task import TaskConfig
from fedtune.models.base import load_base
from fedtune.tasks import build_task
from fedtune.tasks.evaluation import evaluate
from fedtune.tasks.task import IGNORED, Task
from fedtune.training.trainer import Trainer

PAGE = (Path(__file__).parents[2] / "docs" / "writing-a-task.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0]
ROWS = [
    {
        "prompt": "Fever.",
        "completion": "Influenza. Plan: rest, fluids and paracetamol.",
        "where": "a",
    },
    {"prompt": "Chest pain.", "completion": "Infarction. Plan: aspirin and an ECG.", "where": "b"},
]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A config that asks for the task, whose file is where the page says."""
    module = ModuleType("fedtune.tasks.first_words")
    exec(compile(CODE, "first_words.py", "exec"), module.__dict__)  # noqa: S102 - our own page
    monkeypatch.setitem(sys.modules, module.__name__, module)
    base = RunConfig.model_validate({"training": {"max_steps": 3, "batch_size": 2}})
    task = TaskConfig.model_construct(**{**base.task.model_dump(), "name": "first_words"})
    return base.model_copy(update={"task": task})


def test_the_pages_task_learns_what_it_says(config: RunConfig) -> None:
    base = load_base(config.model, config.task.head)
    task: Task = build_task(config.task, base.tokenizer)
    examples = task.encode_batch(ROWS)
    for example in examples:
        learned = [i for i, label in enumerate(example.labels) if label != IGNORED]
        assert len(learned) == 5
        assert learned[-1] == len(example.labels) - 1
        assert example.labels[-1] == base.tokenizer.eos_token_id
    before = evaluate(task, base.model, examples, 2)["loss"]
    Trainer(task, config.training, seed=0).fit(base.model.requires_grad_(True), examples)
    assert evaluate(task, base.model, examples, 2)["loss"] < before


def test_the_pages_promises_on_losses_hold(config: RunConfig) -> None:
    base = load_base(config.model, config.task.head)
    task = build_task(config.task, base.tokenizer)
    one, other = task.encode_batch(ROWS)
    with torch.no_grad():
        alone = torch.cat([task.losses(base.model, task.collate([e])) for e in (one, other)])
        together = task.losses(base.model, task.collate([one, other]))
    assert torch.allclose(alone, together, atol=1e-5)


def test_its_encodings_are_not_taken_for_another_tasks(config: RunConfig) -> None:
    tokenizer = load_base(config.model, "causal_lm").tokenizer
    plain = build_task(RunConfig().task, tokenizer)
    assert build_task(config.task, tokenizer).fingerprint != plain.fingerprint
