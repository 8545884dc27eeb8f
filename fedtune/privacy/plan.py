"""The execution plan: sampler, clipping, noise and accounting event in one object.

Trainer, ledger, statement and audit all read this one, so that none of the four can be changed
without the others (after JAX-Privacy's `DPExecutionPlan`).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedtune.config.federation import FederationConfig
from fedtune.config.privacy import PrivacyConfig
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.privacy.accounting import Accountant, epsilon, solve_noise
from fedtune.privacy.correlated import Correlation, best_bands
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.rounding import MOST_EPSILON
from fedtune.privacy.told import rounded_up

Unit = Literal["record", "patient", "silo"]

_LEAST_NOISE = 1e-4  # its square and its inverse are far from where doubles end


@dataclass(frozen=True)
class Shares:
    """Noise in shares: at least `silos` silos are in a sum, of which `colluders` may tell theirs.

    What the other silos add together is all of the noise, or more.
    """

    silos: int
    colluders: int

    @property
    def honest(self) -> int:
        """Silos of a sum, at least, that tell nobody their noise: the protected one is of them."""
        return self.silos - self.colluders


@dataclass(frozen=True)
class ExecutionPlan:
    """How one data set's units enter `steps` noisy sums, and what that costs.

    `units` is the number of units that take part; `sample_rate` the chance of each at a step;
    `noise_multiplier` the noise over the clipping norm that the accountant counts, the count of
    adaptive clipping included. `correlation` is of noise that is not fresh at each step: silos then
    take turns, one in `1 / sample_rate` steps each. `shares` is of noise that silos add together.
    Made by `plan_steps`, `plan_rounds` or `plan_shared`; every part is derived from these fields.
    """

    unit: Unit
    units: int
    sample_rate: float
    steps: int
    noise_multiplier: float
    settings: PrivacyConfig
    correlation: Correlation | None = None
    shares: Shares | None = None

    @property
    def sampling(self) -> Literal["poisson", "shuffle", "full", "turns"]:
        """How a step's units come to be those."""
        if self.correlation is not None:
            return "turns"
        if self.unit == "silo" or self.shares is not None:
            return "poisson" if self.sample_rate < 1 else "full"
        return self.settings.sampling

    @property
    def relation(self) -> Literal["add_remove", "zero_out"]:
        """What neighbouring data are: with a unit or without it; or, where all know which silos are
        in a sum, with one's delta or with nothing in its place.
        """
        return "zero_out" if self.unit == "silo" and self.shares is not None else "add_remove"

    @property
    def expected_batch(self) -> float:
        """Units that a step is expected to take: what a noisy sum is divided by."""
        return self.sample_rate * self.units

    @property
    def count_noise(self) -> float:
        """Standard deviation of the noise on adaptive clipping's count of units."""
        return self.settings.count_noise or max(1.0, self.expected_batch / 20)

    @property
    def sum_noise_multiplier(self) -> float:
        """The noise on the sum over the clipping norm.

        With adaptive clipping it is larger than `noise_multiplier`, so that sum and count together
        cost what `noise_multiplier` says (Andrew et al. 2021, theorem 1).
        """
        if self.settings.clipping != "adaptive":
            return self.noise_multiplier
        left = self.noise_multiplier**-2 - (2 * self.count_noise) ** -2
        if left <= 0:
            raise InputError(
                f"a noise of {self.count_noise:.3g} on the count alone costs more than the plan",
                where="privacy.count_noise",
                expected=f"above {self.noise_multiplier / 2:.3g}",
            )
        return left**-0.5

    def event(self, steps: int | None = None) -> GaussianEvent:
        """What `steps` of the plan's steps (all, by default) cost."""
        count = self.steps if steps is None else steps
        rate = self.sample_rate
        if self.correlation is not None:
            return self.event_of(range(1, count + 1))
        if self.settings.sampling == "shuffle":
            # a unit is in one batch a pass: no amplification, one sum a pass
            return GaussianEvent(1.0, self.noise_multiplier, math.ceil(count * rate))
        return GaussianEvent(rate, self.noise_multiplier, count)

    def event_of(self, released: Sequence[int]) -> GaussianEvent:
        """What the steps of these numbers, from 1, cost; one that was taken twice stands twice."""
        if self.correlation is None:
            return self.event(len(released))
        moved = self.correlation.sensitivity(released)
        return GaussianEvent(1.0, self.noise_multiplier / moved, 1)

    def steps_of(self, events: Sequence[GaussianEvent]) -> int:
        """The steps that `events`, each made by `event`, stand for; not of correlated noise.

        An event of shuffled batches counts passes, the last of which may be a part of one.
        """
        sums = sum(event.count for event in events)
        if self.settings.sampling != "shuffle":
            return sums
        return min(sums * math.ceil(1 / self.sample_rate), self.steps)

    def epsilon(self) -> float:
        """Epsilon of the whole plan at the settings' delta, by the settings' accountant."""
        return epsilon([self.event()], self.settings.delta, self.settings.accountant)

    def to_json(self) -> dict[str, Any]:
        """Plain values for the ledger and the statement."""
        return {
            "unit": self.unit,
            "units": self.units,
            "sample_rate": self.sample_rate,
            "steps": self.steps,
            "noise_multiplier": self.noise_multiplier,
            "sum_noise_multiplier": self.sum_noise_multiplier,
            "settings": self.settings.model_dump(mode="json"),
            "correlation": self.correlation.to_json() if self.correlation else None,
            "shares": dataclasses.asdict(self.shares) if self.shares else None,
        }


