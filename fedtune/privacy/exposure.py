"""Which charges met which people, and what the most exposed of them have spent.

People of different data sets are told apart (parallel composition); the charges that met the same
person add up. A promise is made to the patients of patient-level charges, and to the records of
record-level charges that belong to none of these patients. A record-level charge that met k records
of such a patient counts for them as `of_group` says.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedtune.errors import InputError
from fedtune.privacy.accounting import Accountant, epsilon
from fedtune.privacy.events import GaussianEvent, merged
from fedtune.privacy.fingerprints import People

Unit = Literal["record", "patient"]
Events = Sequence[GaussianEvent]
_MOST_COMPOSED = 32
_MOST_KINDS = 4
_MOST_EPSILON = 200.0  # past it nothing is promised, and doubles overflow
_GRIDS = (0.01, 0.03)
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Met:
    """All charges of one unit kind on the same people."""

    unit: Unit
    people: People
    events: tuple[GaussianEvent, ...]


@dataclass(frozen=True)
class Exposure:
    """How many people a promise was made to, and how often the most exposed met each of `charges`.

    Whatever one of them met is within one of `times`, int64 [charges] each.
    """

    units: int
    charges: tuple[Met, ...]
    times: tuple[np.ndarray, ...]

    def adding(self, new: Met) -> "Exposure":
        """The same when `new`, whose people are those of one of `charges`, is made as well."""
        return dataclasses.replace(
            self,
            charges=tuple(
                dataclasses.replace(met, events=(*met.events, *new.events))
                if met.unit == new.unit and met.people is new.people
                else met
                for met in self.charges
            ),
        )

    @property
    def combinations(self) -> list[Events]:
        """The events of each of `times`."""
        return [merged(_events(self.charges, times)) for times in self.times]

    def figures(self, delta: float) -> "Figures":
        """The largest epsilon over these people at `delta`, by both accountants."""
        return figures_of(self.combinations, delta)


@dataclass(frozen=True)
class Figures:
    """Epsilon by the pld accountant and by the rdp accountant; infinite if there is none.

    Where `pld` can't count the steps, or they are of too many kinds for it, it is `rdp` too.
    """

    pld: float
    rdp: float


def figures_of(combinations: Iterable[Events], delta: float) -> Figures:
    """The largest epsilon of any of `combinations` at `delta`; 0 if there are none."""
    bounds = [(_epsilon(few, delta, "rdp"), few) for few in map(_few_kinds, combinations)]
    tight = 0.0
    for bound, few in sorted(bounds, key=lambda pair: -pair[0]):
        if bound <= tight:  # rdp is never less than pld
            break
        beyond = bound > _MOST_EPSILON
        tight = max(tight, bound if beyond else min(bound, _epsilon(few, delta, "pld")))
    return Figures(tight, max((bound for bound, _ in bounds), default=0.0))


def _epsilon(events: Events, delta: float, accountant: Accountant) -> float:
    if accountant == "pld" and len(events) > _MOST_KINDS:
        return math.inf
    try:
        return epsilon(events, delta, accountant)
    except InputError:  # none that is finite, or not with doubles
        return math.inf


def _few_kinds(events: Events) -> Events:
    """`events`, or where these are of many kinds, fewer kinds that cost a little more.

    A data set that grows has another rate at each run. Rates and noises that differ by less than a
    step of the first grid that will do are taken for the worst among them.
    """
    kinds = events
    for step in _GRIDS:
        if len(kinds) <= _MOST_KINDS:
            break
        cells: dict[tuple[int, int], list[GaussianEvent]] = {}
        for event in events:
            place = (
                math.floor(math.log(x) / step) for x in (event.sample_rate, event.noise_multiplier)
            )
            cells.setdefault((next(place), next(place)), []).append(event)
        kinds = merged(_worst(cell) for cell in cells.values())
    return kinds


def _worst(events: Events) -> GaussianEvent:
    return GaussianEvent(
        max(event.sample_rate for event in events),
        min(event.noise_multiplier for event in events),
        sum(event.count for event in events),
    )


def of_group(event: GaussianEvent, records: int) -> GaussianEvent:
    """What a record-level event costs somebody with so many records in it.

    The sum moves by at most the number j of their records that were taken. For each j from 1 on,
    one channel (scale by j / records, then add noise) turns the Gaussian pair of distance `records`
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
    charges = _by_people(charges)
    patients = _union(met.people.patients for met in charges if met.unit == "patient")
    owned = _of(_owned(charges), patients)
    records = _union(met.people.records for met in charges if met.unit == "record")
    records = records[~_among(records, _union([owned.records]))]
    found: dict[Unit, Exposure] = {}
    if touched_by:
        touched = _times_met(patients, owned, touched_by) > 0
        patients = patients[touched]
        owned = _of(owned, patients)
        records = records[_among(records, touched_by.people.known_records)]
    if len(patients):
        times = (_times_met(patients, owned, met) for met in charges)
        found["patient"] = _exposure(len(patients), charges, times)
    if len(records):
        at_records = [met for met in charges if met.unit == "record"]
        times = (_among(records, met.people.known_records) for met in at_records)
        found["record"] = _exposure(len(records), at_records, times)
    return found


def meet(one: Met, other: Met) -> bool:
    """Whether anybody, by name or by words, is in both."""
    return any(
        _among(values, known).any()
        for values, known in (
            (one.people.known_records, other.people.known_records),
            (one.people.known_patients, other.people.known_patients),
        )
    )


def _by_people(charges: Sequence[Met]) -> list[Met]:
    """The same, those that share one `People` and the unit as one."""
    events: dict[tuple[Unit, int], list[GaussianEvent]] = {}
    people = {id(met.people): met.people for met in charges}
    for met in charges:
        events.setdefault((met.unit, id(met.people)), []).extend(met.events)
    return [Met(unit, people[who], tuple(merged(of))) for (unit, who), of in events.items()]


def _owned(charges: Sequence[Met]) -> People:
    """Every record that any charge's data say is of a patient, once each."""
    pairs = np.zeros(0, dtype=np.uint64)
    owners, records = pairs, pairs
    for people in (met.people for met in charges if len(met.people.patients)):
        # one number for both; two pairs share one with a chance of 2^-64, and count as one
        found = people.patients * _ODD + people.records
        new = ~_among(found, pairs)
        if new.any():
            owners = np.concatenate([owners, people.patients[new]])
            records = np.concatenate([records, people.records[new]])
            pairs, first = np.unique(np.concatenate([pairs, found[new]]), return_index=True)
            owners, records = owners[first], records[first]
    return People(records, owners)


def _of(owned: People, patients: np.ndarray) -> People:
    kept = _among(owned.patients, patients)
    return People(owned.records[kept], owned.patients[kept])


def _times_met(patients: np.ndarray, owned: People, met: Met) -> np.ndarray:
    """How many of each patient's records the charges of `met` took; at most 1 at patient level.

    Int64, a number for each of `patients` (sorted). A patient is met by name, or by their words
    under another name.
    """
    if met.unit == "patient":
        by_name = _among(patients, met.people.known_patients).astype(np.int64)
    else:
        by_name = _counts(patients, met.people.patients)
    there = _among(owned.records, met.people.known_records)
    by_words = _counts(patients, owned.patients[there])
    times: np.ndarray = np.maximum(by_name, by_words)
    return np.minimum(times, 1) if met.unit == "patient" else times


def _exposure(units: int, charges: Sequence[Met], times: Iterable[np.ndarray]) -> Exposure:
    return Exposure(units, tuple(charges), tuple(_largest(_combined(units, times))))


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
