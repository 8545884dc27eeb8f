"""What `fedtune config init CASE` starts from."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A starting point: what it is for, in one sentence, and its settings."""

    about: str
    settings: dict[str, Any] = field(default_factory=dict)


_FILES = {"source": "files", "train_files": ["train.jsonl"]}
_BY_SILO = {"partition": {"by": "column", "column": "silo"}}
_COLUMNS = {"prompt": "prompt", "completion": "completion"}
_PAIRS = {**_FILES, "columns": _COLUMNS}

CASES: dict[str, Case] = {
    "demo": Case(
        "The embedded model learns from synthetic clinical notes, eight silos; no file is needed.",
        {"output": {"dir": "runs/demo"}},
    ),
    "lora": Case(
        'Rows {"prompt", "completion", "silo"}: a language model learns to answer, with LoRA.',
        {"data": _PAIRS, "federation": _BY_SILO, "output": {"dir": "runs/lora"}},
    ),
    "qlora": Case(
        "As `lora`, with the base model's weights in 4 bits: for models that would not fit.",
        {
            "model": {"load_in_4bit": True},
            "data": _PAIRS,
            "training": {
                "learning_rate": 2e-4,
                "micro_batch_size": 4,
                "gradient_checkpointing": True,
            },
            "federation": _BY_SILO,
            "output": {"dir": "runs/qlora"},
        },
    ),
    "chat": Case(
        'Rows {"messages", "silo"}: a model with a chat template learns the assistant\'s turns. '
        "Set `model.path` to an instruct model of your own.",
        {
            "data": {**_FILES, "format": "messages", "columns": {"messages": "messages"}},
            "federation": _BY_SILO,
            "output": {"dir": "runs/chat"},
        },
    ),
    "text": Case(
        'Rows {"text", "silo"}: a language model learns every token of plain text '
        "(domain-adaptive pretraining).",
        {
            "data": {**_FILES, "format": "text", "columns": {"text": "text"}},
            "task": {"loss_on": "all", "packing": True},
            "federation": _BY_SILO,
            "output": {"dir": "runs/text"},
        },
    ),
    "private": Case(
        'As `lora`, with a column "patient": each silo adds noise at every step, so that the '
        "adapter tells next to nothing of any one patient.",
        {
            "data": {**_FILES, "columns": {**_COLUMNS, "privacy_unit": "patient"}},
            "training": {"batch_size": 64, "max_steps": 10},
            "federation": _BY_SILO,
            "privacy": {"mode": "local", "target_epsilon": 8.0},
            "output": {"dir": "runs/private"},
        },
    ),
    "classification": Case(
        'Rows {"text", "label"}, divided into eight silos with different shares of labels.',
        {
            "data": {**_FILES, "columns": {"text": "text", "label": "label"}},
            "task": {"name": "sequence_classification"},
            "federation": {"partition": {"by": "dirichlet", "silos": 8}},
            "output": {"dir": "runs/classification"},
        },
    ),
}
