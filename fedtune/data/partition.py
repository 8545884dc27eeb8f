"""Dividing examples into silos: by a column, at random, by label skew or by quantity skew.

A privacy unit is never split across silos; the silos are disjoint, complete and not empty.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fedtune.atomic import write_text
from fedtune.config.federation import PartitionConfig
from fedtune.data.examples import ExampleSet
from fedtune.data.placement import chances
from fedtune.errors import InputError

Partition = dict[str, list[int]]
_FIELD = "federation.partition"
_DRAWS = 100


def partition(
    examples: ExampleSet, config: PartitionConfig, seed: int, *, independent: bool = False
) -> Partition:
    """Row indices of each silo, ordered by silo name; a pure function of its arguments.

    With `independent` a unit's silo depends on no other unit: shares are drawn from the seed alone
    and each unit falls into them by itself. Raises `InputError` when the data can't be divided as
    asked.
    """
    if config.by == "column":
        return _by_column(examples)
    units, count = examples.codes("unit_id")
    if config.silos > count:
        raise InputError(
            f"{config.silos} silos can't be made of {count} privacy units",
            where=f"{_FIELD}.silos",
            expected="at least one privacy unit a silo",
        )
    if independent:
        silo_of_row = _each_by_itself(examples, config, seed)
    else:
        rng = np.random.default_rng(seed)
        silo_of_row = _RULES[config.by](examples, units, count, config, rng)[units]
    width = len(str(config.silos - 1))
    return {
        f"silo-{i:0{width}}": np.flatnonzero(silo_of_row == i).tolist() for i in range(config.silos)
    }


def _by_column(examples: ExampleSet) -> Partition:
    silos, names = examples.groups("silo")
    if not names or "" in names:
        raise InputError(
            "the rows name no silo",
            where=f"{_FIELD}.column",
            mend="set it to the column that names the silo, or set `federation.partition.by` "
            "to iid, dirichlet or quantity",
        )
    units, count = examples.codes("unit_id")
    low, high = np.full(count, len(names)), np.full(count, -1)
    np.minimum.at(low, units, silos)
    np.maximum.at(high, units, silos)
    if split := int(np.sum(low != high)):
        rows = np.flatnonzero(units == np.flatnonzero(low != high)[0])
        seen = (rows[0], rows[np.flatnonzero(silos[rows] != silos[rows[0]])[0]])
        told = ", ".join(f"{examples[int(i)]['where']} in `{names[silos[i]]}`" for i in seen)
        raise InputError(
            f"{split} privacy units have rows in more than one silo ({told})",
            where=f"{_FIELD}.column",
            expected="every row of a privacy unit in one silo, and ids that no two silos share",
            mend="if the same id means different people, put the silo's name before each id (the "
            "same person in two silos would then count as two); or name another column here or in "
            "`data.columns.privacy_unit`",
        )
    return {name: np.flatnonzero(silos == i).tolist() for i, name in enumerate(names)}


def _each_by_itself(examples: ExampleSet, config: PartitionConfig, seed: int) -> np.ndarray:
    """The silo of each row: where its unit's own number falls into the silos' shares."""
    groups, names = np.zeros(len(examples), dtype=np.int64), [""]
    if config.by == "dirichlet":
        groups, names = _labels(examples, examples.codes("unit_id")[0])
    falls = chances(examples, seed, "silo")
    silo_of_row = np.empty(len(examples), dtype=np.int64)
    for group, name in enumerate(names):
        ends = np.cumsum(_shares_of(name, config, seed))[:-1]
        mine = groups == group
        silo_of_row[mine] = np.searchsorted(ends, falls[mine], side="right")
    if empty := config.silos - len(np.unique(silo_of_row)):
        raise InputError(
            f"{empty} of {config.silos} silos stay empty: privately, each unit falls into the "
            "silos' shares by itself",
            where=f"{_FIELD}.silos",
            expected="many more privacy units than silos",
            mend="lower it" + ("" if config.by == "iid" else ", raise `alpha`, or change `seed`"),
        )
    return silo_of_row


def _shares_of(label: str, config: PartitionConfig, seed: int) -> np.ndarray:
    """The silos' shares of a label's units, which no other label changes."""
    if config.by == "iid":
        return np.full(config.silos, 1 / config.silos)
    digest = hashlib.sha256(json.dumps([seed, label]).encode()).digest()
    return _shares(config, np.random.default_rng(list(digest)))


def _iid(
    _: ExampleSet, __: np.ndarray, count: int, config: PartitionConfig, rng: np.random.Generator
) -> np.ndarray:
    return rng.permutation(np.arange(count) % config.silos)


def _quantity(
    _: ExampleSet, __: np.ndarray, count: int, config: PartitionConfig, rng: np.random.Generator
) -> np.ndarray:
    """One unit for each silo, the rest in Dirichlet(alpha) shares."""
    shares = _shares(config, rng)
    sizes = 1 + rng.multinomial(count - config.silos, shares)
    return rng.permutation(np.repeat(np.arange(config.silos), sizes))


def _dirichlet(
    examples: ExampleSet,
    units: np.ndarray,
    count: int,
    config: PartitionConfig,
    rng: np.random.Generator,
) -> np.ndarray:
    """Each label's units in Dirichlet(alpha) shares; a unit's label is its first row's."""
    label_of_unit = _labels(examples, units)[0][np.unique(units, return_index=True)[1]]
    for _draw in range(_DRAWS):
        silo_of_unit = np.empty(count, dtype=np.int64)
        for label in np.unique(label_of_unit):
            members = np.flatnonzero(label_of_unit == label)
            silo_of_unit[members] = rng.choice(
                config.silos, size=len(members), p=_shares(config, rng)
            )
        if len(np.unique(silo_of_unit)) == config.silos:
            return silo_of_unit
    raise InputError(
        f"label skew with alpha {config.alpha} left a silo of {config.silos} empty "
        f"in each of {_DRAWS} draws",
        where=f"{_FIELD}.alpha",
        mend="raise alpha or lower `federation.partition.silos`",
    )


