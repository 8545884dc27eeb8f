"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from fedtune.config.training import TrainingConfig


def build_optimizer(settings: TrainingConfig, parameters: Iterable[Tensor]) -> Optimizer:
    """AdamW or SGD over `parameters`."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return SGD(parameters, lr=rate, momentum=settings.momentum, weight_decay=decay)
    return AdamW(parameters, lr=rate, weight_decay=decay)


def rate_factor(settings: TrainingConfig, step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` (from 0) of `steps`: warm-up, then decay."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.lr_schedule == "constant":
        return 1.0
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return 1.0 - done if settings.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Use `rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip(parameters: Iterable[Tensor], settings: TrainingConfig) -> None:
    """Clip the whole gradient's norm, if that is asked for."""
    if settings.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
