"""Noise in shares: the sum has what was counted, whoever is in it; exactly, in whole numbers."""

import dataclasses
import math
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.privacy.distributed import NoisySum, clipped
from fedtune.privacy.noise import SeededNoise
from fedtune.privacy.plan import Shares, epsilon_of_people, people_of, plan_shared
from fedtune.secagg.fixed_point import BASE, packed, unpacked, words_of
from fedtune.tensors import TensorSet

SPEC = (("a", (60, 50)), ("b", (7,)))
COUNT = 3007


def code(**changed) -> NoisySum:
    plain = NoisySum(SPEC, 0.5, 1.3, Shares(6, 0), 8, 1, bytes(32))
    return dataclasses.replace(plain, **changed)


def vector(seed: int, norm: float = 0.5) -> TensorSet:
    generator = torch.Generator().manual_seed(seed)
    drawn = TensorSet({name: torch.randn(shape, generator=generator) for name, shape in SPEC})
    return drawn * (norm / drawn.norm())


def sum_of(code: NoisySum, vectors: list[TensorSet], seed: int = 0, colluders: int = 0):
    return reduce(
        np.add,
        (
            code.encode(one, colluders=colluders, source=SeededNoise(1000 * seed + number))
            for number, one in enumerate(vectors)
        ),
    )


@pytest.mark.parametrize(
    ("silos", "shares"), [(8, Shares(6, 0)), (8, Shares(8, 0)), (9, Shares(7, 3))]
)
def test_the_sum_is_that_of_the_vectors_and_its_noise_that_of_all_shares(silos, shares):
    one = code(silos=silos, shares=shares)
    vectors = [vector(seed) for seed in range(silos)]
    noise = []
    for seed in range(20):
        off = one.decode(sum_of(one, vectors, seed)) - reduce(TensorSet.__add__, vectors)
        noise.append(off.flat().numpy())
    wanted = 1.3 * 0.5 * (silos / (shares.silos - shares.colluders)) ** 0.5
    assert np.std(noise) == pytest.approx(wanted, rel=0.01)
    assert abs(np.mean(noise)) < 5 * wanted / (20 * COUNT) ** 0.5


@settings(max_examples=300, deadline=None)
@given(st.integers(3, 60), st.integers(0, 30), st.integers(0, 20), st.floats(0.3, 20), st.data())
def test_the_smallest_sum_has_all_the_noise_without_those_who_may_tell_theirs(
    least: int, colluders: int, more: int, noise: float, data
):
    colluders = min(colluders, least - 2)
    own = min(colluders + more, least - 1)
    silos = data.draw(st.integers(least, 3 * least))
    one = code(silos=silos, shares=Shares(least, colluders), noise_multiplier=noise)
    needed = (noise * one.sensitivity) ** 2 + 4
    others = (least - own - 1) * one.scale(colluders) ** 2
    assert one.scale(own) ** 2 + others > needed
    # and not for nothing: what is told by none is at most a step's rounding above it
    if own == colluders:
        assert (least - own) * (one.scale(own) - 1) ** 2 <= needed * (1 + 1e-6)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 1.0), st.floats(0.0, 40.0), st.booleans())
