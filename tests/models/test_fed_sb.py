"""Fed-SB: B and A that are fixed and everywhere the same; R alone is trained and averaged."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from fedtune.aggregation.rules import build_rule
from fedtune.config.adapter import AdapterConfig
from fedtune.config.model import ModelConfig
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.models.adapters import attach_adapter, read_state, save_adapter, write_state
from fedtune.models.base import load_base
from fedtune.models.fed_sb import factors_digest
from fedtune.tensors import TensorSet
from fedtune.training.prepare import prepare
from fedtune.training.trainer import Trainer

SETTINGS: dict[str, Any] = {"method": "fed_sb", "lora_r": 4, "lora_alpha": 6.0}
IDS = torch.tensor([[5, 9, 77, 41, 12, 8, 3]])
# what every release must draw: a silo of another release would train in another basis
FACTORS = "9461c6384f7cf947832db847cd8fb541da328e051b44feee22902e1b8a1518f7"


def attached(path: str = "embedded", *, seed: int = 0, **settings: Any) -> Any:
    config = AdapterConfig.model_validate({**SETTINGS, **settings})
    base = load_base(ModelConfig(path=path), "causal_lm")
    return attach_adapter(base.model, config, seed=seed, task="causal_lm").eval()


def moved(model: Any, seed: int) -> TensorSet:
    """A state as a silo might have trained it, which the model has then."""
    generator = torch.Generator().manual_seed(seed)
    state = read_state(model).map(lambda t: t + 0.3 * torch.randn(t.shape, generator=generator))
    write_state(model, state)
    return state


def updates(model: Any) -> dict[str, Tensor]:
    """What the adapter adds to each weight, float64 [out, in]."""
    tensors = {n: p.detach().double() for n, p in model.named_parameters() if "lora_" in n}
    added = {}
    for name, r in tensors.items():
        if name.endswith(".lora_B.default.R.weight"):
            layer = name.removesuffix(".lora_B.default.R.weight")
            b, a = (
                tensors[f"{layer}.lora_B.default.B.weight"],
                tensors[f"{layer}.lora_A.default.weight"],
            )
            added[layer.removeprefix("base_model.model.")] = 6.0 / 4 * b @ r @ a
    return added


def test_training_moves_r_and_not_a_bit_of_anything_else():
    config = RunConfig.model_validate(
        {
            "adapter": SETTINGS,
            "data": {"embedded_patients": 32},
            "training": {"max_steps": 2, "batch_size": 4, "weight_decay": 0.1},
        }
    )
    ready = prepare(config)
    before = {name: tensor.clone() for name, tensor in ready.model.state_dict().items()}
    result = Trainer(ready.task, config.training, seed=0).fit(ready.model, ready.train)
    changed = {n for n, t in ready.model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == set(result.delta) == {n for n in before if n.endswith("R.weight")}
    assert len(changed) == 7 * ready.model.config.num_hidden_layers  # every linear layer
    assert {tensor.shape for tensor in result.delta.tensors.values()} == {(4, 4)}
    assert all(not before[name].any() for name in changed)  # the start is the base itself


def test_the_model_computes_base_plus_scale_b_r_a(tiny: Callable[[str], str]):
    for path in ("embedded", tiny("gpt2")):  # GPT-2 holds its weights as [in, out]
        model = attached(path)
        moved(model, 1)
        plain = load_base(ModelConfig(path=path), "causal_lm").model.eval()
        for layer, added in updates(model).items():
            target = plain.get_submodule(layer)
            change = added.T if isinstance(target, Conv1D) else added
            target.weight.data = (target.weight.data.double() + change).float()
        with torch.no_grad():
            want, found = plain(input_ids=IDS).logits, model(input_ids=IDS).logits
            untouched = load_base(ModelConfig(path=path), "causal_lm").model.eval()(input_ids=IDS)
        torch.testing.assert_close(found, want, rtol=0, atol=1e-4)
        assert (found - untouched.logits).abs().max() > 0.1


def test_the_mean_of_r_is_the_mean_of_the_updates():
    model, weights = attached(), (1.0, 5.0, 2.0)
    start = read_state(model)
    rule = build_rule(RunConfig.model_validate({"adapter": SETTINGS}))
    state = rule.start(start)
    fold, mean = rule.fold(state), {}
    for seed, weight in enumerate(weights):
        write_state(model, start)
        fold.add(f"silo {seed}", moved(model, seed) - start, weight)
        for layer, added in updates(model).items():
            mean[layer] = mean.get(layer, 0) + added * weight / sum(weights)
    write_state(model, fold.result().adapter)
    for layer, added in updates(model).items():
        assert (added - mean[layer]).norm() < 1e-6 * mean[layer].norm(), layer


def test_the_factors_are_the_same_in_every_process_and_release():
    script = (
        "import torch; torch.set_num_threads(2); torch.rand(7)\n"
        "from tests.models.test_fed_sb import attached, factors_digest\n"
        "print(factors_digest(attached()))"
    )
    there = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert factors_digest(attached()) == there.stdout.split()[-1] == FACTORS
    others = [attached(seed=1), attached(lora_r=3), attached(target_modules=["q_proj"])]
    assert len({FACTORS, *(factors_digest(other) for other in others)}) == 4
    with torch.no_grad():
        name, factor = next((n, p) for n, p in others[0].named_parameters() if "lora_A" in n)
        same = factors_digest(others[0])
        factor[0, 0] *= 1 + 1e-6
    assert factors_digest(others[0]) != same, name


def test_the_factors_are_well_spread():
    """Signs of one size; columns nearly at right angles, and no two layers' alike."""
    model = attached()
    found = {n: p.detach() for n, p in model.named_parameters() if "lora_A" in n}
    seen = set()
    for name, a in found.items():
        assert a.abs().unique().numel() == 1
        angles = a @ a.T - torch.eye(4)
        assert angles.abs().max() < 6 / a.shape[1] ** 0.5, name  # six standard deviations
        seen.add(a.numpy().tobytes())
    assert len(seen) == len(found)


