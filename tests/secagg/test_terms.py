"""Terms that protect nobody are refused, each for the one thing that is wrong with it."""

import dataclasses
import random
from fractions import Fraction
from math import comb

import pytest

from fedtune.config.secure_aggregation import SecureAggregationConfig
from fedtune.secagg.abort import AbortError
from fedtune.secagg.messages import read_terms, write_terms
from fedtune.secagg.terms import MAX_HALVINGS, MAX_SILOS, MAX_WORDS, Terms, choose, worst_among
from tests.secagg.conftest import names

OWN = names(1)[0]
GOOD = Terms("run", 1, 0, names(7), words=5, shareholders=6, threshold=5, quorum=5)
POLICY = {"own": OWN, "min_silos": 3, "colluders": 1}


@pytest.mark.parametrize(
    ("changes", "policy", "said"),
    [
        ({"silos": names(7)[::-1]}, {}, "sorted list"),
        ({"silos": (*names(6), names(6)[-1])}, {}, "sorted list"),
        ({}, {"own": "silo-007"}, "sorted list"),
        ({"silos": names(MAX_SILOS + 1), "quorum": 9000}, {}, "sorted list"),
        ({"round": 0}, {}, "not possible"),
        ({"attempt": -1}, {}, "not possible"),
        ({"words": 0}, {}, "not possible"),
        ({"words": MAX_WORDS + 1}, {}, "not possible"),
        ({"halvings": (0, -1)}, {}, "to be halved"),
        ({"halvings": (MAX_HALVINGS + 1, 0)}, {}, "to be halved"),
        ({"quorum": 8}, {}, "may be opened"),
        ({}, {"min_silos": 6}, "may be opened"),
        ({"silos": names(1), "quorum": 1}, {"min_silos": 0}, "may be opened"),
        ({"quorum": 4}, {}, "does not bear 1 colluders"),
        ({}, {"colluders": 3}, "does not bear 3 colluders"),
        ({"quorum": 7}, {"colluders": 6}, "does not bear 6 colluders"),
        ({}, {"colluders": -1}, "does not bear -1 colluders"),
        ({"shareholders": 0, "threshold": 1}, {}, "holders of shares"),
        ({"shareholders": 7}, {}, "holders of shares"),
        ({"threshold": 0}, {}, "holders of shares"),
        ({"threshold": 8}, {}, "holders of shares"),
        ({"threshold": 4}, {}, "does not bear the 1 colluders"),
    ],
)
def test_terms_that_protect_nobody(changes: dict, policy: dict, said: str):
    GOOD.check(**POLICY)
    with pytest.raises(AbortError, match=said) as caught:
        dataclasses.replace(GOOD, **changes).check(**{**POLICY, **policy})
    assert caught.value.reason == "terms"


def test_the_digest_tells_every_term():
    other = {"run": "b", "silos": names(8), "halvings": (1, 0)}
    changed = [
        dataclasses.replace(GOOD, **{name: other.get(name, 6 if value == 5 else 5)})
        for name, value in dataclasses.asdict(GOOD).items()
    ]
    assert len({one.digest for one in [GOOD, *changed]}) == 10
    joined = dataclasses.replace(GOOD, silos=("a", "bc"))
    assert joined.digest != dataclasses.replace(GOOD, silos=("ab", "c")).digest


def test_terms_come_back_as_they_were_sent_and_nothing_else_does():
    text = write_terms(GOOD)
    assert read_terms(text) == GOOD
    other = [text.replace('"quorum":5', f'"quorum":{one}') for one in ("5.5", '"5"', "5,x")]
    for odd in (None, "{}", text + " " * 1_000_000, *other):
        with pytest.raises(AbortError) as caught:
            read_terms(odd)
        assert caught.value.reason == "malformed"


@pytest.mark.parametrize(("silos", "bad", "drawn"), [(99, 5, 40), (299, 30, 60), (999, 100, 60)])
def test_the_worst_neighbourhood_is_that_of_exact_arithmetic(silos: int, bad: int, drawn: int):
    def beyond(number: int) -> Fraction:
        some = range(number + 1, min(bad, drawn) + 1)
        ways = sum(comb(bad, n) * comb(silos - bad, drawn - n) for n in some)
        return Fraction(ways, comb(silos, drawn)) * (silos + 1)

    worst = worst_among(silos, bad, drawn, silos + 1)
    assert beyond(worst) < Fraction(1, 2**40)
    assert worst == min(bad, drawn) or beyond(worst - 1) >= Fraction(1, 2**40)
    draw = random.Random(0)
    seen = max(sum(n < bad for n in draw.sample(range(silos), drawn)) for _ in range(2000))
    assert seen <= worst


@pytest.mark.parametrize("count", [3, 10, 40, 120, 300])
def test_what_is_chosen_is_accepted(count: int):
    colluders, dropouts = count // 20, count // 10
    terms = choose("run", 1, 0, names(count), 5, colluders=colluders, dropouts=dropouts)
    terms.check(own=OWN, min_silos=3, colluders=colluders)


@pytest.mark.parametrize("count", range(3, 61))
def test_a_round_may_be_tried_again_without_the_silos_that_it_may_lose(count: int):
    """Quorums of both attempts share an honest silo, as silos want it to be."""
    settings = SecureAggregationConfig(enabled=True)

    def quorum(silos: int) -> int:
        load = {"colluders": 0, "dropouts": settings.dropouts(silos), "min_silos": 2}
        return choose("run", 1, 0, names(silos), 5, **load).quorum

    fewer = max(3, count - settings.dropouts(count))
    assert quorum(count) + quorum(fewer) > count
    assert quorum(count) + quorum(count + 1) > count + 1  # or with one more
