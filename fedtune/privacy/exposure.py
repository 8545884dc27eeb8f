"""Which charges met which people, and what the most exposed of them have spent.

People of different data sets are told apart (parallel composition); the charges that met the same
person add up. A promise is made to the patients of patient-level charges, also of those that had
their words under another id, and to the records of record-level charges that belong to none of
these patients. A charge in which k units are theirs (a patient's records, a patient under k ids,
equal records) counts for them as `of_group` says.

Whose a unit is, ids tell, and words: a unit that holds a patient's words is that patient's, unless
one charge was the first to have these words under both ids. To its data they were two people, and
nobody had a reason then to tell it otherwise.
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
_MOST_MATCHES = 4_000_000
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Met:
    """All charges of one unit kind on the same people, the first of them made for `run`."""

    unit: Unit
    people: People
    events: tuple[GaussianEvent, ...]
    run: str


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
        return self._charging(
            (*met.events, *new.events) if same else met.events for met, same in self._known(new)
        )

    def alone(self, new: Met) -> "Exposure":
        """The same when nothing but `new` is made."""
        return self._charging(new.events if same else () for _, same in self._known(new))

    def most_units(self, new: Met) -> int:
        """How many units of `new` are one person's, at most."""
        own = [number for number, (_, same) in enumerate(self._known(new)) if same]
        return max((int(times[number]) for times in self.times for number in own), default=0)

    def _known(self, new: Met) -> Iterator[tuple[Met, bool]]:
        for met in self.charges:
            yield met, met.unit == new.unit and met.people is new.people

    def _charging(self, events: Iterable[tuple[GaussianEvent, ...]]) -> "Exposure":
        pairs = zip(self.charges, events, strict=True)
        charges = tuple(dataclasses.replace(met, events=each) for met, each in pairs)
        return dataclasses.replace(self, charges=charges)

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


def of_group(event: GaussianEvent, units: int) -> GaussianEvent:
    """What an event costs somebody who is so many of its units.

    The sum moves by at most the number j of their units that were taken. For each j from 1 on,
    one channel (scale by j / units, then add noise) turns the Gaussian pair of distance `units`
    into that of distance j, so all are within the pair of which the far one comes up with the
    chance that any unit was taken.
    """
    if units == 1:
        return event
    rate = event.sample_rate
    any_taken = 1.0 if rate == 1.0 else min(1.0, -math.expm1(units * math.log1p(-rate)))
    return GaussianEvent(any_taken, event.noise_multiplier / units, event.count)


def exposures(charges: Sequence[Met], touched_by: Met | None = None) -> dict[Unit, Exposure]:
    """What the people of each kind have met in `charges`; those only whom `touched_by` meets."""
    charges = _by_people(charges)
    named = _NamedRows.of(charges)
    patients = _promised(charges, named)
    records = _union(met.people.known_records for met in charges if met.unit == "record")
    owned = _union([named.of_patients(patients).records])
    records = records[~_among(records, owned)]
    found: dict[Unit, Exposure] = {}
    if touched_by:
        patients = patients[_times_met(patients, named, touched_by) > 0]
        records = records[_among(records, touched_by.people.known_records)]
    if len(patients):
        times = (_times_met(patients, named, met) for met in charges)
        found["patient"] = _exposure(len(patients), charges, times)
    if len(records):
        at_records = [met for met in charges if met.unit == "record"]
        times = (_counts(records, met.people.records) for met in at_records)
        found["record"] = _exposure(len(records), at_records, times)
    return found


def _promised(charges: Sequence[Met], named: "_NamedRows") -> np.ndarray:
    """The patients, sorted, whom a patient-level charge meets, be it by words under other ids."""
    at_patients = [met for met in charges if met.unit == "patient"]
    by_id = _union(met.people.patients for met in at_patients)
    others = _union(met.people.patients for met in charges)
    others = others[~_among(others, by_id)]
    by_words = [others[_times_met(others, named, met) > 0] for met in at_patients]
    return _union([by_id, *by_words])


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
    together: dict[tuple[Unit, int], list[Met]] = {}
    for met in charges:
        together.setdefault((met.unit, id(met.people)), []).append(met)
    return [
        dataclasses.replace(same[0], events=tuple(merged(e for met in same for e in met.events)))
        for same in together.values()
    ]


