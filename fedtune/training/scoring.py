"""`fedtune evaluate`: what a run left, scored on held-out rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedtune.config.load import load_config
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.data.load import file_sources, load_splits, read_examples
from fedtune.errors import InputError
from fedtune.models.promise import Promised, read_promise
from fedtune.models.saved import Loaded, adapter_folder, load_saved
from fedtune.tasks import build_task
from fedtune.tasks.encoding import encode_examples
from fedtune.tasks.evaluation import evaluate
from fedtune.training import processes
from fedtune.training.private import scores_shown


@dataclass(frozen=True)
class Scores:
    """Metrics of one model on `examples` held-out rows; `adapter` says whether it was on.

    `uncovered` says that the model promises privacy, which covers no such exact scores.
    """

    metrics: dict[str, float]
    examples: int
    adapter: bool
    uncovered: bool


def score_saved(
    folder: Path,
    files: Sequence[str] = (),
    *,
    with_adapter: bool = True,
    config: RunConfig | None = None,
    batch_size: int = 32,
) -> Scores:
    """Score the model in `folder` on `files`, or on the test set of the run that it is.

    `config` says how rows are read; None: the run's own. Raises InputError on a folder or files
    that can't be used, when neither says what to score on, and on the own rows of a private run,
    unless its held-out rows are public. A model that was moved away from its run's settings has
    its statement: then own rows are those of `config`, as far as it names any.
    """
    loaded = load_saved(folder, with_adapter=with_adapter)
    settings = _settings(folder, loaded, config)
    run = _run_of(folder)
    # what another config holds out may be what the run was trained on
    named = files if run is None or settings.hash == run.hash else files or _scored(settings)
    moved = None if run and run.private else read_promise(adapter_folder(folder))
    settings = _promising(settings, moved) if moved else settings
    private = [c for c in (run, settings) if c is not None and c.private]
    for promised in private:
        if not files:
            _check_held_out(promised)
        _check_not_own(promised, named)
    rows = _rows(settings, files)
    task = build_task(settings.task, loaded.tokenizer, loaded.labels)
    data = encode_examples(task, rows)
    metrics = evaluate(task, loaded.model.to(processes.device()), data, batch_size)
    return Scores(metrics, len(data), with_adapter, bool(private and (named or moved)))


def _scored(config: RunConfig) -> Sequence[str]:
    """The files of which a config scores rows when none are given."""
    return config.data.test_files or config.data.train_files


def _run_of(folder: Path) -> RunConfig | None:
    """The settings of the run that left the model in `folder`, if they lie in it or beside it."""
    run = folder.parent if folder.name == "adapter" else folder
    path = run / "config.yaml"
    return load_config(path) if path.is_file() else None


def _promising(settings: RunConfig, promised: Promised) -> RunConfig:
    """The settings with what a model's own statement says in place of what they say."""
    update = {"mode": promised.mode, "held_out": promised.held_out}
    privacy = settings.privacy.model_copy(update=update)
    return settings.model_copy(update={"privacy": privacy})


def _check_held_out(config: RunConfig) -> None:
    """Raise InputError where scores on what a run of `config` held out would break its promise."""
    if not scores_shown(config):
        raise InputError(
            "`refuse`: exact scores on the run's held-out rows would tell of the people in them",
            where="privacy.held_out",
            mend="give other rows with `--data`; their scores are for those who may see these rows",
        )


def _check_not_own(config: RunConfig, files: Sequence[str]) -> None:
    """Raise InputError on files whose exact scores would break what a run of `config` promised."""
    if not files or config.data.source != "files":
        return
    data = config.data
    held_out = [] if scores_shown(config) else [*data.test_files, *data.validation_files]
    own = {digest for name in (*data.train_files, *held_out) for digest in _contents(name)}
    for source in file_sources(files):
        if source.content in own:
            raise InputError(
                "holds the private run's own rows: exact scores would tell of the people in them",
                where=source.shown,
                mend="give rows that the run neither trained on nor held out",
            )


def _contents(pattern: str) -> list[str]:
    """Of the files that are still where the run found them."""
    try:
        return [source.content for source in file_sources([pattern])]
    except InputError:
        return []


def _settings(folder: Path, loaded: Loaded, config: RunConfig | None) -> RunConfig:
    config = config or loaded.config
    if config is None:
        raise InputError(
            "the folder has no config.yaml that says how rows are read",
            where=folder,
            mend="give a config file with `--config`",
        )
    if config.task.head != loaded.task:
        raise InputError(
            f"the model is made for {loaded.task}, the config for {config.task.name}",
            where="task.name",
        )
    return config


def _rows(config: RunConfig, files: Sequence[str]) -> ExampleSet:
    if not files:
        return load_splits(config).test
    # who a row is of plays no part in a score
    columns = config.data.columns.model_copy(update={"record_id": None, "privacy_unit": None})
    update = {"source": "files", "train_files": list(files), "columns": columns}
    data = config.data.model_copy(update=update)
    config = config.model_copy(update={"data": data})
    keep_going = data.bad_rows == "skip"
    return read_examples(config, file_sources(files), keep_going=keep_going, held_out=True)[0]
