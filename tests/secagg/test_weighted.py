"""The mean that comes out of a secure sum is the weighted mean, to the error that is told."""

import numpy as np
import pytest
import torch

from fedtune.secagg.weighted import Weighted
from fedtune.tensors import TensorSet
from tests.secagg.conftest import run, terms_of

SIGMA = {"a": 1e-4, "b": 3e-2}


def deltas(silos: int, seed: int = 0) -> list[TensorSet]:
    generator = torch.Generator().manual_seed(seed)
    return [
        TensorSet(
            {
                "a": torch.randn(8, 16, generator=generator) * SIGMA["a"],
                "b": torch.randn(5, generator=generator) * SIGMA["b"],
            }
        )
        for _ in range(silos)
    ]


def encoding(silos: int, max_weight: int = 1000) -> Weighted:
    bounds = {name: 6 * sigma for name, sigma in SIGMA.items()}
    return Weighted(deltas(1)[0].spec, bounds, silos, max_weight)


def test_a_secure_round_gives_the_weighted_mean_of_the_survivors():
    code, given, weights = encoding(7), deltas(7), [1000, 3, 250, 999, 17, 640, 77]
    terms = terms_of(7, code.words, dropouts=2)
    vectors = {
        silo: code.encode(delta, weight)
        for silo, delta, weight in zip(terms.silos, given, weights, strict=True)
    }
    total, survivors = run(terms, vectors, {"share": terms.silos[:1], "mask": terms.silos[6:]})
    assert len(survivors) == 5
    mean, weight = code.decode(total, 5)
    assert weight == sum(weights[1:6])
    for name in SIGMA:
        exact = sum(w * d[name].double() for w, d in zip(weights[1:6], given[1:6], strict=True))
        worst = code.errors()[name] * 5 * 1000 / weight
        assert float((mean[name] - exact / weight).abs().max()) <= worst
        assert worst < 1e-3 * SIGMA[name]


def test_one_silo_s_number_and_weight_count_for_no_more_than_the_largest():
    code = encoding(3, max_weight=10)
    loud = deltas(1)[0].map(lambda tensor: torch.full_like(tensor, 1e9))
    quiet = loud.map(torch.zeros_like)
    total = code.encode(loud, 10**9) + code.encode(quiet, 10)
    mean, weight = code.decode(total, 2)
    assert weight == 20
    for name, sigma in SIGMA.items():
        assert torch.allclose(mean[name], torch.full_like(mean[name], 3 * sigma), rtol=1e-4)


def test_a_cut_number_does_not_profit_from_a_small_weight():
    code = encoding(3, max_weight=1000)
    loud = deltas(1)[0].map(lambda tensor: torch.full_like(tensor, 1e9))
    mean, _ = code.decode(code.encode(loud, 500), 1)
    assert torch.allclose(mean["a"], torch.full_like(mean["a"], 6 * SIGMA["a"]), rtol=1e-3)


def test_what_was_not_agreed_is_refused():
    code, delta = encoding(3), deltas(1)[0]
    with pytest.raises(ValueError, match="other tensors"):
        code.encode(TensorSet({"a": delta["a"]}), 1)
    with pytest.raises(ValueError, match="weight is 0"):
        code.encode(delta, 0)
    with pytest.raises(ValueError, match="finite"):
        code.encode(delta.map(lambda tensor: tensor * np.nan), 1)
    with pytest.raises(ValueError, match="each tensor"):
        Weighted(delta.spec, {"a": 1.0}, 3, 10)
    with pytest.raises(ValueError, match="weights is out of range"):
        code.decode(code.encode(delta, 1000) + code.encode(delta, 1000), 1)
