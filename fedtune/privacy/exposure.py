"""Which charges met which people, and what the most exposed of them have spent.

People of different data sets are told apart (parallel composition); the charges that met the same
person add up. A promise is made to the patients of patient-level charges, also of those that had
their words under another id, and to the records of record-level charges that belong to none of
these patients. A charge in which k units are theirs (a patient's records, a patient under k ids,
equal records) counts for them as `of_group` says.
Whose a unit is, `joining` tells.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedtune.errors import InputError
from fedtune.privacy.accounting import Accountant, epsilon
from fedtune.privacy.events import GaussianEvent, merged
from fedtune.privacy.joining import Met, NamedRows, Unit, times_met
from fedtune.privacy.sorted_numbers import among, counts, union

Events = Sequence[GaussianEvent]
_MOST_COMPOSED = 32
_MOST_KINDS = 4
_MOST_EPSILON = 200.0  # past it nothing is promised, and doubles overflow
_GRIDS = (0.01, 0.03)


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
    named = NamedRows.of(charges)
    patients = _promised(charges, named)
    records = union(met.people.known_records for met in charges if met.unit == "record")
    owned = union([named.of_patients(patients).records])
    records = records[~among(records, owned)]
    found: dict[Unit, Exposure] = {}
    if touched_by:
        patients = patients[times_met(patients, named, touched_by) > 0]
        records = records[among(records, touched_by.people.known_records)]
    if len(patients):
        times = (times_met(patients, named, met) for met in charges)
        found["patient"] = _exposure(len(patients), charges, times)
    if len(records):
        at_records = [met for met in charges if met.unit == "record"]
        times = (counts(records, met.people.records) for met in at_records)
        found["record"] = _exposure(len(records), at_records, times)
    return found


def _promised(charges: Sequence[Met], named: NamedRows) -> np.ndarray:
    """The patients, sorted, whom a patient-level charge meets, be it by words under other ids."""
    at_patients = [met for met in charges if met.unit == "patient"]
    by_id = union(met.people.patients for met in at_patients)
    others = union(met.people.patients for met in charges)
    others = others[~among(others, by_id)]
    by_words = [others[times_met(others, named, met) > 0] for met in at_patients]
    return union([by_id, *by_words])


def _by_people(charges: Sequence[Met]) -> list[Met]:
    """The same, those that share one `People` and the unit as one."""
    together: dict[tuple[Unit, int], list[Met]] = {}
    for met in charges:
        together.setdefault((met.unit, id(met.people)), []).append(met)
    return [
        dataclasses.replace(same[0], events=tuple(merged(e for met in same for e in met.events)))
        for same in together.values()
    ]


def _exposure(units: int, charges: Sequence[Met], times: Iterable[np.ndarray]) -> Exposure:
    return Exposure(units, tuple(charges), tuple(_largest(_combined(units, times))))


def _events(charges: Sequence[Met], times: np.ndarray) -> Iterator[GaussianEvent]:
    for met, count in zip(charges, times.tolist(), strict=True):
        if count:
            yield from (of_group(event, count) for event in met.events)


def _combined(units: int, times: Iterable[np.ndarray]) -> np.ndarray:
    """Distinct columns of `times`, each as a row: int64 [combinations, charges]."""
    codes, combinations = np.zeros(units, dtype=np.int64), np.zeros((1, 0), dtype=np.int64)
    for times_of_charge in times:
        base = int(times_of_charge.max(initial=0)) + 1
        both, codes = np.unique(codes * base + times_of_charge, return_inverse=True)
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
