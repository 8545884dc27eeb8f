"""Encoded examples on disk: what is read back, when they are made anew, and who may read them."""

import os
import stat
from pathlib import Path

import pytest

from fedtune.config.model import ModelConfig
from fedtune.config.schema import RunConfig
from fedtune.config.task import TaskConfig
from fedtune.data.load import load_splits
from fedtune.errors import InputError
from fedtune.models.base import load_tokenizer
from fedtune.tasks import build_task
from fedtune.tasks.encoding import encode_examples

CONFIG = RunConfig.model_validate({"data": {"embedded_patients": 300}})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def task(**settings):
    return build_task(TaskConfig(**settings), load_tokenizer(ModelConfig()))


def test_what_is_read_back_is_what_was_encoded(cache):
    rows = load_splits(CONFIG).train
    assert len(rows) > 600  # more than one batch
    encoded = encode_examples(task(), rows)
    alone = task()
    assert list(encoded) == [alone.encode(rows[i]) for i in range(len(rows))]
    assert encoded[-1] == encoded[len(rows) - 1]
    chosen = encoded.select([600, 0, 511, 512])
    assert list(chosen) == [encoded[i] for i in (600, 0, 511, 512)]
    assert list(chosen.select([2, 2])[1:]) == [encoded[511]]
    with pytest.raises(IndexError):
        chosen[4]


def test_a_file_is_made_once_for_the_same_rows_settings_and_tokenizer(cache):
    rows = load_splits(CONFIG).test
    encode_examples(task(), rows)
    [made] = (cache / "encoded").iterdir()
    before = (made / "rows.arrow").stat().st_mtime_ns
    encode_examples(task(), rows)
    assert (made / "rows.arrow").stat().st_mtime_ns == before
    encode_examples(task(max_length=99), rows)
    encode_examples(task(), rows.select(range(5)))
    other = load_tokenizer(ModelConfig())
    other.chat_template = "{{ messages }}"
    encode_examples(build_task(TaskConfig(), other), rows)
    assert len(list((cache / "encoded").iterdir())) == 4


def test_only_the_owner_can_read_the_cache(cache):
    old = os.umask(0)
    try:
        encode_examples(task(), load_splits(CONFIG).test)
    finally:
        os.umask(old)
    inside = [path for kind in ("data", "encoded") for path in (cache / kind).rglob("*")]
    assert len([path for path in inside if path.is_file()]) >= 3
    for path in [cache / "data", cache / "encoded", *inside]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_rows_that_can_not_be_encoded_leave_nothing_behind(cache):
    labelled = CONFIG.model_copy(update={"task": TaskConfig(name="sequence_classification")})
    rows = load_splits(labelled).test
    classifier = build_task(labelled.task, load_tokenizer(ModelConfig()), ["other"])
    with pytest.raises(InputError, match="is not known"):
        encode_examples(classifier, rows)
    assert list((cache / "encoded").iterdir()) == []
