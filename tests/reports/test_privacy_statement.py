"""The privacy statement has all that one must have, and each of it is the plan's."""

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from fedtune.config.federation import FederationConfig
from fedtune.config.privacy import PrivacyConfig
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.fingerprints import People
from fedtune.privacy.ledger import Ledger, Request
from fedtune.privacy.plan import plan_rounds, plan_steps
from fedtune.privacy.told import rounded_up
from fedtune.reports.privacy_prose import prose
from fedtune.reports.privacy_statement import Done, statement, write_statement

LOCAL = PrivacyConfig(mode="local", noise_multiplier=1.5, delta=1e-4, clipping_norm=0.7)


def local(settings: PrivacyConfig = LOCAL, *, units: int = 200, steps: int = 30) -> Done:
    plan = plan_steps(settings, "patient", units, batch=20, steps=steps)
    return Done(plan, [plan.event()], steps)


def central(**more: object) -> tuple[PrivacyConfig, Done]:
    settings = PrivacyConfig.model_validate(
        {"mode": "central", "noise_multiplier": 2.0, "delta": 0.01, **more}
    )
    plan = plan_rounds(settings, FederationConfig(rounds=8, fraction=0.5), silos=10)
    return settings, Done(plan, [plan.event()], 8)


def test_every_item_is_there_and_is_the_plans(tmp_path: Path):
    done = local()
    told = write_statement(tmp_path, LOCAL, {"run": done})
    assert json.loads((tmp_path / "privacy.json").read_text()) == told
    promise, party = told["promise"], told["parties"]["run"]
    assert promise["epsilon"] == epsilon([done.plan.event()], 1e-4, "pld")
    assert (promise["delta"], promise["unit"]) == (1e-4, "patient")
    assert promise["relation"] == "add_remove"
    assert "coordinator and other silos included" in promise["adversary"]
    libraries = [f"dp-accounting {version('dp-accounting')}", f"opacus {version('opacus')}"]
    accountants = promise["accountant"], promise["second_accountant"]
    assert [one["library"] for one in accountants] == libraries
    assert [one["name"] for one in accountants] == ["pld", "rdp"]
    assert accountants[1]["epsilon"] == epsilon([done.plan.event()], 1e-4, "rdp")
    assert (party["mechanism"], party["noise_multiplier"]) == ("gaussian", 1.5)
    assert party["clipping"] == {"kind": "flat", "norm": 0.7}
    assert (party["sampling"], party["sample_rate"], party["units"]) == ("poisson", 0.1, 200)
    assert (party["steps_planned"], party["steps_released"]) == (30, 30)
    assert party["contribution"] == {"max_records_per_unit": 16, "unit_reduction": "mean"}
    missing = " ".join(told["not_covered"])
    for words in (
        "hyperparameter search", "tokenizer", "number of units", "held-out rows",
        "floating-point", "time a step or a round takes",
    ):  # fmt: skip
        assert words in missing


def test_the_page_tells_the_same_figures(tmp_path: Path):
    told = write_statement(tmp_path, LOCAL, {"run": local()})
    page = (tmp_path / "privacy.md").read_text()
    promise = told["promise"]
    for words in (
        f"epsilon {rounded_up(promise['epsilon'])} at delta 0.0001",
        rounded_up(promise["second_accountant"]["epsilon"]),
        "one patient", "added or removed", "chance 0.1", "200 patients", "0.7 in L2 norm",
        "multiplier 1.5", "30 noisy sums", "at most 16 rows", "dp-accounting", "opacus",
        "no ledger", *told["not_covered"],
    ):  # fmt: skip
        assert words in page, words


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 1.6},
        {"delta": 1e-5},
        {"clipping_norm": 0.8},
        {"clipping": "per_layer"},
        {"clipping": "adaptive", "count_noise": 5.0},
        {"sampling": "shuffle"},
        {"sampling": "full"},
        {"accountant": "rdp"},
        {"held_out": "public"},
        {"max_records_per_unit": 3},
        {"unit_reduction": "sum"},
    ],
    ids=str,
)
def test_a_changed_setting_changes_both_files(tmp_path: Path, change: dict):
    write_statement(tmp_path / "a", LOCAL, {"run": local()})
    settings = PrivacyConfig.model_validate({**LOCAL.model_dump(exclude_unset=True), **change})
    write_statement(tmp_path / "b", settings, {"run": local(settings)})
    for name in ("privacy.json", "privacy.md"):
        assert (tmp_path / "a" / name).read_text() != (tmp_path / "b" / name).read_text()


