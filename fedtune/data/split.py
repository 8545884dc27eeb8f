"""Holding out a test or a validation set by privacy unit."""

from typing import Literal

import numpy as np

from fedtune.data.examples import ExampleSet
from fedtune.errors import InputError


def split_by_unit(
    examples: ExampleSet, fraction: float, seed: int, part: Literal["test", "validation"] = "test"
) -> tuple[ExampleSet, ExampleSet]:
    """The rows that stay and those of `part`, in file order; no privacy unit is in both.

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
            f"no {part} set can be split off: there are {count} privacy units, one a silo",
            where=f"data.{part}_fraction",
            expected="a silo with two privacy units or more",
            mend=f"name held-out files in `data.{part}_files`",
        )
    held_out = np.concatenate([m[:size] for m, size in zip(members, sizes, strict=True)])
    apart = np.isin(units, held_out)
    return examples.select(np.flatnonzero(~apart)), examples.select(np.flatnonzero(apart))
