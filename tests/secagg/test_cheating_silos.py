"""What a cheating silo may send the coordinator: the round recovers or fails cleanly, by name."""

import dataclasses

import numpy as np
import pytest

from fedtune.identity.signed import contents
from fedtune.secagg.abort import AbortError
from fedtune.secagg.fixed_point import FixedPoint
from fedtune.secagg.messages import (
    Advert,
    Agreement,
    write_advert,
    write_agreement,
    write_set,
)
from fedtune.secagg.silo import SEALED_BYTES
from tests.secagg.conftest import Round, identity_of, names, plain_sum, terms_of, vectors_of

KIND, SETS = "secagg advert", "secagg agreement"
CHEAT, HONEST = names(7)[2], names(7)[3]


def made_with(words: int = 5) -> Round:
    return Round(terms_of(7, words, dropouts=2))


def refused(reason: str, made: Round, *steps) -> None:
    for step in steps:
        with pytest.raises(AbortError) as caught:
            step()
        assert caught.value.reason == reason
        assert CHEAT in str(caught.value)


def test_an_advert_under_another_s_name_is_refused_and_the_round_goes_on_without():
    made = made_with()
    advert = made.silos[CHEAT].advertise()
    refused("members", made, lambda: made.coordinator.add_advert(HONEST, advert))
    del made.silos[CHEAT]
    vectors = vectors_of(made.terms)
    shared, held = made.share(made.advertise())
    total, survivors = made.unmask(made.agree(made.mask(vectors, shared, held)))
    assert CHEAT not in survivors
    assert np.array_equal(total, plain_sum(vectors, survivors))


def test_a_key_with_which_nobody_can_agree_is_refused_and_the_round_goes_on_without():
    made, vectors = made_with(), vectors_of(terms_of(7))
    advert = Advert.model_validate_json(contents(KIND, made.silos.pop(CHEAT).advertise()))
    bad = advert.model_copy(update={"channel_key": bytes(32).hex()})
    text = write_advert(bad, identity_of(CHEAT))
    refused("malformed", made, lambda: made.coordinator.add_advert(CHEAT, text))
    total, survivors = made.unmask(made.agree(made.mask(vectors, *made.share(made.advertise()))))
    assert np.array_equal(total, plain_sum(vectors, survivors))


def test_a_signed_set_of_masks_that_is_not_the_silo_s_own_is_refused():
    made, vectors = made_with(), vectors_of(terms_of(7))
    survivors = made.mask(vectors, *made.share(made.advertise()))
    true = Agreement.model_validate_json(contents(SETS, made.silos[CHEAT].agree(survivors)))
    alone = true.model_copy(update={"neighbours": write_set([HONEST], made.terms)})
    text = write_agreement(alone, identity_of(CHEAT))
    refused("sets", made, lambda: made.coordinator.add_agreement(CHEAT, text))


def test_shares_for_others_or_of_another_size_are_refused():
    made = made_with()
    adverts = made.advertise()
    good = made.silos[CHEAT].share(adverts[CHEAT])
    fewer = dict(list(good.items())[1:])
    refused("members", made, lambda: made.coordinator.add_shares(CHEAT, fewer))
    short = dict.fromkeys(good, b"short")
    refused("malformed", made, lambda: made.coordinator.add_shares(CHEAT, short))


@pytest.mark.parametrize(
    "vector", [np.zeros(4, np.uint64), np.zeros(5, np.float64), np.zeros((5, 1), np.uint64)]
)
def test_a_vector_of_another_kind_is_refused_and_the_sum_is_that_of_the_rest(vector: np.ndarray):
    made, vectors = made_with(), vectors_of(terms_of(7))
    shared, held = made.share(made.advertise())
    refused("malformed", made, lambda: made.coordinator.add_masked(CHEAT, vector))
    del made.silos[CHEAT]
    total, survivors = made.unmask(made.agree(made.mask(vectors, shared, held)))
    assert np.array_equal(total, plain_sum(vectors, survivors))


def test_a_wrong_share_is_told_apart_and_its_holder_named():
    made, vectors = made_with(), vectors_of(terms_of(7))
    shared, held = made.share(made.advertise())
    agreements = made.agree(made.mask(vectors, shared, held))
    for name, silo in made.silos.items():
        revealed = silo.unmask(agreements)
        if name == CHEAT:
            wrong = bytes(32) + b"\x07"
            revealed = dataclasses.replace(revealed, seeds=dict.fromkeys(revealed.seeds, wrong))
        made.coordinator.add_unmasking(name, revealed)
    total, survivors = made.coordinator.finish()
    assert np.array_equal(total, plain_sum(vectors, survivors))
    assert CHEAT in made.coordinator.suspects


def test_a_few_wrong_shares_are_worked_around_wherever_they_are():
    terms = terms_of(40, dropouts=19)
    made, vectors = Round(terms), vectors_of(terms)
    shared, held = made.share(made.advertise())
    agreements = made.agree(made.mask(vectors, shared, held))
    cheats = {names(40)[place] for place in (0, 13, 26)}  # one in each stretch of 21, the threshold
    for name, silo in made.silos.items():
        revealed = silo.unmask(agreements)
        if name in cheats:
            wrong = bytes(32) + b"\x07"
            revealed = dataclasses.replace(revealed, seeds=dict.fromkeys(revealed.seeds, wrong))
        made.coordinator.add_unmasking(name, revealed)
    total, survivors = made.coordinator.finish()
    assert np.array_equal(total, plain_sum(vectors, survivors))
    assert made.coordinator.suspects.keys() == cheats


def test_who_deals_shares_of_no_secret_is_named_and_nothing_is_opened():
    made, vectors = made_with(), vectors_of(terms_of(7))
    adverts = made.advertise()
    made.silos[CHEAT]._seed = bytes(32)  # another than it has committed to
    shared, held = made.share(adverts)
    agreements = made.agree(made.mask(vectors, shared, held))
    refused("share", made, lambda: made.unmask(agreements))


def test_shares_that_nobody_can_read_lose_the_round_by_name():
    made, vectors = made_with(), vectors_of(terms_of(7))
    adverts = made.advertise()
    for name, silo in made.silos.items():
        dealt = silo.share(adverts[name])
        noise = dict.fromkeys(dealt, bytes(SEALED_BYTES))
        made.coordinator.add_shares(name, noise if name == CHEAT else dealt)
    shared, held = made.coordinator.close_shares()
    agreements = made.agree(made.mask(vectors, shared, held))
    refused("too few", made, lambda: made.unmask(agreements))


def test_revealing_what_is_not_due_is_refused():
    made, vectors = made_with(), vectors_of(terms_of(7))
    shared, held = made.share(made.advertise())
    agreements = made.agree(made.mask(vectors, shared, held))
    revealed = made.silos[CHEAT].unmask(agreements)
    both = dataclasses.replace(revealed, keys={HONEST: revealed.seeds[HONEST]})
    none = dataclasses.replace(revealed, seeds={})
    for wrong in (both, none):
        refused("sets", made, lambda wrong=wrong: made.coordinator.add_unmasking(CHEAT, wrong))


def test_a_vector_out_of_range_is_seen_in_the_sum():
    numbers = FixedPoint(count=9, silos=5)  # of which three are left
    bounds, zero = np.full(9, 0.1), np.zeros(9)
    good = [numbers.encode(zero, bounds) for _ in range(2)]
    loud = good[0] + np.uint64(2 * numbers.levels)
    with pytest.raises(ValueError, match="out of range"):
        numbers.decode(good[0] + good[1] + loud, 3, bounds)
