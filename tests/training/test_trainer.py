"""The loop: interrupted runs go on as if nothing had been, and what it keeps is what it says."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedtune.config.adapter import AdapterConfig
from fedtune.config.model import ModelConfig
from fedtune.config.task import TaskConfig
from fedtune.config.training import TrainingConfig
from fedtune.errors import InputError, RunFailedError
from fedtune.models.adapters import attach_adapter, read_state
from fedtune.models.base import load_base
from fedtune.tasks import build_task
from fedtune.training.checkpoints import CheckpointFolder
from fedtune.training.events import Evaluated, Event, Saved, StepDone
from fedtune.training.processes import seed_step
from fedtune.training.trainer import Trainer, TrainingResult

ROWS = [
    {"prompt": f"Case {n}: cough.\nAssessment:", "completion": f" asthma {n}.", "where": f"x:{n}"}
    for n in range(10)
]
SETTINGS: dict[str, Any] = {"max_steps": 6, "batch_size": 4, "learning_rate": 0.01}


class Killed(BaseException):
    """The process dies: no handler of ordinary errors may swallow it."""


def fit(
    listener: Callable[[Event], None] = lambda event: None,
    *,
    dropout: float = 0.1,
    folder: Path | None = None,
    run_hash: str = "run",
    validation: int = 0,
    **settings: Any,
) -> tuple[TrainingResult, Any]:
    base = load_base(ModelConfig(), "causal_lm")
    task = build_task(TaskConfig(), base.tokenizer)
    adapter = AdapterConfig(lora_dropout=dropout)
    model = attach_adapter(base.model, adapter, seed=0, task="causal_lm")
    encoded = [task.encode(row) for row in ROWS]
    trainer = Trainer(
        task, TrainingConfig(**{**SETTINGS, **settings}), seed=7, listeners=[listener]
    )
    result = trainer.fit(
        model,
        encoded[validation:],
        validation=encoded[:validation],
        checkpoints=CheckpointFolder(folder, run_hash) if folder else None,
    )
    return result, model


def die_at(step: int) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            raise Killed

    return listen


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_schedule": "cosine", "warmup_steps": 2},
        {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1},
        # the rate overshoots: the best weights are those of an early step, saved before the kill
        {"learning_rate": 0.1, "eval_steps": 1, "early_stopping_patience": 9, "validation": 4},
    ],
)
def test_killed_and_resumed_is_the_uninterrupted_run(settings: dict[str, Any], tmp_path: Path):
    whole, _ = fit(**settings)
    with pytest.raises(Killed):
        fit(die_at(5), folder=tmp_path, save_steps=3, **settings)
    steps: list[int] = []
    resumed, _ = fit(
        lambda event: steps.append(event.step) if isinstance(event, StepDone) else None,
        folder=tmp_path,
        save_steps=3,
        **settings,
    )
    assert steps == [4, 5, 6]
    assert resumed.delta.digest() == whole.delta.digest()
    assert (resumed.loss, resumed.evaluations) == (whole.loss, whole.evaluations)
    assert resumed.kept_step == whole.kept_step < 4 or "validation" not in settings


def test_a_finished_run_is_not_trained_again(tmp_path: Path):
    whole, _ = fit(folder=tmp_path)
    again, _ = fit(die_at(1), folder=tmp_path)
    assert again.delta.digest() == whole.delta.digest()


def test_a_tenth_of_the_run_is_what_a_kill_can_cost(tmp_path: Path):
    saved: list[int] = []
    fit(
        lambda event: saved.append(event.step) if isinstance(event, Saved) else None,
        folder=tmp_path,
        max_steps=21,
    )
    assert saved == [3, 6, 9, 12, 15, 18, 21]
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000018", "step-00000021"]


@pytest.mark.parametrize("name", ["state.safetensors", "optimizer.safetensors", "progress.json"])
def test_a_damaged_checkpoint_is_told(name: str, tmp_path: Path):
    fit(folder=tmp_path, max_steps=1)
    path = tmp_path / "step-00000001" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"damaged|not a safetensors"):
        fit(folder=tmp_path, max_steps=1)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path):
    fit(folder=tmp_path, max_steps=1)
    with pytest.raises(InputError, match="other settings"):
        fit(folder=tmp_path, max_steps=1, run_hash="another")


def test_ctrl_c_writes_the_step_it_interrupts(tmp_path: Path):
    def press(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(press, folder=tmp_path, save_steps=5)
    assert CheckpointFolder(tmp_path, "run").latest_step == 2
    resumed, _ = fit(folder=tmp_path, save_steps=5)
    assert resumed.delta.digest() == fit()[0].delta.digest()


def test_a_second_ctrl_c_acts_at_once(tmp_path: Path):
    def press(event: Event) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(press, folder=tmp_path, save_steps=5)
    assert CheckpointFolder(tmp_path, "run").latest_step == 0


def test_an_ignored_ctrl_c_stays_ignored(tmp_path: Path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a job that a script put in the background

    def press(event: Event) -> None:
        signal.raise_signal(signal.SIGINT)

    result, _ = fit(press, folder=tmp_path)
    assert result.steps == 6


def test_early_stopping_keeps_the_best_weights():
    losses: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, Evaluated):
            losses.append(event.metrics["loss"])

    # a rate this high overshoots: the loss on validation rows falls first, then climbs
    result, model = fit(
        note,
        dropout=0.0,
        validation=4,
        eval_steps=1,
        early_stopping_patience=2,
        max_steps=40,
        learning_rate=0.05,
    )
    best = losses.index(min(losses)) + 1
    assert result.kept_step == best < result.steps == best + 2 < 40
    exact, _ = fit(dropout=0.0, validation=4, max_steps=best, learning_rate=0.05)
    assert result.delta.digest() == exact.delta.digest()
    assert len(read_state(model)) == len(result.delta)


def test_evaluation_needs_something_to_evaluate_on():
    with pytest.raises(ValueError, match="needs validation examples"):
        fit(eval_steps=1)


def test_gradient_checkpointing_changes_memory_not_the_result():
    plain, _ = fit()
    saving, model = fit(gradient_checkpointing=True)
    assert (plain.delta - saving.delta).norm() < 1e-5 * plain.delta.norm()
    assert not model.is_activation_checkpointing


def test_bf16_is_close_and_keeps_float32_weights():
    plain, _ = fit(dropout=0.0, optimizer="sgd", learning_rate=0.5, max_steps=2)
    half, model = fit(
        dropout=0.0, optimizer="sgd", learning_rate=0.5, max_steps=2, precision="bf16"
    )
    difference = (plain.delta - half.delta).norm() / plain.delta.norm()
    assert 1e-5 < difference < 0.1  # rounding is there, and small
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_weights_that_are_not_finite_after_the_last_step_are_no_result():
    base = load_base(ModelConfig(), "causal_lm")
    task = build_task(TaskConfig(), base.tokenizer)
    model = attach_adapter(base.model, AdapterConfig(), seed=0, task="causal_lm")

    def overflow(event: Event) -> None:
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).fill_(torch.inf)

    settings = TrainingConfig(max_steps=1, batch_size=2)
    trainer = Trainer(task, settings, seed=0, listeners=[overflow])
    with pytest.raises(RunFailedError, match="weights have NaN or infinite"):
        trainer.fit(model, [task.encode(row) for row in ROWS])


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(RunFailedError, match="learning_rate"):
        fit(optimizer="sgd", learning_rate=1e30, max_grad_norm=None)


def test_a_step_is_taken_at_the_schedules_rate():
    given = {"dropout": 0.0, "max_steps": 1, "optimizer": "sgd", "max_grad_norm": None}
    whole, half = fit(**given)[0].delta, fit(**given, warmup_steps=2)[0].delta
    assert (half * 2.0 - whole).norm() < 1e-4 * whole.norm()


def test_each_step_draws_its_own_dropout_and_draws_it_again():
    drawn = []
    for step in (0, 1, 0):
        seed_step(7, step)
        drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_training_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fit(max_steps=1)
    assert torch.equal(torch.rand(2), expected)
