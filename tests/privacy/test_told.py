"""A figure in print never promises more than was computed."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rc_context

from fedtune.cli.finished import tell_promise
from fedtune.config.privacy import PrivacyConfig
from fedtune.config.schema import RunConfig
from fedtune.data.load import DataFacts
from fedtune.privacy.done import Done
from fedtune.privacy.outlook import outlook
from fedtune.privacy.plan import plan_steps
from fedtune.privacy.told import rounded_down, rounded_up
from fedtune.reports.model_card import model_card
from fedtune.reports.privacy_plot import plot_outlook
from fedtune.reports.privacy_prose import prose
from fedtune.reports.privacy_statement import statement

ANY = st.floats(1e-12, 1e12)
NUMBER = r"([0-9.e+-]*[0-9])"
SETTINGS = PrivacyConfig(mode="local", noise_multiplier=1.5, delta=1e-4)
FACTS = DataFacts("text", 9, 0, 1, 0, "a", "", "b")


@given(ANY)
def test_up_is_never_below_and_down_never_above(value: float):
    up, down = rounded_up(value), rounded_down(value)
    assert float(down) <= value <= float(up)
    assert float(up) <= value * (1 + 1.001e-3)
    assert float(down) >= value * (1 - 1.001e-3)
    for text in (up, down):
        assert len(text.split("e")[0].replace(".", "").lstrip("0")) <= 4


def test_a_hair_more_than_a_round_number_is_told():
    assert rounded_up(1.0) == rounded_down(1.0) == "1"
    assert rounded_up(math.nextafter(1.0, 2)) == "1.001"
    assert rounded_down(math.nextafter(1.0, 0)) == "0.9999"
    assert (rounded_up(3.00049), rounded_up(99999.0), rounded_up(0.0)) == ("3.001", "1e+05", "0")
    assert rounded_up(math.inf) == rounded_down(math.inf) == "inf"


def told_of(value: float) -> dict[str, Any]:
    """A statement in which every epsilon is `value`."""
    plan = plan_steps(SETTINGS, "patient", 200, batch=20, steps=3)
    facts = statement(SETTINGS, {"run": Done(plan, [plan.event()], 3)})
    party = facts["parties"]["run"]
    for at in (facts["promise"], party):
        at["epsilon"] = at["accountant"]["epsilon"] = at["second_accountant"]["epsilon"] = value
    after = {"pld": value, "rdp": value}
    party["ledger"] = {"hash": "h", "after": after, "delta": 1e-4, "budget": None}
    return facts


@pytest.mark.parametrize("value", [1.00001, 7.99961, 2.0000001, 12.3449, 0.123449, 10 / 3])
def test_every_page_rounds_an_epsilon_up(value: float, capsys: pytest.CaptureFixture[str]):
    facts = told_of(value)
    tell_promise(facts)
    line = capsys.readouterr().out
    card = model_card(RunConfig(), FACTS, {}, facts)
    for page, figures in ((prose(facts), 6), (card, 1), (line, 1)):
        found = re.findall(rf"epsilon {NUMBER}|and {NUMBER} by rdp", page)
        shown = [float(one or other) for one, other in found]
        assert len(shown) == figures
        assert all(value <= figure < value * 1.0011 for figure in shown)
    seconds = re.findall(rf"by rdp: {NUMBER}|\({NUMBER} by rdp", card + line)
    assert [float(one or other) >= value for one, other in seconds] == [True, True]


def test_the_picture_of_a_plan_rounds_epsilons_up_and_noise_down(tmp_path: Path):
    found = outlook(plan_steps(SETTINGS, "patient", 200, batch=20, steps=3), rounds=1)
    with rc_context({"svg.fonttype": "none"}):  # words as words
        plot_outlook(found, tmp_path / "plan.svg")
    texts = re.findall(r">([^<>]+)</text>", (tmp_path / "plan.svg").read_text())
    values = [value for knob in found.knobs for value in (knob.half, knob.double) if value]
    assert len(values) > 4
    assert {rounded_up(value) for value in values} <= {*texts}
    noise = rounded_down(found.plan.noise_multiplier)
    assert any(text.endswith(f"noise multiplier {noise}") for text in texts)
