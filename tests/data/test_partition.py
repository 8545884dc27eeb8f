"""Partitions are disjoint, complete, not empty, and keep a privacy unit whole."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.config.federation import PartitionConfig
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet, features
from fedtune.data.load import hold_out
from fedtune.data.partition import load_partition, partition, save_partition
from fedtune.data.split import split_by_unit
from fedtune.errors import InputError


def examples(units: list[int], silos: list[str] | None = None, labels: Any = None) -> ExampleSet:
    kind = "text_label" if labels is not None else "text"
    columns = {
        "record_id": [str(i) for i in range(len(units))],
        "unit_id": [f"u{unit}" for unit in units],
        "silo": silos or [""] * len(units),
        "where": [f"f:{i}" for i in range(len(units))],
        "text": ["t"] * len(units),
    }
    if labels is not None:
        columns["label"] = [str(label) for label in labels]
    return ExampleSet(datasets.Dataset.from_dict(columns, features(kind)), kind, "print")


@settings(max_examples=60, deadline=None)
@given(
    units=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    silos=st.integers(1, 9),
    by=st.sampled_from(["iid", "quantity", "dirichlet"]),
    alpha=st.sampled_from([1e-9, 0.1, 0.5, 5.0, 1e6]),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_partition_is_sound_or_refused(
    units: list[int], silos: int, by: Any, alpha: float, seed: int
) -> None:
    data = examples(units, labels=[unit % 3 for unit in units])
    skew = {} if by == "iid" else {"alpha": alpha}
    config = PartitionConfig(by=by, silos=silos, **skew)
    try:
        parts = partition(data, config, seed)
    except InputError:
        assert silos > len(set(units)) or by == "dirichlet"
        return
    assert list(parts) == sorted(parts)
    assert len(parts) == silos
    assert all(parts.values())
    assert sorted(row for rows in parts.values() for row in rows) == list(range(len(units)))
    homes = [{units[row] for row in rows} for rows in parts.values()]
    assert sum(len(home) for home in homes) == len(set(units))
    assert partition(data, config, seed) == parts


@settings(max_examples=40, deadline=None)
@given(
    units=st.lists(st.integers(0, 20), min_size=2, max_size=60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 100),
)
def test_a_split_keeps_units_and_silos(units: list[int], fraction: float, seed: int) -> None:
    data = examples(units, silos=[f"s{unit % 3}" for unit in units])
    if max(len({u for u in units if u % 3 == s}) for s in range(3)) < 2:
        with pytest.raises(InputError):
            split_by_unit(data, fraction, seed)
        return
    train, test = split_by_unit(data, fraction, seed)
    assert len(test) > 0
    assert not set(train.rows["unit_id"]) & set(test.rows["unit_id"])
    assert set(train.rows["silo"]) == set(data.rows["silo"])
    assert sorted([*train.rows["record_id"], *test.rows["record_id"]]) == sorted(
        data.rows["record_id"]
    )


@settings(max_examples=40, deadline=None)
@given(
    units=st.lists(st.integers(0, 20), min_size=2, max_size=60),
    test=st.floats(0.01, 0.99),
    validation=st.floats(0.01, 0.99),
    seed=st.integers(0, 100),
)
def test_three_parts_keep_units_and_silos(
    units: list[int], test: float, validation: float, seed: int
) -> None:
    data = examples(units, silos=[f"s{unit % 3}" for unit in units])
    without = RunConfig.model_validate({"data": {"test_fraction": test}, "seed": seed})
    chosen = {"test_fraction": test, "validation_fraction": validation}
    config = RunConfig.model_validate({"data": chosen, "training": {"eval_steps": 1}, "seed": seed})
    try:
        plain = hold_out(without, data)
        left = set(plain.train.rows["unit_id"])
    except InputError:
        left = set()
    if max(sum(int(u[1:]) % 3 == s for u in left) for s in range(3)) < 2:
        with pytest.raises(InputError, match=r"no (test|validation) set can be split off"):
            hold_out(config, data)
        return
    splits = hold_out(config, data)
    assert splits.validation is not None
    parts = [splits.train, splits.validation, splits.test]
    assert all(len(part) for part in parts)
    homes = [set(part.rows["unit_id"]) for part in parts]
    assert sum(map(len, homes)) == len(set(units))
    assert sorted(i for part in parts for i in part.rows["record_id"]) == sorted(
        data.rows["record_id"]
    )
    assert set(splits.train.rows["silo"]) == set(data.rows["silo"])
    assert splits.test.fingerprint == plain.test.fingerprint


@pytest.mark.parametrize("by", ["column", "iid", "quantity", "dirichlet"])
def test_large_silos_keep_every_row(by: Any) -> None:
    units = [row // 3 for row in range(3000)]
    silos, labels = [f"s{unit % 4}" for unit in units], [unit % 5 for unit in units]
    settings = {} if by == "column" else {"by": by, "silos": 4}
    parts = partition(examples(units, silos, labels), PartitionConfig(**settings), 0)
    assert len(parts) == 4
    assert max(map(len, parts.values())) > 700
    assert sorted(row for rows in parts.values() for row in rows) == list(range(3000))


def test_by_column_follows_the_column_also_after_select() -> None:
    data = examples([0, 1, 2, 3], silos=["b", "a", "b", "a"])
    assert partition(data, PartitionConfig(), 0) == {"a": [1, 3], "b": [0, 2]}
    assert partition(data.select([3, 2]), PartitionConfig(), 0) == {"a": [0], "b": [1]}


def test_iid_is_even_and_the_seed_matters() -> None:
    data = examples(list(range(100)))
    config = PartitionConfig(by="iid", silos=8)
    parts = partition(data, config, 1)
    assert sorted(map(len, parts.values())) == [12] * 4 + [13] * 4
    assert partition(data, config, 2) != parts


def test_a_smaller_alpha_skews_labels_more() -> None:
    labels = [i % 4 for i in range(800)]
    data = examples(list(range(800)), labels=labels)

    def skew(alpha: float) -> float:
        parts = partition(data, PartitionConfig(by="dirichlet", silos=4, alpha=alpha), 3)
        shares = [
            np.bincount(np.take(labels, rows), minlength=4) / len(rows) for rows in parts.values()
        ]
        return float(np.mean([share.max() for share in shares]))

    assert skew(0.1) > skew(100.0) + 0.2


def test_a_smaller_alpha_skews_quantity_more() -> None:
    data = examples(list(range(800)))

    def spread(alpha: float) -> float:
        parts = partition(data, PartitionConfig(by="quantity", silos=8, alpha=alpha), 3)
        return float(np.std([len(rows) for rows in parts.values()]))

    assert spread(0.2) > 3 * spread(100.0)


@pytest.mark.parametrize(
    ("data", "config", "why"),
    [
        (examples([0, 1]), PartitionConfig(), "the rows name no silo"),
        (
            examples([1, 0, 0], silos=["a", "a", "b"]),
            PartitionConfig(),
            r"1 privacy units have rows in more than one silo \(f:1 in `a`, f:2 in `b`\)",
        ),
        (examples([0, 1]), PartitionConfig(by="iid", silos=3), "3 silos can't be made of 2"),
        (examples([0, 1]), PartitionConfig(by="dirichlet", silos=2), "rows are text"),
        (
            examples([0, 1, 2], labels=[0, 0, 0]),
            PartitionConfig(by="dirichlet", silos=3, alpha=1e-9),
            "left a silo of 3 empty",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(
    data: ExampleSet, config: PartitionConfig, why: str
) -> None:
    with pytest.raises(InputError, match=why):
        partition(data, config, 0)


def test_a_saved_partition_comes_back_and_knows_its_data(tmp_path: Path) -> None:
    data = examples([0, 1, 2, 3])
    parts = partition(data, PartitionConfig(by="iid", silos=2), 0)
    path = tmp_path / "run" / "partition.json"
    save_partition(parts, path, fingerprint=data.fingerprint)
    assert load_partition(path, examples=data) == parts
    with pytest.raises(InputError, match="made for other data"):
        load_partition(path, examples=data.select([3, 2, 1, 0]))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not a saved partition"),
        ('{"silos": 3}', "not a saved partition"),
        ('{"silos": {"a": [0], "b": [0]}}', "overlap"),
        ('{"silos": {"a": [0, 2]}}', "leave rows out"),
        ('{"silos": {"a": [0], "b": []}}', "are empty"),
    ],
)
def test_a_damaged_partition_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=why):
        load_partition(tmp_path / "p.json")