def plan_steps(
    settings: PrivacyConfig, unit: Unit, units: int, batch: int, steps: int
) -> ExecutionPlan:
    """The plan for `steps` steps of about `batch` of `units` units; noise is solved for if asked.

    `steps` are all that the run takes on this data, over all its rounds. Raises InputError on a
    batch or delta that doesn't fit the number of units, and on an epsilon that can't be told.
    """
    if settings.sampling != "full" and batch > units:
        raise InputError(
            f"a batch of {batch} is more than there are: {units} {unit}s",
            where="training.batch_size",
            mend="lower it, or leave it out and set `privacy.sampling: full`",
        )
    _check_delta(settings, unit, units)
    rate = 1.0 if settings.sampling == "full" else batch / units
    return _solved(ExecutionPlan(unit, units, rate, steps, 1.0, settings))


def plan_rounds(settings: PrivacyConfig, federation: FederationConfig, silos: int) -> ExecutionPlan:
    """The plan of `privacy.mode: central` for all rounds of a federation of `silos` silos.

    Fresh noise: at each round every silo is asked with the chance `federation.fraction` (Poisson).
    Correlated noise: silos take turns. Raises InputError on a delta that doesn't fit the silos, and
    on an epsilon that can't be told.
    """
    _check_delta(settings, "silo", silos)
    rounds, rate, correlation = federation.rounds, federation.fraction, None
    if settings.server_noise != "gaussian":
        every = round(1 / rate)
        bands, rate = 1, 1 / every
        if settings.server_noise == "banded":
            bands = min(settings.bands or best_bands(rounds, every), rounds)
        correlation = Correlation(settings.server_noise, rounds, every, bands)
    return _solved(ExecutionPlan("silo", silos, rate, rounds, 1.0, settings, correlation))


def plan_shared(config: RunConfig, unit: Unit, units: int) -> ExecutionPlan:
    """The plan of `privacy.mode: distributed` for all rounds: `units` are those of one silo, or for
    the unit `silo` all silos.

    Who is asked is the coordinator's to choose, so that every silo is taken to be in every round.
    Raises InputError on a delta that doesn't fit the units, and on an epsilon that can't be told.
    """
    _check_delta(config.privacy, unit, units)
    return _shared(config, unit, units)


