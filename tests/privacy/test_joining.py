"""People who share words: each is told of as if they were looked at one by one, and soon enough."""

import time

import numpy as np
import pytest

from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.exposure import exposures
from fedtune.privacy.fingerprints import People
from fedtune.privacy.joining import Met

Rows = list[tuple[int, int]]
"""A charge's: whose, and which words."""


def met(rows: Rows, run: str) -> Met:
    """A charge on the patients of `rows`."""
    numbers = np.array(sorted(rows), dtype=np.uint64)
    people = People(numbers[:, 1].copy(), numbers[:, 0].copy())
    return Met("patient", people, (GaussianEvent(0.01, 1.0, 10),), run)


def one_by_one(charges: list[Rows], runs: list[str]) -> set[tuple[int, ...]]:
    """How often patients met each charge, as `joining` says in words; the most exposed ones."""
    first: dict[tuple[int, int], int] = {}
    for number, rows in enumerate(charges):
        for row in rows:
            first.setdefault(row, number)
    order = {run: number for number, run in enumerate(dict.fromkeys(runs))}
    when = {row: order[runs[number]] for row, number in first.items()}
    copies = {row: charges[number].count(row) for row, number in first.items()}
    found = set()
    for patient in {who for rows in charges for who, _ in rows}:
        mine = [row for row in first if row[0] == patient]
        times = []
        for rows in charges:
            later, others = set(), set()
            for theirs in rows:
                for own in mine:
                    if own[1] == theirs[1] and first[own] != first[theirs]:
                        (later if when[theirs] > when[own] else others).add(theirs[0])
            most = sum(copies[row] for row in mine)
            here = any(who == patient for who, _ in rows)
            times.append(here + len(later) + min(len(others), most))
        found.add(tuple(times))
    return {
        one
        for one in found
        if not any(all(a <= b for a, b in zip(one, other, strict=True)) for other in found - {one})
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("patients", [12, 110])
def test_who_shares_words_is_told_of_as_if_looked_at_alone(seed: int, patients: int):
    draw = np.random.default_rng(seed)
    runs = ["a", "b", "b", "c"]
    charges: list[Rows] = []
    for number in range(len(runs)):
        moved = int(draw.integers(2)) * 1000 * number  # under new ids, or not
        rows = []
        for patient in range(patients):
            rows += [(moved + patient, 10_000 + patient)] * int(draw.integers(1, 3))
            rows += [(moved + patient, int(word)) for word in draw.integers(3, size=2)]
            if draw.random() < 0.2:
                rows.append((moved + patient, 10_000 + int(draw.integers(patients))))
        charges.append(rows)
    found = exposures([met(rows, run) for rows, run in zip(charges, runs, strict=True)])["patient"]
    # `times` may have a row above all where there are too many to compose
    assert {tuple(times.tolist()) for times in found.times} == one_by_one(charges, runs)


def test_thousands_under_new_ids_with_everybodys_words_are_joined_in_seconds():
    many, words = 12_000, 3
    charges = [
        met(
            [(10**6 * n + i % 2_400, i % words if i < many // 4 else i) for i in range(many)],
            f"{n}",
        )
        for n in range(5)
    ]
    began = time.process_time()
    found = exposures(charges, charges[-1])["patient"]
    assert time.process_time() - began < 10
    shared = 2_400 // words  # all have one of the words
    assert max(times.max() for times in found.times) >= shared
