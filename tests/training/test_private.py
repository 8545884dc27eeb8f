"""From settings and rows to a plan: units, not rows, and all rounds, not one."""

from typing import Any

import datasets
import pytest

from fedtune.config.privacy_unit import unit_of
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet, features
from fedtune.errors import InputError
from fedtune.privacy.noise import SecureNoise
from fedtune.training.private import check_private, private_steps, scores_shown

PRIVATE = {"mode": "local", "noise_multiplier": 1.0, "delta": 1e-3}


def config(unit_column: str | None = "patient", **sections: Any) -> RunConfig:
    given: dict[str, Any] = {
        "data": {
            "source": "files",
            "train_files": ["t.jsonl"],
            "columns": {"privacy_unit": unit_column},
        },
        "training": {"batch_size": 5, "num_epochs": 2.0},
        "privacy": PRIVATE,
    }
    return RunConfig.model_validate({**given, **sections})


def rows() -> ExampleSet:
    """30 rows of 10 patients: one with 12, the others with 2."""
    whose = [0] * 12 + [n for n in range(1, 10) for _ in range(2)]
    made = [
        {
            **{"record_id": str(i), "unit_id": f"p{who}", "silo": "", "where": f"t:{i}"},
            **{"text": f"text {i}", "label": "a"},
        }
        for i, who in enumerate(whose)
    ]
    kept = datasets.Dataset.from_list(made, features=features("text_label"))
    return ExampleSet(kept, "text_label", "print")


def test_patients_are_the_units_where_a_column_names_them():
    assert unit_of(config()) == "patient"
    assert unit_of(config(None)) == "record"
    steps = private_steps(config(), rows(), rounds=3)
    assert steps is not None
    plan = steps.plan
    assert (plan.unit, plan.units, plan.sample_rate) == ("patient", 10, 0.5)
    assert plan.steps == 2 * 2 * 3  # two batches a pass, two passes, three rounds
    assert isinstance(steps.source, SecureNoise)


def test_records_are_the_units_when_asked_for():
    steps = private_steps(config(privacy={**PRIVATE, "unit": "record"}), rows())
    assert steps is not None
    assert (steps.plan.units, steps.plan.steps) == (30, 12)


def test_patients_that_no_column_names_are_refused():
    with pytest.raises(InputError, match="which patient"):
        check_private(config(None, privacy={**PRIVATE, "unit": "patient"}))


def test_held_out_scores_are_shown_only_where_nobody_is_in_them():
    assert not scores_shown(config())
    assert scores_shown(config(privacy={**PRIVATE, "held_out": "public"}))
    assert scores_shown(config(privacy={"mode": "none"}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"task": {"packing": True}}, "several units"),
        ({"training": {"micro_batch_size": 2}}, "max_physical_batch"),
        ({"training": {"max_grad_norm": 2.0}}, "clipping_norm"),
        ({"privacy": {**PRIVATE, "target_epsilon": 1.0}}, "one of"),
        ({"privacy": {"mode": "local"}}, "one of"),
        ({"privacy": {**PRIVATE, "outside_budget": True}}, "mode: central"),
    ],
)
def test_settings_that_would_break_the_promise_are_refused(sections: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config(**sections)


def test_choosing_by_somebodys_rows_is_refused():
    with pytest.raises(ValueError, match="somebody"):
        RunConfig.model_validate(
            {
                "data": {"validation_fraction": 0.2},
                "training": {"eval_steps": 1, "early_stopping_patience": 1},
                "privacy": PRIVATE,
            }
        )
