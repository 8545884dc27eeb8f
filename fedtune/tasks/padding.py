"""Rows of unequal length as one rectangle."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Int64 [rows, longest], filled up with `value` on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def lengths_mask(rows: Sequence[Sequence[int]]) -> Tensor:
    """Int64 [rows, longest]: 1 where a row has a token."""
    return pad([[1] * len(row) for row in rows], 0)
