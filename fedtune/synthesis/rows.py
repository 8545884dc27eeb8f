"""The rows that synthetic texts are held against: a run's own, or files of text and label."""

from collections.abc import Sequence
from pathlib import Path

from fedtune.config.data import DataConfig
from fedtune.config.load import load_config
from fedtune.config.schema import RunConfig
from fedtune.config.task import TaskConfig
from fedtune.data.examples import ExampleSet
from fedtune.data.load import file_sources, load_splits, read_examples
from fedtune.errors import InputError
from fedtune.synthesis.usefulness import Labelled


def rows_of_run(run: Path) -> tuple[Labelled, Labelled]:
    """The rows that the run in `run` trained on and those that it held out, with their labels.

    Raises InputError if there is no run, or its rows have no label.
    """
    config = load_config(run / "config.yaml")
    if config.data.label_prompt is None and config.task.head != "sequence_classification":
        raise InputError(
            "the run's rows are read without labels",
            where=run / "config.yaml",
            mend="give `--train` and `--test` files instead of `--run`",
        )
    return _train_and_test(config)


def rows_of_files(train: Sequence[str], test: Sequence[str]) -> tuple[Labelled, Labelled]:
    """Rows of files that have columns `text` and `label`, each its own unit."""
    data = DataConfig(source="files", format="text_label", train_files=[*train], test_files=[*test])
    return _train_and_test(RunConfig(data=data, task=_CLASSIFY))


def synthetic_rows(path: Path) -> Labelled:
    """What `fedtune synthesize` wrote. Raises InputError if a row has no text and label."""
    data = DataConfig(source="files", format="text_label", train_files=[str(path)])
    config = RunConfig(data=data, task=_CLASSIFY)
    return _labelled(read_examples(config, file_sources([str(path)]), keep_going=False)[0])


def _train_and_test(config: RunConfig) -> tuple[Labelled, Labelled]:
    """Rows with their labels, split as a run of `config` splits them.

    A run that reads them with a `label_prompt` is asked where its rows are: read otherwise they
    have other words, and rows without an id are placed by these.
    """
    data = config.data.model_copy(update={"label_prompt": None})
    named = config.task.labels if config.task.head == "sequence_classification" else []
    task = _CLASSIFY.model_copy(update={"labels": named})
    splits = load_splits(config.model_copy(update={"data": data, "task": task}))
    if config.data.label_prompt is None:
        return _labelled(splits.train), _labelled(splits.test)
    parts = [part for part in (splits.train, splits.test, splits.validation) if part]
    at = {row[0]: row[1:] for part in parts for row in zip(*_columns(part, "where"), strict=True)}
    own = load_splits(config)
    train, test = ([at[place] for place in part.rows["where"]] for part in (own.train, own.test))
    return Labelled(*zip(*train, strict=True)), Labelled(*zip(*test, strict=True))


def _labelled(examples: ExampleSet) -> Labelled:
    return Labelled(*_columns(examples))


def _columns(examples: ExampleSet, *first: str) -> list[tuple[str, ...]]:
    return [tuple(examples.rows[name]) for name in (*first, "text", "label", "unit_id")]


_CLASSIFY = TaskConfig(name="sequence_classification")
