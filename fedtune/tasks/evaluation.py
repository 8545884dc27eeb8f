"""Scores of a model on held-out examples: the one evaluation loop, whatever the task."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fedtune.tasks.task import Encoded, Predictions, Task


def evaluate(task: Task, model: Any, data: Sequence[Encoded], batch_size: int) -> dict[str, float]:
    """`loss` (mean over examples), `accuracy` (over all targets) and the task's own metrics.

    Runs on the model's device, holds one batch of logits at a time, and leaves every module in the
    mode it was in. Raises ValueError when there are no examples.
    """
    starts = range(0, len(data), batch_size)
    return score(task, predict(task, model, data, starts, batch_size))


def predict(
    task: Task, model: Any, data: Sequence[Encoded], starts: Sequence[int], batch_size: int
) -> list[Predictions]:
    """What `model` says, on the CPU, of each batch of `data` that begins at one of `starts`."""
    parts = []
    with torch.no_grad(), evaluating(model):
        for start in starts:
            examples = [data[i] for i in range(start, min(start + batch_size, len(data)))]
            parts.append(_on_cpu(task.predict(model, to_device(task.collate(examples), model))))
    return parts


def score(task: Task, parts: Sequence[Predictions]) -> dict[str, float]:
    """The metrics of all batches together. Raises ValueError when there are none."""
    from sklearn.metrics import accuracy_score  # here: a silo trains and scores nothing

    if not parts:
        raise ValueError("no examples to evaluate on")
    every = Predictions(*(torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS))
    return {
        "loss": math.fsum(every.losses.tolist()) / len(every.losses),
        "accuracy": float(accuracy_score(every.truth, every.guesses)),
        **task.metrics(every),
    }


def to_device(batch: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The batch where the model's first parameter is."""
    device = next(model.parameters()).device
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


_FIELDS = ("losses", "targets", "truth", "guesses")


def _on_cpu(part: Predictions) -> Predictions:
    return Predictions(*(getattr(part, name).cpu() for name in _FIELDS))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
