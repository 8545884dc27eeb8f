"""The one evaluation loop: what it averages, and that it leaves the model alone."""

import math

import pytest
import torch

from fedtune.config.model import ModelConfig
from fedtune.config.task import TaskConfig
from fedtune.models.base import load_base
from fedtune.tasks import build_task
from fedtune.tasks.evaluation import evaluate
from fedtune.tasks.task import IGNORED

ROWS = [
    {"prompt": "Cough.\nAssessment:", "completion": " asthma.", "where": "x:1"},
    {"prompt": "Fever, long.\nAssessment:", "completion": " flu. Plan: rest.", "where": "x:2"},
    {"prompt": "Short:", "completion": " gout.", "where": "x:3"},
]


@pytest.fixture(scope="module")
def base():
    return load_base(ModelConfig(), "causal_lm")


def test_loss_is_a_mean_of_examples_and_perplexity_one_of_tokens(base):
    task = build_task(TaskConfig(), base.tokenizer)
    data = [task.encode(row) for row in ROWS]
    nats, tokens, right = [], [], 0
    with torch.no_grad():
        for example in data:
            ids, labels = torch.tensor([example.input_ids]), torch.tensor(example.labels[1:])
            logits = base.model.eval()(input_ids=ids).logits[0, :-1]
            learned = labels != IGNORED
            chosen = logits.log_softmax(-1)[learned].gather(1, labels[learned, None])
            nats.append(-float(chosen.sum()))
            tokens.append(int(learned.sum()))
            right += int((logits.argmax(-1)[learned] == labels[learned]).sum())
    for batch_size in (1, 2, 3, 64):
        scores = evaluate(task, base.model, data, batch_size)
        each = [n / t for n, t in zip(nats, tokens, strict=True)]
        assert scores["loss"] == pytest.approx(sum(each) / 3, rel=1e-5)
        assert scores["perplexity"] == pytest.approx(math.exp(sum(nats) / sum(tokens)), rel=1e-4)
        assert scores["accuracy"] == pytest.approx(right / sum(tokens))


def test_every_module_keeps_its_mode(base):
    task = build_task(TaskConfig(), base.tokenizer)
    model = base.model.train()
    frozen = model.model.layers[0].eval()
    evaluate(task, model, [task.encode(ROWS[0])], 1)
    assert model.training
    assert model.model.layers[1].training
    assert not any(module.training for module in frozen.modules())
    model.eval()


def test_no_examples_are_refused(base):
    with pytest.raises(ValueError, match="no examples"):
        evaluate(build_task(TaskConfig(), base.tokenizer), base.model, [], 4)


def test_a_classifiers_metrics():
    labels = ["a", "b", "c"]
    base = load_base(ModelConfig(), "sequence_classification", labels)
    task = build_task(TaskConfig(name="sequence_classification"), base.tokenizer, labels)
    rows = [{"text": f"note {i}", "label": labels[i % 3], "where": f"x:{i}"} for i in range(7)]
    scores = evaluate(task, base.model, [task.encode(row) for row in rows], 3)
    assert set(scores) == {"loss", "accuracy", "macro_f1"}
    assert round(scores["accuracy"] * 7, 6) in range(8)
