"""The wire type refuses what it was not told to expect, and its arithmetic is plain."""

import pytest
import safetensors.torch
import torch

from fedtune.tensors import TensorSet


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


def test_bytes_round_trip_bit_for_bit():
    again = TensorSet.from_bytes(a_set().to_bytes(), a_set().spec)
    assert again.digest() == a_set().digest()


def test_digest_sees_one_changed_value():
    other = TensorSet({"b": torch.tensor([3.0, 4.5]), "a": torch.zeros(2, 1)})
    assert other.digest() != a_set().digest()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(2, 1)}, "missing b"),
        ({"a": torch.zeros(2, 1), "b": torch.zeros(3)}, r"b is \(3,\), want \(2,\)"),
        ({"a": torch.zeros(2, 1), "b": torch.zeros(2), "c": torch.zeros(1)}, "unexpected c"),
        ({"a": torch.zeros(2, 1), "b": torch.zeros(2).double()}, "want float32"),
        ({"a": torch.zeros(2, 1), "b": torch.tensor([1.0, float("nan")])}, "NaN"),
        ({"a": torch.zeros(2, 1), "b": torch.zeros(100_000)}, "bytes, at most"),
    ],
)
def test_hostile_payload_is_refused(tensors: dict[str, torch.Tensor], message: str):
    with pytest.raises(ValueError, match=message):
        TensorSet.from_bytes(safetensors.torch.save(tensors), a_set().spec)


def test_a_pickle_is_refused():
    with pytest.raises(ValueError, match="not safetensors"):
        TensorSet.from_bytes(b"\x80\x04K\x01.", a_set().spec)


def test_sets_of_other_shape_do_not_add():
    with pytest.raises(ValueError, match="missing b"):
        a_set() + TensorSet({"a": torch.zeros(2, 1)})
