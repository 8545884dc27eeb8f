"""From a run's settings to its train, validation and test examples."""

import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fedtune.config.data import DataConfig
from fedtune.config.schema import RunConfig
from fedtune.data.digests import file_digest
from fedtune.data.examples import ExampleSet
from fedtune.data.layouts import Layout, find_layout
from fedtune.data.readers import (
    RawRow,
    check_kind,
    expand_files,
    load_hub,
    read_dataset,
    read_file,
)
from fedtune.data.split import split_by_unit
from fedtune.data.store import BadRows, Source, peek, store
from fedtune.errors import InputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataFacts:
    """What may be told of a run's data: counts and fingerprints, no content.

    Without a validation set its count is 0 and its fingerprint empty.
    """

    format: str
    train_examples: int
    validation_examples: int
    test_examples: int
    bad_rows: int
    train_fingerprint: str
    validation_fingerprint: str
    test_fingerprint: str


@dataclass(frozen=True)
class Splits:
    """What is learned from, chosen by and judged on; no privacy unit is in two of them."""

    train: ExampleSet
    test: ExampleSet
    validation: ExampleSet | None = None
    bad_rows: BadRows = field(default_factory=BadRows)

    @property
    def facts(self) -> DataFacts:
        """Counts and fingerprints."""
        return DataFacts(
            format=self.train.format,
            train_examples=len(self.train),
            validation_examples=len(self.validation or ()),
            test_examples=len(self.test),
            bad_rows=self.bad_rows.count,
            train_fingerprint=self.train.fingerprint,
            validation_fingerprint=self.validation.fingerprint if self.validation else "",
            test_fingerprint=self.test.fingerprint,
        )

    @property
    def labels(self) -> list[str]:
        """Sorted labels of all sets; empty if rows have none."""
        if self.train.format != "text_label":
            return []
        sets = (self.train, self.test, *([self.validation] if self.validation else []))
        return sorted({label for rows in sets for label in rows.groups("label")[1]})


def load_splits(config: RunConfig) -> Splits:
    """Read, check and split the data that `config` names. Raises `InputError`.

    With `data.bad_rows: skip` the rows left out are counted in `bad_rows` and logged.
    """
    sources = _sources(config)
    named = {"test": config.data.test_files, "validation": config.data.validation_files}
    held_out = {part: file_sources(files) for part, files in named.items() if files}
    _check_files_apart({"train": sources, **held_out})
    train, bad = read_examples(config, sources, keep_going=_skips(config))
    given = {}
    for part, files in held_out.items():
        given[part], more = read_examples(config, files, keep_going=_skips(config), held_out=True)
        bad = bad + more
    _check_apart(config, {"train": train, **given})
    if bad.count:
        _log.warning("left out %s", bad)
    splits = hold_out(config, train, bad_rows=bad, **given)
    if config.task.head == "sequence_classification":
        _check_labels(config.task.labels or splits.labels)
    return splits


def load_all(config: RunConfig) -> Splits:
    """Every row that `config` names to train on, none held out: a silo's own in a federation.

    Raises `InputError`.
    """
    train, bad = read_examples(config, _sources(config), keep_going=_skips(config))
    if bad.count:
        _log.warning("left out %s", bad)
    return Splits(train, train.select([]), None, bad)


def hold_out(
    config: RunConfig,
    train: ExampleSet,
    *,
    test: ExampleSet | None = None,
    validation: ExampleSet | None = None,
    bad_rows: BadRows | None = None,
) -> Splits:
    """Cut from `train` what `config` holds out and is not given: first the test set, so that it
    is the same with or without validation. Raises `InputError`.
    """
    data = config.data
    if test is None:
        train, test = split_by_unit(
            train, data.test_fraction, config.seed, "test", independent=config.private
        )
    if data.validation_fraction is not None:
        train, validation = split_by_unit(
            train, data.validation_fraction, config.seed, "validation", independent=config.private
        )
    return Splits(train, test, validation, bad_rows or BadRows())


def read_examples(
    config: RunConfig, sources: Sequence[Source], *, keep_going: bool, held_out: bool = False
) -> tuple[ExampleSet, BadRows]:
    """All rows of `sources` as examples. Held-out rows need no silo column."""
    found = [(s, source_layout(config, s, silo_optional=held_out)) for s in sources]
    formats = {layout.format for _, layout in found}
    if len(formats) > 1:
        raise InputError(
            "files of different formats can't be mixed: "
            + ", ".join(f"{s.shown} is {layout.format}" for s, layout in found),
            where="data.train_files",
            mend="set `data.format` and `data.columns`, or use files of one format",
        )
    return store(found, keep_going=keep_going)


def _check_labels(labels: Sequence[str]) -> None:
    if len(labels) == 1:
        raise InputError(
            f"all rows have the label `{labels[0]}`",
            where="data.train_files",
            expected="at least two labels to tell apart",
            mend="add rows of another label, or name it in `task.labels`",
        )