def test_one_unit_moves_whole_numbers_by_no_more_than_is_counted(
    seed: int, norm: float, others: float, aligned: bool
):
    one = code(units=64)
    rest, unit = vector(seed, others * 0.5), vector(seed if aligned else seed + 1, norm * 0.5)
    source = lambda: SeededNoise(seed)  # noqa: E731 - the same draws on both sides
    without = one.encode(rest, colluders=0, source=source())
    whole = one.encode(rest + unit, colluders=0, source=source())
    moved = unpacked(whole - without, 4096, -(BASE // 2))
    assert np.linalg.norm(moved) <= one.sensitivity
    assert np.linalg.norm(moved) <= norm * one.steps * 1.001 + 4096**0.5


def test_a_silo_s_vector_that_is_much_too_long_takes_no_room_from_others():
    one = code()
    loud, quiet = vector(0, 1e6), [vector(seed, 0.0) for seed in range(1, 8)]
    found = one.decode(sum_of(one, [loud, *quiet]))
    assert found.norm() < 0.5 * 8 * 4096**0.5


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**31))
def test_words_of_either_sign_add_up_as_their_numbers_do(count: int, silos: int, seed: int):
    rng, room = np.random.default_rng(seed), BASE // 2 // silos
    numbers = rng.integers(-room, room + 1, (silos, count))
    total = reduce(np.add, map(packed, numbers))
    assert total.shape == (words_of(count),)
    assert np.array_equal(unpacked(total, count, -(BASE // 2)), numbers.sum(0))


def test_a_sum_beyond_its_digits_is_another_number_and_no_error():
    numbers = np.full(9, BASE)
    assert np.array_equal(
        packed(numbers) + packed(-numbers), packed(np.zeros(9, np.int64))
    )  # words of a sum hang on the sum alone
    assert code().decode(np.full(code().words, 2**64 - 1, np.uint64)).is_finite()


def gaussian_delta(noise: float, rate: float, epsilon: float) -> float:
    """Of one sampled Gaussian sum, in closed form, the worse of both directions."""

    def place(ratio: float) -> float:  # where densities with the unit are `ratio` of those without
        return noise**2 * math.log((ratio - 1 + rate) / rate) + 0.5

    def above(x: float) -> tuple[float, float]:
        without, shifted = norm.sf(x / noise), norm.sf((x - 1) / noise)
        return without, (1 - rate) * without + rate * shifted

    without, with_it = above(place(math.exp(epsilon)))
    removed = with_it - math.exp(epsilon) * without
    if math.exp(-epsilon) <= 1 - rate:
        return float(removed)
    without, with_it = above(place(math.exp(-epsilon)))
    return float(max(removed, (1 - without) - math.exp(epsilon) * (1 - with_it)))


def _share(scale: int, most: int) -> np.ndarray:
    weights = np.exp(-(np.arange(-most, most + 1.0) ** 2) / (2 * scale**2))
    return weights / weights.sum()


@pytest.mark.parametrize("moved", [(14,), (10, 10), (9, 9, 6)])
@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_the_accountant_never_tells_less_than_the_exact_integer_mechanism(moved, rate: float):
    """Shares of five silos, all probabilities written out, a sum that one unit moves by `moved`."""
    scale, silos, most = 5, 5, 60
    one = reduce(np.convolve, [_share(scale, most // silos * 4)] * silos)
    one = one[len(one) // 2 - most : len(one) // 2 + most + 1]
    without = reduce(np.multiply.outer, [one] * len(moved))
    other = without
    for axis, by in enumerate(moved):
        other = np.roll(other, by, axis)
    mixed = (1 - rate) * without + rate * other
    length = math.dist(moved, [0] * len(moved))
    multiplier = (silos * scale**2 - 4) ** 0.5 / length  # what `NoisySum.scale` makes room for
    for epsilon in (0.1, 0.5, 1.0, 2.0):
        exact = max(
            np.maximum(mixed - math.exp(epsilon) * without, 0).sum(),
            np.maximum(without - math.exp(epsilon) * mixed, 0).sum(),
        )
        counted = gaussian_delta(multiplier, rate, epsilon)
        assert exact <= counted * (1 + 1e-9) + 1e-12
        assert exact > 0.5 * counted  # and the count is not for nothing


def test_rounding_costs_next_to_nothing_where_there_is_room():
    one = code(noise_multiplier=1.0, silos=8, shares=Shares(8, 0))
    assert one.steps > 90_000
    assert one.sensitivity / one.steps < 1.005
    assert one.words * 8 / 4096 < 3
    large = dataclasses.replace(one, spec=(("a", (20_000_000,)),))
    assert large.sensitivity / large.steps < 1.05


def test_no_room_is_refused_and_so_are_more_colluders_than_others():
    with pytest.raises(InputError, match="leave no room"):
        _ = code(spec=(("a", (10**9,)),), noise_multiplier=50.0, silos=5000).steps
    with pytest.raises(ValueError, match="reckons with 6"):
        code().scale(6)
    for bad, said in (
        (vector(0) * float("nan"), "NaN"),
        (TensorSet({"a": torch.ones(1)}), "other"),
    ):
        with pytest.raises(ValueError, match=said):
            code().encode(bad, colluders=0)
    with pytest.raises(ValueError, match="words"):
        code().decode(np.zeros(3, np.uint64))


def test_what_a_silo_sends_is_cut_to_the_norm():
    assert clipped(vector(0, 5.0), 0.5).norm() == pytest.approx(0.5)
    assert clipped(vector(0, 0.3), 0.5).norm() == pytest.approx(0.3)


SILOS = {
    "secure_aggregation": True,
    "federation": {"rounds": 10, "min_silos": 6},
    "privacy": {"mode": "distributed", "unit": "silo", "target_epsilon": 2.0},
}


def test_people_of_a_silo_are_charged_for_twice_of_what_silos_are():
    config = RunConfig.model_validate(SILOS)
    plan = plan_shared(config, "silo", 8)
    assert (plan.sampling, plan.relation, plan.steps) == ("full", "zero_out", 10)
    people = people_of(plan, "patient", 40)
    assert people.noise_multiplier == plan.noise_multiplier / 2
    assert people.relation == "add_remove"
    assert plan.epsilon() <= 2.0 < people.epsilon() == epsilon_of_people(config)


def test_a_unit_in_the_silos_is_sampled_at_the_one_rate_of_all():
    tree = {
        **SILOS,
        "training": {"max_steps": 1, "optimizer": "sgd"},
        "privacy": {"mode": "distributed", "sample_rate": 0.25, "target_epsilon": 2.0},
    }
    config = RunConfig.model_validate(tree)
    plan = plan_shared(config, "patient", 40)
    assert (plan.sample_rate, plan.sampling, plan.relation) == (0.25, "poisson", "add_remove")
    assert plan.noise_multiplier == plan_shared(config, "patient", 4000).noise_multiplier
    assert plan.epsilon() == epsilon_of_people(config) <= 2.0
    tree["privacy"] |= {"sample_rate": 1.0}
    assert plan_shared(RunConfig.model_validate(tree), "patient", 40).sampling == "full"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"secure_aggregation": False}, "needs `secure_aggregation: true`"),
        ({"secure_aggregation": {"enabled": True, "bound": 1.0}}, "clipping_norm"),
        ({"federation": {"rounds": 10}}, "set `federation.min_silos`, at least 3"),
        (
            {"secure_aggregation": {"enabled": True, "max_colluders": 5}},
            "set `federation.min_silos`, at least 7",
        ),
        ({"privacy": {"clipping": "adaptive"}}, "drawn for one norm"),
        ({"privacy": {"unit": None}}, "needs `sample_rate`"),
        ({"privacy": {"sample_rate": 0.5}}, "`sample_rate` needs `unit: record or patient`"),
        ({"privacy": {"sampling": "full"}}, "`sampling` needs `mode: local`"),
        ({"privacy": {"unit": "patient", "sample_rate": 0.5}}, "`training.max_steps` is to be 1"),
        ({"privacy": {"mode": "local"}}, "`unit: silo` needs `mode: distributed`"),
        ({"privacy": {"mode": "central", "unit": "silo"}}, "`unit` needs"),
    ],
)
def test_what_would_leave_a_sum_without_its_noise_is_refused(changed: dict, said: str):
    tree = dict(SILOS)
    for name, part in changed.items():
        merged = {**tree[name], **part} if name == "privacy" else part
        tree[name] = merged
    with pytest.raises(ValueError, match=said):
        RunConfig.model_validate(tree)
