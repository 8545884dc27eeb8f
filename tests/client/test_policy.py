"""What a silo allows: every rule, broken alone, is told in words; what is allowed goes on."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from fedtune_client.node_config import load_node
from fedtune_client.policy import HoursConfig, PolicyConfig, refusals
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.aggregation_rules import merged
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError

NOON = datetime.datetime(2026, 1, 5, 12, 0)
GOOD: dict[str, Any] = {
    "training": {"max_steps": 10},
    "privacy": {"mode": "local", "target_epsilon": 3.0},
}


def told(
    changes: dict[str, Any], policy: dict[str, Any] | None = None, *, base_known: bool = True
) -> list[str]:
    run = RunConfig.model_validate(merged(GOOD, changes))
    return refusals(PolicyConfig.model_validate(policy or {}), run, base_known, NOON)


def test_a_run_within_the_rules_goes_on():
    assert told({}) == []
    assert told({}, {"max_steps": 10, "max_rounds": 10, "max_lora_r": 8}) == []
    assert told({"adapter": {"method": "fed_sb"}}, {"methods": ["lora", "fed_sb"]}) == []


@pytest.mark.parametrize(
    ("changes", "policy", "words"),
    [
        ({}, {"tasks": ["sequence_classification"]}, "task.name is causal_lm"),
        ({"adapter": {"method": "full"}}, {}, "adapter.method is full"),
        ({"adapter": {"method": "fed_sb"}}, {}, "adapter.method is fed_sb, this silo allows lora"),
        ({"adapter": {"lora_r": 65}}, {}, "adapter.lora_r is 65, this silo allows 64"),
        (
            {"adapter": {"method": "fed_sb", "lora_r": 65}},
            {"methods": ["fed_sb"]},
            "adapter.lora_r is 65, this silo allows 64",
        ),
        ({"training": {"max_steps": 1001}}, {}, "training.max_steps is 1001"),
        ({"training": {"max_steps": None}}, {}, "training.max_steps is not set"),
        ({"training": {"batch_size": 4097}}, {}, "training.batch_size is 4097"),
        ({"task": {"max_length": 8192}}, {}, "task.max_length is 8192"),
        ({"federation": {"rounds": 101}}, {}, "federation.rounds is 101"),
        ({"privacy": {"target_epsilon": 8.5}}, {}, "target_epsilon is 8.5, this silo allows 8"),
        (
            {"privacy": {"target_epsilon": None, "noise_multiplier": 1.0}},
            {},
            "target_epsilon is not set",
        ),
        ({"privacy": {"delta": 1e-4}}, {}, "privacy.delta is 0.0001"),
        ({"privacy": {"unit": "record"}}, {}, "this silo protects patients"),
        ({"privacy": {"mode": "central"}}, {}, "privacy.mode is central, this silo allows local"),
        ({}, {"secure_aggregation": "required"}, "this silo requires it"),
        ({}, {"hours": {"begin": "20:00", "until": "06:00"}}, "it is 12:00 here"),
        ({"adapter": {"init_from": "/etc"}}, {}, "adapter.init_from names a file"),
        (
            {"model": {"path": "some/model", "trust_remote_code": True}},
            {},
            "trust_remote_code is true",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_alone(changes: dict[str, Any], policy: dict[str, Any], words: str):
    (reason,) = told(changes, policy)
    assert words in reason


def test_no_privacy_is_refused_unless_the_silo_says_so():
    open_run = RunConfig.model_validate({"training": {"max_steps": 10}})
    (reason,) = refusals(PolicyConfig(), open_run, True, NOON)
    assert "privacy.mode is none, this silo allows local" in reason
    allowed = PolicyConfig.model_validate({"privacy": {"modes": ["none", "local"]}})
    assert refusals(allowed, open_run, True, NOON) == []


def test_an_unknown_base_model_and_all_else_is_told_at_once():
    reasons = told({"adapter": {"lora_r": 65}, "privacy": {"delta": 0.1}}, base_known=False)
    assert len(reasons) == 3
    assert "its base model is not one" in reasons[-1]


@given(st.times(), st.times(), st.times())
def test_hours_are_a_stretch_of_the_clock_also_over_midnight(
    begin: datetime.time, until: datetime.time, now: datetime.time
):
    if f"{begin:%H:%M}" == f"{until:%H:%M}":
        return
    hours = HoursConfig(begin=f"{begin:%H:%M}", until=f"{until:%H:%M}")
    moment = datetime.datetime.combine(NOON.date(), now)
    run = RunConfig.model_validate(GOOD)
    refused = refusals(PolicyConfig(hours=hours), run, True, moment)
    minutes = [t.hour * 60 + t.minute for t in (begin, until, now)]
    since, length = (minutes[2] - minutes[0]) % 1440, (minutes[1] - minutes[0]) % 1440
    assert (refused == []) == (since < length)


NODE = """\
silo: north
consortium: {fingerprint}
data: {{source: files, train_files: [rows.jsonl]}}
base_models: [{{path: embedded, sha256: {digest}}}]
policy:
  {rule}
"""


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("max_step: 3", r"node\.yaml:6: policy\.max_step: unknown field\n.*`policy\.max_steps`"),
        ("max_steps: 0", r"node\.yaml:6: policy\.max_steps: `0` is not allowed"),
        ("hours: {begin: '25:00', until: '06:00'}", r"node\.yaml:6: policy\.hours\.begin"),
        ("hours: {begin: '06:00', until: '06:00'}", r"leave `hours` out for always"),
        ("privacy: {modes: [nobody]}", r"'none'"),
    ],
)
def test_a_mistake_in_the_node_s_file_is_told_with_its_line(rule: str, words: str, tmp_path: Path):
    content = NODE.format(fingerprint="a" * 64, digest="b" * 64, rule=rule)
    (tmp_path / "node.yaml").write_text(content)
    with pytest.raises(InputError, match=words):
        load_node(tmp_path)
    content = NODE.format(fingerprint="a" * 64, digest="b" * 64, rule="max_steps: 3")
    (tmp_path / "node.yaml").write_text(content)
    assert load_node(tmp_path).policy.max_steps == 3


def shared(**privacy: Any) -> dict[str, Any]:
    return {
        "training": {"max_steps": 1, "optimizer": "sgd"},
        "secure_aggregation": True,
        "federation": {"min_silos": 5, "rounds": 10},
        "privacy": {"mode": "distributed", "target_epsilon": 3.0, **privacy},
    }


ALLOWED = {"privacy": {"modes": ["distributed"]}}


def test_noise_in_shares_is_judged_by_what_the_silo_s_people_have_of_it():
    patients = shared(sample_rate=0.2)
    assert told(patients, ALLOWED) == []
    (refused,) = told(patients)
    assert "privacy.mode is distributed, this silo allows local" in refused
    (refused,) = told(shared(sample_rate=0.2, target_epsilon=9.0), ALLOWED)
    assert "an epsilon of 8.99" in refused
    assert told(shared(unit="silo"), ALLOWED) == []
    (refused,) = told(shared(unit="silo", target_epsilon=6.0), ALLOWED)
    assert "one of this silo's people an epsilon of 1" in refused
    (refused,) = told(shared(sample_rate=0.2, unit="record"), ALLOWED)
    assert "this silo protects patients" in refused
    (refused,) = told(shared(sample_rate=0.2, delta=1e-3), ALLOWED)
    assert "privacy.delta is 0.001" in refused
