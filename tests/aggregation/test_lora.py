"""Exact LoRA aggregation is the mean of products; truncation is the best of its rank."""

import pytest
import torch

from fedtune.aggregation.fedex import FedEx
from fedtune.aggregation.lora import LowRank, fedex, mean_of_products, shrink, truncate
from fedtune.aggregation.lora_names import lora_pairs, residual_spec
from fedtune.aggregation.rule import GlobalState
from fedtune.aggregation.svd import SvdMean
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


def test_a_small_part_of_a_residual_is_kept_and_rounding_is_not():
    b, a = torch.eye(12, 3), torch.eye(3, 9)
    found = shrink(LowRank(b * torch.tensor([1.0, 1e-5, 1e-9]), a))
    assert found.rank == 2
    assert torch.allclose(dense(found)[1, 1], torch.tensor(1e-5).double(), rtol=1e-4)


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
        delta = TensorSet(
            {**received.map(torch.ones_like).tensors, "head.weight": torch.full((2,), weight)}
        )
        fold.add(silo, delta, weight)
        acts.append(weight * effect(received + delta, 8.0 / rank))
    result = fold.result().adapter
    best = torch.linalg.svd(sum(acts) / 4)
    assert torch.allclose(
        effect(result, 8.0 / 4), best.U[:, :4] * best.S[:4] @ best.Vh[:4], atol=1e-4
    )
    assert result["head.weight"].tolist() == [2.5, 2.5]  # (1 * 1 + 3 * 3) / 4


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
    with pytest.raises(InputError, match="not pairs"):
        lora_pairs(tuple((name, (2, 2)) for name in sorted(names)))


def test_fedex_acts_as_the_mean_of_what_acted_in_the_silos_round_after_round():
    rule, scale = FedEx(2.0), 2.0
    state = rule.start(adapter(2))
    for number in (1, 2, 3):
        fold, acts, heads = rule.fold(state), [], []
        for silo, weight in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
            delta = state.adapter.map(torch.randn_like)
            fold.add(silo, delta, weight)
            acts.append(weight * (effect(state.adapter + delta, scale) + residual_of(state)))
            heads.append(weight * (state.adapter + delta)["head.weight"])
        state = fold.result()
        assert torch.allclose(state.adapter["head.weight"], sum(heads) / 6, atol=1e-6)
        wanted = sum(acts) / 6
        assert torch.allclose(effect(state.adapter, scale) + residual_of(state), wanted, atol=1e-4)
        # two of three silos differ from the mean, at rank 2 each; a 6 x 5 matrix has rank 5
        assert state.residual["q.lora_A.weight"].shape[0] == min(4 * number, 5)


def residual_of(state: GlobalState) -> torch.Tensor:
    return effect(state.residual, 1.0) if len(state.residual) else torch.zeros(6, 5).double()


SPEC = adapter(2).spec
NAMES = ["q.lora_A.weight", "q.lora_B.weight"]


def test_a_residual_may_have_any_rank_that_its_matrix_can_have():
    for rank in (1, 5):
        layout = {"names": NAMES, "shapes": [f"{rank}x5", f"6x{rank}"]}
        assert residual_spec(SPEC, layout) == ((NAMES[0], (rank, 5)), (NAMES[1], (6, rank)))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "no list of names"),
        ({"names": NAMES, "shapes": ["1x5"]}, "no list of names"),
        ({"names": NAMES[1:], "shapes": ["6x1"]}, "None, want a rank"),
        ({"names": NAMES, "shapes": ["6x5", "6x6"]}, "want a rank from 1 to 5"),
        ({"names": NAMES, "shapes": ["0x5", "6x0"]}, "want a rank"),
        ({"names": NAMES, "shapes": ["-1x5", "6x-1"]}, "want a rank"),
        ({"names": NAMES, "shapes": ["1x6", "6x1"]}, "want a rank"),
        ({"names": NAMES, "shapes": ["99999999999x5", "6x1"]}, "want a rank"),
        ({"names": NAMES, "shapes": [15, "6x1"]}, "want a rank"),
    ],
)
def test_a_hostile_residual_is_refused(layout: dict[str, list[str]], message: str):
    with pytest.raises(ValueError, match=message):
        residual_spec(SPEC, layout)
