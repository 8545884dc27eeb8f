"""Exact LoRA aggregation is the mean of products; truncation is the best of its rank."""

import pytest
import torch

from fedtune.aggregation.lora import LowRank, fedex, mean_of_products, shrink, truncate
from fedtune.aggregation.rules import SvdMean, build_rule, lora_pairs
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.tensors import TensorSet


def parts(ranks: list[int], out: int = 12, inner: int = 9) -> list[LowRank]:
    torch.manual_seed(0)
    return [LowRank(torch.randn(out, r), torch.randn(r, inner)) for r in ranks]


def dense(factors: LowRank) -> torch.Tensor:
    return factors.b.double() @ factors.a.double()


def wanted(silos: list[LowRank], weights: list[float]) -> torch.Tensor:
    return sum(w * dense(p) for p, w in zip(silos, weights, strict=True)) / sum(weights)


def test_by_hand_the_mean_of_products_is_not_the_product_of_means():
    one = LowRank(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0]]))
    two = LowRank(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0, 1.0]]))
    mean, residual = fedex([one, two], [1, 1])
    assert dense(mean).tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert torch.allclose(dense(residual), torch.tensor([[0.25, -0.25], [-0.25, 0.25]]).double())
    assert residual.rank == 1
    assert dense(mean_of_products([one, two], [1, 1])).tolist() == [[0.5, 0.0], [0.0, 0.5]]


def test_fedex_is_exact():
    silos, weights = parts([2, 2, 2]), [1.0, 2.0, 5.0]
    mean, residual = fedex(silos, weights)
    assert torch.allclose(dense(mean) + dense(residual), wanted(silos, weights), atol=1e-12)
    assert (mean.rank, residual.rank) == (2, 4)  # k silos leave (k - 1) * r


def test_equal_silos_leave_no_residual():
    silo = parts([2])[0]
    _, residual = fedex([silo, silo], [1, 3])
    assert dense(residual).abs().max() < 1e-12


def test_fedex_refuses_unequal_ranks():
    with pytest.raises(ValueError, match="equal ranks"):
        fedex(parts([1, 2]), [1, 1])


def test_truncation_is_the_best_of_its_rank_for_unequal_ranks():
    silos, weights = parts([1, 2, 3]), [3.0, 1.0, 2.0]
    kept, error = truncate(mean_of_products(silos, weights), 2)
    u, s, vh = torch.linalg.svd(wanted(silos, weights))
    assert torch.allclose(dense(kept), u[:, :2] * s[:2] @ vh[:2], atol=1e-10)
    assert error == pytest.approx(float(s[2:].norm() / s.norm()))


def test_truncation_to_enough_rank_is_exact_and_pads():
    silos = parts([2])
    kept, error = truncate(silos[0], 5)
    assert kept.rank == 5
    assert error == pytest.approx(0.0, abs=1e-7)
    assert torch.allclose(dense(kept), dense(silos[0]), atol=1e-6)
    assert shrink(kept).rank == 2


def test_zero_stays_zero():
    kept, error = truncate(LowRank(torch.zeros(4, 2), torch.randn(2, 3)), 2)
    assert (dense(kept).abs().max().item(), error) == (0.0, 0.0)
    assert kept.a.norm().item() == pytest.approx(2**0.5)  # else it could never train again


def test_no_out_by_in_matrix_is_formed():
    d = 200_000  # a d x d matrix would be 320 GB
    torch.manual_seed(0)
    kept, _ = truncate(LowRank(torch.randn(d, 2), torch.randn(2, d)), 1)
    assert kept.b.shape == (d, 1)


def adapter(rank: int) -> TensorSet:
    torch.manual_seed(1)
    return TensorSet(
        {
            "q.lora_A.weight": torch.randn(rank, 5),
            "q.lora_B.weight": torch.randn(6, rank),
            "head.weight": torch.zeros(2),
        }
    )


def effect(state: TensorSet, scale: float) -> torch.Tensor:
    return scale * (state["q.lora_B.weight"].double() @ state["q.lora_A.weight"].double())


def test_svd_rule_with_a_smaller_silo_means_what_acts_on_the_model():
    rule = SvdMean(4, {"b": 1}, lambda rank: 8.0 / rank)
    state = rule.start(adapter(4))
    fold, acts = rule.fold(state), []
    for silo, rank, weight in (("a", 4, 1.0), ("b", 1, 3.0)):
        received = rule.received_by(rule.group_of(silo), state)
        delta = received.map(torch.ones_like)
        fold.add(silo, delta, weight)
        acts.append(weight * effect(received + delta, 8.0 / rank))
    result = fold.result().adapter
    best = torch.linalg.svd(sum(acts) / 4)
    assert torch.allclose(
        effect(result, 8.0 / 4), best.U[:, :4] * best.S[:4] @ best.Vh[:4], atol=1e-4
    )
    assert result["head.weight"].tolist() == [1.0, 1.0]


def test_a_smaller_silo_receives_the_leading_part():
    rule = SvdMean(4, {"b": 4, "c": 2}, lambda rank: 8.0 / rank)
    fold = rule.fold(rule.start(adapter(4)))
    fold.add("b", adapter(4), 1.0)
    state = fold.result()
    whole, part = (
        effect(state.adapter, 2.0),
        effect(rule.received_by(rule.group_of("c"), state), 4.0),
    )
    svd = torch.linalg.svd(whole)
    assert torch.allclose(part, svd.U[:, :2] * svd.S[:2] @ svd.Vh[:2], atol=1e-4)


@pytest.mark.parametrize(
    "names", [["q.lora_A.weight"], ["q.lora_embedding_A", "p.lora_A", "p.lora_B"], ["head"]]
)
def test_what_cannot_be_paired_is_refused(names: list[str]):
    with pytest.raises(ValueError, match="not pairs"):
        lora_pairs(TensorSet({name: torch.zeros(2, 2) for name in names}))


def test_fedex_is_refused_until_it_is_whole():
    config = RunConfig.model_validate({"federation": {"aggregation": "fedex"}})
    with pytest.raises(InputError, match="not available yet"):
        build_rule(config)
