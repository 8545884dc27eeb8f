"""Where this process computes and which share of a batch is its own (one process: all of it).

`accelerate launch` starts the processes. They add up gradients, so that n processes take the
very steps that one would; only adapters' gradients travel.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed
from accelerate import PartialState
from torch import Tensor

from fedtune.config.schema import TrainingConfig

T = TypeVar("T")


def device() -> torch.device:
    """This process's device: its GPU if there is one."""
    return torch.device(PartialState().device)


def is_main() -> bool:
    """Whether this process writes files and tells what happens."""
    return bool(PartialState().is_main_process)


def own_share(items: Sequence[T]) -> Sequence[T]:
    """Every n-th item, from this process's number on: shares are disjoint and complete."""
    state = PartialState()
    return items[state.process_index :: state.num_processes]


def add_up(tensor: Tensor) -> None:
    """Replace `tensor` by its sum over all processes."""
    if PartialState().num_processes > 1:
        torch.distributed.all_reduce(tensor)


def add_up_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its sum over all processes; one without examples adds zeros."""
    if PartialState().num_processes > 1:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)


def agree(value: T) -> T:
    """The main process's `value`, in every process."""
    if PartialState().num_processes == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def wait_for_all() -> None:
    """Return once every process is here."""
    PartialState().wait_for_everyone()


def seed_step(seed: int, step: int) -> None:
    """Start this process's random numbers (dropout) of one step; they end with it."""
    numbers = np.random.SeedSequence([seed, step, PartialState().process_index])
    torch.manual_seed(int(numbers.generate_state(1)[0]))


def uses_bf16(settings: TrainingConfig, where: torch.device) -> bool:
    """Whether forward passes compute in bfloat16: asked for, or `auto` on a GPU that has it."""
    if settings.precision == "auto":
        return where.type == "cuda" and torch.cuda.is_bf16_supported()
    return settings.precision == "bf16"


def precision(settings: TrainingConfig, where: torch.device) -> torch.autocast:
    """The context of a forward pass."""
    on = uses_bf16(settings, where)
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=on)
