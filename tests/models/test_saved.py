"""What a run left opens again as what it was; what is damaged or of another base is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedtune.config.adapter import AdapterConfig
from fedtune.config.load import save_config
from fedtune.config.model import ModelConfig
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.models.adapters import attach_adapter, read_state, save_adapter, write_state
from fedtune.models.base import Base, load_base
from fedtune.models.promise import read_promise, write_promise
from fedtune.models.saved import load_saved

LABELS = ("flu", "asthma", "gout")
PROBE = torch.tensor([[5, 9, 77, 41, 12, 8]])


def moved(base: Base, config: AdapterConfig, task: str = "causal_lm"):
    """The base with an adapter that is no longer where it started."""
    model = attach_adapter(base.model, config, seed=1, task=task)
    state = read_state(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        write_state(model, state.map(lambda t: t + 0.05 * torch.randn_like(t)))
    return model.eval()


def run_folder(folder: Path, config: RunConfig, labels: tuple[str, ...] = ()):
    """A run's folder as a run leaves it, and the model that is in it."""
    base = load_base(config.model, config.task.name, labels)
    model = moved(base, config.adapter, config.task.name)
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    save_adapter(model, base.tokenizer, folder / "adapter", base=config.model.path)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=PROBE).logits


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_opens_with_and_without_its_adapter(tmp_path: Path, method: str):
    config = RunConfig(adapter=AdapterConfig(method=method))
    model = run_folder(tmp_path / "run", config)
    loaded = load_saved(tmp_path / "run")
    assert not loaded.model.training
    assert (loaded.config, loaded.task, loaded.labels) == (config, "causal_lm", ())
    assert torch.equal(logits(loaded.model), logits(model))
    bare = load_saved(tmp_path / "run", with_adapter=False)
    untouched = load_base(ModelConfig(), "causal_lm").model.eval()
    assert torch.equal(logits(bare.model), logits(untouched))
    assert not torch.equal(logits(bare.model), logits(model))


@pytest.mark.parametrize("shape", ["llama", "bert"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_classifier_keeps_its_head_and_the_names_of_its_labels(
    tmp_path: Path, tiny: Callable[[str], str], shape: str, method: str
):
    config = RunConfig.model_validate(
        {
            "model": {"path": tiny(shape)},
            "task": {"name": "sequence_classification"},
            "adapter": {"method": method},
        }
    )
    model = run_folder(tmp_path / "run", config, LABELS)
    loaded = load_saved(tmp_path / "run")
    assert loaded.labels == LABELS
    assert loaded.model.config.id2label == dict(enumerate(LABELS))
    assert torch.equal(logits(loaded.model), logits(model))
    alone = load_saved(tmp_path / "run" / "adapter")
    assert (alone.labels, alone.task, alone.config) == (LABELS, "sequence_classification", None)
    assert torch.equal(logits(alone.model), logits(model))


def test_an_adapter_and_a_model_open_without_a_run(tmp_path: Path, tiny: Callable[[str], str]):
    model = run_folder(tmp_path / "run", RunConfig())
    shutil.move(tmp_path / "run" / "adapter", tmp_path / "apart")
    assert torch.equal(logits(load_saved(tmp_path / "apart").model), logits(model))
    whole = load_saved(Path(tiny("gpt2")))
    assert whole.task == "causal_lm"
    assert not whole.model.training
    with pytest.raises(InputError, match="no adapter to leave out"):
        load_saved(Path(tiny("gpt2")), with_adapter=False)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _rename_base(folder: Path) -> None:
    path = folder / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "a/b"}))


def _wider(folder: Path) -> None:
    path = folder / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 3}))


def _fewer_modules(folder: Path) -> None:
    path = folder / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ["q_proj"]}))


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda run: shutil.rmtree(run), "no such folder"),
    "empty": (lambda run: [shutil.rmtree(run), run.mkdir()], "holds no model"),
    "file": (lambda run: [shutil.rmtree(run), run.write_text("")], "is a file"),
    "unfinished": (lambda run: shutil.rmtree(run / "adapter"), "no adapter yet"),
    "no_config": (lambda run: (run / "adapter/adapter_config.json").unlink(), "no such file"),
    "bad_config": (lambda run: _cut(run / "adapter/adapter_config.json"), "adapter_config.json"),
    "not_an_object": (
        lambda run: (run / "adapter/adapter_config.json").write_text("[]"),
        "JSON object",
    ),
    "no_weights": (lambda run: (run / "adapter/adapter_model.safetensors").unlink(), "weights"),
    "bad_weights": (lambda run: _cut(run / "adapter/adapter_model.safetensors"), "is damaged"),
    "bad_tokenizer": (lambda run: _cut(run / "adapter/tokenizer.json"), "can't be loaded"),
    "other_base": (_rename_base, "another base, `a/b`"),
    "other_rank": (_wider, "doesn't fit its base"),
    "other_modules": (_fewer_modules, "doesn't fit its base"),
    "bad_yaml": (lambda run: (run / "config.yaml").write_text("sede: 1\n"), "did you mean"),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intact") / "run"
    run_folder(folder, RunConfig())
    return folder


@pytest.mark.parametrize("case", BREAKS)
def test_what_can_not_be_opened_is_told(tmp_path: Path, intact: Path, case: str):
    shutil.copytree(intact, tmp_path / "run")
    damage, says = BREAKS[case]
    damage(tmp_path / "run")
    with pytest.raises(InputError, match=says) as told:
        load_saved(tmp_path / "run")
    assert str(told.value.where).startswith(str(tmp_path / "run")) or case == "bad_yaml"


def test_a_whole_model_without_some_of_its_weights_is_refused(
    tmp_path: Path, tiny: Callable[[str], str]
):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny("gpt2"), tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    gone = next(name for name in weights if "mlp" in name)
    del weights[gone]
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks"):
        load_saved(tmp_path / "model")


@pytest.mark.parametrize("mode", ["local", "distributed", "central"])
def test_a_moved_adapter_says_in_which_mode_it_was_trained(tmp_path: Path, mode: str):
    write_promise(tmp_path, {"version": 1, "mode": mode, "held_out": "public", "parties": {}})
    promised = read_promise(tmp_path)
    assert promised is not None
    assert (promised.mode, promised.held_out) == (mode, "public")
