"""Bounding what one unit adds to a step's sum: flat, per layer, and adaptive."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedtune.privacy.noise import NoiseSource
from fedtune.privacy.plan import ExecutionPlan

_BELOW_ONE = 1.0 - 1e-6  # float32 rounding must not lift a clipped vector over its norm
_FARTHEST = 1e6  # adaptive clipping stays within this factor of where it began


@dataclass(frozen=True)
class Clipped:
    """The sums over units of their clipped vectors, and how many were within the norm."""

    sums: dict[str, Tensor]
    within: int


def clipped_sum(
    grads: Mapping[str, Tensor], mix: Tensor | None, norm: float, *, per_layer: bool = False
) -> Clipped:
    """Sum of units' vectors, each scaled down to L2 norm `norm` at most.

    `grads` are [rows, *shape] by name; `mix` [units, rows] says what a row counts in its unit
    (None: rows are units). With `per_layer` each of the L tensors is bounded by norm/sqrt(L), so
    that the whole is bounded by `norm`. A unit with a row that isn't finite counts as zero.
    """
    flat, lost = _finite_rows(grads)
    norms = {name: _unit_norms(rows, mix) for name, rows in flat.items()}
    whole = torch.stack(list(norms.values())).square().sum(0).sqrt()
    finite = torch.isfinite(whole) & ~(lost if mix is None else (mix[:, lost] > 0).any(1))
    bound = norm / math.sqrt(len(grads)) if per_layer else norm
    sums = {}
    for name, rows in grads.items():
        factor = _factor(norms[name] if per_layer else whole, bound).where(finite, 0.0)
        weight = factor if mix is None else factor @ mix
        sums[name] = (weight @ flat[name]).view(rows.shape[1:])
    return Clipped(sums, int((finite & (whole <= norm)).sum()))


def unit_mix(owners: Tensor, units: int, reduction: str) -> Tensor | None:
    """[units, rows]: 1 (`sum`) or one over the unit's rows (`mean`); None if a row is a unit."""
    if len(owners) == units:
        return None
    mix = torch.zeros(units, len(owners), device=owners.device)
    mix[owners, torch.arange(len(owners), device=owners.device)] = 1.0
    return mix / mix.sum(1, keepdim=True) if reduction == "mean" else mix


def moved_norm(norm: float, within: float, plan: ExecutionPlan, source: NoiseSource) -> float:
    """The next clipping norm: towards `target_quantile` (Andrew et al. 2021, section 2.2).

    Each unit adds -1/2 or 1/2, so that one moves the sum by 1/2, and the noise has standard
    deviation `plan.count_noise`; `within` is the exact number of the step's units within the norm
    less half the number of units. Never so far from where it began that float32's squares end: a
    norm that is taken for zero would not be clipped.
    """
    settings, expected = plan.settings, plan.expected_batch
    noisy = within + float(source.normal(1, plan.count_noise)[0])
    share = min(1.0, max(0.0, noisy / expected + 0.5))
    moved = norm * math.exp(-settings.clipping_rate * (share - settings.target_quantile))
    start = settings.clipping_norm
    return min(max(moved, start / _FARTHEST), start * _FARTHEST)


def _finite_rows(grads: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The rows, flat, and which of them were made zero for a value that isn't finite.

    Zero times NaN is NaN: left alone, such a row would take all units of its batch along.
    """
    flat = {name: rows.flatten(1) for name, rows in grads.items()}
    norms = torch.stack([torch.linalg.vector_norm(rows, dim=1) for rows in flat.values()])
    lost = ~torch.isfinite(norms).all(0)
    if bool(lost.any()):
        flat = {name: rows.masked_fill(lost[:, None], 0.0) for name, rows in flat.items()}
    return flat, lost


def _unit_norms(rows: Tensor, mix: Tensor | None) -> Tensor:
    return torch.linalg.vector_norm(rows if mix is None else mix @ rows, dim=1)


def _factor(norms: Tensor, bound: float) -> Tensor:
    return torch.where(norms > bound, bound * _BELOW_ONE / norms, torch.ones_like(norms))
