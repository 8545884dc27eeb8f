"""Deltas in fewer bytes: right on average, within a step, and read as untrusted input."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtune.config.federation import Encoding
from fedtune.delta_encoding import BLOCK, Encoded, as_bfloat16, as_int8, decode, encoded_size
from fedtune.tensors import TensorSet

LARGE = float(np.float32(1e38))
VALUES = st.lists(st.floats(-LARGE, LARGE, width=32), max_size=2 * BLOCK)


@dataclass(frozen=True)
class Sent:
    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: Any


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def decoded(encoded: Encoded, delta: TensorSet) -> TensorSet:
    layout, array = encoded
    encoding: Encoding = "int8" if array[0] == "int8" else "bfloat16"
    return decode(layout, Sent(*array), delta.spec, encoding)


def a_set(*parts: list[float]) -> TensorSet:
    return TensorSet({f"t{i}": torch.tensor(part) for i, part in enumerate(parts)})


@given(VALUES, VALUES, st.integers(0, 100))
def test_int8_is_within_one_step_of_its_block(first: list[float], second: list[float], seed: int):
    delta = a_set(first, second)
    result = decoded(as_int8(delta, draw(seed)), delta)
    for name in delta:
        for start in range(0, len(delta[name]), BLOCK):
            block = slice(start, start + BLOCK)
            sent, got = delta[name][block].double(), result[name][block].double()
            step = float(sent.abs().max()) / 127
            # 2e-7: the step is a float32; 2e-45: the least one
            assert float((got - sent).abs().max()) <= step * (1 + 2e-5) + 2e-45


def test_int8_is_right_on_average():
    delta = TensorSet({"w": torch.tensor([1.0, 0.3, -0.0042, 0.0001, -1.0])})
    rounds, generator = 4000, draw()
    total = sum(decoded(as_int8(delta, generator), delta).flat().double() for _ in range(rounds))
    # the standard deviation of one is at most half a step: five of the mean's
    assert float((total / rounds - delta.flat()).abs().max()) < 5 * 0.5 / 127 / rounds**0.5


def test_a_large_value_coarsens_its_own_block_and_no_other():
    small = [0.001] * BLOCK
    delta = a_set([1000.0, *small], small)
    result = decoded(as_int8(delta, draw()), delta)
    assert float((result["t0"][:BLOCK] - delta["t0"][:BLOCK]).abs().max()) < 8.0
    assert torch.allclose(result["t0"][BLOCK:], delta["t0"][BLOCK:], rtol=1e-6)
    assert torch.allclose(result["t1"], delta["t1"], rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-45, 3.3e38, -3.3e38])
def test_the_ends_of_the_range_survive(value: float):
    delta = a_set([value] * 3)
    assert torch.allclose(decoded(as_int8(delta, draw()), delta).flat(), delta.flat(), rtol=1e-6)


class Highest(np.random.Generator):
    """The largest draw there is, every time."""

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        return np.full(size, 1 - 2.0**-24, dtype=dtype)


def test_no_draw_takes_a_value_beyond_the_steps_there_are():
    # a step that is rounded down is a little less than a 127th: 128 steps don't fit eight bits
    for value in np.random.default_rng(0).random(300, dtype=np.float32).tolist():
        delta = a_set([value, -value])
        result = decoded(as_int8(delta, Highest(np.random.PCG64(0))), delta)
        assert float(result["t0"][0]) == pytest.approx(value, rel=1e-6)


@given(VALUES)
def test_bfloat16_rounds_to_the_nearest(values: list[float]):
    delta = a_set(values, [1.0])
    result = decoded(as_bfloat16(delta), delta)
    assert torch.equal(result.flat(), delta.flat().to(torch.bfloat16).float())


def test_bytes_are_a_half_and_a_quarter():
    delta = a_set([1.0] * (2 * BLOCK), [2.0] * (BLOCK + 1))
    scalars = 3 * BLOCK + 1
    sizes = {"float32": 4 * scalars, "bfloat16": 2 * scalars, "int8": scalars + 4 * 4}
    assert len(delta.to_wire()[1][3]) == encoded_size(delta.spec, "float32") == sizes["float32"]
    for encoding, (_, array) in (
        ("bfloat16", as_bfloat16(delta)),
        ("int8", as_int8(delta, draw())),
    ):
        assert len(array[3]) == encoded_size(delta.spec, encoding) == sizes[encoding]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_does_not_leave(bad: float):
    for encode in (as_bfloat16, lambda delta: as_int8(delta, draw())):
        with pytest.raises(ValueError, match="NaN or infinite"):
            encode(a_set([1.0, bad]))


DELTA = a_set([1.0, -2.0], [0.5] * 300)
LAYOUT, EIGHT = as_int8(DELTA, draw())
HALF = as_bfloat16(DELTA)[1]
BLOCKS = 3


def scales(*values: float) -> bytes:
    return np.float32(values).tobytes()


@pytest.mark.parametrize(
    ("array", "encoding", "message"),
    [
        (DELTA.to_wire()[1], "int8", "sent float32 as fedtune.raw-le, want int8"),
        (EIGHT, "bfloat16", "sent int8"),
        (EIGHT, "float32", "sent int8"),
        (HALF, "int8", "sent bfloat16"),
        ((*EIGHT[:2], "numpy.ndarray", EIGHT[3]), "int8", "as numpy.ndarray"),
        ((*EIGHT[:3], EIGHT[3][:-1]), "int8", "not the 314 bytes"),
        ((*EIGHT[:3], EIGHT[3] * 1000), "int8", "not the 314 bytes"),
        ((*EIGHT[:3], b""), "int8", "not the 314 bytes"),
        ((*EIGHT[:3], "x" * 314), "int8", "not the 314 bytes"),
        ((*HALF[:3], HALF[3][:-2]), "bfloat16", "not the 604 bytes"),
        ((*HALF[:3], b"\x80\x7f" + HALF[3][2:]), "bfloat16", "infinite values were sent"),
        ((*HALF[:3], b"\xc0\x7f" + HALF[3][2:]), "bfloat16", "NaN or"),
        ((*EIGHT[:3], scales(np.nan, 1, 1) + EIGHT[3][12:]), "int8", "a scale"),
        ((*EIGHT[:3], scales(1, np.inf, 1) + EIGHT[3][12:]), "int8", "a scale"),
        ((*EIGHT[:3], scales(1, 1, -1) + EIGHT[3][12:]), "int8", "a scale"),
        ((*EIGHT[:3], EIGHT[3][:-1] + b"\x80"), "int8", "step of -128"),
        ((*EIGHT[:3], scales(3e38, 1, 1) + EIGHT[3][12:]), "int8", "infinite values were sent"),
    ],
)
def test_an_untrusted_array_is_refused(array: Any, encoding: Encoding, message: str):
    with pytest.raises(ValueError, match=message):
        decode(LAYOUT, Sent(*array), DELTA.spec, encoding)


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_other_tensors_are_refused(encoding: Encoding):
    array = Sent(*(EIGHT if encoding == "int8" else HALF))
    for layout, message in (
        ({**LAYOUT, "names": ["t0", "t2"]}, "missing t1; unexpected t2"),
        ({**LAYOUT, "shapes": ["2", "3x100"]}, "t1 is 3x100"),
        ({}, "no list of names"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(layout, array, DELTA.spec, encoding)
