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


def test_a_thousand_deltas_stay_within_the_rounding_that_is_told():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, 50, generator=generator)
    weights = torch.randint(1, 1000, (1000,), generator=generator)
    mean = WeightedMean()
    for value, weight in zip(values, weights, strict=True):
        mean.add(TensorSet({"w": value}), float(weight))
    exact = (values.double() * weights.double()[:, None]).sum(0) / weights.sum()
    # the bound is 1000 * 6e-8 * 4; what is seen is far below
    assert (mean.result()["w"].double() - exact).abs().max() < 1e-6


def test_the_memory_is_that_of_one_delta():
    mean = WeightedMean()
    mean.add(a_set(1.0, 2.0), 1)
    assert mean._mean is not None
    before = mean._mean.data_ptr()
    for _ in range(3):
        mean.add(a_set(5.0, 10.0), 1)
    assert mean.result()["w"].data_ptr() == before


def test_the_mean_is_built_in_the_memory_that_is_given():
    spare, delta = torch.full((2,), float("nan")), a_set(1.0, 2.0)
    mean = WeightedMean(spare)
    mean.add(delta, 1)
    mean.add(a_set(5.0, 10.0), 1)
    result = mean.result()
    assert result["w"].tolist() == [3.0, 6.0]
    assert result["w"].data_ptr() == spare.data_ptr()


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
