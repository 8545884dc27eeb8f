"""Where this process computes and which share of a batch is its own (one process: all of it).

`accelerate launch` starts the processes. They add up gradients, so that n processes take the
very steps that one would; only adapters' gradients travel.
"""

import atexit
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor

from fedtune.config.schema import RunConfig
from fedtune.config.training import TrainingConfig

T = TypeVar("T")


@atexit.register
def _leave() -> None:
    # threads of a group that is still there at the very end can abort the process
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _state() -> PartialState:
    # accelerate joins processes on the CPU only if told that there is no GPU to use
    no_gpu = not torch.accelerator.is_available()
    return PartialState(cpu=no_gpu or parse_flag_from_env("ACCELERATE_USE_CPU"))


def device() -> torch.device:
    """This process's device: its GPU if there is one."""
    return torch.device(_state().device)


def is_main() -> bool:
    """Whether this process writes files and tells what happens."""
    return bool(_state().is_main_process)


def count() -> int:
    """How many processes train together."""
    return int(_state().num_processes)


def own_share(items: Sequence[T]) -> Sequence[T]:
    """Every n-th item, from this process's number on: shares are disjoint and complete."""
    state = _state()
    return items[state.process_index :: state.num_processes]


def add_up(tensor: Tensor) -> None:
    """Replace `tensor` by its sum over all processes."""
    if _state().num_processes > 1:
        torch.distributed.all_reduce(tensor)


def add_up_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its sum over all processes; one without examples adds zeros."""
    if _state().num_processes > 1:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)


def gather(value: T) -> list[T]:
    """Every process's `value`, by number of the process, in every process."""
    if _state().num_processes == 1:
        return [value]
    box: list[Any] = [None] * _state().num_processes
    torch.distributed.all_gather_object(box, value)
    return box


def agree(value: T) -> T:
    """The main process's `value`, in every process."""
    if _state().num_processes == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def wait_for_all() -> None:
    """Return once every process is here."""
    _state().wait_for_everyone()


def seed_step(seed: int, step: int) -> None:
    """Start this process's random numbers (dropout) of one step; they end with it."""
    numbers = np.random.SeedSequence([seed, step, _state().process_index])
    torch.manual_seed(int(numbers.generate_state(1)[0]))


def uses_bf16(settings: TrainingConfig, where: torch.device) -> bool:
    """Whether forward passes compute in bfloat16: asked for, or `auto` on a GPU that has it."""
    if settings.precision == "auto":
        return where.type == "cuda" and torch.cuda.is_bf16_supported()
    return settings.precision == "bf16"


def base_dtype(config: RunConfig) -> torch.dtype:
    """What the base is held in: frozen weights may be rounded, what is trained stays float32."""
    frozen = config.adapter.method != "full"
    rounded = frozen and uses_bf16(config.training, device())
    return torch.bfloat16 if rounded else torch.float32


def precision(settings: TrainingConfig, where: torch.device) -> torch.autocast:
    """The context of a forward pass."""
    on = uses_bf16(settings, where)
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=on)
