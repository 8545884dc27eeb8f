"""Shares against another implementation, and against what fewer of them tell."""

import contextlib
import random
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import isprime
from sympy.polys.domains import GF
from sympy.polys.polyfuncs import interpolate

from fedtune.secagg.shamir import PRIME, SHARE_BYTES, combine, split


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.data())
def test_any_threshold_of_shares_gives_the_secret_back(secret: bytes, data: st.DataObject):
    holders = data.draw(st.lists(st.integers(1, 1000), min_size=1, max_size=9, unique=True))
    threshold = data.draw(st.integers(1, len(holders)))
    shares = split(secret, holders, threshold)
    chosen = data.draw(
        st.lists(st.sampled_from(holders), min_size=threshold, max_size=len(holders), unique=True)
    )
    assert combine({x: shares[x] for x in chosen}) == secret
    if threshold > 1:
        fewer = {x: shares[x] for x in chosen[: threshold - 1]}
        with contextlib.suppress(ValueError):  # above 2^256
            assert combine(fewer) != secret


def test_the_field_is_a_prime_above_every_secret():
    assert isprime(PRIME)
    assert PRIME > 2**256
    top = b"\xff" * 32
    assert combine(split(top, [1, 2, 3], 2)) == top


def test_shares_lie_on_the_polynomial_that_sympy_interpolates():
    secret, holders = secrets.token_bytes(32), [2, 5, 11, 12]
    shares = split(secret, holders, 3)
    values = {x: int.from_bytes(share, "big") for x, share in shares.items()}
    exact = interpolate({x: values[x] for x in holders[:3]}, 0)
    field = GF(PRIME)
    assert int(field(exact.p) / field(exact.q)) % PRIME == int.from_bytes(secret, "big")


def test_a_share_alone_is_uniform():
    highs = [split(bytes(32), [1, 2], 2)[1][1] for _ in range(4000)]
    counts = [highs.count(value) for value in range(256)]
    chi = sum((count - 4000 / 256) ** 2 / (4000 / 256) for count in counts)
    assert 150 < chi < 390  # 255 degrees of freedom, far out on both sides


@pytest.mark.parametrize(
    ("secret", "holders", "threshold"),
    [(b"short", [1], 1), (bytes(32), [0, 1], 1), (bytes(32), [1, 1], 1), (bytes(32), [1], 2)],
)
def test_what_would_give_a_secret_away_is_refused(secret: bytes, holders, threshold: int):
    with pytest.raises(ValueError, match=r"secret|holder|threshold"):
        split(secret, holders, threshold)


def test_malformed_shares_are_refused():
    shares = split(random.randbytes(32), [1, 2, 3], 2)
    for broken in (shares[1][1:], b"\xff" * SHARE_BYTES):
        with pytest.raises(ValueError, match="malformed"):
            combine({1: broken, 2: shares[2]})
