"""Private steps (DP-SGD, Abadi et al. 2016, algorithm 1), by units, as the plan says.

The only place that turns private rows into gradients. Sampler, clipping, noise and divisor are all
read from one plan; a step without units still gets its noise and counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedtune.errors import InputError, RunFailedError
from fedtune.privacy.clipping import Clipped, clipped_sum, moved_norm, unit_mix
from fedtune.privacy.noise import NoiseSource, SecureNoise, noised
from fedtune.privacy.per_example import Taps
from fedtune.privacy.plan import ExecutionPlan
from fedtune.privacy.sampling import UnitRows, UnitSampler, physical_batches
from fedtune.tasks.task import Encoded
from fedtune.tensors import TensorSet

Losses = Callable[[Sequence[Encoded]], Tensor]


@dataclass
class PrivateSteps:
    """The steps of one plan on the units of one data set.

    `norm` is the clipping norm of the next step: adaptive clipping moves it, and a checkpoint must
    keep it. `taken` counts the steps that were released. `source` is a seeded one in tests only.
    """

    plan: ExecutionPlan
    units: UnitRows
    source: NoiseSource = field(default_factory=SecureNoise)
    norm: float = field(init=False)
    taken: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        settings = self.plan.settings
        self.norm = settings.clipping_norm
        self._sampler = UnitSampler(self.plan, self.units, self.source)
        if (
            self.plan.unit == "patient"
            and settings.max_records_per_unit > settings.max_physical_batch
        ):
            raise InputError(
                f"a patient's rows ({settings.max_records_per_unit}) must fit in one batch",
                where="privacy.max_physical_batch",
                expected=f"at least `max_records_per_unit`, {settings.max_records_per_unit}",
            )

    def attach(self, model: Any) -> "AttachedSteps":
        """The steps on `model`. Raises InputError on a model whose examples can't be told apart."""
        return AttachedSteps(self, Taps(model), model)


@dataclass
class AttachedSteps:
    """Private steps with a model's taps."""

    steps: PrivateSteps
    taps: Taps
    model: Any
    checked: bool = False

    def set_gradients(self, losses: Losses, train: Sequence[Encoded]) -> None:
        """Draw a step's units and set every trainable parameter's gradient to the noised mean.

        `losses` gives each example's loss, float32 [examples]. Raises RunFailedError when the
        plan's steps are used up, or when a gradient of the first batch isn't an example's own.
        Seeds torch's generator (dropout) from the noise's source.
        """
        steps, plan = self.steps, self.steps.plan
        sums, centred = self._sums(losses, train)
        private = noised(sums, plan.sum_noise_multiplier * steps.norm, steps.source)
        for name, parameter in self.taps.parameters.items():
            parameter.grad = private[name] / plan.expected_batch
        if plan.settings.clipping == "adaptive":
            steps.norm = moved_norm(steps.norm, centred, plan, steps.source)

    def sum_for_shares(self, losses: Losses, train: Sequence[Encoded]) -> TensorSet:
        """Draw a step's units and give the sum of their clipped gradients, which has no noise yet:
        for `NoisySum.encode` alone. Raises as `set_gradients` does.
        """
        if self.steps.plan.shares is None:
            raise ValueError("the plan's noise isn't in shares: its sums are noised here")
        sums, _ = self._sums(losses, train)
        return TensorSet({name: part.detach().float().cpu() for name, part in sums.items()})

    def _sums(self, losses: Losses, train: Sequence[Encoded]) -> tuple[dict[str, Tensor], float]:
        """The next step's sums of units' clipped gradients, and the number of units within the
        norm less half of all.
        """
        steps, plan = self.steps, self.steps.plan
        if steps.taken >= plan.steps:
            raise RunFailedError(f"the plan is for {plan.steps} steps, all of which were taken")
        # told by the run's seed, a mask would tie a unit's gradient to who is in the batch with it
        torch.manual_seed(int(steps.source.uniform(1)[0] * 2**53))
        units = steps._sampler.take()
        sums = {
            n: torch.zeros_like(p, dtype=torch.float64) for n, p in self.taps.parameters.items()
        }
        centred = 0.0
        for rows, owners in physical_batches(units, plan.settings.max_physical_batch):
            clipped = self._clipped(losses, [train[int(row)] for row in rows], owners)
            for name, part in clipped.sums.items():
                sums[name] += part
            centred += clipped.within - (owners[-1] + 1) / 2
        steps.taken += 1
        return sums, centred

    def _clipped(self, losses: Losses, examples: Sequence[Encoded], owners: np.ndarray) -> Clipped:
        steps, settings = self.steps, self.steps.plan.settings
        if not self.checked:
            self._check(losses, examples[:2])
        grads = self.taps.gradients(lambda: losses(examples))
        whose = torch.from_numpy(owners).to(next(iter(grads.values())).device)
        mix = unit_mix(whose, int(owners[-1]) + 1, settings.unit_reduction)
        layered = settings.clipping == "per_layer"
        return clipped_sum(grads, mix, steps.norm, per_layer=layered)

    def _check(self, losses: Losses, examples: Sequence[Encoded]) -> None:
        """Once a run: what the batch gives for an example is what the example alone gives.

        Two examples are needed to see that a layer mixes them.
        """
        self.model.eval()  # a dropout mask would differ
        try:
            self.taps.check(lambda part: losses(examples[part]))
        finally:
            self.model.train()
        self.checked = len(examples) > 1
