"""How a delta travels: as float32, as bfloat16, or as int8 with a scale a block.

int8 is stochastic rounding (QSGD, Alistarh et al. 2017) to 127 steps of each block's largest
value: on average what is decoded is what was encoded. bfloat16 rounds to the nearest. Both are
raw little-endian scalars, whose number the receiver knows before it reads one.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fedtune.config.federation import Encoding
from fedtune.tensors import (
    WIRE_STYPE,
    Layout,
    Spec,
    TensorSet,
    check_layout,
    layout_of,
    payload_size,
    sizes_of,
)

Encoded = tuple[Layout, tuple[str, tuple[int, ...], str, bytes]]
"""The layout and one array: dtype, shape, serialization, bytes."""

BLOCK = 256
"""Scalars of one tensor that share a scale: part of the format, for 4 more bytes a block."""
_STEPS = 127
_STYPES = {"bfloat16": WIRE_STYPE, "int8": "fedtune.scales-then-steps-le"}


def as_bfloat16(delta: TensorSet) -> Encoded:
    """Each scalar rounded to the nearest bfloat16. Raises ValueError on NaN or infinity."""
    _check_finite(delta)
    halves = delta.flat().to(torch.bfloat16).view(torch.int16).numpy()
    data = halves.astype("<i2", copy=False).tobytes()
    return layout_of(delta.spec), ("bfloat16", (delta.count,), _STYPES["bfloat16"], data)


def as_int8(delta: TensorSet, draw: np.random.Generator) -> Encoded:
    """Each scalar rounded up or down at random. Raises ValueError on NaN or infinity."""
    _check_finite(delta)
    starts, lengths = _blocks(delta.spec)
    whole = delta.flat().numpy()
    scales = _scales(whole, starts)
    steps = whole / np.repeat(np.where(scales > 0, scales, 1.0).astype(np.float64), lengths)
    # a draw of 24 bits, so that 127 and it stay below 128 in float64
    steps += draw.random(len(whole), dtype=np.float32)
    data = scales.astype("<f4").tobytes() + np.floor(steps).astype(np.int8).tobytes()
    return layout_of(delta.spec), ("int8", (len(data),), _STYPES["int8"], data)


def decode(layout: Mapping[str, Any], array: Any, expected: Spec, encoding: Encoding) -> TensorSet:
    """An untrusted array (`dtype`, `shape`, `stype`, `data`) in `encoding`, as float32.

    Raises ValueError unless all is as `expected`: names, shapes, dtype, exact byte count, and every
    scalar finite. Nothing is allocated before the byte count is right.
    """
    if encoding == "float32":
        return TensorSet.from_wire(layout, array, expected)
    check_layout(layout, expected)
    stype, size = _STYPES[encoding], encoded_size(expected, encoding)
    if (array.dtype, array.stype) != (encoding, stype):
        raise ValueError(f"sent {array.dtype} as {array.stype}, want {encoding} as {stype}")
    if type(array.data) is not bytes or len(array.data) != size:
        raise ValueError(f"not the {size} bytes of this delta in {encoding} were sent")
    read = _from_bfloat16 if encoding == "bfloat16" else _from_int8
    delta = TensorSet.of_flat(torch.from_numpy(read(array.data, expected)), expected)
    if not delta.is_finite():
        raise ValueError("NaN or infinite values were sent")
    return delta


def encoded_size(spec: Spec, encoding: Encoding) -> int:
    """Bytes of a delta of `spec` on the wire, without making one."""
    scalars = payload_size(spec) // 4
    if encoding == "int8":
        return scalars + 4 * len(_blocks(spec)[0])
    return scalars * (2 if encoding == "bfloat16" else 4)


def _check_finite(delta: TensorSet) -> None:
    if not delta.is_finite():
        raise ValueError("the delta has NaN or infinite values")


def _from_bfloat16(data: bytes, spec: Spec) -> np.ndarray:
    upper = np.frombuffer(data, dtype="<u2").astype(np.uint32)
    return (upper << 16).view(np.float32)


def _scales(whole: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The step of each block, float32, rounded up: no value is more than 127 of them."""
    if not len(starts):
        return np.zeros(0, np.float32)
    largest = np.maximum.reduceat(np.abs(whole), starts).astype(np.float64)
    scales = (largest / _STEPS).astype(np.float32)
    low = scales.astype(np.float64) * _STEPS < largest
    return np.where(low, np.nextafter(scales, np.float32(np.inf)), scales)


def _from_int8(data: bytes, spec: Spec) -> np.ndarray:
    starts, lengths = _blocks(spec)
    scales = np.frombuffer(data, dtype="<f4", count=len(starts)).astype(np.float32)
    steps = np.frombuffer(data, dtype=np.int8, offset=4 * len(starts))
    if not (np.isfinite(scales) & (scales >= 0)).all() or (steps < -_STEPS).any():
        raise ValueError("a scale that isn't finite and positive, or a step of -128, was sent")
    with np.errstate(over="ignore"):  # what overflows is refused as infinite
        return np.repeat(scales, lengths) * steps


@lru_cache(maxsize=8)
def _blocks(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Where each block starts among all scalars, and its length; none reaches over two tensors."""
    starts, lengths, offset = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for size in sizes_of(spec):
        within = np.arange(0, size, BLOCK)
        starts.append(offset + within)
        lengths.append(np.minimum(size - within, BLOCK))
        offset += size
    return np.concatenate(starts), np.concatenate(lengths)
