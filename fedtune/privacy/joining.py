"""Whose a unit is: people are known again by id and by words, across charges.

A unit that holds a patient's words is that patient's, unless one charge was the first to have these
words under both ids. To its data they were two people, and nobody had a reason then to tell it
otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.fingerprints import People
from fedtune.privacy.sorted_numbers import among, counts, pairs_of_equals, sums

Unit = Literal["record", "patient"]
_MOST_MATCHES = 4_000_000
_MANY = 64  # units that have the same words
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Met:
    """All charges of one unit kind on the same people, the first of them made for `run`."""

    unit: Unit
    people: People
    events: tuple[GaussianEvent, ...]
    run: str


def meet(one: Met, other: Met) -> bool:
    """Whether anybody, by name or by words, is in both."""
    return any(
        among(values, known).any()
        for values, known in (
            (one.people.known_records, other.people.known_records),
            (one.people.known_patients, other.people.known_patients),
        )
    )


@dataclass(frozen=True)
class NamedRows:
    """Every record that any charge's data say is of a patient, once each, sorted by `keys`.

    `keys` is one number for both: two pairs share one with a chance of 2^-64, and count as one.
    `charges` and `runs` number those that had it first; `copies` is how often that charge did.
    """

    keys: np.ndarray
    patients: np.ndarray
    records: np.ndarray
    charges: np.ndarray
    runs: np.ndarray
    copies: np.ndarray

    @staticmethod
    def of(charges: Sequence[Met]) -> "NamedRows":
        """Those of all `charges`, whose order says which was first."""
        words, numbers = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        known, runs = NamedRows(words, words, words, *[numbers] * 3), dict[str, int]()
        for number, met in enumerate(charges):
            people, run = met.people, runs.setdefault(met.run, len(runs))
            keys, at, copies = np.unique(_keys(people), return_index=True, return_counts=True)
            first = np.full_like(copies, number), np.full_like(copies, run)
            found = NamedRows(keys, people.patients[at], people.records[at], *first, copies)
            known = known.joined(found[~among(keys, known.keys)])
        return known

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """All of them, in order."""
        return self.keys, self.patients, self.records, self.charges, self.runs, self.copies

    def __getitem__(self, chosen: np.ndarray) -> "NamedRows":
        return NamedRows(*(column[chosen] for column in self.columns))

    def joined(self, other: "NamedRows") -> "NamedRows":
        """These and those of `other`."""
        both = map(np.concatenate, zip(self.columns, other.columns, strict=True))
        rows = NamedRows(*both)
        return rows[np.argsort(rows.keys)]

    def of_patients(self, patients: np.ndarray) -> "NamedRows":
        """Those of `patients`, which are sorted."""
        return self[among(self.patients, patients)]

    def of_several_charges(self) -> np.ndarray:
        """The records, sorted, that came to one patient in one charge and to another in another."""
        records, which = np.unique(self.records, return_inverse=True)
        first = np.full(len(records), self.charges.max(initial=0))
        last = np.zeros_like(first)
        np.minimum.at(first, which, self.charges)
        np.maximum.at(last, which, self.charges)
        several: np.ndarray = records[first < last]
        return several


def _keys(people: People) -> np.ndarray:
    keys: np.ndarray = people.patients * _ODD + people.records[: len(people.patients)]
    return keys


def times_met(patients: np.ndarray, named: NamedRows, met: Met) -> np.ndarray:
    """How many units of `met` are of each of `patients` (sorted), by id or by words; int64.

    By words, all units under ids that a later run brought are theirs. Of units under ids of the
    same run's other data, or of earlier runs, no more are than they have rows: else somebody new
    with words that many share would be all of these.
    """
    people, mine = met.people, named.of_patients(patients)
    if not len(people.patients):
        return sums(patients, mine.patients, counts(mine.records, people.records))
    ids = people.known_patients if met.unit == "patient" else people.patients
    later, others = _under_other_ids(patients, mine, named, met)
    rows = sums(patients, mine.patients, mine.copies)
    times: np.ndarray = counts(patients, ids) + later + np.minimum(others, rows)
    return times


def _under_other_ids(
    patients: np.ndarray, mine: NamedRows, named: NamedRows, met: Met
) -> tuple[np.ndarray, np.ndarray]:
    """How many units of `met`, of ids from a later run and of others, have words of `mine`.

    Patients who have the same of the words that many units have are counted together: else the
    work would grow with the square of those who share them.
    """
    mine = mine[among(mine.records, named.of_several_charges())]
    records, ids = met.people.records, met.people.patients
    held = np.flatnonzero(among(records, np.unique(mine.records)))
    held = held[np.argsort(records[held])]
    records, ids = records[held], ids[held]
    theirs = named[np.searchsorted(named.keys, ids * _ODD + records)]
    units = np.unique(ids, return_inverse=True)[1] if met.unit == "patient" else np.arange(len(ids))
    base = int(units.max(initial=0)) + 1
    who, matches = np.searchsorted(patients, mine.patients), counts(mine.records, records)
    group, first = _alike(who, mine, matches > _MANY, len(patients))
    asked = (matches <= _MANY) | (first[group[who]] == who)
    mine, who, matches = mine[asked], who[asked], matches[asked]
    totals, of_groups = np.zeros((2, len(patients)), np.int64), np.zeros((2, len(first)), np.int64)
    for part in _pieces(group[who], matches):
        left, right = pairs_of_equals(mine.records[part], records)
        left = part[left]
        apart = mine.charges[left] == theirs.charges[right]  # one's own among them
        after = theirs.runs[right] > mine.runs[left]
        for which, kept in enumerate((after & ~apart, ~after & ~apart)):
            at, unit, many = who[left[kept]], units[right[kept]], matches[left[kept]] > _MANY
            shared = np.unique(group[at[many]] * base + unit[many])
            own = np.unique(at[~many] * base + unit[~many])
            own = own[~among(group[own // base] * base + own % base, shared)]
            of_groups[which] += np.bincount(shared // base, minlength=len(first))
            totals[which] += np.bincount(own // base, minlength=len(patients))
    later, others = totals + of_groups[:, group]
    return later, others


def _alike(
    who: np.ndarray, rows: NamedRows, chosen: np.ndarray, patients: int
) -> tuple[np.ndarray, np.ndarray]:
    """A number for each patient, one for all whose `chosen` rows are the same; and who is first.

    The same are words of one charge. Two sets of them share a sum of random numbers with a chance
    of 2^-64.
    """
    sums = np.zeros(patients, dtype=np.uint64)
    both = np.column_stack([rows.records[chosen], rows.charges[chosen].astype(np.uint64)])
    kinds, kind = np.unique(both, axis=0, return_inverse=True)
    numbers = np.random.default_rng(0).integers(2**64, size=len(kinds), dtype=np.uint64)
    np.add.at(sums, who[chosen], numbers[kind.reshape(-1)])
    _, first, group = np.unique(sums, return_index=True, return_inverse=True)
    return group, first


def _pieces(groups: np.ndarray, matches: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in parts of few matches each, all of a group in one: words may be everybody's."""
    parts = 1 + int(matches.sum()) // _MOST_MATCHES
    for part in range(parts):
        yield np.flatnonzero(groups % parts == part)
