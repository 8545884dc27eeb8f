"""Low-rank factors: exact means of products, without ever forming an out x in matrix.

The mean of products is not the product of means. FedEx-LoRA keeps what the mean of the factors
loses as a residual; the SVD rule truncates the exact mean of products to a rank. Both work on
factors stacked along the rank: QR of each side, then the SVD of a small core.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# singular values below this share of the largest are rounding, not content
_NOISE = 1e-7


@dataclass(frozen=True)
class LowRank:
    """The matrix `b @ a`: b is [out, rank], a is [rank, in]."""

    b: Tensor
    a: Tensor

    def __post_init__(self) -> None:
        if self.b.ndim != 2 or self.a.ndim != 2 or self.b.shape[1] != self.a.shape[0]:
            raise ValueError(f"not factors: b {tuple(self.b.shape)}, a {tuple(self.a.shape)}")

    @property
    def rank(self) -> int:
        """Number of columns of b, which bounds the rank of the product."""
        return self.b.shape[1]


def mean_of_products(parts: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Exactly the weighted mean of the parts' products, of rank sum(ranks), float64.

    Parts may differ in rank. Raises ValueError if weights don't match or aren't positive.
    """
    shares = _shares(parts, weights)
    return LowRank(
        torch.cat([part.b.double() * w for part, w in zip(parts, shares, strict=True)], dim=1),
        torch.cat([part.a.double() for part in parts], dim=0),
    )


def fedex(parts: Sequence[LowRank], weights: Sequence[float]) -> tuple[LowRank, LowRank]:
    """FedEx-LoRA: (mean factors, residual), whose products add up to the mean of products.

    With Bm and Am the means, the residual is sum w_i (B_i - Bm)(A_i - Am): small by itself, where
    the textbook form (mean of products minus Bm Am) subtracts two large matrices. Equal ranks only.
    """
    if len({part.rank for part in parts}) > 1:
        raise ValueError("FedEx-LoRA needs equal ranks")
    shares = _shares(parts, weights)
    pairs = list(zip(parts, shares, strict=True))
    b = torch.stack([part.b.double() * w for part, w in pairs]).sum(dim=0)
    a = torch.stack([part.a.double() * w for part, w in pairs]).sum(dim=0)
    apart = LowRank(
        torch.cat([(part.b.double() - b) * w for part, w in pairs], dim=1),
        torch.cat([part.a.double() - a for part in parts], dim=0),
    )
    return LowRank(b, a), shrink(apart)


def truncate(factors: LowRank, rank: int) -> tuple[LowRank, float]:
    """The best rank-`rank` approximation (Eckart-Young) and its relative Frobenius error.

    Components come in falling order, so the first k of them are the best rank-k approximation.
    Rows of a are orthonormal and b carries the scale, as a fresh LoRA does: were both sides of an
    empty component zero, neither would ever get a gradient. Padded with zeros up to `rank`.
    """
    left, values, right = _svd(factors)
    kept, lost = values[:rank], values[rank:]
    b = torch.zeros(factors.b.shape[0], rank, dtype=torch.float64)
    a = torch.zeros(rank, factors.a.shape[1], dtype=torch.float64)
    b[:, : len(kept)] = left[:, :rank] * kept
    a[: len(kept)] = right[:rank]
    total = float(values.norm())
    return LowRank(b, a), float(lost.norm()) / total if total else 0.0


def shrink(factors: LowRank) -> LowRank:
    """The same matrix with the fewest components: rounding-size singular values are dropped."""
    _, values, _ = _svd(factors)
    rank = int((values > _NOISE * values[:1].sum()).sum())
    return truncate(factors, max(rank, 1))[0]


def _svd(factors: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of the product through QR: cost grows with (out + in) * rank^2, not out * in."""
    q_b, r_b = torch.linalg.qr(factors.b.double())
    q_a, r_a = torch.linalg.qr(factors.a.double().T)
    u, values, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    left, right = q_b @ u, vh @ q_a.T
    # an SVD is unique up to signs; fix them so that equal inputs give equal factors anywhere
    columns = torch.arange(left.shape[1])
    signs = left[left.abs().argmax(dim=0), columns].sign()
    return left * signs, values, right * signs[:, None]


def _shares(parts: Sequence[LowRank], weights: Sequence[float]) -> list[float]:
    if not parts or len(parts) != len(weights) or min(weights) <= 0:
        raise ValueError(f"want one positive weight a part, got {list(weights)}")
    return [weight / sum(weights) for weight in weights]