@dataclass(frozen=True)
class _NamedRows:
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
    def of(charges: Sequence[Met]) -> "_NamedRows":
        """Those of all `charges`, whose order says which was first."""
        words, numbers = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        known, runs = _NamedRows(words, words, words, *[numbers] * 3), dict[str, int]()
        for number, met in enumerate(charges):
            people, run = met.people, runs.setdefault(met.run, len(runs))
            keys, at, copies = np.unique(_keys(people), return_index=True, return_counts=True)
            first = np.full_like(copies, number), np.full_like(copies, run)
            found = _NamedRows(keys, people.patients[at], people.records[at], *first, copies)
            known = known.joined(found[~_among(keys, known.keys)])
        return known

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """All of them, in order."""
        return self.keys, self.patients, self.records, self.charges, self.runs, self.copies

    def __getitem__(self, chosen: np.ndarray) -> "_NamedRows":
        return _NamedRows(*(column[chosen] for column in self.columns))

    def joined(self, other: "_NamedRows") -> "_NamedRows":
        """These and those of `other`."""
        both = map(np.concatenate, zip(self.columns, other.columns, strict=True))
        rows = _NamedRows(*both)
        return rows[np.argsort(rows.keys)]

    def of_patients(self, patients: np.ndarray) -> "_NamedRows":
        """Those of `patients`, which are sorted."""
        return self[_among(self.patients, patients)]

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


def _times_met(patients: np.ndarray, named: _NamedRows, met: Met) -> np.ndarray:
    """How many units of `met` are of each of `patients` (sorted), by id or by words; int64.

    By words, all units under ids that a later run brought are theirs. Of units under ids of the
    same run's other data, or of earlier runs, no more are than they have rows: else somebody new
    with words that many share would be all of these.
    """
    people, mine = met.people, named.of_patients(patients)
    if not len(people.patients):
        return _sums(patients, mine.patients, _counts(mine.records, people.records))
    ids = people.known_patients if met.unit == "patient" else people.patients
    later, others = _under_other_ids(patients, mine, named, met)
    rows = _sums(patients, mine.patients, mine.copies)
    times: np.ndarray = _counts(patients, ids) + later + np.minimum(others, rows)
    return times


def _under_other_ids(
    patients: np.ndarray, mine: _NamedRows, named: _NamedRows, met: Met
) -> tuple[np.ndarray, np.ndarray]:
    """How many units of `met`, of ids from a later run and of others, have words of `mine`."""
    mine = mine[_among(mine.records, named.of_several_charges())]
    records, ids = met.people.records, met.people.patients
    held = np.flatnonzero(_among(records, np.unique(mine.records)))
    held = held[np.argsort(records[held])]
    records, ids = records[held], ids[held]
    theirs = named[np.searchsorted(named.keys, ids * _ODD + records)]
    units = np.unique(ids, return_inverse=True)[1] if met.unit == "patient" else np.arange(len(ids))
    later, others = np.zeros((2, len(patients)), dtype=np.int64)
    for part in _pieces(mine, _counts(mine.records, records)):
        left, right = _matches(part.records, records)
        who, unit = np.searchsorted(patients, part.patients[left]), units[right]
        apart = part.charges[left] == theirs.charges[right]
        apart |= part.patients[left] == ids[right]  # one's own
        after = theirs.runs[right] > part.runs[left]
        for total, kept in ((later, after & ~apart), (others, ~after & ~apart)):
            total += _distinct(who[kept], unit[kept], len(patients))
    return later, others


def _pieces(rows: _NamedRows, matches: np.ndarray) -> Iterator[_NamedRows]:
    """`rows` in parts of few matches each, all of a patient's in one: words may be everybody's."""
    parts = 1 + int(matches.sum()) // _MOST_MATCHES
    for part in range(parts):
        yield rows[rows.patients % np.uint64(parts) == part]


def _matches(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of all pairs of equals in `values` and in `known`, which are sorted."""
    start = np.searchsorted(known, values, "left")
    count = np.searchsorted(known, values, "right") - start
    left = np.repeat(np.arange(len(values)), count)
    inside = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
    return left, start[left] + inside


def _distinct(who: np.ndarray, units: np.ndarray, many: int) -> np.ndarray:
    """How many different `units` stand beside each of `who`, numbers below `many`."""
    base = int(units.max(initial=0)) + 1
    return np.bincount(np.unique(who * base + units) // base, minlength=many)


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
    """How often each of `known` is one of `values`; int64."""
    ordered = np.sort(values)
    found: np.ndarray = np.searchsorted(ordered, known, "right")
    return found - np.searchsorted(ordered, known, "left")


def _sums(known: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The summed weights of each of `known`, sorted, among which are all `values`; int64."""
    sums = np.zeros(len(known), dtype=np.int64)
    np.add.at(sums, np.searchsorted(known, values), weights)
    return sums
