"""The memory that a training step needs, from shapes alone.

peak = base weights + adapter + gradients + optimizer state + copies + activations

Weights, adapter, gradients and optimizer state are counted from shapes and dtypes. Activations are
the most bytes alive at once, beyond those, while one micro-batch goes forward and backward: the
pass runs on fake tensors, which have a shape and a dtype but no data. The process itself (Python,
torch, memory-mapped data) comes on top.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedtune.config.schema import RunConfig
from fedtune.tasks.task import Task

_NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits a weight: 4, an 8-bit scale each 64 weights, a float32 scale each 256 of those scales."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a training step, by what they hold.

    `activations` is None, and `unknown` says why, when the model's code needs real numbers.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    copies: int
    activations: int | None
    unknown: str | None = None

    @property
    def total(self) -> int:
        """All that is known of it."""
        parts = self.weights, self.adapter, self.gradients, self.optimizer, self.copies
        return sum(parts) + (self.activations or 0)


def estimate_memory(
    model: Any, config: RunConfig, task: Task, batch: Mapping[str, Tensor], *, copies: int
) -> MemoryEstimate:
    """The peak of one step of `model` (on the meta device) on `batch`, a real micro-batch.

    `copies` is how many float32 copies of what is trained the run keeps beside the model.
    """
    activations, unknown = None, None
    try:
        activations = _activations(model, task, config, batch)
    except Exception as error:  # a model's own code may ask a fake tensor for its numbers
        unknown = f"{type(error).__name__}: {error}".splitlines()[0]
    trained = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    moments = {"adamw": 2, "sgd": 1 if config.training.momentum else 0}
    return MemoryEstimate(
        weights=sum(frozen_bytes(model, load_in_4bit=config.model.load_in_4bit)),
        adapter=trained,
        gradients=trained * _gradients(config, batch),
        optimizer=moments[config.training.optimizer] * trained,
        copies=copies * 4 * sum(p.numel() for p in model.parameters() if p.requires_grad),
        activations=activations,
        unknown=unknown,
    )


def _gradients(config: RunConfig, batch: Mapping[str, Tensor]) -> int:
    """Gradients at once, each as large as what is trained: one, or a private step's one a row,
    with their sum, in twice the bytes, and that with noise.
    """
    return len(batch["input_ids"]) + 3 if config.in_private_steps else 1


def frozen_bytes(model: Any, *, load_in_4bit: bool) -> Iterator[int]:
    """Bytes of each tensor that isn't trained, in the form in which it is held."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        # the output layer stays as it is, and so does what the adapter brought, trained or not
        whole = "head" in name or "lora_" in name
        packs = load_in_4bit and isinstance(module, nn.Linear) and not whole
        for key, tensor in [*module.named_parameters(recurse=False), *_buffers(module)]:
            if tensor.requires_grad or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield (
                int(tensor.numel() * _NF4_BITS / 8) if packs and key == "weight" else _bytes(tensor)
            )


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return module.named_buffers(recurse=False)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _activations(model: Any, task: Task, config: RunConfig, batch: Mapping[str, Tensor]) -> int:
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, _faked(model):
        inputs = {name: fake.from_tensor(tensor) for name, tensor in batch.items()}
        model.train()
        if config.training.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with _LiveBytes() as alive:
            task.losses(model, inputs).sum().backward()
        gradients = sum(_bytes(p.grad) for p in model.parameters() if p.grad is not None)
    return max(alive.peak - gradients, 0)


@contextmanager
def _faked(model: Any) -> Iterator[None]:
    """Inside, the meta model has fake tensors on the CPU, which operations can be run on."""
    kept: list[tuple[dict[str, Any], str, Tensor]] = []
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                kept.append((tensors, name, tensor))
                if id(tensor) not in made:
                    made[id(tensor)] = _fake(tensor)
                tensors[name] = made[id(tensor)]
    try:
        yield
    finally:
        for tensors, name, tensor in kept:
            tensors[name] = tensor


def _fake(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside that are still alive; `peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then count what it made."""
        given = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if _counts(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if _counts(leaf):
                self._count(_storage(leaf), given)
        return out

    def _count(self, storage: Any, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in given:
            return
        self._known.add(key)
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size


def _counts(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()