@pytest.mark.parametrize("change", [{"units": 300}, {"steps": 31}], ids=str)
def test_a_changed_plan_changes_both_files(tmp_path: Path, change: dict):
    write_statement(tmp_path / "a", LOCAL, {"run": local()})
    write_statement(tmp_path / "b", LOCAL, {"run": local(**change)})
    for name in ("privacy.json", "privacy.md"):
        assert (tmp_path / "a" / name).read_text() != (tmp_path / "b" / name).read_text()


def test_epsilon_is_of_what_was_released_and_not_of_the_plan():
    whole = local()
    again = dataclasses.replace(whole, events=[whole.plan.event(), whole.plan.event(5)], steps=35)
    told = statement(LOCAL, {"run": again})
    assert told["promise"]["epsilon"] == epsilon([whole.plan.event(35)], 1e-4, "pld")
    assert told["parties"]["run"]["steps_released"] == 35


def test_silos_are_told_one_by_one_and_the_run_is_as_its_most_exposed():
    done = {"a": local(), "b": local(units=100), "c": local(units=400)}
    told = statement(LOCAL, done, rounds=3)
    each = {name: party["epsilon"] for name, party in told["parties"].items()}
    assert told["promise"]["epsilon"] == each["b"] == max(each.values())
    assert len(set(each.values())) == 3
    assert "each unit is in one silo" in told["composition"]["how"]
    assert told["composition"]["silos_of_a_unit"] == 1
    assert "3 rounds" in told["composition"]["how"]
    assert "for the presence of one patient of one silo" in prose(told)
    assert "of one silo" not in prose(statement(LOCAL, {"run": local()}))


def test_earlier_runs_on_the_same_people_are_told(tmp_path: Path):
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    ledger.set_budget(50.0, 1e-5)
    people = People(np.arange(200, dtype=np.uint64), np.arange(200, dtype=np.uint64))

    def run(name: str) -> Done:
        done = local()
        request = Request(
            run=name, purpose="train", unit="patient", people=people, events=done.events,
            plan=done.plan.to_json(), delta=1e-4,
        )  # fmt: skip
        (charge,) = ledger.charge([request])
        return dataclasses.replace(done, charge=charge)

    run("first")
    told = write_statement(tmp_path, LOCAL, {"run": run("second")})["parties"]["run"]["ledger"]
    assert told.keys() == {"hash", "after", "delta", "budget"}  # no run's name, no figure of one
    assert told["budget"] == {"epsilon": 50.0, "delta": 1e-5}
    once, twice = (epsilon([local().plan.event()] * n, 1e-5, "pld") for n in (1, 2))
    assert told["after"]["pld"] == twice
    assert told["hash"] == ledger.charges()[-1].hash
    page = (tmp_path / "privacy.md").read_text()
    for words in (rounded_up(twice), "budget of 50", "delta 1e-05", told["hash"]):
        assert words in page
    whole = page + (tmp_path / "privacy.json").read_text()
    for secret in ("first", 'second"', rounded_up(once), str(once)):
        assert secret not in whole


def test_silo_level_names_the_trusted_coordinator_and_how_silos_were_asked():
    settings, done = central()
    told = statement(settings, {"run": done}, rounds=8)
    assert told["promise"]["unit"] == "silo"
    assert "the coordinator is trusted" in told["promise"]["adversary"]
    assert told["promise"]["epsilon"] == epsilon([GaussianEvent(0.5, 2.0, 8)], 0.01, "pld")
    assert told["parties"]["run"]["sampling"] == "poisson"
    settings, done = central(server_noise="banded")
    party = statement(settings, {"run": done}, rounds=8)["parties"]["run"]
    assert (party["sampling"], party["mechanism"]) == ("turns", "gaussian banded")
    assert party["correlation"]["every"] == 2


def test_without_privacy_one_line_says_so(tmp_path: Path):
    told = write_statement(tmp_path, PrivacyConfig(), {})
    assert told["promise"] is None
    page = (tmp_path / "privacy.md").read_text()
    assert page.startswith("# Privacy\n\nNo differential privacy is promised")
    assert page.count("\n") == 3
    assert "epsilon" not in page


def test_what_was_not_planned_from_the_settings_is_refused():
    with pytest.raises(ValueError, match="other settings"):
        statement(LOCAL.model_copy(update={"delta": 1e-6}), {"run": local()})
    with pytest.raises(ValueError, match="nothing was done"):
        statement(LOCAL, {})
