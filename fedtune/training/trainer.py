"""The only training loop: central, in a silo and in a simulation."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fedtune.config.training import TrainingConfig
from fedtune.errors import InputError, RunFailedError
from fedtune.models.adapters import read_state, write_state
from fedtune.privacy.dp_sgd import AttachedSteps, Losses, PrivateSteps
from fedtune.tasks.evaluation import to_device
from fedtune.tasks.task import Encoded, Task
from fedtune.tensors import TensorSet
from fedtune.training import processes
from fedtune.training.checkpoints import CheckpointFolder, Progress
from fedtune.training.evaluation import evaluate_together
from fedtune.training.events import Evaluated, Event, Listener, Saved, StepDone
from fedtune.training.interrupts import deferred
from fedtune.training.optimizers import build_optimizer, clip, rate_factor, set_rate
from fedtune.training.sampling import batch_indices, steps_for

_CHECKPOINTS_A_RUN = 10


@dataclass(frozen=True)
class TrainingResult:
    """What training did. `delta` is trained minus received; `loss` the mean over all steps.

    Of private training nothing exact is told: no loss, and for `examples` batch size times steps.

    `evaluations` are the metrics of every evaluation, each with its `step`. `kept_step` is the
    step whose weights the model now has: the best one under early stopping, else the last.
    """

    delta: TensorSet
    examples: int
    steps: int
    loss: float | None
    kept_step: int
    evaluations: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Trains a model's trainable parameters on encoded examples; equal seeds, equal results."""

    def __init__(
        self, task: Task, settings: TrainingConfig, *, seed: int, listeners: Iterable[Listener] = ()
    ) -> None:
        self._task, self._settings, self._seed = task, settings, seed
        self._listeners = tuple(listeners)

    def fit(
        self,
        model: Any,
        train: Sequence[Encoded],
        *,
        validation: Sequence[Encoded] = (),
        proximal_mu: float = 0.0,
        checkpoints: CheckpointFolder | None = None,
        private: PrivateSteps | None = None,
        before_release: Callable[[int], None] | None = None,
    ) -> TrainingResult:
        """Train `model` in place, from the latest checkpoint if there is one.

        `validation` is what `eval_steps` evaluates on. With `proximal_mu` each step also pulls
        towards the received weights (FedProx, Li et al. 2020, eq. 2). With `private` the gradients
        are those of its plan, and nothing exact is told of `train`; `before_release` is called
        before anything that comes of so many of its steps can be seen. Raises RunFailedError on a
        loss that is not finite, InputError on a checkpoint that is not this run's, ValueError
        where `eval_steps` has nothing to evaluate on.
        """
        if self._settings.eval_steps and not len(validation):
            raise ValueError("`eval_steps` needs validation examples")
        received = read_state(model)
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        optimizer = build_optimizer(self._settings, parameters.values())
        steps = steps_for(self._settings, len(private.units) if private else len(train))
        attached = private.attach(model) if private else None
        gradients: Callable[..., tuple[float | None, int]] = partial(self._gradients, parameters)
        if attached:
            gradients = partial(self._private_gradients, attached)
        progress = checkpoints.restore(model, optimizer) if checkpoints else Progress()
        release = before_release or (lambda step: None)
        with _learning(model, self._settings), _interruptible(checkpoints) as told_to_stop:
            while progress.step < steps and not self._gives_up(progress):
                began = time.monotonic()
                rate = self._rate(progress.step, steps)
                set_rate(optimizer, rate)
                loss, count = gradients(model, train, progress)
                _pull(parameters, received, proximal_mu)
                self._update(optimizer, parameters, clipped=attached is not None)
                if progress.step == 0:
                    _check_moved(parameters, received)
                progress.step += 1
                progress.loss_sum += loss or 0.0
                seconds = time.monotonic() - began
                self._tell(StepDone(progress.step, steps, loss, rate, count, seconds))
                evaluating = _due(self._settings.eval_steps, progress.step, steps)
                if evaluating:
                    release(progress.step)
                    self._evaluate(model, validation, progress)
                stopping = processes.agree(told_to_stop())
                # private steps whose scores were told are kept: taken anew, they would cost anew
                kept = stopping or (private is not None and evaluating)
                if checkpoints and (kept or self._save_due(progress.step, steps)):
                    release(progress.step)
                    self._save(checkpoints, model, optimizer, progress)
                if stopping:
                    break
        release(progress.step)
        if progress.best is not None:
            write_state(model, progress.best)
        return TrainingResult(
            delta=_moved(model, received),
            examples=self._settings.batch_size * steps if private else len(train),
            steps=progress.step,
            loss=None if private else progress.loss_sum / progress.step,
            kept_step=progress.best_step or progress.step,
            evaluations=progress.evaluations,
        )

    def sum_for_shares(
        self, model: Any, train: Sequence[Encoded], private: PrivateSteps
    ) -> TensorSet:
        """The next private step's sum of clipped gradients, without noise; `model` stays as it is.

        For `fedtune.privacy.distributed`, which adds a share of the noise before it leaves.
        """
        attached = private.attach(model)
        with _learning(model, self._settings):
            return attached.sum_for_shares(self._losses(model), train)

    def _rate(self, step: int, steps: int) -> float:
        return self._settings.learning_rate * rate_factor(self._settings, step, steps)

    def _gradients(
        self,
        parameters: Mapping[str, Tensor],
        model: Any,
        train: Sequence[Encoded],
        progress: Progress,
    ) -> tuple[float, int]:
        """Set the gradients of the batch's mean loss, however it is cut; return loss and size."""
        settings, where, step = self._settings, _device_of(parameters), progress.step
        chosen = batch_indices(len(train), settings.batch_size, self._seed, step)
        mine = processes.own_share(chosen)
        size = settings.micro_batch_size or settings.batch_size
        total = torch.zeros(1, device=where)
        processes.seed_step(self._seed, step)
        for start in range(0, len(mine), size):
            batch = self._task.collate([train[index] for index in mine[start : start + size]])
            with processes.precision(settings, where):
                losses = self._task.losses(model, to_device(batch, model))
            loss = losses.sum() / len(chosen)
            loss.backward()
            total += loss.detach()
        processes.add_up_gradients(parameters.values())
        processes.add_up(total)
        if not math.isfinite(float(total)):
            raise RunFailedError(
                f"step {step + 1}: the loss is {float(total)}; lower `training.learning_rate`"
            )
        return float(total), len(chosen)

    def _update(
        self, optimizer: Optimizer, parameters: Mapping[str, Tensor], *, clipped: bool
    ) -> None:
        """Take the optimizer's step; private gradients come `clipped`."""
        if not clipped:
            clip(parameters.values(), self._settings)
        optimizer.step()
        optimizer.zero_grad()

    def _private_gradients(
        self, attached: AttachedSteps, model: Any, train: Sequence[Encoded], progress: Progress
    ) -> tuple[None, int]:
        """Set the gradients of the plan's next step; give no loss, and the expected batch."""
        if processes.count() > 1:
            raise InputError(
                "private steps run in one process", where="privacy.mode", mend="start one process"
            )
        private = attached.steps
        if progress.clipping_norm is not None:
            private.norm = progress.clipping_norm
        attached.set_gradients(self._losses(model), train)
        progress.clipping_norm = private.norm
        return None, round(private.plan.expected_batch)

    def _losses(self, model: Any) -> Losses:
        where = next(p for p in model.parameters() if p.requires_grad).device

        def losses(examples: Sequence[Encoded]) -> Tensor:
            batch = to_device(self._task.collate(examples), model)
            with processes.precision(self._settings, where):
                return self._task.losses(model, batch)

        return losses

    def _evaluate(self, model: Any, validation: Sequence[Encoded], progress: Progress) -> None:
        size = self._settings.micro_batch_size or self._settings.batch_size
        metrics = evaluate_together(self._task, model, validation, size)
        progress.evaluations.append({"step": progress.step, **metrics})
        self._tell(Evaluated(progress.step, metrics))
        if self._settings.early_stopping_patience is None:
            return
        before = [past["loss"] for past in progress.evaluations[:-1]]
        if metrics["loss"] < min(before, default=math.inf):
            progress.best_step, progress.best = progress.step, read_state(model)

    def _gives_up(self, progress: Progress) -> bool:
        """Whether the last `early_stopping_patience` evaluations brought no lower loss."""
        patience = self._settings.early_stopping_patience
        if patience is None or progress.best_step is None:
            return False
        return sum(past["step"] > progress.best_step for past in progress.evaluations) >= patience

    def _save_due(self, step: int, steps: int) -> bool:
        every = self._settings.save_steps or math.ceil(steps / _CHECKPOINTS_A_RUN)
        return _due(every, step, steps)

    def _save(
        self,
        checkpoints: CheckpointFolder,
        model: Any,
        optimizer: Optimizer,
        progress: Progress,
    ) -> None:
        if processes.is_main():
            self._tell(Saved(progress.step, checkpoints.save(model, optimizer, progress)))
        processes.wait_for_all()

    def _tell(self, event: Event) -> None:
        if processes.is_main():
            for listener in self._listeners:
                listener(event)


