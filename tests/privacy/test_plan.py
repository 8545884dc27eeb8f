"""The plan ties sampler, divisor, noise and event together, and so does what is made from it."""

import math
from dataclasses import replace

import pytest

from fedtune.config.federation import FederationConfig
from fedtune.config.privacy import PrivacyConfig
from fedtune.errors import InputError
from fedtune.privacy import renyi
from fedtune.privacy.events import GaussianEvent, merged
from fedtune.privacy.plan import plan_rounds, plan_steps

SETTINGS = PrivacyConfig(mode="local", noise_multiplier=1.5, delta=1e-5)


def test_the_rate_is_of_units_and_exactly_what_the_sampler_takes():
    plan = plan_steps(SETTINGS, "patient", 1000, 300, 40)
    # one over the number of batches, as some loaders have it, would be 0.25
    assert plan.sample_rate == 0.3
    assert plan.expected_batch == 300
    assert plan.event() == GaussianEvent(0.3, 1.5, 40)
    assert plan.event(7) == GaussianEvent(0.3, 1.5, 7)


def test_without_poisson_nothing_is_amplified():
    full = plan_steps(SETTINGS.model_copy(update={"sampling": "full"}), "patient", 50, 10, 6)
    assert full.event() == GaussianEvent(1.0, 1.5, 6)
    assert full.expected_batch == 50
    passes = plan_steps(SETTINGS.model_copy(update={"sampling": "shuffle"}), "patient", 50, 10, 12)
    assert passes.event() == GaussianEvent(1.0, 1.5, 3)  # 12 steps of a fifth: 3 passes, begun


def test_adaptive_clipping_pays_for_its_count_inside_the_multiplier():
    settings = SETTINGS.model_copy(update={"clipping": "adaptive", "count_noise": 2.0})
    plan = plan_steps(settings, "patient", 50, 10, 6)
    assert plan.sum_noise_multiplier**-2 + (2 * 2.0) ** -2 == pytest.approx(1.5**-2)
    assert plan.event().noise_multiplier == 1.5
    with pytest.raises(InputError, match="count"):
        _ = replace(plan, noise_multiplier=4.0).sum_noise_multiplier


@pytest.mark.parametrize(("units", "delta"), [(10, 0.1), (1000, 1e-3), (2, 0.6)])
def test_a_delta_of_one_over_the_units_is_refused(units: int, delta: float):
    settings = SETTINGS.model_copy(update={"delta": delta})
    with pytest.raises(InputError, match="delta"):
        plan_steps(settings, "patient", units, 1, 1)
    central = settings.model_copy(update={"mode": "central"})
    with pytest.raises(InputError, match="delta"):
        plan_rounds(central, FederationConfig(), units)


def test_a_batch_of_more_than_there_are_is_refused():
    with pytest.raises(InputError, match="more than there are: 5 patients"):
        plan_steps(SETTINGS, "patient", 5, 6, 1)


def test_noise_is_solved_for_all_steps_of_the_run():
    settings = PrivacyConfig(mode="local", target_epsilon=3.0, accountant="rdp")
    plan = plan_steps(settings, "patient", 500, 25, 80)
    assert plan.epsilon() <= 3.0
    assert replace(plan, noise_multiplier=plan.noise_multiplier * 0.995).epsilon() > 3.0


def test_equal_silos_are_solved_once(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def counted(events, delta):
        asked.append(events)
        return found(events, delta)

    found = renyi.rdp_epsilon
    monkeypatch.setattr(renyi, "rdp_epsilon", counted)
    settings = PrivacyConfig(mode="local", target_epsilon=2.9, accountant="rdp")
    first = plan_steps(settings, "patient", 487, 25, 80)
    solved = len(asked)
    assert solved > 0
    assert plan_steps(settings, "patient", 487, 25, 80) == first
    assert len(asked) == solved
    other = plan_steps(settings, "patient", 488, 25, 80)  # a patient more is another silo
    assert other.noise_multiplier != first.noise_multiplier
    assert len(asked) > solved


def test_equal_events_are_counted_together_and_none_is_lost():
    events = [GaussianEvent(0.1, 1.0, 3), GaussianEvent(1.0, 2.0), GaussianEvent(0.1, 1.0, 4)]
    assert merged(events) == [GaussianEvent(0.1, 1.0, 7), GaussianEvent(1.0, 2.0, 1)]


@pytest.mark.parametrize(
    "values", [(0.0, 1.0, 1), (1.5, 1.0, 1), (0.1, 0.0, 1), (0.1, math.inf, 1), (0.1, 1.0, 0)]
)
def test_what_is_no_event_is_refused(values: tuple[float, float, int]):
    with pytest.raises(ValueError, match="want"):
        GaussianEvent(*values)
