"""A rotation that all know and that spreads a vector's length evenly over its numbers.

Signs drawn from a public key, then Hadamard's matrix, in blocks of 4,096 numbers (Suresh et al.
2017, section 3; Kairouz, Liu and Steinke 2021, section 4.1). It keeps lengths; a number of the
rotated vector is seldom more than 8 / 64 of its block's length, so that a sum of many needs little
range. What it gains is range only: nothing that is promised depends on it.
"""

import hashlib

import numpy as np
from scipy.linalg import hadamard

from fedtune.secagg.masks import WORD, add_mask

BLOCK = 4096
_SIDE = 64  # the block's matrix is the Kronecker product of two of this size
_MATRIX = hadamard(_SIDE, dtype=np.float64) / _SIDE**0.5


def padded(count: int) -> int:
    """Numbers of a rotated vector of `count`."""
    return -(-count // BLOCK) * BLOCK


def rotate(values: np.ndarray, key: bytes) -> np.ndarray:
    """Float64 [padded(count)]: `values`, float64 [count], rotated as the 32 bytes of `key` say."""
    whole = np.zeros(padded(len(values)))
    whole[: len(values)] = values
    return _mixed(whole * _signs(len(whole), key))


def rotate_back(rotated: np.ndarray, key: bytes, count: int) -> np.ndarray:
    """What `rotate` was given."""
    return (_mixed(rotated) * _signs(len(rotated), key))[:count]


def _mixed(values: np.ndarray) -> np.ndarray:
    """Each block times Hadamard's matrix, which is its own inverse."""
    squares = values.reshape(-1, _SIDE, _SIDE)
    return (_MATRIX @ squares @ _MATRIX).reshape(-1)


def _signs(count: int, key: bytes) -> np.ndarray:
    words = np.zeros(count // 64, WORD)
    add_mask(words, hashlib.sha256(b"fedtune secagg rotation" + key).digest())
    return 1.0 - 2.0 * np.unpackbits(words.view(np.uint8), bitorder="little")
