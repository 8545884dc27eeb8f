"""The sum of silos' clipped deltas, exact: one silo moves it by no more than the clipping norm.

Each clipped delta is cut (towards zero, so that no norm grows) to a grid of a power of two, on
which float64 adds without rounding: the sum doesn't depend on the order, and what a silo adds to it
is its own clipped delta to the last bit (rounding in a running float32 sum would let one silo move
the error of all that come after it).
"""

import math
from typing import Literal

import torch
from torch import Tensor

from fedtune.tensors import Spec, TensorSet, spec_difference

_GRID_BITS = 30  # below the clipping norm; leaves room for the sum of 2^22 silos
_STRICT = 1 - 1e-12  # float64 rounding of a norm and of its quotient


class DeltaSum:
    """A float64 sum of deltas of `spec`, each clipped to `norm`: all together, or layer by layer.

    `per_layer` clips each of L tensors to norm / sqrt(L), so that a whole delta's norm is at most
    `norm` either way. Weights and example counts play no part.
    """

    def __init__(self, spec: Spec, norm: float, clipping: Literal["flat", "per_layer"]) -> None:
        if not 0.0 < norm < math.inf:
            raise ValueError(f"the clipping norm is {norm}, want above 0")
        self._spec, self._norm, self._clipping = spec, norm, clipping
        self._grid = 2.0 ** (math.floor(math.log2(norm)) - _GRID_BITS)
        self.sums: dict[str, Tensor] = {
            name: torch.zeros(shape, dtype=torch.float64) for name, shape in spec
        }
        """Name to float64 tensor of the spec's shape."""

    def add(self, delta: TensorSet) -> bool:
        """Add `delta`, clipped; whether its norm was within the clipping norm.

        Raises ValueError on another spec or a value that isn't finite.
        """
        if delta.spec != self._spec:
            raise ValueError(f"deltas differ: {spec_difference(self._spec, delta.spec)}")
        norm = delta.norm()
        if not math.isfinite(norm):
            raise ValueError("the delta has NaN or infinite values")
        for name, tensor in delta.tensors.items():
            self._add(name, tensor, self._factor(tensor, norm))
        return norm <= self._norm

    def _factor(self, tensor: Tensor, norm: float) -> float:
        most = self._norm
        if self._clipping == "per_layer":
            norm = float(tensor.double().norm())
            most /= math.sqrt(len(self._spec))
        return min(1.0, most * _STRICT / norm) if norm else 1.0

    def _add(self, name: str, tensor: Tensor, factor: float) -> None:
        steps = (tensor.double() * (factor / self._grid)).trunc_()
        self.sums[name] += steps.mul_(self._grid)
