"""Plans for tests, by the settings that a test is about."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from fedtune.config.privacy import PrivacyConfig
from fedtune.privacy.plan import ExecutionPlan, plan_steps

_REFUSED = 0.01  # as good as no noise: for a look at what it would hide, and no plan of a run


def _plan(
    *, unit: Any = "record", units: int = 100, batch: int = 10, steps: int = 50, **settings: Any
) -> ExecutionPlan:
    given = {"mode": "local", "noise_multiplier": 1.0, **settings}
    noise = given["noise_multiplier"]
    if none := noise is not None and noise < _REFUSED:
        given["noise_multiplier"] = 1.0
    plan = plan_steps(PrivacyConfig.model_validate(given), unit, units, batch, steps)
    return dataclasses.replace(plan, noise_multiplier=noise) if none else plan


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., ExecutionPlan]:
    """`plan_of(units=, batch=, steps=, unit=, **settings)`."""
    return _plan
