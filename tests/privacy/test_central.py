"""Silo-level privacy: what one silo can move, the noise, denominators, counting, and going on."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtune.aggregation.rule import GlobalState
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError, RunFailedError
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.central import SiloLevel, build_central
from fedtune.privacy.delta_sum import DeltaSum
from fedtune.privacy.noise import SeededNoise
from fedtune.tensors import TensorSet

SPEC = (("a", (2, 3)), ("b", (4,)))
ZERO = TensorSet({name: torch.zeros(shape) for name, shape in SPEC})


class NoNoise(SeededNoise):
    """Chances as ever, and no noise: what is left is the sum."""

    def normal(self, count: int, std: float) -> np.ndarray:
        return np.zeros(count)


def delta_of(values: Sequence[float]) -> TensorSet:
    return TensorSet.of_flat(torch.tensor(values, dtype=torch.float32), SPEC)


def rule_of(
    silos: int = 4,
    source: SeededNoise | None = None,
    checkpoints: Path | None = None,
    federation: dict[str, Any] | None = None,
    **privacy: Any,
) -> SiloLevel:
    chosen = {"mode": "central", "noise_multiplier": 1.0, "clipping_norm": 0.5, **privacy}
    if "target_epsilon" in chosen:
        del chosen["noise_multiplier"]
    config = RunConfig.model_validate({"privacy": chosen, "federation": federation or {}})
    return build_central(config, silos, checkpoints=checkpoints, source=source or SeededNoise(1))


def one_round(
    rule: SiloLevel, deltas: Sequence[TensorSet], state: GlobalState | None = None
) -> GlobalState:
    fold = rule.fold(state or rule.start(ZERO))
    for number, delta in enumerate(deltas):
        fold.add(f"silo-{number}", delta, weight=1.0)
    return fold.result()


numbers = st.lists(st.floats(-1e6, 1e6, width=32, allow_nan=False), min_size=10, max_size=10)


@given(st.lists(numbers, min_size=1, max_size=6), numbers, st.sampled_from(["flat", "per_layer"]))
def test_one_silo_moves_the_sum_by_no_more_than_the_norm(
    others: list[list[float]], mine: list[float], clipping: Any
):
    with_me, without = (DeltaSum(SPEC, 0.7, clipping) for _ in range(2))
    with_me.add(delta_of(mine))  # first, so that rounding of all that follows could differ
    for values in others:
        with_me.add(delta_of(values))
        without.add(delta_of(values))
    moved = math.sqrt(
        sum(float((with_me.sums[n] - without.sums[n]).square().sum()) for n, _ in SPEC)
    )
    assert moved <= 0.7
    scale = {"flat": delta_of(mine).norm(), "per_layer": 0.0}[clipping]
    if scale > 0.7:  # and not by less than it may: clipped, not crushed
        assert moved == pytest.approx(0.7, rel=1e-6)


def test_a_layer_is_clipped_to_its_share():
    total = DeltaSum(SPEC, 1.0, "per_layer")
    total.add(delta_of([100.0] * 6 + [0.01] * 4))
    assert float(total.sums["a"].norm()) == pytest.approx(math.sqrt(0.5))
    assert float(total.sums["b"].norm()) == pytest.approx(0.02)  # within its share: left alone


@given(st.permutations(range(5)))
def test_the_sum_does_not_depend_on_the_order(order: list[int]):
    deltas = [delta_of(np.random.default_rng(i).normal(size=10) * 10.0**i) for i in range(5)]
    sums = []
    for chosen in (range(5), order):
        total = DeltaSum(SPEC, 1.0, "flat")
        for number in chosen:
            total.add(deltas[number])
        sums.append(torch.cat([total.sums[n].flatten() for n, _ in SPEC]))
    assert torch.equal(*sums)


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
@pytest.mark.parametrize("arrived", [0, 3])
def test_noise_through_the_whole_rule_is_right_to_a_hundredth(clipping: str, arrived: int):
    """Also in a round to which nobody came; with adaptive clipping a little more (theorem 1)."""
    wide = TensorSet({"w": torch.zeros(200_000), "v": torch.zeros(1000, 100)})
    rule = rule_of(silos=8, clipping=clipping, federation={"fraction": 0.5}, noise_multiplier=0.9)
    fold = rule.fold(rule.start(wide))
    for number in range(arrived):
        fold.add(f"s{number}", wide, 1.0)
    moved = fold.result().adapter
    multiplier = 0.9 if clipping != "adaptive" else (0.9**-2 - (2 * 1.0) ** -2) ** -0.5
    wanted = multiplier * 0.5 / (0.5 * 8)  # noise on the sum, over the expected number of silos
    for tensor in moved.tensors.values():
        assert float(tensor.double().std()) == pytest.approx(wanted, rel=0.01)
        assert abs(float(tensor.double().mean())) < 5 * wanted / math.sqrt(tensor.numel())


def test_what_comes_is_divided_by_the_expected_number_and_weights_are_ignored():
    small = delta_of([0.1] + [0.0] * 9)
    rule = rule_of(silos=8, source=NoNoise(0), federation={"fraction": 0.5})
    for weights in ([1.0, 1.0], [1.0, 1e6]):
        fold = rule.fold(rule.start(ZERO))
        for number, weight in enumerate(weights):
            fold.add(str(number), small, weight)
        # two of the four that were expected: a failed silo is a zero, not a smaller denominator
        assert float(fold.result().adapter["a"][0, 0]) == pytest.approx(2 * 0.1 / 4, rel=1e-5)


def test_an_empty_round_adds_noise_and_counts():
    rule = rule_of()
    state = one_round(rule, [])
    assert float(state.adapter["a"].abs().min()) > 0
    assert list(rule.spending.released) == [1]


@pytest.mark.parametrize("optimizer", ["none", "fedavgm", "fedadam"])
def test_server_optimizers_work_on_the_noised_sum_alone(optimizer: str):
    """Equal noised means give equal states, whatever the deltas were."""
    federation = {"server_optimizer": {"name": optimizer}}
    states = []
    for values in ([2.0] + [0.0] * 9, [50.0] + [0.0] * 9):  # both are clipped to 0.5
        rule = rule_of(source=SeededNoise(7), federation=federation)
        state = one_round(rule, [delta_of(values)])
        states.append(one_round(rule, [delta_of(values)], state))
    assert states[0].adapter.digest() == states[1].adapter.digest()
    assert float(states[0].adapter["b"].abs().min()) > 0


def test_adaptive_clipping_finds_the_quantile():
    rng = np.random.default_rng(5)
    norms = rng.lognormal(mean=1.0, sigma=0.7, size=400)
    rule = rule_of(
        silos=400, clipping="adaptive", target_quantile=0.7, clipping_norm=0.05,
        federation={"rounds": 60},
    )  # fmt: skip
    state = rule.start(ZERO)
    for _ in range(60):
        state = one_round(rule, [delta_of([n] + [0.0] * 9) for n in norms], state)
    found = float(state.memory["privacy"]["norm"])
    assert (norms <= found).mean() == pytest.approx(0.7, abs=0.05)


def test_adaptive_clipping_moves_as_its_paper_says():
    rule = rule_of(silos=4, clipping="adaptive", source=NoNoise(0), count_noise=1.0)
    within, beyond = delta_of([0.4] + [0.0] * 9), delta_of([0.6] + [0.0] * 9)
    state = one_round(rule, [within, within, within, beyond])
    # three of four within, a half wanted, rate 0.2
    wanted = 0.5 * math.exp(-0.2 * (0.75 - 0.5))
    assert float(state.memory["privacy"]["norm"]) == pytest.approx(wanted)
    assert rule.plan.sum_noise_multiplier == pytest.approx((1 - 0.25) ** -0.5)


def test_a_round_asks_each_silo_with_its_chance_whatever_the_seed():
    names = [f"silo-{n:02d}" for n in range(20)]
    rule = rule_of(silos=20, federation={"fraction": 0.3})
    draws = np.array([[n in rule.silos_of(names, t) for n in names] for t in range(4000)])
    assert np.allclose(draws.mean(axis=0), 0.3, atol=0.03)
    assert draws.sum(axis=1).std() == pytest.approx(math.sqrt(20 * 0.3 * 0.7), rel=0.05)
    pairs = np.corrcoef(draws.T) - np.eye(20)
    assert np.abs(pairs).max() < 0.08
    secure = [build_central(rule_config(), 20).silos_of(names, 1) for _ in range(8)]
    assert len({tuple(s) for s in secure}) > 1  # the run's seed is the same in all of them


def rule_config() -> RunConfig:
    privacy = {"mode": "central", "noise_multiplier": 1.0}
    return RunConfig.model_validate({"privacy": privacy, "federation": {"fraction": 0.5}})


def test_under_correlated_noise_silos_take_turns():
    names = [f"silo-{n}" for n in range(8)]
    rule = rule_of(silos=8, server_noise="tree", federation={"fraction": 0.25, "rounds": 8})
    asked = [rule.silos_of(names, t) for t in range(1, 9)]
    assert sorted(name for silos in asked[:4] for name in silos) == names
    assert asked[:4] == asked[4:]


@pytest.mark.parametrize(
    ("privacy", "federation", "event"),
    [
        ({}, {"rounds": 6, "fraction": 0.5}, (0.5, 1.0, 6)),
        ({"clipping": "adaptive"}, {"rounds": 6, "fraction": 0.5}, (0.5, 1.0, 6)),
        ({}, {"rounds": 6}, (1.0, 1.0, 6)),
        # C is the identity: six releases of one silo, sqrt(6) together
        ({"server_noise": "banded"}, {"rounds": 6}, (1.0, 6**-0.5, 1)),
    ],
)
def test_the_event_is_of_all_rounds(
    privacy: dict[str, Any], federation: dict[str, Any], event: tuple[float, float, int]
):
    rule = rule_of(federation=federation, **privacy)
    state = rule.start(ZERO)
    assert rule.spending.events() == []
    for _ in range(6):
        state = one_round(rule, [], state)
    (spent,) = rule.spending.events()
    assert spent == rule.plan.event()
    assert dataclasses.astuple(spent) == pytest.approx(event)


def resumed(rule: SiloLevel, checkpoints: Path, **settings: Any) -> SiloLevel:
    """The rule as a new process makes it; noise goes on where it was."""
    return rule_of(source=rule.source, checkpoints=checkpoints, **settings)


@pytest.mark.parametrize("kind", ["gaussian", "tree", "banded"])
def test_going_on_is_as_if_nothing_had_happened(kind: str, tmp_path: Path):
    settings: dict[str, Any] = {"server_noise": kind, "federation": {"rounds": 6, "fraction": 0.5}}
    if kind == "banded":
        settings["bands"] = 4
    mine = delta_of([0.1] * 10)
    rule = rule_of(checkpoints=tmp_path / "whole", **settings)
    state = rule.start(ZERO)
    for _ in range(6):
        state = one_round(rule, [mine], state)
    part = rule_of(checkpoints=tmp_path / "part", **settings)
    other = part.start(ZERO)
    for number in range(6):
        other = one_round(part, [mine], other)
        if number == 2:
            part = resumed(part, tmp_path / "part", **settings)
    assert other.adapter.digest() == state.adapter.digest()
    assert part.spending.released == list(range(1, 7))


@pytest.mark.parametrize("kind", ["gaussian", "tree", "banded"])
def test_a_round_that_is_run_again_has_new_noise_and_is_counted_again(kind: str, tmp_path: Path):
    settings: dict[str, Any] = {"server_noise": kind, "federation": {"rounds": 4, "fraction": 1.0}}
    rule = rule_of(checkpoints=tmp_path, **settings)
    first = one_round(rule, [])
    once = one_round(rule, [], first)
    rule = resumed(rule, tmp_path, **settings)
    twice = one_round(rule, [], first)
    assert (once.adapter - twice.adapter).norm() > 0.1
    assert rule.spending.released == [1, 2, 2]
    cost = {event.count: event for event in rule.spending.events()}
    if kind == "gaussian":
        assert set(cost) == {3}
    else:
        assert cost[1].noise_multiplier < rule.plan.event(2).noise_multiplier


@pytest.mark.parametrize(
    ("kind", "variances"),
    [
        # a binary tree's sums of t rounds hold as many draws as t has ones
        ("tree", [1, 1, 2, 1, 2, 2, 3, 1]),
        # (1 + z/2) has the inverse 1, -1/2, 1/4, ...; sums 1, 1/2, 3/4, 5/8; squares added up
        ("banded", [1, 1.25, 1.8125, 2.203125]),
        ("gaussian", [1, 2, 3, 4]),
    ],
)
def test_later_rounds_take_back_noise_of_earlier_ones(kind: str, variances: list[float]):
    wide = TensorSet({"w": torch.zeros(200_000)})
    settings: dict[str, Any] = {"server_noise": kind, "federation": {"rounds": len(variances)}}
    if kind == "banded":
        settings["bands"] = 2
    rule = rule_of(**settings)
    state = rule.start(wide)
    for variance in variances:
        state = one_round(rule, [], state)
        wanted = 0.5 / 4 * math.sqrt(variance)
        assert float(state.adapter["w"].double().std()) == pytest.approx(wanted, rel=0.01)


def test_the_charge_is_on_disk_before_noise_is_drawn(tmp_path: Path):
    class Dies(SeededNoise):
        def normal(self, count: int, std: float) -> np.ndarray:
            raise KeyboardInterrupt

    rule = rule_of(source=Dies(0), checkpoints=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        one_round(rule, [])
    assert json.loads((tmp_path / "released.json").read_text()) == {"rounds": [1]}


def test_a_run_whose_record_is_gone_does_not_start_from_zero(tmp_path: Path):
    rule = rule_of(checkpoints=tmp_path)
    state = one_round(rule, [])
    (tmp_path / "released.json").unlink()
    with pytest.raises(InputError, match=r"record of released rounds has 0, but 1 are"):
        resumed(rule, tmp_path).fold(state)
    (tmp_path / "released.json").write_text('{"rounds": "many"}')
    with pytest.raises(InputError, match="damaged"):
        resumed(rule, tmp_path)


def test_rounds_run_again_never_go_beyond_the_target(monkeypatch: pytest.MonkeyPatch):
    target = {"target_epsilon": 2.0, "federation": {"rounds": 3}}
    rule = rule_of(**target)
    first = one_round(rule, [])
    one_round(rule, [], one_round(rule, [], first))
    with pytest.raises(RunFailedError, match=r"above `privacy.target_epsilon` \(2.0\)"):
        one_round(rule, [], first)
    assert len(rule.spending.released) == 3


def test_a_round_of_correlated_noise_that_is_run_again_may_cost_more_than_those_to_come():
    rule = rule_of(target_epsilon=2.0, server_noise="tree", federation={"rounds": 16})
    for number in [*range(1, 9), 8, 8, 8, 8]:  # the tree's eighth row is of all eight
        rule.spending.charge(number)
    with pytest.raises(RunFailedError, match=r"above `privacy\.target_epsilon`"):
        rule.spending.charge(8)
    (event,) = rule.spending.events()
    assert epsilon([event], rule.plan.settings.delta, "pld") <= 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"federation": {"aggregation": "fedex"}}, "needs `federation.aggregation: fedavg`"),
        ({"federation": {"aggregation": "svd"}}, "needs `federation.aggregation: fedavg`"),
        ({"federation": {"silo_ranks": {"x": 2}}}, "`federation.silo_ranks` needs"),
        (
            {"federation": {"fraction": 0.4}, "privacy": {"server_noise": "tree"}},
            "one over a whole number",
        ),
        ({"privacy": {"clipping": "adaptive", "server_noise": "banded"}}, "clipped alike"),
        ({"privacy": {"bands": 3}}, "`bands` needs `server_noise: banded`"),
        ({"privacy": {"sampling": "shuffle"}}, "`sampling` needs `mode: local`"),
    ],
)
def test_what_can_not_keep_the_promise_is_refused(change: dict[str, Any], message: str):
    privacy = {"mode": "central", "noise_multiplier": 1.0, **change.pop("privacy", {})}
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate({"privacy": privacy, **change})


def test_a_delta_that_would_allow_publishing_a_silo_whole_is_refused():
    with pytest.raises(InputError, match="one over the number of silos"):
        rule_of(silos=20, delta=0.05)
