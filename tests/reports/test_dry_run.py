"""`--dry-run` through the command line: what it says is what the run then does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import fedtune.models.base
from fedtune.cli.main import main
from fedtune.config.adapter import AdapterConfig
from fedtune.config.schema import RunConfig
from fedtune.models.adapters import attach_adapter, read_state
from fedtune.models.base import load_base
from fedtune.models.outline import load_outline
from fedtune.reports.dry_run import outline
from fedtune.reports.memory import frozen_bytes
from fedtune.tensors import TensorSet, payload_size

EMBEDDED = Path(fedtune.models.base.__file__).parent / "embedded"
SMALL: dict[str, Any] = {
    "data": {"embedded_patients": 32},
    "training": {"max_steps": 1, "batch_size": 4},
    "federation": {"rounds": 2, "fraction": 0.5},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


def config_file(tmp_path: Path, **sections: Any) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({**SMALL, "output": {"dir": str(tmp_path / "run")}, **sections}))
    return path


def dry(capsys: pytest.CaptureFixture[str], path: Path, *overrides: str) -> dict[str, Any]:
    assert main(["simulate", str(path), "--dry-run", "--json", *overrides]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


@pytest.mark.parametrize("rule", ["fedavg", "svd", "fedex"])
def test_silos_steps_and_bytes_are_those_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str
) -> None:
    path = config_file(tmp_path)
    override = f"federation.aggregation={rule}"
    told = dry(capsys, path, override)
    assert not (tmp_path / "run").exists()
    assert main(["simulate", str(path), "--json", "--no-compare", override]) == 0
    rounds = json.loads(capsys.readouterr().out)["rounds"]
    assert told["bytes_up_a_round"] == rounds[0]["bytes_up"]
    assert told["bytes_down_a_round"] == rounds[0]["bytes_down"]
    moved = sum(r["bytes_up"] + r["bytes_down"] for r in rounds)
    if rule == "fedex":  # its residual has as many components as the data needs
        assert moved <= told["bytes_all_rounds"] < 2 * moved
    else:
        assert told["bytes_all_rounds"] == moved
    assert told["steps"] == sum(len(r["silos"]) for r in rounds)
    partition = json.loads((tmp_path / "run" / "partition.json").read_text())["silos"]
    assert told["silos"] == {name: len(rows) for name, rows in partition.items()}


def test_the_three_parts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config_file(tmp_path, data={"embedded_patients": 32, "validation_fraction": 0.2})
    more = ("training.eval_steps=1", "--dry-run")
    assert main(["train", str(path), *more, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    plain = dry(capsys, config_file(tmp_path))["run"]
    assert told["validation_examples"] > 0 == plain["validation_examples"]
    assert told["test_examples"] == plain["test_examples"]
    assert told["train_examples"] + told["validation_examples"] == plain["train_examples"]
    path = config_file(tmp_path, data={"embedded_patients": 32, "validation_fraction": 0.2})
    assert main(["train", str(path), *more]) == 0
    counts = [told[f"{part}_examples"] for part in ("train", "validation", "test")]
    said = "data: {} training, {} validation and {} test examples".format(*counts)
    assert said in capsys.readouterr().out


def test_no_weights_file_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED, model)
    weights = next(model.glob("*.safetensors"))
    path = config_file(tmp_path, model={"path": str(model)})
    with_weights = dry(capsys, path)
    weights.write_bytes(b"garbage")
    assert dry(capsys, path) == with_weights
    weights.unlink()
    assert dry(capsys, path) == with_weights
    assert main(["simulate", str(path)]) == 2
    assert "model.path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "adapter",
    [
        {"method": "lora"},
        {"method": "lora", "use_dora": True},
        {"method": "fed_sb"},
        {"method": "full"},
    ],
)
def test_the_outline_has_the_loaded_models_shapes(adapter: dict[str, Any]) -> None:
    config = RunConfig.model_validate({**SMALL, "adapter": adapter})
    loaded = attach_adapter(
        load_base(config.model, "causal_lm").model, config.adapter, seed=0, task="causal_lm"
    )
    found = outline(config)
    assert found.spec == read_state(loaded).spec
    assert {parameter.device.type for parameter in found.model.parameters()} == {"meta"}
    assert sum(frozen_bytes(found.model, load_in_4bit=False)) == sum(
        t.numel() * t.element_size()
        for t in [*loaded.parameters(), *loaded.buffers()]
        if not t.requires_grad
    )


def test_the_loss_mask_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = dry(capsys, config_file(tmp_path))["run"]["example"]
    prompt, completion = example["segments"]
    assert (prompt["learned"], completion["learned"]) == (False, True)
    assert prompt["text"].endswith("Assessment:")
    assert completion["text"].endswith("<eos>")
    everything = dry(capsys, config_file(tmp_path), "task.loss_on=all")["run"]["example"]
    assert [part["learned"] for part in everything["segments"]] == [True]
    assert main(["simulate", str(config_file(tmp_path)), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  not learned | ") for line in lines)
    assert any(line.startswith("  learned     | ") for line in lines)
    labelled = dry(capsys, config_file(tmp_path, task={"name": "sequence_classification"}))
    assert labelled["run"]["example"]["label"]


def test_memory_grows_with_what_it_should(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(tmp_path)

    def memory(*overrides: str) -> dict[str, int]:
        told: dict[str, int] = dry(capsys, path, *overrides)["run"]["memory"]
        return told

    lora, full = memory(), memory("adapter.method=full")
    assert lora["optimizer"] == 2 * lora["adapter"]
    assert memory("training.optimizer=sgd")["optimizer"] == 0
    moving = memory("training.optimizer=sgd", "training.momentum=0.9")
    assert moving["optimizer"] == moving["adapter"]
    assert full["gradients"] > 10 * lora["gradients"]
    assert full["weights"] < 1000 < lora["weights"]
    halves = memory("training.micro_batch_size=2")["activations"] / lora["activations"]
    assert 0.4 < halves < 0.6
    assert lora["unknown"] is None
    packed = memory("task.packing=true")
    assert packed["unknown"] is None
    assert 0.5 < packed["activations"] / lora["activations"] < 2
    assert lora["total"] == sum(v for k, v in lora.items() if k not in ("total", "unknown"))


def test_rules_that_keep_deltas_say_so_in_the_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(tmp_path, federation={"rounds": 2, "min_silos": 5})

    def copies(*overrides: str) -> float:
        told = dry(capsys, path, *overrides)["run"]["memory"]
        return float(told["copies"] / told["adapter"])

    def rule(name: str) -> str:
        return f"federation.aggregation={name}"

    plain = copies()
    bounded = copies(rule("norm_bounding"), "federation.norm_bound=1")
    assert bounded == plain + 1
    assert copies(rule("trimmed_mean")) == plain + 3
    for name in ("median", "multi_krum", "svd", "fedex"):
        assert copies(rule(name)) == plain + 8  # all silos' deltas
        assert copies(rule(name), "federation.fraction=0.75") == plain + 6


def test_a_model_that_needs_real_numbers_has_unknown_activations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(self: object, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        raise ValueError(f"not {float(batch['input_ids'].sum())}")

    monkeypatch.setattr("fedtune.tasks.causal_lm.CausalLm.losses", losses)
    memory = dry(capsys, config_file(tmp_path))["run"]["memory"]
    assert memory["activations"] is None
    assert memory["unknown"]
    assert main(["simulate", str(config_file(tmp_path)), "--dry-run"]) == 0
    assert "activations, unknown for this model" in capsys.readouterr().out


def test_a_window_of_attention_smaller_than_a_packed_row_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED, model)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "sliding_window": 8}))
    path = config_file(tmp_path, model={"path": str(model)}, task={"packing": True})
    for more in (["--dry-run"], []):
        assert main(["train", str(path), *more]) == 2
        assert "task.packing: the model attends to a window" in capsys.readouterr().err


def test_weights_in_4_bit_take_a_little_over_half_a_byte() -> None:
    model = load_outline(RunConfig().model, "causal_lm").model.requires_grad_(False)
    linear = sum(
        m.weight.numel()
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and name != "lm_head"
    )
    saved = sum(frozen_bytes(model, load_in_4bit=False)) - sum(
        frozen_bytes(model, load_in_4bit=True)
    )
    assert saved == pytest.approx(linear * (4 - 4.127 / 8), rel=1e-3)
    alone = sum(frozen_bytes(model, load_in_4bit=True))
    with torch.device("meta"):
        settings = AdapterConfig(method="fed_sb")
        adapted = attach_adapter(model, settings, seed=0, task="causal_lm")
    factors = sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    learned = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    # what the adapter brings is float32, also the part that isn't trained
    assert sum(frozen_bytes(adapted, load_in_4bit=True)) == alone + 4 * (factors - learned)


def test_the_payloads_size_is_known_without_making_it() -> None:
    state = TensorSet({"b.é": torch.zeros(3, 5), "a": torch.zeros(()), "c": torch.zeros(0, 2)})
    assert payload_size(state.spec) == len(state.to_wire()[1][3])
    assert payload_size(()) == len(TensorSet({}).to_wire()[1][3])
