"""Settings become what training needs: a model with its adapter, a task, encoded examples.

The order prevents silent failures: device, then adapter, then (in the trainer) optimizer.
"""

from dataclasses import dataclass
from typing import Any

from fedtune.config.schema import RunConfig
from fedtune.data.load import Splits, load_splits
from fedtune.models.adapters import attach_adapter
from fedtune.models.base import load_base
from fedtune.models.context import check_context
from fedtune.tasks import build_task
from fedtune.tasks.encoding import EncodedSet, encode_examples
from fedtune.tasks.packing import check_packing
from fedtune.tasks.task import Task
from fedtune.training import processes


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, loaded once. `splits` are the rows that the encoded sets are of;
    `validation` is None where none is held out.
    """

    config: RunConfig
    model: Any
    tokenizer: Any
    task: Task
    splits: Splits
    train: EncodedSet
    validation: EncodedSet | None
    test: EncodedSet


def prepare(config: RunConfig) -> Prepared:
    """Load data and model, and attach the adapter. Raises InputError on what can't be used."""
    return prepare_on(config, load_splits(config))


def prepare_on(config: RunConfig, splits: Splits) -> Prepared:
    """As `prepare`, on rows that are read already."""
    labels = config.task.labels or splits.labels
    where = processes.device()
    dtype = processes.base_dtype(config)
    base = load_base(config.model, config.task.head, labels, seed=config.seed, dtype=dtype)
    check_context(base.model, base.tokenizer, config.adapter, config.task.max_length)
    task = build_task(config.task, base.tokenizer, labels)
    train, test = (encode_examples(task, rows) for rows in (splits.train, splits.test))
    validation = encode_examples(task, splits.validation) if splits.validation else None
    model = attach_adapter(
        base.model.to(where), config.adapter, seed=config.seed, task=config.task.head
    )
    if config.task.packing:
        check_packing(model, config.task.max_length)
    return Prepared(config, model, base.tokenizer, task, splits, train, validation, test)
