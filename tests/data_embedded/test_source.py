"""The embedded notes as a data source: silos, units and splits as any file's."""

from pathlib import Path

import pytest

from fedtune.config.data import DataConfig
from fedtune.config.schema import RunConfig
from fedtune.config.task import TaskConfig
from fedtune.data.load import load_splits
from fedtune.data.partition import partition


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path))


def config(task: str) -> RunConfig:
    return RunConfig(data=DataConfig(embedded_patients=40), task=TaskConfig(name=task))


@pytest.mark.parametrize(
    ("task", "format"),
    [("causal_lm", "prompt_completion"), ("sequence_classification", "text_label")],
)
def test_the_task_decides_the_format_and_no_patient_is_on_both_sides(task: str, format: str):
    splits = load_splits(config(task))
    assert splits.train.format == splits.test.format == format
    train, test = (set(part.groups("unit_id")[1]) for part in (splits.train, splits.test))
    assert len(train | test) == 40
    assert not train & test


def test_specialties_are_the_silos():
    settings = config("causal_lm")
    splits = load_splits(settings)
    silos = partition(splits.train, settings.federation.partition, seed=0)
    assert len(silos) == 8
    assert "cardiology" in silos
    assert sorted(i for rows in silos.values() for i in rows) == list(range(len(splits.train)))


def test_another_seed_gives_other_notes():
    first, second = (
        load_splits(config("causal_lm").model_copy(update={"seed": seed})) for seed in (0, 1)
    )
    assert first.train[0]["prompt"] != second.train[0]["prompt"]
