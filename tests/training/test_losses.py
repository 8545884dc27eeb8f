"""Losses one example at a time, targets and batches: what a run's numbers stand on."""

import pytest
import torch

from fedtune.config.adapter import AdapterConfig
from fedtune.config.model import ModelConfig
from fedtune.config.task import TaskConfig
from fedtune.config.training import TrainingConfig
from fedtune.models.adapters import attach_adapter
from fedtune.models.base import load_base
from fedtune.tasks import build_task
from fedtune.training.sampling import batch_indices, steps_for
from fedtune.training.trainer import Trainer

ROWS = [
    {"prompt": "A man with cough.\nAssessment:", "completion": " asthma.", "where": "x:1"},
    {
        "prompt": "A woman with fever and a long note.\nAssessment:",
        "completion": " flu. Plan: rest.",
        "where": "x:2",
    },
    {"prompt": "Short:", "completion": " gout.", "where": "x:3"},
]


@pytest.fixture(scope="module")
def base():
    return load_base(ModelConfig(), "causal_lm")


def test_each_loss_is_the_one_the_example_has_alone(base):
    task = build_task(TaskConfig(), base.tokenizer)
    encoded = [task.encode(row) for row in ROWS]
    with torch.no_grad():
        together = task.losses(base.model.eval(), task.collate(encoded))
        for example, loss in zip(encoded, together, strict=True):
            ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
            alone = base.model(input_ids=ids, labels=labels).loss
            assert float(loss) == pytest.approx(float(alone), abs=1e-5)


@pytest.mark.parametrize("max_length", [256, 12, 3])
def test_the_stop_token_is_learned_and_the_prompt_is_cut_first(base, max_length):
    task = build_task(TaskConfig(max_length=max_length), base.tokenizer)
    stop = base.tokenizer.eos_token_id
    for row in ROWS:
        example = task.encode(row)
        assert len(example.input_ids) == len(example.labels) <= max_length
        assert example.input_ids[-1] == example.labels[-1] == stop
        assert base.tokenizer.pad_token_id not in example.labels
    if max_length == 256:
        example = task.encode(ROWS[2])
        learned = [t for t in example.labels if t != -100]
        assert base.tokenizer.decode(learned[:-1]) == " gout."


def test_accumulation_does_not_change_the_delta():
    deltas = []
    for micro in (3, 1):
        base = load_base(ModelConfig(), "causal_lm")
        task = build_task(TaskConfig(), base.tokenizer)
        model = attach_adapter(base.model, AdapterConfig(), seed=0, task="causal_lm")
        settings = TrainingConfig(
            batch_size=3,
            micro_batch_size=micro,
            max_steps=2,
            optimizer="sgd",
            learning_rate=0.1,
            max_grad_norm=None,  # clipping would hide a gradient of another size
        )
        encoded = [task.encode(row) for row in ROWS]
        deltas.append(Trainer(task, settings, seed=0).fit(model, encoded).delta)
    assert (deltas[0] - deltas[1]).norm() < 1e-5 * deltas[0].norm()


def test_a_pass_takes_each_example_once_in_a_new_order():
    passes = [[batch_indices(10, 4, 7, s) for s in range(p * 3, p * 3 + 3)] for p in range(2)]
    flat = [[i for batch in one for i in batch] for one in passes]
    assert [sorted(one) for one in flat] == [list(range(10))] * 2
    assert flat[0] != flat[1]
    assert [len(batch) for batch in passes[0]] == [4, 4, 2]
    assert steps_for(TrainingConfig(batch_size=4, num_epochs=2.0), 10) == 6