def test_the_saved_files_are_those_of_ordinary_lora(tmp_path: Path):
    base = load_base(ModelConfig(), "causal_lm")
    model = attached()
    moved(model, 1)
    save_adapter(model, base.tokenizer, tmp_path / "a", base="embedded")
    saved = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {name.rpartition(".lora_")[2] for name in saved} == {"A.weight", "B.weight"}
    for layer, added in updates(model).items():
        b, a = (saved[f"base_model.model.{layer}.lora_{side}.weight"].double() for side in "BA")
        assert (6.0 / 4 * b @ a - added).norm() < 1e-6 * added.norm()
    # the same run goes on with LoRA from there
    plain = AdapterConfig(lora_r=4, lora_alpha=6.0, init_from=str(tmp_path / "a"))
    on = attach_adapter(base.model, plain, seed=0, task="causal_lm").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            on(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=0, atol=1e-4
        )


def test_what_has_no_r_between_two_factors_is_refused(tiny: Callable[[str], str]):
    with pytest.raises(InputError, match=r"adapter\.lora_r") as told:
        attached(tiny("gpt2"), lora_r=33)
    assert "33 is above the smaller side of `base_model" in str(told.value)
    assert "at most 32" in str(told.value)
    attached(tiny("gpt2"), lora_r=32)
    with pytest.raises(InputError, match="is no linear layer"):
        attached(tiny("gpt2"), target_modules=["wte"])


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"adapter": {"freeze_a": True}}, "`freeze_a` needs `method: lora`"),
        ({"adapter": {"use_dora": True}}, "`use_dora` needs `method: lora`"),
        ({"adapter": {"init_from": "a"}}, "`fedtune merge`"),
        ({"adapter": {"num_virtual_tokens": 4}}, "`num_virtual_tokens` needs"),
        ({"federation": {"aggregation": "svd"}}, "needs `adapter.method: lora`"),
        ({"federation": {"aggregation": "fedex"}}, "needs `adapter.method: lora`"),
        ({"federation": {"silo_ranks": {"a": 2}}}, "needs `federation.aggregation: svd`"),
    ],
)
def test_settings_that_mean_nothing_for_it_are_refused(tree: dict[str, Any], says: str):
    adapter = {"method": "fed_sb", **tree.pop("adapter", {})}
    with pytest.raises(ValueError, match="(?s)" + says.replace(".", r"\.")):
        RunConfig.model_validate({"adapter": adapter, **tree})
