"""Gradients of examples from one pass are those of a loop over examples."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fedtune.config.adapter import AdapterConfig
from fedtune.config.model import ModelConfig
from fedtune.config.schema import RunConfig
from fedtune.config.task import TaskConfig
from fedtune.errors import FedtuneError, InputError, RunFailedError
from fedtune.models.adapters import attach_adapter
from fedtune.models.base import load_base, load_tokenizer
from fedtune.models.four_bit import is_four_bit
from fedtune.privacy.clipping import clipped_sum, unit_mix
from fedtune.privacy.per_example import Taps
from fedtune.tasks import build_task
from fedtune.tasks.task import IGNORED, Encoded, Task
from fedtune.training.private import check_private

LABELS = ("no", "yes", "maybe")
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NONE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SMOOTH = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WORDS = 300


def llama(kind: Any, **more: Any) -> Any:
    return kind(LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, **SIZE, **HEADS, **more))


def gpt2(kind: Any, **more: Any) -> Any:
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return kind(GPT2Config(vocab_size=WORDS, **GPT2, **NONE, **ends, **more))


def bert(kind: Any, config: Any) -> Any:
    settings = {"vocab_size": WORDS, "num_labels": len(LABELS), "max_position_embeddings": 64}
    return kind(config(**settings, **SIZE, **HEADS, **SMOOTH))


CLASSES = {"num_labels": len(LABELS), "pad_token_id": 0}
CAUSAL: dict[str, Callable[[], Any]] = {
    "llama": lambda: llama(LlamaForCausalLM),
    "llama tied": lambda: llama(LlamaForCausalLM, tie_word_embeddings=True),
    "llama padded by its stop token": lambda: llama(LlamaForCausalLM, pad_token_id=7),
    "gpt2": lambda: gpt2(GPT2LMHeadModel),  # tied
}
CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: llama(LlamaForSequenceClassification, **CLASSES),
    "gpt2": lambda: gpt2(GPT2ForSequenceClassification, **CLASSES),
    "bert": lambda: bert(BertForSequenceClassification, BertConfig),
    "roberta": lambda: bert(RobertaForSequenceClassification, RobertaConfig),
}
ADAPTERS = {
    "lora": AdapterConfig(),
    "rslora": AdapterConfig(use_rslora=True, lora_r=3),
    "ffa": AdapterConfig(freeze_a=True),
    "fed_sb": AdapterConfig(method="fed_sb"),
    "full": AdapterConfig(method="full"),
}


def examples(task: str, *, longest: int = 14) -> list[Encoded]:
    """Of several lengths, so that a batch is padded; one has a single target."""
    generator = torch.Generator().manual_seed(4)
    rows = []
    for number, size in enumerate((longest, 5, longest - 2, 9)):
        ids = torch.randint(5, WORDS, (size,), generator=generator).tolist()
        ids[1] = ids[3] = 7
        masked = [IGNORED] * (size - 1) + ids[-1:] if number == 3 else ids
        rows.append(Encoded(ids, masked if task == "causal_lm" else [number % len(LABELS)]))
    return rows


def losses_of(task: Task, model: Any, rows: Sequence[Encoded]) -> Tensor:
    return task.losses(model, task.collate(rows))


def alone(task: Task, model: Any, row: Encoded) -> dict[str, Tensor]:
    """Plain autograd on one example by itself, without padding."""
    model.zero_grad()
    losses_of(task, model, [row]).sum().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in trained.items()}


def adapted(base: Any, adapter: AdapterConfig, task: str) -> Any:
    if not hasattr(base, "new_layers"):
        base.new_layers = ["classifier" if hasattr(base, "classifier") else "score"]
    model = attach_adapter(base, adapter, seed=0, task=task)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would leave A without gradients
            nn.init.normal_(parameter, std=0.2)
    return model


def check_equal(task: Task, model: Any, rows: Sequence[Encoded]) -> None:
    found = Taps(model).gradients(lambda: losses_of(task, model, rows))
    moved = 0
    for number, row in enumerate(rows):
        want = alone(task, model, row)
        assert found.keys() == want.keys()
        whole = math.sqrt(sum(float(value.square().sum()) for value in want.values()))
        for name, value in want.items():
            off = float((found[name][number] - value).norm())
            # true zeros, such as a key bias, are left with rounding of the rest
            assert off <= 1e-5 * float(value.norm()) + 1e-6 * whole, (name, number, off)
            moved += float(value.norm()) > 0
    assert moved > len(found)
    # patients: the mean of rows, under a norm so large that nothing is clipped
    mix = unit_mix(torch.tensor([0, 0, 1, 1]), 2, "mean")
    sums = clipped_sum(found, mix, 1e9).sums
    halves = [{n: v.clone() for n, v in alone(task, model, row).items()} for row in rows]
    for name, total in sums.items():
        want = sum(half[name] for half in halves) / 2
        assert float((total - want).norm()) <= 1e-5 * float(want.norm()) + 1e-6 * whole


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", CAUSAL)
def test_causal_lm(family: str, adapter: str):
    torch.manual_seed(0)
    model = adapted(CAUSAL[family](), ADAPTERS[adapter], "causal_lm")
    check_equal(build_task(TaskConfig(), tokenizer()), model, examples("causal_lm"))


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_sequence_classification(family: str, adapter: str):
    torch.manual_seed(0)
    name = "sequence_classification"
    model = adapted(CLASSIFIERS[family](), ADAPTERS[adapter], name)
    check_equal(build_task(TaskConfig(name=name), tokenizer(), LABELS), model, examples(name))


@pytest.mark.parametrize("adapter", ["lora", "fed_sb", "full"])
@pytest.mark.parametrize("family", ["llama tied", "gpt2"])
def test_gradient_checkpointing(family: str, adapter: str):
    torch.manual_seed(0)
    model = adapted(CAUSAL[family](), ADAPTERS[adapter], "causal_lm").train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    check_equal(build_task(TaskConfig(), tokenizer()), model, examples("causal_lm"))


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_gradient_checkpointing_of_a_classifier(family: str, adapter: str):
    torch.manual_seed(0)
    name = "sequence_classification"
    model = adapted(CLASSIFIERS[family](), ADAPTERS[adapter], name).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    check_equal(build_task(TaskConfig(name=name), tokenizer(), LABELS), model, examples(name))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`model.path` of a model that can be 4-bit, by family. Its head and pooler will be new."""
    words, size = tokenizer(), {**SIZE, "hidden_size": 64, "intermediate_size": 128}

    def path(family: str) -> str:
        if family == "llama":
            return "embedded"
        config = BertConfig(vocab_size=len(words), **size, **HEADS, **SMOOTH)
        folder = tmp_path_factory.mktemp(family)
        BertForMaskedLM(config).save_pretrained(folder)
        words.save_pretrained(folder)
        return str(folder)

    return path


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_classifier_on_a_four_bit_base(
    family: str, checkpointing: bool, saved: Callable[[str], str]
):
    torch.manual_seed(0)
    name = "sequence_classification"
    base = load_base(ModelConfig(path=saved(family), load_in_4bit=True), name, LABELS)
    assert is_four_bit(base.model)
    model = adapted(base.model, AdapterConfig(lora_r=4), name).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    check_equal(build_task(TaskConfig(name=name), base.tokenizer, LABELS), model, examples(name))


