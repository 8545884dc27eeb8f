"""What a plan promises, over its rounds and under other settings, before anything is trained."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fedtune.errors import InputError
from fedtune.privacy.accounting import (
    Figure,
    epsilon,
    epsilon_of_group,
    epsilon_of_selection,
    figures,
)
from fedtune.privacy.events import MAX_STEPS
from fedtune.privacy.plan import ExecutionPlan, people_of
from fedtune.privacy.told import rounded_down, rounded_up

_POINTS = 10
_MUCH_EPSILON, _LITTLE_NOISE = 10.0, 0.3


@dataclass(frozen=True)
class Point:
    """Epsilon after `round` rounds, by the chosen and the second accountant."""

    round: int
    steps: int
    epsilons: tuple[float, float]


@dataclass(frozen=True)
class Knob:
    """Epsilon with one setting halved and doubled, the others kept; null where it can't be."""

    setting: str
    half: float | None
    double: float | None


@dataclass(frozen=True)
class Selection:
    """Epsilon of the best of about `runs` runs, and of exactly so many runs composed."""

    runs: int
    best_of_poisson: float
    composed: float


@dataclass(frozen=True)
class Outlook:
    """`plan`'s figures, the chosen accountant's first. `signal_to_noise` is at most so much.

    `patient_epsilon` is, of a plan for records, for a patient with `records` of them.
    """

    plan: ExecutionPlan
    rounds: int
    figures: tuple[Figure, Figure]
    points: list[Point]
    knobs: list[Knob]
    weights: int | None
    records: int
    patient_epsilon: float | None
    selection: Selection | None
    warnings: list[str]

    @property
    def signal_to_noise(self) -> float | None:
        """The sum's norm, were all units' vectors alike, over the noise's expected norm."""
        if self.weights is None:
            return None
        return self.plan.expected_batch / (self.plan.sum_noise_multiplier * self.weights**0.5)

    @property
    def adversary(self) -> str:
        """Whom the promise holds against."""
        return adversary(self.plan)

    @property
    def person_epsilon(self) -> float | None:
        """Of silos as units that add noise themselves: what one person of theirs has of it."""
        return person_epsilon(self.plan)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        fields = (
            "rounds",
            "weights",
            "warnings",
            "patient_epsilon",
            "person_epsilon",
            "signal_to_noise",
        )
        return {
            "plan": self.plan.to_json(),
            "delta": self.plan.settings.delta,
            "relation": self.plan.relation,
            "adversary": self.adversary,
            "epsilon": [dataclasses.asdict(figure) for figure in self.figures],
            "over_rounds": [dataclasses.asdict(point) for point in self.points],
            "knobs": [dataclasses.asdict(knob) for knob in self.knobs],
            "records_per_unit": self.records,
            "selection": dataclasses.asdict(self.selection) if self.selection else None,
            **{field: getattr(self, field) for field in fields},
        }


def adversary(plan: ExecutionPlan) -> str:
    """Whom the plan's promise holds against, in few words."""
    if (shares := plan.shares) is not None:
        return (
            f"the coordinator, with up to {shares.colluders} silos that help it, and all who get "
            "the model"
        )
    if plan.unit == "silo":
        return "all who get the model; the coordinator is trusted"
    return "everybody outside the silo, the coordinator included"


def person_epsilon(plan: ExecutionPlan) -> float | None:
    """Where silos are the units and add noise themselves, epsilon for one person in their rows."""
    if plan.unit != "silo" or plan.shares is None:
        return None
    return people_of(plan, "record", 1).epsilon()