def noise_of_shared(config: RunConfig) -> float:
    """The noise multiplier of `plan_shared`, which is the same for all silos."""
    return _shared(config, _unit_of(config), 1).noise_multiplier


def epsilon_of_people(config: RunConfig) -> float:
    """Epsilon of `plan_shared` for somebody in a silo's rows, as their ledger counts it."""
    plan = _shared(config, _unit_of(config), 1)
    return (people_of(plan, "record", 1) if plan.unit == "silo" else plan).epsilon()


def _unit_of(config: RunConfig) -> Unit:
    return "silo" if config.privacy.unit == "silo" else "record"


def _shared(config: RunConfig, unit: Unit, units: int) -> ExecutionPlan:
    settings = config.privacy
    shares = Shares(config.federation.min_silos, config.secure_aggregation.max_colluders)
    rate, rounds = settings.sample_rate or 1.0, config.federation.rounds
    return _solved(ExecutionPlan(unit, units, rate, rounds, 1.0, settings, shares=shares))


def people_of(plan: ExecutionPlan, unit: Unit, units: int) -> ExecutionPlan:
    """What a plan that protects silos costs one of the `units` in a silo's rows.

    Without one patient a silo may send anything else within the clipping norm, which moves the sum
    by up to twice of it; with nothing in its place, which is what silos are promised, by once.
    Raises InputError on a delta that doesn't fit them.
    """
    _check_delta(plan.settings, unit, units)
    return dataclasses.replace(
        plan, unit=unit, units=units, noise_multiplier=plan.noise_multiplier / 2
    )


def _check_delta(settings: PrivacyConfig, unit: Unit, units: int) -> None:
    if settings.delta * units >= 1:
        raise InputError(
            f"delta {settings.delta:g} is no less than one over the number of {unit}s ({units}): "
            "it would allow publishing somebody's row whole",
            where="privacy.delta",
            expected=f"below {1 / units:.2g}",
        )


def _solved(plan: ExecutionPlan) -> ExecutionPlan:
    """`plan`, made with a noise multiplier of 1, with the one that the settings want."""
    settings, noise = plan.settings, plan.settings.noise_multiplier
    if noise is None:
        target = settings.target_epsilon
        assert target is not None  # noqa: S101 - the schema has seen to it
        if target > MOST_EPSILON:
            raise InputError(
                f"of {target:g} promises nothing, and accountants fail there",
                where="privacy.target_epsilon",
                expected=f"at most {MOST_EPSILON:g}",
            )
        noise = _noise_for(target, plan, settings.accountant)
    solved = dataclasses.replace(plan, noise_multiplier=noise)
    if settings.noise_multiplier is not None:
        _check_told(plan, solved)
    return solved


def _check_told(at_one: ExecutionPlan, plan: ExecutionPlan) -> None:
    """Raise InputError on noise so little that no accountant can tell the epsilon, or the asked one
    can't: a run would find that out when it has spent it. `at_one` is with a multiplier of 1.
    """
    noise, delta = plan.noise_multiplier, plan.settings.delta
    if noise < _LEAST_NOISE or epsilon([plan.event()], delta, "rdp") > MOST_EPSILON:
        least = rounded_up(_noise_for(MOST_EPSILON, at_one, "rdp"))
        raise InputError(
            f"noise of {noise:g} gives an epsilon above {MOST_EPSILON:g}, where accountants fail "
            "and nothing is promised",
            where="privacy.noise_multiplier",
            expected=f"at least {least}; much more for a promise that means something",
        )
    plan.epsilon()


def _noise_for(target: float, at_one: ExecutionPlan, accountant: Accountant) -> float:
    """The least noise multiplier that keeps to `target`; `at_one` is the plan with one of 1."""
    event = at_one.event()
    # the event's own multiplier is 1 over the sensitivity of correlated noise
    return event.noise_multiplier**-1 * solve_noise(
        target, at_one.settings.delta, event.sample_rate, event.count, accountant
    )
