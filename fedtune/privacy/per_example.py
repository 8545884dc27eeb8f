"""Gradients of every example apart, from one forward and one backward pass.

A tap behind each layer with trainable weights keeps the layer's input and meets the gradient of
its output; from the two Opacus' formula for that kind of layer gives the examples' gradients. The
weights' own gradients are never computed: for LoRA's small matrices that is about as much work as
plain training. Works under gradient checkpointing (the input is kept as autograd keeps its own)
and with tied weights (their gradients add up).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.functorch import prepare_layer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedtune.errors import InputError, RunFailedError

_TOLERANCE = {False: (1e-3, 1e-6), True: (0.1, 0.01)}
"""Of a parameter's gradient and of the whole; wide where gradients are rounded to 16 bits."""

_BATCH_STATISTICS = (
    nn.modules.batchnorm._BatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)

PerExample = dict[str, Tensor]
"""By parameter name, float32 [examples, *shape of the parameter]."""

Sampler = Callable[[nn.Module, list[Tensor], Tensor], dict[Tensor, Tensor]]
"""A layer, its inputs and its output's gradient to its parameters' gradients by example."""


class Taps:
    """The taps of one model, whose trainable parameters have `names`.

    Raises InputError, naming the layer, on a model whose examples can't be told apart.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._layers = {layer: (name, _sampler(layer)) for name, layer in _layers_of(model)}
        self._anchor = torch.zeros((), requires_grad=True)
        self._found: dict[Tensor, Tensor] = {}
        self._examples = 0
        self._rounded = False

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What is trained, by name."""
        return {name: parameter for parameter, name in self._names.items()}

    def gradients(self, losses: Callable[[], Tensor]) -> PerExample:
        """Gradients of each of `losses()`, float32 [examples], by its own example alone.

        `losses` runs the model once on one batch. Raises RunFailedError, naming the layer, if one
        saw another number of examples or was called in a way unknown here.
        """
        with self._tapped():
            values = losses()
            self._examples = len(values)
            values.sum().backward()
            found, self._found = self._found, {}
        return {name: self._of(found, parameter) for parameter, name in self._names.items()}

    def check(self, losses: Callable[[slice], Tensor]) -> None:
        """Compare with plain autograd, one example at a time, on a batch's first two examples.

        `losses(part)` runs the model on that part of the batch. It must draw the same random
        numbers each time. Raises RunFailedError that names the parameter: a layer that mixes
        examples, that is called in a way unknown here, or whose weights are used elsewhere.
        """
        both = self.gradients(lambda: losses(slice(0, 2)))
        own, floor = _TOLERANCE[self._rounded]
        for example in range(min(2, self._examples)):
            alone = self._alone(losses(slice(example, example + 1)))
            whole = float(torch.stack([want.norm() for want in alone.values()]).norm())
            if not math.isfinite(whole):  # such an example counts as zero
                continue
            for name, want in alone.items():
                off = float((both[name][example] - want).norm())
                if not off <= own * float(want.norm()) + floor * whole:
                    raise RunFailedError(
                        f"the gradient of one example alone is not what the batch gives for "
                        f"`{name}`: a privacy guarantee can't be given for this model"
                    )

    def _alone(self, loss: Tensor) -> dict[str, Tensor]:
        """Plain autograd's gradients, float32."""
        grads = torch.autograd.grad(loss.sum(), list(self._names), allow_unused=True)
        return {
            name: torch.zeros_like(parameter) if grad is None else grad.float()
            for (parameter, name), grad in zip(self._names.items(), grads, strict=True)
        }

    def _of(self, found: Mapping[Tensor, Tensor], parameter: Tensor) -> Tensor:
        grads = found.get(parameter)
        if grads is None:
            return torch.zeros((self._examples, *parameter.shape), device=parameter.device)
        return grads

    @contextmanager
    def _tapped(self) -> Iterator[None]:
        """Taps in place, and no parameter's own gradient computed."""
        handles: list[RemovableHandle] = [
            self._model.register_forward_pre_hook(self._count, with_kwargs=True)
        ]
        for layer in self._layers:
            handles.append(layer.register_forward_hook(self._tap, with_kwargs=True))
            if isinstance(layer, nn.Embedding):
                handles.append(layer.register_forward_pre_hook(self._apart))
        for parameter in self._names:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            self._found = {}
            for parameter in self._names:
                parameter.requires_grad_(True)
            for handle in handles:
                handle.remove()

    def _count(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._examples = len(named["input_ids"] if "input_ids" in named else inputs[0])

    def _apart(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Each example its own row of positions: one for all would add up their gradients."""
        shared = len(inputs) == 1 and inputs[0].shape[0] == 1
        return (inputs[0].expand(self._examples, *inputs[0].shape[1:]),) if shared else inputs

    def _tap(
        self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> Tensor:
        if len(inputs) != 1 or named or not isinstance(output, Tensor):
            raise RunFailedError(
                f"the layer `{self._layers[layer][0]}` isn't called on one tensor for another, so "
                "its examples can't be told apart"
            )
        anchor = self._anchor.to(output.device)
        tapped: Tensor = _Tap.apply(output, anchor, inputs[0], self._take, layer)
        return tapped

    def _take(self, layer: nn.Module, activation: Tensor, backprop: Tensor) -> None:
        if activation.shape[0] != self._examples or backprop.shape[0] != self._examples:
            raise RunFailedError(
                f"the layer `{self._layers[layer][0]}` works on {activation.shape[0]} rows of a "
                f"batch of {self._examples} examples, so examples can't be told apart"
            )
        samples = _samples(layer, self._layers[layer][1], activation, backprop)
        for parameter, grads in samples.items():
            if parameter in self._names:
                self._rounded |= grads.dtype != torch.float32
                before = self._found.get(parameter)
                self._found[parameter] = grads.float() if before is None else before + grads


class _Tap(torch.autograd.Function):
    """The identity; hands a layer's input and its output's gradient on as they pass."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, anchor: Tensor, activation: Tensor, take: Any, layer: Any
    ) -> Tensor:
        ctx.save_for_backward(activation)
        ctx.take, ctx.layer = take, layer
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *backprop: Tensor) -> tuple[Tensor | None, ...]:
        ctx.take(ctx.layer, *ctx.saved_tensors, backprop[0])
        return backprop[0], None, None, None, None


