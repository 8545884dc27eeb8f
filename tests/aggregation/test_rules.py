"""The rule that settings name knows what factor `peft` puts before B A."""

import pytest

from fedtune.aggregation.fedex import FedEx
from fedtune.aggregation.rules import build_rule
from fedtune.aggregation.svd import SvdMean
from fedtune.config.schema import RunConfig
from fedtune.models.adapters import attach_adapter
from fedtune.models.base import load_base


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
