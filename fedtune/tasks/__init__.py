"""Tasks. A new one is a file here and a line in `build_task`."""

from collections.abc import Sequence
from typing import Any

from fedtune.config.schema import TaskConfig
from fedtune.tasks.causal_lm import CausalLm
from fedtune.tasks.sequence_classification import SequenceClassification
from fedtune.tasks.task import Task


def build_task(config: TaskConfig, tokenizer: Any, labels: Sequence[str] = ()) -> Task:
    """The task that `config` names; `labels` are a classifier's, in order."""
    if config.name == "sequence_classification":
        return SequenceClassification(config, tokenizer, labels)
    return CausalLm(config, tokenizer)