def _sampler(layer: nn.Module) -> Sampler:
    """Opacus' formula for the layer's kind, else the layer's own gradient, mapped over examples."""
    if type(layer) in GradSampleModule.GRAD_SAMPLERS:
        known: Sampler = GradSampleModule.GRAD_SAMPLERS[type(layer)]
        return _but_padding(known) if isinstance(layer, nn.Embedding) else known
    prepare_layer(layer)  # a copy, made before there are taps on the layer
    mapped: Any = layer.ft_compute_sample_grad
    del layer.ft_compute_sample_grad

    def sampler(
        layer: nn.Module, activations: list[Tensor], backprop: Tensor
    ) -> dict[Tensor, Tensor]:
        parameters = list(layer.parameters())
        grads = mapped(parameters, activations[0].to(backprop.dtype), backprop)
        return dict(zip(parameters, grads, strict=True))

    return sampler


def _but_padding(known: Sampler) -> Sampler:
    """Opacus' formula forgets that autograd gives an embedding's padding token no gradient."""

    def sampler(
        layer: nn.Module, activations: list[Tensor], backprop: Tensor
    ) -> dict[Tensor, Tensor]:
        found = known(layer, activations, backprop)
        for grads in found.values():
            if isinstance(layer.padding_idx, int):
                grads[:, layer.padding_idx] = 0.0
        return found

    return sampler


def _samples(
    layer: nn.Module, sampler: Sampler, activation: Tensor, backprop: Tensor
) -> dict[Tensor, Tensor]:
    own = {p: p.requires_grad for p in layer.parameters(recurse=False)}
    for parameter in own:
        parameter.requires_grad_(True)  # Opacus leaves out what doesn't learn
    try:
        found = sampler(layer, [activation], backprop)
    finally:
        for parameter, learned in own.items():
            parameter.requires_grad_(learned)
    return {parameter: grads.detach() for parameter, grads in found.items()}


def _layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    layers = []
    for name, layer in model.named_modules():
        if isinstance(layer, _BATCH_STATISTICS):
            _refuse(name, layer, "takes statistics over the whole batch")
        learned = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        if not learned:
            continue
        if isinstance(layer, nn.ParameterDict | nn.ParameterList | nn.ModuleDict) or (
            type(layer).forward is nn.Module.forward
        ):
            _refuse(name, layer, "holds weights that no layer of a known kind applies")
        if type(layer) not in GradSampleModule.GRAD_SAMPLERS and (
            any(True for _ in layer.children()) or any(True for _ in layer.buffers())
        ):
            _refuse(name, layer, "is of no kind whose examples can be told apart")
        layers.append((name, layer))
    return layers


def _refuse(name: str, layer: nn.Module, why: str) -> None:
    raise InputError(
        f"the layer `{name}` ({type(layer).__name__}) {why}",
        where="privacy.mode",
        mend="train a LoRA adapter (`adapter.method: lora`) without this layer, or another model",
    )