def test_a_four_bit_base():
    torch.manual_seed(0)
    base = load_base(ModelConfig(load_in_4bit=True), "causal_lm")
    model = adapted(base.model, AdapterConfig(lora_r=4), "causal_lm").eval()
    check_equal(build_task(TaskConfig(), base.tokenizer), model, examples("causal_lm"))


def test_taps_leave_no_trace():
    model = adapted(CAUSAL["llama"](), AdapterConfig(), "causal_lm")
    task, rows = build_task(TaskConfig(), tokenizer()), examples("causal_lm")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    Taps(model).gradients(lambda: losses_of(task, model, rows))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama tied", "gpt2"])
def test_the_first_batchs_check_holds_in_16_bits_and_with_one_that_learns_nothing(
    family: str, adapter: str
):
    torch.manual_seed(0)
    model = adapted(CAUSAL[family](), ADAPTERS[adapter], "causal_lm")
    task, rows = build_task(TaskConfig(), tokenizer()), examples("causal_lm", longest=40)

    def rounded(part: slice) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return losses_of(task, model, rows[part])

    Taps(model).check(rounded)
    rows[0] = Encoded(rows[0].input_ids, [IGNORED] * len(rows[0].input_ids))
    Taps(model).check(lambda part: losses_of(task, model, rows[part]))


