"""The wire type refuses what it was not told to expect, and its arithmetic is plain."""

import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtune import tensors
from fedtune.tensors import Layout, Spec, TensorSet


def a_set() -> TensorSet:
    return TensorSet({"b": torch.tensor([3.0, 4.0]), "a": torch.zeros(2, 1)})


def test_order_is_by_name_whatever_the_order_given():
    assert list(a_set()) == ["a", "b"]


def test_arithmetic_and_norm():
    double = a_set() + a_set()
    assert double["b"].tolist() == [6.0, 8.0]
    assert (double - a_set() * 2.0).norm() == 0.0
    assert a_set().norm() == pytest.approx(5.0)
    assert (a_set().count, a_set().payload_bytes) == (4, 16)


@dataclass
class Sent:
    """One array of a message, as any sender may have filled it in."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: Any


def sent(tensors: TensorSet) -> tuple[Layout, Sent]:
    layout, parts = tensors.to_wire()
    return layout, Sent(*parts)


def test_the_wire_round_trips_bit_for_bit_without_a_copy():
    odd = TensorSet({"t": torch.arange(6.0).view(2, 3).T, "none": torch.zeros(0, 3)})
    for one in (a_set(), odd, TensorSet({})):
        layout, array = sent(one)
        again = TensorSet.from_wire(layout, array, one.spec)
        assert again.digest() == one.digest()
        assert sent(again)[1] == array
    layout, array = sent(odd)
    again = TensorSet.from_wire(layout, array, odd.spec)
    assert again["t"].data_ptr() == np.frombuffer(array.data, np.uint8).ctypes.data


def test_the_wire_is_little_endian_float32_in_order_of_names():
    layout, array = sent(TensorSet({"b": torch.tensor([[3.0], [4.0]]), "a": torch.tensor(0.0)}))
    assert layout == {"names": ["a", "b"], "shapes": ["", "2x1"]}
    assert array.data == b"\0\0\0\0\x00\x00\x40\x40\x00\x00\x80\x40"


def test_views_die_with_their_last_user_and_bytes_at_the_same_place_are_looked_through_again():
    layout, array = sent(a_set())
    first = TensorSet.from_wire(layout, array, a_set().spec)
    assert TensorSet.from_wire(layout, array, a_set().spec).flat() is first.flat()
    assert id(array.data) in tensors._looked_through
    key = id(array.data)
    del first
    assert key not in tensors._looked_through


def test_a_file_round_trips(tmp_path: Path):
    a_set().save(tmp_path / "a.safetensors")
    assert TensorSet.load(tmp_path / "a.safetensors").digest() == a_set().digest()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_seen(value: float):
    assert not TensorSet({"w": torch.tensor([1.0, value, 1.0])}).is_finite()


def test_values_whose_sum_overflows_are_finite():
    assert TensorSet({"w": torch.full((9,), 3e38)}).is_finite()


def test_digest_sees_one_changed_value():
    other = TensorSet({"b": torch.tensor([3.0, 4.5]), "a": torch.zeros(2, 1)})
    assert other.digest() != a_set().digest()


def packed(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "no list of names"),
        ({"names": "ab"}, "no list of names"),
        ({"names": ["a", "b"], "shapes": ["2x1"]}, "no list of names"),
        ({"names": ["a"], "shapes": ["2x1"]}, "missing b"),
        ({"names": ["a", "b", "c"], "shapes": ["2x1", "2", "1"]}, "unexpected c"),
        ({"names": ["b", "a"], "shapes": ["2", "2x1"]}, "other tensors"),
        ({"names": ["a", "b"], "shapes": ["2x1", "3"]}, "b is 3, want 2"),
        ({"names": ["a", "b"], "shapes": ["2", "2"]}, "a is"),
        ({"names": [1, 2], "shapes": [3, 4]}, "missing a, b"),
    ],
)
def test_a_hostile_layout_is_refused(layout: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        TensorSet.from_wire(layout, sent(a_set())[1], a_set().spec)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": "float64"}, "sent float64"),
        ({"stype": "numpy.ndarray"}, "as numpy.ndarray"),
        ({"data": packed(1, 2, 3)}, "not the 16 bytes"),
        ({"data": packed(1, 2, 3, 4) + b"\0"}, "not the 16 bytes"),
        ({"data": packed(1, 2, 3, 4) * 1000}, "not the 16 bytes"),
        ({"data": b""}, "not the 16 bytes"),
        ({"data": "0123456789abcdef"}, "not the 16 bytes"),
        ({"data": bytearray(16)}, "not the 16 bytes"),
        ({"data": b"\x80\x04K\x01."}, "not the 16 bytes"),
        ({"data": packed(1, 2, math.nan, 4)}, "NaN"),
        ({"data": packed(1, 2, math.inf, 4)}, "infinite"),
        ({"data": packed(1, 2, math.inf, -math.inf)}, "NaN or infinite"),
    ],
)
def test_a_hostile_array_is_refused(changed: dict[str, Any], message: str):
    layout, array = sent(a_set())
    with pytest.raises(ValueError, match=message):
        TensorSet.from_wire(layout, replace(array, **changed), a_set().spec)


def test_sets_of_other_shape_do_not_add():
    with pytest.raises(ValueError, match="missing b"):
        a_set() + TensorSet({"a": torch.zeros(2, 1)})


@pytest.mark.parametrize(
    ("whole", "spec", "error"),
    [
        (torch.zeros(3), (("a", (2,)), ("b", (2,))), ValueError),
        (torch.zeros(4), (("b", (2,)), ("a", (2,))), ValueError),
        (torch.zeros(4), (("a", (2,)), ("a", (2,))), ValueError),
        (torch.zeros(4).double(), (("a", (2,)), ("b", (2,))), TypeError),
    ],
)
def test_flat_memory_that_does_not_fit_its_spec_is_refused(
    whole: torch.Tensor, spec: Spec, error: type[Exception]
):
    with pytest.raises(error):
        TensorSet.of_flat(whole, spec)


def test_views_of_flat_memory_are_of_its_parts_in_order():
    whole = torch.arange(6.0)
    found = TensorSet.of_flat(whole, (("a", (2, 2)), ("b", (2,))))
    assert (found.count, found.spec) == (6, (("a", (2, 2)), ("b", (2,))))
    assert found["a"].tolist() == [[0, 1], [2, 3]]
    assert found["b"].tolist() == [4, 5]
    assert found["a"].data_ptr() == whole.data_ptr()
