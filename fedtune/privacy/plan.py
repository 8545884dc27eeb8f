"""The execution plan: sampler, clipping, noise and accounting event in one object.

Trainer, ledger, statement and audit all read this one, so that none of the four can be changed
without the others (after JAX-Privacy's `DPExecutionPlan`).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from fedtune.config.schema import PrivacyConfig
from fedtune.errors import InputError
from fedtune.privacy.accounting import epsilon, solve_noise
from fedtune.privacy.events import GaussianEvent

Unit = Literal["record", "patient", "silo"]


@dataclass(frozen=True)
class ExecutionPlan:
    """How one data set's units enter `steps` noisy sums, and what that costs.

    `units` is the number of units that take part; `sample_rate` the chance of each at a step;
    `noise_multiplier` the noise over the clipping norm that the accountant counts, the count of
    adaptive clipping included. Made by `plan_steps`; every part is derived from these fields.
    """

    unit: Unit
    units: int
    sample_rate: float
    steps: int
    noise_multiplier: float
    settings: PrivacyConfig

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
        if self.settings.sampling == "shuffle":
            # a unit is in one batch a pass: no amplification, one sum a pass
            return GaussianEvent(1.0, self.noise_multiplier, math.ceil(count * rate))
        return GaussianEvent(rate, self.noise_multiplier, count)

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
        }


def plan_steps(
    settings: PrivacyConfig, unit: Unit, units: int, batch: int, steps: int
) -> ExecutionPlan:
    """The plan for `steps` steps of about `batch` of `units` units; noise is solved for if asked.

    `steps` are all that the run takes on this data, over all its rounds. Raises InputError on a
    batch or delta that doesn't fit the number of units.
    """
    if settings.sampling != "full" and batch > units:
        raise InputError(
            f"a batch of {batch} is more than there are: {units} {unit}s",
            where="training.batch_size",
            mend="lower it, or set `privacy.sampling: full`",
        )
    if settings.delta * units >= 1:
        raise InputError(
            f"delta {settings.delta:g} is no less than one over the number of {unit}s ({units}): "
            "it would allow publishing somebody's row whole",
            where="privacy.delta",
            expected=f"below {1 / units:.2g}",
        )
    rate = 1.0 if settings.sampling == "full" else batch / units
    noise = settings.noise_multiplier
    if noise is None:
        assert settings.target_epsilon is not None  # noqa: S101 - the schema has seen to it
        event = ExecutionPlan(unit, units, rate, steps, 1.0, settings).event()
        noise = solve_noise(
            settings.target_epsilon, settings.delta, event.sample_rate, event.count,
            settings.accountant,
        )  # fmt: skip
    return ExecutionPlan(unit, units, rate, steps, noise, settings)
