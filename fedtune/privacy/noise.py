"""Gaussian noise and chances that nobody can predict: a ChaCha20 stream keyed by the system.

Drawn in float64 whatever the gradients' precision is. A noised sum is rounded to a fixed grid, so
that which float comes out tells nothing of the sum's own low bits (Mironov 2012).
"""

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

_GRID_BITS = 18  # of the noise's standard deviation: 2^5 of them still fit a float32's 24 bits
_BLOCK = 1 << 20


class GaussianSource(Protocol):
    """Where noise comes from."""

    def normal(self, count: int, std: float) -> np.ndarray:
        """Float64 [count], independent Gaussians."""


class NoiseSource(GaussianSource, Protocol):
    """Where noise and chances come from."""

    def uniform(self, count: int) -> np.ndarray:
        """Float64 [count], independent, from 0 and below 1."""

    def words(self, count: int) -> np.ndarray:
        """Uint64 [count], independent and uniform."""


class _Stream:
    """Fresh numbers from one key; two of them never share a byte of a stream."""

    def __init__(self, key: bytes) -> None:
        self._start(key)

    def _start(self, key: bytes) -> None:
        self._encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words(self, count: int) -> np.ndarray:
        """Uint64 [count], independent and uniform."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, count: int) -> np.ndarray:
        """Float64 [count], from 0 and below 1: 53 random bits each."""
        return (self.words(count) >> np.uint64(11)) * 2.0**-53

    def normal(self, count: int, std: float) -> np.ndarray:
        """Float64 [count] by Box and Muller's method, which uses every bit that it draws."""
        values = np.empty(count + count % 2)
        for start in range(0, len(values), _BLOCK):
            part = values[start : start + _BLOCK].reshape(2, -1)
            pairs = part.shape[1]
            radius = np.sqrt(-2.0 * np.log1p(-self.uniform(pairs)))
            angle = self.uniform(pairs) * (2.0 * math.pi)
            part[0], part[1] = radius * np.cos(angle), radius * np.sin(angle)
        return values[:count] * std


class SecureNoise(_Stream):
    """Noise for production: keyed by the operating system, again in every forked process."""

    def __init__(self) -> None:
        super().__init__(os.urandom(32))
        self._process = os.getpid()

    def words(self, count: int) -> np.ndarray:
        """Uint64 [count], independent and uniform."""
        if os.getpid() != self._process:  # a fork would repeat its parent's noise
            self._start(os.urandom(32))
            self._process = os.getpid()
        return super().words(count)


class SeededNoise(_Stream):
    """The same for tests: who knows the seed can take the noise away again."""

    def __init__(self, seed: int) -> None:
        super().__init__(hashlib.sha256(f"fedtune test noise {seed}".encode()).digest())


class KeyedNoise(_Stream):
    """The noise of a key of 32 bytes, for rounds that take back a part of an earlier one's."""


def fresh_key(source: NoiseSource) -> bytes:
    """32 bytes that nobody can predict who can't predict `source`."""
    return bytes((source.uniform(32) * 256).astype(np.uint8))


def noised(sums: Mapping[str, Tensor], std: float, source: GaussianSource) -> dict[str, Tensor]:
    """Each tensor of `sums` plus fresh Gaussian noise, float32 on its own device.

    The result lies on a grid of a power of two, about `std` over 2^18. Raises ValueError on a
    `std` that isn't positive or a sum that isn't finite.
    """
    if not 0.0 < std < math.inf:
        raise ValueError(f"the noise's standard deviation is {std}, want above 0")
    grid = 2.0 ** (math.floor(math.log2(std)) - _GRID_BITS)
    result = {}
    for name, total in sums.items():
        exact = total.detach().double().cpu().numpy()
        if not np.isfinite(exact).all():
            raise ValueError(f"{name}: a sum to be noised isn't finite")
        noisy = exact + source.normal(exact.size, std).reshape(exact.shape)
        rounded = torch.from_numpy(np.asarray(np.rint(noisy / grid) * grid)).float()
        result[name] = rounded.to(total.device)
    return result
