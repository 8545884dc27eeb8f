"""Tasks. A new one is a file here with a `build`, named in `TaskConfig.name`."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fedtune.config.task import TaskConfig
from fedtune.tasks.task import Task


def build_task(config: TaskConfig, tokenizer: Any, labels: Sequence[str] = ()) -> Task:
    """The task that `config` names; `labels` are a classifier's, in order."""
    task: Task = import_module(f"fedtune.tasks.{config.name}").build(config, tokenizer, labels)
    return task