def _labels(examples: ExampleSet, units: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The label of each row's unit, which is that of its first row, and the labels' names."""
    if examples.format != "text_label":
        raise InputError(
            f"label skew needs labels, and rows are {examples.format}",
            where=f"{_FIELD}.by",
            mend="use `quantity` or `iid`, or text/label data",
        )
    labels, names = examples.groups("label")
    return labels[np.unique(units, return_index=True)[1]][units], names


def _shares(config: PartitionConfig, rng: np.random.Generator) -> np.ndarray:
    shares = rng.dirichlet(np.full(config.silos, config.alpha))
    if np.isfinite(shares).all() and shares.sum() > 0:
        return shares / shares.sum()
    # the limit of a vanishing alpha, where every gamma draw underflows: one silo has it all
    return np.eye(config.silos)[rng.integers(config.silos)]


_Rule = Callable[
    [ExampleSet, np.ndarray, int, PartitionConfig, np.random.Generator],
    np.ndarray,
]
_RULES: dict[str, _Rule] = {"iid": _iid, "quantity": _quantity, "dirichlet": _dirichlet}


def save_partition(silos: Mapping[str, list[int]], path: Path, *, fingerprint: str = "") -> None:
    """Write `silos` as JSON, atomically, with the fingerprint of the examples it divides."""
    saved = {"version": 1, "fingerprint": fingerprint, "silos": dict(silos)}
    write_text(path, json.dumps(saved))


def load_partition(path: Path, *, examples: ExampleSet | None = None) -> Partition:
    """Read a saved partition; with `examples`, check that it divides just these.

    Raises `InputError` if the file isn't a partition, or not one of `examples`.
    """
    try:
        saved = json.loads(path.read_text())
        silos: Partition = {str(name): list(rows) for name, rows in saved["silos"].items()}
        every = sorted(row for rows in silos.values() for row in rows)
        sound = all(type(row) is int for row in every) and every == list(range(len(every)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not a saved partition ({error})", where=path) from error
    if not sound or not all(silos.values()):
        raise InputError("silos overlap, are empty or leave rows out", where=path)
    if examples is not None and (
        len(every) != len(examples) or saved.get("fingerprint") not in ("", examples.fingerprint)
    ):
        raise InputError(
            "the partition was made for other data",
            where=path,
            mend="put the file back as it was, or set another `output.dir`",
        )
    return dict(sorted(silos.items()))


def check_partition(path: Path, silos: Partition, examples: ExampleSet) -> None:
    """Raise `InputError` unless the partition saved at `path` is `silos`, and of `examples`."""
    if load_partition(path, examples=examples) != silos:
        raise InputError(
            "these are not the silos that the settings make of the data",
            where=path,
            mend="restore the file, or start again in another `output.dir`",
        )
