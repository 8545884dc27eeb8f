"""Which charges met which people, and what the most exposed of them have spent.

People of different data sets are told apart (parallel composition); the charges that met the same
person add up. A promise is made to the patients of patient-level charges, and to the records of
record-level charges that belong to none of these patients. A record-level charge that met k records
of such a patient counts for them as `of_group` says.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedtune.privacy.accounting import Accountant, epsilon
from fedtune.privacy.events import GaussianEvent, merged
from fedtune.privacy.fingerprints import People

Unit = Literal["record", "patient"]
Events = Sequence[GaussianEvent]
_MOST_COMPOSED = 32


@dataclass(frozen=True)
class Met:
    """All charges of one unit kind on the same people."""

    unit: Unit
    people: People
    events: tuple[GaussianEvent, ...]


@dataclass(frozen=True)
class Exposure:
    """How many people a promise was made to, and the charges that the most exposed of them met.

    Whatever one of them met is within one of `combinations`.
    """

    units: int
    combinations: tuple[Events, ...]

    def epsilon(self, delta: float, accountant: Accountant) -> float:
        """The largest epsilon over these people at `delta`; 0.0 if there are none."""
        bounds = [(epsilon(events, delta, "rdp"), events) for events in self.combinations]
        largest = 0.0
        for bound, events in sorted(bounds, key=lambda pair: -pair[0]):
            if bound <= largest:
                break
            found = bound if accountant == "rdp" else epsilon(events, delta, accountant)
            largest = max(largest, found)
        return largest


def of_group(event: GaussianEvent, records: int) -> GaussianEvent:
    """What a record-level event costs somebody with so many records in it.

    The sum moves by at most the number j of their records that were taken. For each j from 1 on, one
    channel (scale by j / records, then add noise) turns the Gaussian pair of distance `records`
    into that of distance j, so all are within the pair of which the far one comes up with the
    chance that any record was taken.
    """
    if records == 1:
        return event
    rate = event.sample_rate
    any_taken = 1.0 if rate == 1.0 else min(1.0, -math.expm1(records * math.log1p(-rate)))
    return GaussianEvent(any_taken, event.noise_multiplier / records, event.count)


def exposures(charges: Sequence[Met], touched_by: Met | None = None) -> dict[Unit, Exposure]:
    """What the people of each kind have met in `charges`; those only whom `touched_by` meets."""
    patients = _union(met.people.patients for met in charges if met.unit == "patient")
    owned = _owned(charges, patients)
    records = _union(met.people.records for met in charges if met.unit == "record")
    records = records[~_among(records, _union([owned.records]))]
    found: dict[Unit, Exposure] = {}
    if touched_by:
        touched = _times_met(patients, owned, touched_by) > 0
        patients = patients[touched]
        owned = _owned(charges, patients)
        records = records[_among(records, _union([touched_by.people.records]))]
    if len(patients):
        times = (_times_met(patients, owned, met) for met in charges)
        found["patient"] = _exposure(len(patients), charges, times)
    if len(records):
        at_records = [met for met in charges if met.unit == "record"]
        times = (_among(records, _union([met.people.records])) for met in at_records)
        found["record"] = _exposure(len(records), at_records, times)
    return found


def _owned(charges: Sequence[Met], patients: np.ndarray) -> People:
    """Every record that any charge's data say is of one of `patients` (sorted), once each."""
    named = [met.people for met in charges if len(met.people.patients)]
    owners = np.concatenate([np.zeros(0, np.uint64), *(people.patients for people in named)])
    records = np.concatenate([np.zeros(0, np.uint64), *(people.records for people in named)])
    kept = _among(owners, patients)
    owners, records = owners[kept], records[kept]
    order = np.lexsort((records, owners))
    owners, records = owners[order], records[order]
    new = np.ones(len(owners), dtype=bool)
    new[1:] = (owners[1:] != owners[:-1]) | (records[1:] != records[:-1])
    return People(records[new], owners[new])


def _times_met(patients: np.ndarray, owned: People, met: Met) -> np.ndarray:
    """How many of each patient's records the charges of `met` took; at most 1 at patient level.

    Int64, a number for each of `patients` (sorted). A patient is met by name, or by their words
    under another name.
    """
    by_name = _counts(patients, met.people.patients)
    there = _among(owned.records, _union([met.people.records]))
    by_words = _counts(patients, owned.patients[there])
    times: np.ndarray = np.maximum(by_name, by_words)
    return np.minimum(times, 1) if met.unit == "patient" else times


def _exposure(units: int, charges: Sequence[Met], times: Iterable[np.ndarray]) -> Exposure:
    combinations = [
        merged(_events(charges, combination)) for combination in _largest(_combined(units, times))
    ]
    return Exposure(units, tuple(combinations))


def _events(charges: Sequence[Met], times: np.ndarray) -> Iterator[GaussianEvent]:
    for met, count in zip(charges, times.tolist(), strict=True):
        if count:
            yield from (of_group(event, count) for event in met.events)


def _combined(units: int, times: Iterable[np.ndarray]) -> np.ndarray:
    """Distinct columns of `times`, each as a row: int64 [combinations, charges]."""
    codes, combinations = np.zeros(units, dtype=np.int64), np.zeros((1, 0), dtype=np.int64)
    for counts in times:
        base = int(counts.max(initial=0)) + 1
        both, codes = np.unique(codes * base + counts, return_inverse=True)
        combinations = np.column_stack([combinations[both // base], both % base])
    return combinations


def _largest(combinations: np.ndarray) -> list[np.ndarray]:
    """Rows that none other is at least as large as everywhere.

    Past the first few, what is left is one row of the largest of each number: more than anybody
    met, never less.
    """
    kept: list[np.ndarray] = []
    while len(combinations):
        if len(kept) == _MOST_COMPOSED:
            return [*kept, combinations.max(axis=0)]
        top = combinations[combinations.sum(axis=1).argmax()]
        kept.append(top)
        combinations = combinations[(combinations > top).any(axis=1)]
    return kept


def _union(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *arrays]))


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Bool, whether each of `values` is one of `known`, which are sorted."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found: np.ndarray = known[places] == values
    return found


def _counts(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How often each of `known`, which are sorted, is one of `values`."""
    inside = values[_among(values, known)]
    return np.bincount(np.searchsorted(known, inside), minlength=len(known))