def _device_of(parameters: Mapping[str, Tensor]) -> torch.device:
    return next(iter(parameters.values())).device


def _due(every: int | None, step: int, steps: int) -> bool:
    return every is not None and (step % every == 0 or step == steps)


@contextmanager
def _learning(model: Any, settings: TrainingConfig) -> Iterator[None]:
    """The model in training mode; the caller's stream of random numbers is left alone."""
    model.train()
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        # dropout draws from the seed of its step
        with torch.random.fork_rng(devices=[d for d in [model.device] if d.type == "cuda"]):
            yield
    finally:
        if settings.gradient_checkpointing:
            model.activation_checkpointing_disable()


@contextmanager
def _interruptible(checkpoints: CheckpointFolder | None) -> Iterator[Callable[[], bool]]:
    """Where a checkpoint can be written, a signal waits until it is."""
    if checkpoints is None:
        yield lambda: False
    else:
        with deferred() as told_to_stop:
            yield told_to_stop


def _pull(parameters: dict[str, Tensor], received: TensorSet, mu: float) -> None:
    if not mu:
        return
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            start = received[name].to(parameter.device)
            parameter.grad.add_(parameter.detach() - start, alpha=mu)


def _moved(model: Any, received: TensorSet) -> TensorSet:
    """Trained minus received. Raises RunFailedError where that is not finite."""
    delta = read_state(model) - received
    if not delta.is_finite():
        raise RunFailedError(
            "the trained weights have NaN or infinite values; lower `training.learning_rate`"
        )
    return delta


def _check_moved(parameters: dict[str, Tensor], received: TensorSet) -> None:
    """A frozen or detached adapter trains nothing while the loss looks fine: say so at once."""
    if all(torch.equal(p.detach().float().cpu(), received[n]) for n, p in parameters.items()):
        raise RunFailedError("the first step moved no trainable weight")
