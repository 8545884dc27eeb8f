"""The only training loop: central, in a silo and in a simulation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedtune.config.schema import TrainingConfig
from fedtune.errors import InputError, RunFailedError
from fedtune.models.adapters import read_state
from fedtune.tasks.task import Encoded, Task
from fedtune.tensors import TensorSet
from fedtune.training.optimizers import build_optimizer, clip, rate_factor, set_rate
from fedtune.training.sampling import batch_indices, steps_for

_NOT_YET = ("gradient_checkpointing", "eval_steps", "early_stopping_patience", "save_steps")


@dataclass(frozen=True)
class TrainingResult:
    """What training did. `delta` is trained minus received; `loss` the mean over all steps."""

    delta: TensorSet
    examples: int
    steps: int
    loss: float


class Trainer:
    """Trains a model's trainable parameters on encoded examples; equal seeds, equal results."""

    def __init__(self, task: Task, settings: TrainingConfig, *, seed: int) -> None:
        for name in _NOT_YET:
            if getattr(settings, name):
                raise InputError("is not available yet", where=f"training.{name}")
        if settings.precision == "bf16":
            raise InputError("bf16 is not available yet", where="training.precision")
        self._task, self._settings, self._seed = task, settings, seed

    def fit(
        self, model: Any, train: Sequence[Encoded], *, proximal_mu: float = 0.0
    ) -> TrainingResult:
        """Train `model` in place. Raises RunFailedError on a loss that is not finite.

        With `proximal_mu` each step also pulls towards the received weights (FedProx, Li et al.
        2020, eq. 2).
        """
        received = read_state(model)
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        optimizer = build_optimizer(self._settings, parameters.values())
        steps = steps_for(self._settings, len(train))
        losses = []
        model.train()
        # dropout draws from the seed and leaves the caller's stream alone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            for step in range(steps):
                factor = rate_factor(self._settings, step, steps)
                set_rate(optimizer, self._settings.learning_rate * factor)
                losses.append(self._gradients(model, train, step))
                _pull(parameters, received, proximal_mu)
                clip(parameters.values(), self._settings)
                optimizer.step()
                optimizer.zero_grad()
                if step == 0:
                    _check_moved(model, received)
        delta = read_state(model) - received
        return TrainingResult(delta, len(train), steps, math.fsum(losses) / steps)

    def _gradients(self, model: Any, train: Sequence[Encoded], step: int) -> float:
        """Add up the gradient of the batch's mean loss, however it is cut; return the loss."""
        settings = self._settings
        chosen = batch_indices(len(train), settings.batch_size, self._seed, step)
        size = settings.micro_batch_size or settings.batch_size
        total = 0.0
        for start in range(0, len(chosen), size):
            examples = [train[index] for index in chosen[start : start + size]]
            loss = self._task.losses(model, self._task.collate(examples)).sum() / len(chosen)
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise RunFailedError(
                f"step {step + 1}: the loss is {total}; lower `training.learning_rate`"
            )
        return total


def _pull(parameters: dict[str, Tensor], received: TensorSet, mu: float) -> None:
    if not mu:
        return
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - received[name], alpha=mu)


def _check_moved(model: Any, received: TensorSet) -> None:
    """A frozen or detached adapter trains nothing while the loss looks fine: say so at once."""
    if read_state(model).digest() == received.digest():
        raise RunFailedError("the first step moved no trainable weight")
