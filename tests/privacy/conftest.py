"""Plans for tests, by the settings that a test is about."""

from collections.abc import Callable
from typing import Any

import pytest

from fedtune.config.privacy import PrivacyConfig
from fedtune.privacy.plan import ExecutionPlan, plan_steps


def _plan(
    *, unit: Any = "record", units: int = 100, batch: int = 10, steps: int = 50, **settings: Any
) -> ExecutionPlan:
    given = {"mode": "local", "noise_multiplier": 1.0, **settings}
    return plan_steps(PrivacyConfig.model_validate(given), unit, units, batch, steps)


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., ExecutionPlan]:
    """`plan_of(units=, batch=, steps=, unit=, **settings)`."""
    return _plan