# what can't be told apart


class Scale(nn.Module):
    """A weight that its own forward applies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 0.7))

    def forward(self, rows: Tensor) -> Tensor:
        return rows * self.weight


class Named(Scale):
    """Called by name."""


class Buffered(Scale):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))


class Bare(nn.Module):
    """A weight that no forward of its own applies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 0.7))


class Tuple(Scale):
    def forward(self, rows: Tensor) -> Any:
        return rows * self.weight, rows


class Net(nn.Module):
    """`how` applies `part` to the rows [examples, 4] between two linear layers."""

    def __init__(self, part: nn.Module, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Linear(4, 4), part, nn.Linear(4, 1)
        self.how = how

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(self.how(self.part, self.first(rows))).squeeze(1)


def through(part: Any, rows: Tensor) -> Tensor:
    return part(rows)


def check_net(net: Net) -> None:
    torch.manual_seed(1)
    rows = torch.randn(2, 4)
    Taps(net).check(lambda chosen: net(rows[chosen]) ** 2)


def test_a_layer_of_a_kind_never_seen_is_told_apart():
    check_net(Net(Scale(), through))
    check_net(Net(nn.Sequential(Scale(), Scale()), through))
    shared = Scale()
    check_net(Net(nn.Sequential(shared, shared), through))


@pytest.mark.parametrize(
    ("part", "how", "kind", "named"),
    [
        (nn.BatchNorm1d(4), through, InputError, "`part` .BatchNorm1d. takes statistics"),
        (nn.BatchNorm1d(4).requires_grad_(False), through, InputError, "`part` .BatchNorm1d."),
        (Buffered(), through, InputError, "`part` .Buffered. is of no kind"),
        (Bare(), lambda part, rows: rows * part.weight, InputError, "`part` .Bare. holds weights"),
        (nn.ParameterList([torch.ones(4)]), lambda p, rows: rows * p[0], InputError, "`part`"),
        (Named(), lambda part, rows: part(rows=rows), RunFailedError, "`part` isn't called on"),
        (Tuple(), lambda part, rows: part(rows)[0], RunFailedError, "`part` isn't called on"),
        (Scale(), lambda part, rows: part(rows[0]) + rows, RunFailedError, "`part` works on 4"),
        (Scale(), lambda part, rows: rows * part.weight, RunFailedError, "`part.weight`"),
        (Scale(), lambda part, rows: part(rows) * part.weight, RunFailedError, "`part.weight`"),
        # examples are mixed without a weight in between
        (Scale(), lambda part, rows: part(rows - rows.mean(0)), RunFailedError, "of one example"),
        (Scale(), lambda p, rows: p(rows) / rows.abs().max(), RunFailedError, "of one example"),
    ],
)
def test_what_cannot_be_told_apart_is_refused_by_name(
    part: nn.Module, how: Callable[..., Tensor], kind: type[FedtuneError], named: str
):
    with pytest.raises(kind, match=named):
        check_net(Net(part, how))


@pytest.mark.parametrize("adapter", [{"use_dora": True}, {"method": "ia3"}])
def test_adapters_whose_weights_no_layer_applies_are_refused(adapter: dict[str, Any]):
    model = adapted(CAUSAL["llama"](), AdapterConfig.model_validate(adapter), "causal_lm")
    task, rows = build_task(TaskConfig(), tokenizer()), examples("causal_lm")
    with pytest.raises(FedtuneError, match="the layer `base_model"):
        Taps(model).check(lambda part: losses_of(task, model, rows[part]))


@pytest.mark.parametrize(
    ("adapter", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"method": "ia3"}, "ia3"),
        ({"method": "prompt_tuning"}, "prompt_tuning"),
        ({"method": "prefix_tuning"}, "prefix_tuning"),
    ],
)
def test_their_names_are_refused_before_anything_is_loaded(adapter: dict[str, Any], named: str):
    privacy = {"mode": "local", "noise_multiplier": 1.0}
    with pytest.raises(InputError, match=named):
        check_private(RunConfig.model_validate({"adapter": adapter, "privacy": privacy}))


def tokenizer() -> Any:
    return load_tokenizer(ModelConfig())
