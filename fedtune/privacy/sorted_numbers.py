"""Sets of fingerprints as sorted arrays of numbers: which are among them, and how often."""

from collections.abc import Iterable

import numpy as np


def union(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """The numbers of all `arrays`, sorted, each once; uint64."""
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *arrays]))


def among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Bool, whether each of `values` is one of `known`, which are sorted."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found: np.ndarray = known[places] == values
    return found


def counts(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How often each of `known` is one of `values`; int64."""
    ordered = np.sort(values)
    found: np.ndarray = np.searchsorted(ordered, known, "right")
    return found - np.searchsorted(ordered, known, "left")


def sums(known: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The summed weights of each of `known`, sorted, among which are all `values`; int64."""
    sums = np.zeros(len(known), dtype=np.int64)
    np.add.at(sums, np.searchsorted(known, values), weights)
    return sums


def pairs_of_equals(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of all pairs of equals in `values` and in `known`, which are sorted."""
    start = np.searchsorted(known, values, "left")
    count = np.searchsorted(known, values, "right") - start
    left = np.repeat(np.arange(len(values)), count)
    inside = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
    return left, start[left] + inside
