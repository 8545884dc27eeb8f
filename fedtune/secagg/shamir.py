"""Secrets of 32 bytes shared so that any `threshold` shares give them back and fewer tell nothing.

Shamir 1979 over the integers modulo a prime just above 2^256. Python's integers take time by their
size: who can time this process to the nanosecond is not an adversary here (it runs where the secret
is, or where enough shares were handed over).
"""

import secrets
from collections.abc import Collection, Mapping, Sequence

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
_MAX_SHARES = 1 << 20


def split(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """A share of 33 bytes for each of `holders`, distinct numbers from 1 on (the polynomial's x).

    Raises ValueError on a secret of another length, a holder that is 0 or occurs twice (its share
    would be the secret, or another's), or a threshold that the holders can't meet.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    _check_points(holders)
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"the threshold is {threshold}, of {len(holders)} holders")
    coefficients = [int.from_bytes(secret, "big")]
    coefficients += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return {x: _at(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in holders}


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret from `threshold` shares (or more of the same polynomial), by their holders.

    Raises ValueError on shares that are malformed or give no secret of 32 bytes. Shares of another
    secret, or fewer than the threshold, give another secret: the caller must be able to tell.
    """
    _check_points(shares)
    values = {x: _value(share) for x, share in shares.items()}
    total = 0
    for x, value in values.items():
        over, under = 1, 1
        for other in values:
            if other != x:
                over = over * other % PRIME
                under = under * (other - x) % PRIME
        total = (total + value * over * pow(under, -1, PRIME)) % PRIME
    if total >> (8 * SECRET_BYTES):
        raise ValueError("the shares give no secret")
    return total.to_bytes(SECRET_BYTES, "big")


def _at(coefficients: Sequence[int], x: int) -> int:
    """The polynomial at `x`, by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def _value(share: bytes) -> int:
    value = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise ValueError("a share is malformed")
    return value


def _check_points(points: Collection[int]) -> None:
    if not points or len(set(points)) < len(points):
        raise ValueError("holders are to be distinct, and at least one")
    if not all(1 <= x <= _MAX_SHARES for x in points):
        raise ValueError(f"a holder's number is from 1 to {_MAX_SHARES}")
