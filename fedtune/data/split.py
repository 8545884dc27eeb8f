"""Holding out a test set by privacy unit."""

import numpy as np

from fedtune.data.examples import ExampleSet
from fedtune.errors import InputError


def split_by_unit(
    examples: ExampleSet, fraction: float, seed: int
) -> tuple[ExampleSet, ExampleSet]:
    """Train and test rows in file order; no privacy unit is in both.

    About `fraction` of each silo's units are held out, and every silo keeps at least one.
    Raises `InputError` when no unit can be held out.
    """
    units, count = examples.codes("unit_id")
    silos, silo_names = examples.groups("silo")
    silo_of_unit = silos[np.unique(units, return_index=True)[1]]
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(silo_of_unit == s)) for s in range(len(silo_names))]
    sizes = [min(round(fraction * len(m)), len(m) - 1) for m in members]
    if not any(sizes):
        largest = max(range(len(members)), key=lambda s: len(members[s]))
        sizes[largest] = min(1, len(members[largest]) - 1)
    if not any(sizes):
        raise InputError(
            f"no test set can be split off: there are {count} privacy units, one a silo",
            where="data.test_fraction",
            expected="a silo with two privacy units or more",
            mend="name held-out files in `data.test_files`",
        )
    held_out = np.concatenate([m[:size] for m, size in zip(members, sizes, strict=True)])
    in_test = np.isin(units, held_out)
    train, test = np.flatnonzero(~in_test), np.flatnonzero(in_test)
    return examples.select(train), examples.select(test)