def source_layout(config: RunConfig, source: Source, *, silo_optional: bool = False) -> Layout:
    """How the rows of `source` are read under `config`. Raises `InputError`."""
    sample, columns = peek(source.read())
    if not columns:
        first = next(source.read(), None)
        problem = f"no usable row; line {first.line}: {first.problem}" if first else "no rows"
        raise InputError(
            problem,
            where=source.shown,
            expected="one JSON object a line (.jsonl), or lines of columns under a header (.csv), "
            "in UTF-8",
        )
    silo = config.federation.partition.column
    if config.data.source == "embedded":
        silo = silo or "specialty"
    if silo_optional and silo not in columns:
        silo = None
    data = _embedded_data(config) if config.data.source == "embedded" else config.data
    task = config.task.head
    layout = find_layout(sample, columns, data, task=task, silo=silo, where=source.shown)
    if layout.format != "text_label":
        return layout
    return replace(layout, labels=tuple(config.task.labels))


def file_sources(patterns: Sequence[str]) -> list[Source]:
    """A source for each file that `patterns` name, with short names that tell them apart."""
    paths = expand_files(patterns)
    for path in paths:
        check_kind(path)  # a folder of other things would be read whole to be known again
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        top = os.path.commonpath([path.absolute().parent for path in paths])
        names = [path.absolute().relative_to(top).as_posix() for path in paths]
    found: dict[str, Source] = {}
    for name, path in zip(names, paths, strict=True):
        content = file_digest(path)
        if content in found:
            raise InputError(
                f"has the same content as `{found[content].shown}`, which is named too",
                where=path,
                mend="name it once: each row counts once",
            )
        found[content] = Source(name, str(path), partial(read_file, path), content)
    return list(found.values())


def _sources(config: RunConfig) -> list[Source]:
    data = config.data
    if data.source == "files":
        return file_sources(data.train_files)
    if data.source == "embedded":
        return [_embedded_source(data.embedded_patients, config.seed)]
    assert data.hub_id is not None  # noqa: S101 - the schema saw to it
    rows = load_hub(data.hub_id, data.hub_split)
    content = f"{data.hub_id} {data.hub_split} {rows._fingerprint}"
    return [Source(data.hub_id, data.hub_id, partial(read_dataset, rows), content)]


def _embedded_source(patients: int, seed: int) -> Source:
    from fedtune.data.embedded import clinical

    def read() -> Iterator[RawRow]:
        for number, note in enumerate(clinical.generate_notes(patients, seed), 1):
            yield RawRow(number, note)

    # the generator's own text is part of the key: an edited generator makes other notes
    code = file_digest(Path(clinical.__file__).parent)
    return Source("embedded", "embedded", read, json.dumps([patients, seed, code]))


def _embedded_data(config: RunConfig) -> DataConfig:
    """Notes have the columns of every format: without a wish, the task decides."""
    data, columns = config.data, config.data.columns
    if data.format == "auto":
        classify = config.task.head == "sequence_classification"
        data = data.model_copy(update={"format": "text_label" if classify else "prompt_completion"})
    identity = {
        "record_id": columns.record_id or "record_id",
        "privacy_unit": columns.privacy_unit or "patient_id",
    }
    return data.model_copy(update={"columns": columns.model_copy(update=identity)})


def _skips(config: RunConfig) -> bool:
    return config.data.bad_rows == "skip"


def _check_files_apart(parts: Mapping[str, Sequence[Source]]) -> None:
    """Raise `InputError` if the same content was named for two parts."""
    for (one, some), (other, more) in itertools.combinations(parts.items(), 2):
        shown = {source.content: source.shown for source in some}
        for source in more:
            if source.content not in shown:
                continue
            same = shown[source.content]
            told = f" (`{same}` has the same content)" if same != source.shown else ""
            raise InputError(
                f"also one of the {one} files{told}",
                where=source.shown,
                expected=f"{other} rows that are no {one} rows",
            )


def _check_apart(config: RunConfig, parts: Mapping[str, ExampleSet]) -> None:
    """Raise `InputError` if two parts are of two formats, or share a unit or a record."""
    columns = config.data.columns
    kinds = {"privacy units": ("unit_id", columns.privacy_unit)}
    kinds["record ids"] = ("record_id", columns.record_id)
    for (one, rows), (other, more) in itertools.combinations(parts.items(), 2):
        where = f"data.{other}_files"
        if rows.format != more.format:
            raise InputError(
                f"{other} rows are {more.format}, {one} rows {rows.format}", where=where
            )
        for kind, (column, named) in kinds.items():
            codes, names = more.groups(column)
            common = set(rows.groups(column)[1]) & set(names) if named else set()
            if not common:
                continue
            first = next(row for row, code in enumerate(codes) if names[code] in common)
            raise InputError(
                f"{len(common)} {kind} are in both the {one} and the {other} files (the first at "
                f"{more[first]['where']})",
                where=where,
                mend=f"move their rows to one side, or leave `{where}` empty",
            )
