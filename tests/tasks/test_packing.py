"""Packing is pure efficiency: the same losses and gradients, nothing read across examples."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from fedtune.cli.main import main
from fedtune.config.model import ModelConfig
from fedtune.config.task import TaskConfig
from fedtune.errors import InputError
from fedtune.models.base import load_tokenizer
from fedtune.tasks import build_task
from fedtune.tasks.evaluation import evaluate
from fedtune.tasks.packing import check_packing, fill_rows
from fedtune.tasks.task import Encoded

SMALL = {"vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "llama": lambda: LlamaConfig(**SMALL, intermediate_size=64, num_key_value_heads=2),
    "gpt2": lambda: GPT2Config(vocab_size=1024, n_embd=32, n_layer=2, n_head=4),
    "qwen2": lambda: Qwen2Config(**SMALL, intermediate_size=64, num_key_value_heads=2),
    "mistral": lambda: MistralConfig(**SMALL, intermediate_size=64, num_key_value_heads=2),
}
LENGTHS = (17, 5, 40, 9, 22, 3, 31)


def model(kind, attention="sdpa"):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(KINDS[kind](), attn_implementation=attention)
    for parameter in made.parameters():  # else attention is too even for a leak to show
        parameter.data.mul_(8 if parameter.dim() > 1 else 1)
    return made.eval()


def tasks(**settings):
    tokenizer = load_tokenizer(ModelConfig())
    settings = {"max_length": 64, **settings}
    return [build_task(TaskConfig(packing=p, **settings), tokenizer) for p in (False, True)]


def examples(seed=0):
    draw = torch.Generator().manual_seed(seed)
    made = []
    for k, n in enumerate(LENGTHS):
        ids = torch.randint(5, 1024, (n,), generator=draw).tolist()
        masked = n // 3 if k % 2 else 0  # every other one is learned whole
        made.append(Encoded(ids, [-100 if i < masked else t for i, t in enumerate(ids)]))
    return made


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_examples_apart(kind, attention):
    net, data = model(kind, attention), examples()
    results = []
    for task in tasks():
        net.zero_grad()
        losses = task.losses(net, task.collate(data))
        assert losses.dtype == torch.float32
        (losses * torch.arange(1.0, 8.0)).sum().backward()
        results.append((losses.detach(), [p.grad.clone() for p in net.parameters()]))
    (apart, one), (packed, other) = results
    assert torch.allclose(apart, packed, atol=1e-5, rtol=0)
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * max(1.0, float(a.abs().max())))


def test_an_example_without_a_target_has_a_loss_of_nothing():
    net, ids = model("llama"), [7, 8, 9]
    data = [Encoded(ids, ids), Encoded(ids, [-100] * 3), Encoded([5], [5])]
    for task in tasks(max_length=3):
        losses = task.losses(net, task.collate(data))
        assert losses.shape == (3,)
        assert losses[0] > 0
        assert losses[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_no_example_reads_another(kind):
    net, data = model(kind), examples()
    _, task = tasks()
    with torch.no_grad():
        before = task.losses(net, task.collate(data))
        for i, example in enumerate(data):
            other = Encoded([7] * len(example.input_ids), example.labels)
            after = task.losses(net, task.collate([*data[:i], other, *data[i + 1 :]]))
            assert (after - before).abs()[i] > 1e-3
            assert (after - before).abs()[torch.arange(7) != i].max() <= 1e-6


def test_fewer_tokens_are_processed_and_scores_stay():
    net, data = model("llama"), examples()
    apart, packed = tasks()
    assert apart.collate(data)["input_ids"].shape == (7, 40)
    assert packed.collate(data)["input_ids"].shape == (3, 62)
    one, other = (evaluate(task, net, data, 7) for task in (apart, packed))
    assert one == pytest.approx(other, rel=1e-5)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(50, 120),
)
def test_rows_hold_each_example_once_and_overflow_never(lengths, capacity):
    rows = fill_rows(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // capacity) * 2 + 1


def test_a_model_that_can_not_keep_examples_apart_is_refused():
    check_packing(model("llama"), 64)
    with pytest.raises(InputError, match="window of 4096 tokens"):
        check_packing(model("mistral"), 5000)
    torch.manual_seed(0)
    alibi = BloomConfig(vocab_size=1024, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(InputError, match=r"task\.packing"):
        check_packing(AutoModelForCausalLM.from_config(alibi), 64)


def simulated(folder: Path, *overrides: str) -> int:
    config = {
        "data": {"embedded_patients": 16},
        "task": {"max_length": 160},
        "training": {"max_steps": 2, "batch_size": 4, "optimizer": "sgd", "learning_rate": 0.1},
        "federation": {"rounds": 1},
        "output": {"dir": str(folder)},
    }
    folder.with_suffix(".yaml").write_text(json.dumps(config))
    return main(["simulate", str(folder.with_suffix(".yaml")), "--no-compare", *overrides])


def test_a_packed_run_is_the_unpacked_run(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    losses = []
    for name, setting in (("apart", "false"), ("packed", "true")):
        assert simulated(tmp_path / name, f"task.packing={setting}") == 0
        line = (tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]
        losses.append(json.loads(line)["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
def test_virtual_tokens_are_refused(method, tmp_path: Path, capsys):
    assert simulated(tmp_path / "run", "task.packing=true", f"adapter.method={method}") == 2
    told = capsys.readouterr().err
    assert "task.packing" in told
    assert method in told
