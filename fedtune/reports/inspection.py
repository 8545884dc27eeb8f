"""What was understood of some files: the facts behind `fedtune data inspect`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.data.load import file_sources, hold_out, read_examples, source_layout
from fedtune.data.partition import partition
from fedtune.data.store import BadRows, peek
from fedtune.errors import InputError
from fedtune.models.base import load_tokenizer
from fedtune.reports.dry_run import ShownExample, shown
from fedtune.tasks import build_task
from fedtune.tasks.encoding import batches

_MEASURED = 20_000


@dataclass(frozen=True)
class TokenLengths:
    """Lengths of `measured` examples in tokens, before any cut.

    `truncated` are longer than `max_length`; `unlearnable` have no stop token left when cut.
    """

    measured: int
    shortest: int
    median: int
    p95: int
    longest: int
    max_length: int
    truncated: int
    unlearnable: int


@dataclass(frozen=True)
class Inspection:
    """Facts on some files. `content` and `identity` map a part of a row to its column.

    `split` is how many rows each part of a run that trains on these files would get of them;
    `unsplit` says why there is none, `problem` says why there are no `tokens` and no `example`.
    """

    files: tuple[str, ...]
    columns: tuple[str, ...]
    format: str
    content: dict[str, str]
    identity: dict[str, str | None]
    rows: int
    bad_rows: BadRows
    privacy_units: int
    split: dict[str, int]
    unsplit: str | None
    silos: dict[str, int]
    labels: dict[str, int]
    tokens: TokenLengths | None
    example: ShownExample | None
    problem: str | None


def inspect_files(patterns: Sequence[str], config: RunConfig) -> Inspection:
    """Read `patterns` under `config`; bad rows are reported, never refused.

    Raises `InputError` for files that can't be understood, and silos that can't be made.
    """
    data = config.data.model_copy(update={"source": "files", "train_files": list(patterns)})
    config = config.model_copy(update={"data": data})
    sources = file_sources(patterns)
    examples, bad = read_examples(config, sources, keep_going=True)
    layout = source_layout(config, sources[0])
    labels = _counts(examples, "label") if examples.format == "text_label" else {}
    try:
        tokens, example = _encoded(examples, config, config.task.labels or sorted(labels))
        problem = None
    except InputError as error:
        tokens, example, problem = None, None, str(error)
    try:
        split, unsplit = _split(examples, config), None
    except InputError as error:
        split, unsplit = {}, str(error)
    return Inspection(
        files=tuple(source.shown for source in sources),
        columns=tuple(peek(sources[0].read())[1]),
        format=layout.format,
        content=layout.content,
        identity={
            "record_id": layout.record_id,
            "privacy_unit": layout.privacy_unit,
            "silo": layout.silo,
        },
        rows=len(examples),
        bad_rows=bad,
        privacy_units=examples.codes("unit_id")[1],
        split=split,
        unsplit=unsplit,
        silos=_silos(examples, config),
        labels=labels,
        tokens=tokens,
        example=example,
        problem=problem,
    )


def _split(examples: ExampleSet, config: RunConfig) -> dict[str, int]:
    """Rows of each part that is cut from these; one with files of its own is not told."""
    given = examples.select([]) if config.data.test_files else None
    found = hold_out(config, examples, test=given)
    counts = {"training": len(found.train)}
    if found.validation:
        counts["validation"] = len(found.validation)
    if given is None:
        counts["test"] = len(found.test)
    return counts


def _silos(examples: ExampleSet, config: RunConfig) -> dict[str, int]:
    """Rows a silo, test rows included; none where no silo column is named."""
    settings = config.federation.partition
    if settings.by == "column" and not settings.column:
        return {}
    found = partition(examples, settings, config.seed, independent=config.private)
    return {name: len(rows) for name, rows in found.items()}


def _counts(examples: ExampleSet, column: str) -> dict[str, int]:
    codes, names = examples.groups(column)
    counts = Counter(codes.tolist())
    return {name: counts[code] for code, name in enumerate(names)}


def _encoded(
    examples: ExampleSet, config: RunConfig, labels: Sequence[str]
) -> tuple[TokenLengths, ShownExample]:
    """Lengths of all examples, or of some evenly spaced where there are very many; the first."""
    tokenizer = load_tokenizer(config.model)
    task = build_task(config.task, tokenizer, labels)
    first = shown(tokenizer, task.encode_batch([examples[0]])[0], examples[0], labels)
    if len(examples) > _MEASURED:
        spaced = np.linspace(0, len(examples) - 1, _MEASURED).astype(int)
        examples = examples.select(spaced)
    found = [
        (len(example.input_ids), example.cut, bool(example.problem))
        for rows in batches(examples)
        for example in task.encode_batch(rows)
    ]
    kept, cut, lost = np.array(found).T
    lengths = kept + cut
    return TokenLengths(
        measured=len(lengths),
        shortest=int(lengths.min()),
        median=int(np.median(lengths)),
        p95=int(np.percentile(lengths, 95)),
        longest=int(lengths.max()),
        max_length=config.task.max_length,
        truncated=int((cut > 0).sum()),
        unlearnable=int(lost.sum()),
    ), first