def outlook(
    plan: ExecutionPlan,
    rounds: int,
    *,
    weights: int | None = None,
    records: int = 1,
    select_from: int | None = None,
) -> Outlook:
    """All that `fedtune privacy plan` tells of `plan`, whose steps `rounds` rounds share evenly.

    `weights` is the number of trained weights; `records` the most records of a patient;
    `select_from` the mean number of runs of which the best is published.
    """
    event, delta = plan.event(), plan.settings.delta
    _ = plan.sum_noise_multiplier  # refuses a count whose noise is too small
    told = figures([event], delta, plan.settings.accountant)
    at_record = plan.unit == "record" and records > 1 and plan.settings.sampling != "shuffle"
    patient = epsilon_of_group(event, records, delta) if at_record else None
    found = Outlook(
        plan, rounds, (told[0], told[1]), _points(plan, rounds, told), _knobs(plan), weights,
        records, patient, _selection(plan, select_from), [],
    )  # fmt: skip
    return dataclasses.replace(found, warnings=_warnings(found))


def _points(plan: ExecutionPlan, rounds: int, told: list[Figure]) -> list[Point]:
    """At up to ten rounds, evenly; of a plan of one round, at as many steps."""
    stops = rounds if rounds > 1 else plan.steps
    points = []
    for stop in sorted({max(1, stops * k // _POINTS) for k in range(1, _POINTS + 1)}):
        steps = plan.steps * stop // stops
        event, delta = plan.event(steps), plan.settings.delta
        values = [
            figure.epsilon if steps == plan.steps else epsilon([event], delta, figure.accountant)
            for figure in told
        ]
        points.append(Point(stop if rounds > 1 else 1, steps, (values[0], values[1])))
    return points


def _knobs(plan: ExecutionPlan) -> list[Knob]:
    rate, noise, sampled = plan.sample_rate, plan.noise_multiplier, plan.sampling != "full"

    def with_(**changed: Any) -> float | None:
        if not 0 < changed.get("sample_rate", rate) <= 1 or changed.get("steps", 1) < 1:
            return None
        event = dataclasses.replace(plan, **changed).event()
        try:
            return epsilon([event], plan.settings.delta, plan.settings.accountant)
        except (InputError, ValueError):  # beyond what the accountant can count
            return None

    knobs = [
        Knob("noise", with_(noise_multiplier=noise / 2), with_(noise_multiplier=noise * 2)),
    ]
    if plan.correlation is None:
        knobs.append(Knob("steps", with_(steps=plan.steps // 2), with_(steps=plan.steps * 2)))
        if sampled:
            half, double = with_(sample_rate=rate / 2), with_(sample_rate=rate * 2)
            if plan.shares is not None:  # its rate is a setting, whatever the silos' sizes
                knobs.append(Knob("sample rate", half, double))
            else:
                knobs += [Knob("batch", half, double), Knob("units", double, half)]
    return knobs


def _selection(plan: ExecutionPlan, runs: int | None) -> Selection | None:
    if runs is None:
        return None
    if runs * plan.steps > MAX_STEPS:
        raise InputError(f"{runs:,} runs are more steps than can be counted", where="--select-from")
    event, settings = plan.event(), plan.settings
    best = epsilon_of_selection([event], settings.delta, runs)
    return Selection(runs, best, epsilon([event] * runs, settings.delta, settings.accountant))


def _warnings(found: Outlook) -> list[str]:
    plan, settings = found.plan, found.plan.settings
    spent, small = found.figures[0].epsilon, plan.noise_multiplier < _LITTLE_NOISE
    said = []
    if spent > _MUCH_EPSILON:
        said.append(f"epsilon {rounded_up(spent)} is over 10: as a guarantee it is next to nothing")
    if small:
        noise = rounded_down(plan.noise_multiplier)
        said.append(f"a noise multiplier of {noise} is no noise to speak of")
    if settings.delta * plan.units > 0.1:
        said.append(
            f"delta {settings.delta:g} is over a tenth of one over the {plan.units:,} {plan.unit}s"
        )
    if settings.sampling == "shuffle":
        said.append("shuffled batches are counted without amplification by sampling")
    elif plan.sample_rate == 1:
        said.append(f"every {plan.unit} is in every step: no amplification by sampling")
    if found.patient_epsilon is not None:
        said.append(
            f"the promise is for one record; a patient of {found.records} has "
            f"{rounded_up(found.patient_epsilon)}"
        )
    return said
