"""The mean weights by examples, and federated SGD is central SGD."""

import pytest
import torch

from fedtune.aggregation.fedavg import WeightedMean
from fedtune.tensors import TensorSet


def a_set(*values: float) -> TensorSet:
    return TensorSet({"w": torch.tensor(values)})


def test_weights_are_examples():
    mean = WeightedMean()
    mean.add(a_set(1.0, 2.0), 1)
    mean.add(a_set(5.0, 10.0), 3)
    assert mean.result()["w"].tolist() == [4.0, 8.0]  # (1 + 15) / 4, (2 + 30) / 4


def test_small_deltas_are_not_lost_beside_large_ones():
    mean = WeightedMean()
    for value in (1e8, 1.0, -1e8):  # float32 would give 0
        mean.add(a_set(value), 1)
    assert mean.result()["w"].item() == pytest.approx(1 / 3, rel=1e-6)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_bad_weight_is_refused(weight: float):
    with pytest.raises(ValueError, match="positive"):
        WeightedMean().add(a_set(1.0), weight)


def test_another_shape_is_refused():
    mean = WeightedMean()
    mean.add(a_set(1.0), 1)
    with pytest.raises(ValueError, match="deltas differ"):
        mean.add(a_set(1.0, 2.0), 1)


def test_nothing_to_average():
    with pytest.raises(ValueError, match="nothing"):
        WeightedMean().result()


def test_input_is_not_changed():
    delta = a_set(1.0)
    mean = WeightedMean()
    mean.add(delta, 2)
    mean.add(delta, 2)
    assert delta["w"].tolist() == [1.0]
