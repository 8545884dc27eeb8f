"""A secure sum is the plain sum, bit for bit, whoever is lost and when."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.errors import InputError
from fedtune.secagg.abort import AbortError
from fedtune.secagg.terms import Terms, choose
from tests.secagg.conftest import names, plain_sum, run, terms_of, vectors_of

STAGES = ("advertise", "share", "mask", "agree", "unmask")


@st.composite
def rounds(draw: st.DrawFn, most: int = 14):
    """Terms with any graph, colluders and dropouts that they bear, and who is lost at which stage.

    The threshold bears all colluders, and all who are lost, among one silo's shareholders.
    """
    count = draw(st.integers(3, most))
    dropouts = draw(st.integers(0, (count - 1) // 2))
    colluders = draw(st.integers(0, max(0, min(count - 3, count - 2 * dropouts - 1))))
    words = draw(st.integers(1, 40))
    terms = terms_of(count, words, colluders=colluders, dropouts=dropouts)
    least = min(count - 1, 2 * dropouts + colluders + 1)
    holders = draw(st.integers(least, count - 1))
    threshold = (holders + 1 + min(colluders, holders)) // 2 + 1
    if threshold <= holders + 1 - dropouts:
        terms = dataclasses.replace(terms, shareholders=holders, threshold=threshold)
    lost = draw(st.lists(st.sampled_from(names(count)), max_size=dropouts, unique=True))
    return terms, colluders, {silo: draw(st.sampled_from(STAGES)) for silo in lost}


def check_sum(drawn: tuple[Terms, int, dict[str, str]]) -> None:
    terms, colluders, when = drawn
    vectors = vectors_of(terms, terms.words)
    lost = {stage: [silo for silo in when if when[silo] == stage] for stage in STAGES}
    total, survivors = run(terms, vectors, lost, colluders)
    gone = {silo for silo, stage in when.items() if stage in STAGES[:3]}
    assert survivors == set(terms.silos) - gone
    assert np.array_equal(total, plain_sum(vectors, survivors))


@settings(max_examples=200, deadline=None)
@given(rounds())
def test_the_sum_is_the_plain_sum_of_the_survivors(drawn):
    check_sum(drawn)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=4000, deadline=None)
@given(rounds(most=30))
def test_the_sum_is_the_plain_sum_in_thousands_of_rounds(drawn):
    check_sum(drawn)


@pytest.mark.parametrize("stage", STAGES)
def test_a_sparse_round_bears_a_tenth_lost_at_any_stage(stage: str):
    terms = terms_of(120, 7, colluders=6, dropouts=12)
    assert terms.shareholders < 119
    vectors, lost = vectors_of(terms), names(120)[5:125:10]
    total, survivors = run(terms, vectors, {stage: lost}, 6)
    gone = set(lost) if stage in STAGES[:3] else set()
    assert survivors == set(terms.silos) - gone
    assert np.array_equal(total, plain_sum(vectors, survivors))


@pytest.mark.parametrize("stage", STAGES)
def test_one_too_many_lost_opens_nothing(stage: str):
    terms = terms_of(9, colluders=1, dropouts=3)
    with pytest.raises(AbortError) as caught:
        run(terms, vectors_of(terms), {stage: names(9)[:4]}, 1)
    assert caught.value.reason == "too few"


def test_what_no_terms_bear_is_refused():
    for count, colluders, dropouts in ((2, 0, 0), (4, 0, 2), (5, 1, 2), (9, 9, 0)):
        with pytest.raises(InputError, match="bear"):
            choose("run", 1, 0, names(count), 5, colluders=colluders, dropouts=dropouts)
