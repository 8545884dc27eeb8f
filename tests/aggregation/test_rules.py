"""The rule that settings name knows what factor `peft` puts before B A."""

from typing import Any

import pytest
import torch

from fedtune.aggregation.fedex import FedEx
from fedtune.aggregation.rules import build_rule
from fedtune.aggregation.svd import SvdMean
from fedtune.config.schema import RunConfig
from fedtune.models.adapters import attach_adapter
from fedtune.models.base import load_base
from fedtune.tensors import TensorSet


@pytest.mark.parametrize("rslora", [False, True])
def test_a_rules_scale_is_the_adapters(rslora: bool):
    adapter = {"lora_r": 9, "lora_alpha": 6.0, "use_rslora": rslora}
    configs = [
        RunConfig.model_validate({"adapter": adapter, "federation": {"aggregation": name}})
        for name in ("fedex", "svd")
    ]
    base = load_base(configs[0].model, "causal_lm").model
    model = attach_adapter(base, configs[0].adapter, seed=0, task="causal_lm")
    scales = {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")}
    assert scales == {2.0 if rslora else 6 / 9}
    fedex, svd = (build_rule(config) for config in configs)
    assert isinstance(fedex, FedEx)
    assert isinstance(svd, SvdMean)
    assert {fedex.scale, svd.scale(9)} == scales


SENT = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 6.0, "e": 100.0}


@pytest.mark.parametrize(
    ("federation", "moved"),
    [
        ({}, 22.4),
        ({"aggregation": "median"}, 3.0),
        ({"aggregation": "trimmed_mean"}, 11 / 3),
        ({"aggregation": "trimmed_mean", "hostile_silos": 2}, 3.0),
        # 2 lies closest to two others, 1 and 3; which of these two comes next is left open
        ({"aggregation": "multi_krum"}, None),
        ({"aggregation": "norm_bounding", "norm_bound": 4.0}, 2.8),
        (
            {
                "aggregation": "median",
                "server_optimizer": {"name": "fedavgm", "learning_rate": 0.5},
            },
            1.5,
        ),
    ],
)
def test_the_rule_that_settings_name_moves_the_adapter(
    federation: dict[str, Any], moved: float | None
):
    config = RunConfig.model_validate({"federation": {"min_silos": 5, **federation}})
    rule = build_rule(config)
    fold = rule.fold(rule.start(TensorSet({"w": torch.tensor([10.0])})))
    for name, value in SENT.items():
        fold.add(name, TensorSet({"w": torch.tensor([value])}), weight=1.0)
    result = float(fold.result().adapter["w"])
    if moved is None:  # two of the three that lie together, 2 among them
        assert result in (pytest.approx(11.5), pytest.approx(12.5))
    else:
        assert result == pytest.approx(10.0 + moved)
