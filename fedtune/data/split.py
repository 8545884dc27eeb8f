"""Holding out a test or a validation set by privacy unit."""

from typing import Literal

import numpy as np

from fedtune.data.examples import ExampleSet
from fedtune.data.placement import chances
from fedtune.errors import InputError

Part = Literal["test", "validation"]


def split_by_unit(
    examples: ExampleSet,
    fraction: float,
    seed: int,
    part: Part = "test",
    *,
    independent: bool = False,
) -> tuple[ExampleSet, ExampleSet]:
    """The rows that stay and those of `part`, in file order; no privacy unit is in both.

    About `fraction` of each silo's units are held out, and every silo keeps at least one. With
    `independent` a unit's place depends on no other unit: each is held out with the chance
    `fraction`. Raises `InputError` when no unit can be held out.
    """
    rule = _by_itself if independent else _by_draw
    apart = rule(examples, fraction, seed, part)
    return examples.select(np.flatnonzero(~apart)), examples.select(np.flatnonzero(apart))


def _by_itself(examples: ExampleSet, fraction: float, seed: int, part: Part) -> np.ndarray:
    apart: np.ndarray = chances(examples, seed, part) < fraction
    if not apart.any():
        raise _unsplit(part, "no privacy unit falls into its share", "raise it")
    silos, names = examples.groups("silo")
    if gone := {*range(len(names))} - {*silos[~apart]}:
        where = f" of silo `{names[min(gone)]}`" if names[min(gone)] else ""
        raise _unsplit(part, f"every privacy unit{where} falls into its share", "lower it")
    return apart


def _by_draw(examples: ExampleSet, fraction: float, seed: int, part: Part) -> np.ndarray:
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
        raise _unsplit(part, f"there are {count} privacy units, one a silo")
    held_out = np.concatenate([m[:size] for m, size in zip(members, sizes, strict=True)])
    return np.isin(units, held_out)


def _unsplit(part: Part, why: str, mend: str = "") -> InputError:
    files = f"name held-out files in `data.{part}_files`"
    return InputError(
        f"no {part} set can be split off: {why}",
        where=f"data.{part}_fraction",
        expected="a silo with two privacy units or more",
        mend=f"{mend}, or {files}" if mend else files,
    )
