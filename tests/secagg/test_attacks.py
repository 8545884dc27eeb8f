"""What a cheating coordinator may try, each refused by an honest silo with a named reason."""

import dataclasses
import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtune.identity.signed import contents, seal
from fedtune.secagg.abort import AbortError
from fedtune.secagg.messages import Advert, write_advert, write_set
from fedtune.secagg.silo import SEALED_BYTES, Silo
from fedtune.secagg.terms import Terms
from tests.secagg.conftest import (
    Round,
    identities,
    identity_of,
    names,
    terms_of,
    vectors_of,
)

VICTIM, OTHER, COLLUDER = names(3)
COUNT, COLLUDERS = 7, 1
STRANGER = Ed25519PrivateKey.generate()


def fresh(**changes: object) -> Round:
    terms = terms_of(COUNT, colluders=COLLUDERS, dropouts=2)
    return Round(dataclasses.replace(terms, **changes), COLLUDERS)


def victim_of(terms: Terms, min_silos: int = 3) -> Silo:
    known = identities(names(COUNT))
    return Silo(VICTIM, identity_of(VICTIM), terms, known, min_silos, COLLUDERS)


def rewritten(text: str, key: Ed25519PrivateKey | None = None, **changes: object) -> str:
    """A signed text with other content: under its old signature, or signed by `key`."""
    kind = json.loads(text)["kind"]
    content = json.dumps({**json.loads(contents(kind, text)), **changes})
    if key is not None:
        return seal(kind, content, key)
    return json.dumps({**json.loads(text), "content": content})


def told(change: Callable[[list[str]], list[str]]) -> Callable[[], None]:
    """The victim is given the adverts that `change` makes of the true ones."""

    def attack() -> None:
        made = fresh()
        made.silos[VICTIM].share(change(made.advertise()[VICTIM]))

    return attack


def of(adverts: list[str], silo: str, change: Callable[[str], str]) -> list[str]:
    return [change(text) if f'\\"{silo}\\",\\"channel' in text else text for text in adverts]


def at_mask(change: Callable[[str, dict[str, bytes], Round], None]) -> Callable[[], None]:
    def attack() -> None:
        made = fresh()
        shared, held = made.share(made.advertise())
        change(shared, dict(held[VICTIM]), made)

    return attack


def masked(made: Round, held: dict[str, bytes], shared: str) -> None:
    made.silos[VICTIM].mask(vectors_of(made.terms)[VICTIM], held, shared)


def set_of(made: Round, *without: str) -> str:
    return write_set(set(made.terms.silos) - set(without), made.terms)


def at_agreement(survivors: Callable[[Round], str], **terms: object) -> Callable[[], None]:
    def attack() -> None:
        made = fresh(**terms)
        shared, held = made.share(made.advertise())
        made.mask(vectors_of(made.terms), shared, held)
        made.silos[VICTIM].agree(survivors(made))

    return attack


def agreed() -> tuple[Round, list[str]]:
    made = fresh()
    shared, held = made.share(made.advertise())
    return made, made.agree(made.mask(vectors_of(made.terms), shared, held))


def at_unmask(change: Callable[[list[str]], list[str]]) -> Callable[[], None]:
    def attack() -> None:
        made, agreements = agreed()
        made.silos[VICTIM].unmask(change(agreements))

    return attack


def with_terms(min_silos: int = 3, **changes: object) -> Callable[[], None]:
    terms = dataclasses.replace(terms_of(COUNT, colluders=COLLUDERS, dropouts=2), **changes)
    return lambda: victim_of(terms, min_silos) and None


def different_survivors() -> None:
    made = fresh()
    shared, held = made.share(made.advertise())
    made.mask(vectors_of(made.terms), shared, held)
    half = list(made.silos)[:4]
    signed = [
        silo.agree(set_of(made) if name in half else set_of(made, OTHER))
        for name, silo in made.silos.items()
        if name != OTHER
    ]
    made.silos[VICTIM].unmask(signed)


def different_sharers() -> None:
    made = fresh()
    shared, held = made.share(made.advertise())
    for name, silo in made.silos.items():
        given = dict(held[name])
        if name in (VICTIM, names(7)[5]):  # to these two the silo OTHER is said to be lost
            given.pop(OTHER)
            silo.mask(vectors_of(made.terms)[name], given, set_of(made, OTHER))
        else:
            silo.mask(vectors_of(made.terms)[name], given, shared)
    signed = [silo.agree(set_of(made, OTHER)) for name, silo in made.silos.items() if name != OTHER]
    made.silos[VICTIM].unmask(signed)


def both_kinds() -> None:
    made, agreements = agreed()
    made.silos[VICTIM].unmask(agreements)
    made.silos[VICTIM].unmask(agreements)


def two_agreements() -> None:
    made, _ = agreed()
    made.silos[VICTIM].agree(set_of(made, OTHER))


def two_vectors(shared: str, held: dict[str, bytes], made: Round) -> None:
    masked(made, held, shared)
    fewer = {silo: one for silo, one in held.items() if silo != OTHER}
    masked(made, fewer, set_of(made, OTHER))


def old_advert(**changes: object) -> Callable[[], None]:
    def attack() -> None:
        before = fresh(**changes).silos[OTHER].advertise()
        made = fresh()
        made.silos[VICTIM].share(of(made.advertise()[VICTIM], OTHER, lambda _: before))

    return attack


def old_agreement() -> None:
    before = fresh(attempt=1)
    shared, held = before.share(before.advertise())
    old = before.agree(before.mask(vectors_of(before.terms), shared, held))
    made, agreements = agreed()
    made.silos[VICTIM].unmask([*agreements[:-1], old[-1]])


def lost_signer() -> None:
    """A colluder that isn't in the sum signs, to make up the quorum."""
    made = fresh()
    shared, held = made.share(made.advertise())
    made.lose([COLLUDER])
    signed = made.agree(made.mask(vectors_of(made.terms), shared, held))
    signed[-1] = rewritten(signed[-1], identity_of(COLLUDER), silo=COLLUDER)
    made.silos[VICTIM].unmask(signed)


def small_order(key: str) -> Callable[[], None]:
    def wrong(text: str) -> str:
        return rewritten(text, identity_of(COLLUDER), **{key: bytes(32).hex()})

    return told(lambda all_: of(all_, COLLUDER, wrong))


def wrong_shareholders(change: Callable[[list[str]], list[str]]) -> Callable[[], None]:
    """A colluder's own advert, with shareholders that no silo may have."""

    def wrong(text: str) -> str:
        holders = change(list(advert_of(text).shareholders))
        return rewritten(text, identity_of(COLLUDER), shareholders=holders)

    return told(lambda all_: of(all_, COLLUDER, wrong))


def sparse(words: int = 5) -> Round:
    """A round of which each silo has shareholders, and masks, with some of the others only."""
    terms = terms_of(120, words, colluders=6, dropouts=12)
    return Round(terms, 6)


def shareholders(adverts: list[str], silo: str) -> set[str]:
    every = {one.silo: one for one in map(advert_of, adverts)}
    return set(every[silo].shareholders)


def advert_of(text: str) -> Advert:
    return Advert.model_validate_json(contents("secagg advert", text))


def advert_of_no_neighbour() -> None:
    made = sparse()
    given = made.advertise()
    near = {VICTIM, *(advert_of(text).silo for text in given[VICTIM])}
    far = next(text for name in given for text in given[name] if advert_of(text).silo not in near)
    made.silos[VICTIM].share([*given[VICTIM], far])


def kept_from_each_other() -> None:
    """Neither learns of the other, so that they have no mask with each other."""
    made = fresh()
    adverts = made.advertise()
    for one, other in ((VICTIM, OTHER), (OTHER, VICTIM)):
        adverts[one] = [text for text in adverts[one] if advert_of(text).silo != other]
    dealt = {name: silo.share(adverts[name]) for name, silo in made.silos.items()}
    held = {dealer: shares[VICTIM] for dealer, shares in dealt.items() if VICTIM in shares}
    masked(made, held, set_of(made))


def neighbour_kept_unknown() -> None:
    """One silo drew another as its shareholder and masks with it; that other is never told."""
    made = sparse()
    adverts = made.advertise()
    every = {advert_of(text).silo: advert_of(text) for texts in adverts.values() for text in texts}
    hidden, from_ = next(
        (silo, holder)
        for silo, advert in every.items()
        for holder in advert.shareholders
        if silo not in every[holder].shareholders
    )
    adverts[from_] = [text for text in adverts[from_] if advert_of(text).silo != hidden]
    for name, silo in made.silos.items():
        made.coordinator.add_shares(name, silo.share(adverts[name]))
    shared, held = made.coordinator.close_shares()
    held[from_].pop(hidden)
    for name, silo in made.silos.items():
        silo.mask(vectors_of(made.terms)[name], held[name], shared)
    signed = [silo.agree(set_of(made)) for silo in made.silos.values()]
    made.silos[VICTIM].unmask(signed)


def survivors_without_shareholders() -> None:
    """All with whom it has masks are said to be lost, so that their keys would be revealed."""
    made = sparse()
    adverts = made.advertise()
    shared, held = made.share(adverts)
    made.mask(vectors_of(made.terms), shared, held)
    one = next(iter(made.silos))
    every = [text for texts in adverts.values() for text in texts]
    made.silos[one].agree(set_of(made, *shareholders(every, one)))


def few_sharers() -> None:
    """Enough to give secrets back, and fewer than a sum is to have."""
    made = fresh(quorum=7)
    _, held = made.share(made.advertise())
    few = names(COUNT)[: made.terms.threshold]
    masked(made, {silo: held[VICTIM][silo] for silo in few[1:]}, write_set(few, made.terms))


def skipped() -> None:
    made = fresh()
    made.advertise()
    masked(made, {}, set_of(made))


def puppet() -> str:
    """An advert of a silo that the coordinator made up, in the victim's round."""
    terms = terms_of(COUNT, colluders=COLLUDERS, dropouts=2)
    advert = Advert(
        context=terms.digest.hex(),
        silo="puppet",
        channel_key="11" * 32,
        mask_key="22" * 32,
        seed_commitment="33" * 32,
        shareholders=names(COUNT)[: terms.shareholders],
    )
    return write_advert(advert, STRANGER)


ATTACKS: dict[str, tuple[str, Callable[[], object]]] = {
    "another mask key under the old signature": (
        "signature",
        told(lambda all_: of(all_, OTHER, lambda text: rewritten(text, mask_key="9" * 64))),
    ),
    "another mask key, signed by the coordinator": (
        "signature",
        told(
            lambda all_: of(all_, OTHER, lambda text: rewritten(text, STRANGER, mask_key="9" * 64))
        ),
    ),
    "another channel key, to read the shares": (
        "signature",
        told(lambda all_: of(all_, OTHER, lambda text: rewritten(text, channel_key="9" * 64))),
    ),
    "other shareholders than the silo drew": (
        "signature",
        told(
            lambda all_: of(
                all_, OTHER, lambda text: rewritten(text, shareholders=list(names(COUNT)[2:]))
            )
        ),
    ),
    "a colluder's advert under another's name": (
        "signature",
        told(
            lambda all_: of(
                all_, COLLUDER, lambda text: rewritten(text, identity_of(COLLUDER), silo=OTHER)
            )
        ),
    ),
    "an invented silo": ("members", told(lambda all_: [*all_[1:], puppet()])),
    "an invented silo in the terms": (
        "members",
        with_terms(silos=tuple(sorted((*names(COUNT)[:-1], "stranger")))),
    ),
    "one silo twice": ("members", told(lambda all_: [*all_[:-1], all_[0]])),
    "more adverts than silos": ("members", told(lambda all_: all_ * 2)),
    "nearly all silos dropped": ("too few", told(lambda all_: all_[:2])),
    "an advert of a million characters": (
        "malformed",
        told(lambda all_: [all_[0] + " " * 1_000_000, *all_[1:]]),
    ),
    "an advert that is no text at all": ("malformed", told(lambda all_: [None, *all_[1:]])),
    "an advert that is no text of ours": ("malformed", told(lambda all_: [*all_[1:], "{}"])),
    "an advert of the round before": ("context", old_advert(round=2)),
    "an advert of another run": ("context", old_advert(run="other")),
    "an advert of the attempt before": ("context", old_advert(attempt=1)),
    "a lower threshold": ("terms", with_terms(threshold=1)),
    "a threshold that colluders reach": ("terms", with_terms(threshold=4)),
    "a lower quorum": ("terms", with_terms(quorum=4)),
    "fewer silos than the policy wants": ("terms", with_terms(min_silos=6)),
    "a round among sock puppets": ("terms", lambda: with_terms(silos=(VICTIM, "puppet"))()),
    "terms without the victim": ("terms", with_terms(silos=names(COUNT)[1:])),
    "shares asked for by few alone": (
        "too few",
        at_mask(
            lambda shared, held, made: masked(
                made, {OTHER: held[OTHER]}, write_set([VICTIM, OTHER], made.terms)
            )
        ),
    ),
    "sharers fewer than a quorum": ("too few", few_sharers),
    "the victim is said not to have shared": (
        "sets",
        at_mask(lambda shared, held, made: masked(made, held, set_of(made, VICTIM))),
    ),
    "its own shares come back": (
        "members",
        at_mask(
            lambda shared, held, made: masked(
                made, {**held, VICTIM: bytes(SEALED_BYTES)}, set_of(made)
            )
        ),
    ),
    "a set of more silos than there are": (
        "malformed",
        at_mask(lambda shared, held, made: masked(made, held, "ff")),
    ),
    "shares of another size": (
        "malformed",
        at_mask(lambda shared, held, made: masked(made, {**held, OTHER: b"short"}, shared)),
    ),
    "shares that are no bytes": (
        "malformed",
        at_mask(lambda shared, held, made: masked(made, {**held, OTHER: None}, shared)),
    ),
    "a set that is no text": (
        "malformed",
        at_mask(lambda shared, held, made: masked(made, held, None)),
    ),
    "a second vector for another set, to see a mask": ("order", at_mask(two_vectors)),
    "a vector before secrets are shared": ("order", skipped),
    "a mask key of small order": ("malformed", small_order("mask_key")),
    "a channel key of small order": ("malformed", small_order("channel_key")),
    "a silo that is its own shareholder": (
        "members",
        wrong_shareholders(lambda all_: [COLLUDER, *all_[1:]]),
    ),
    "a shareholder twice": ("members", wrong_shareholders(lambda all_: [*all_[1:], all_[-1]])),
    "a shareholder more": ("members", wrong_shareholders(lambda all_: [*all_, all_[-1]])),
    "fewer shareholders": ("members", wrong_shareholders(lambda all_: all_[1:])),
    "a shareholder from elsewhere": (
        "members",
        wrong_shareholders(lambda all_: ["stranger", *all_[1:]]),
    ),
    "an advert of no neighbour": ("members", advert_of_no_neighbour),
    "two silos kept from each other": ("members", kept_from_each_other),
    "a neighbour that is never told of a mask": ("sets", neighbour_kept_unknown),
    "survivors of whom none has the victim's shares": ("too few", survivors_without_shareholders),
    "a survivor that never shared": (
        "sets",
        lambda: lost_before_sharing(),
    ),
    "a sum of a few alone": (
        "too few",
        at_agreement(lambda made: write_set([VICTIM, OTHER], made.terms)),
    ),
    "a sum of fewer than a quorum": (
        "too few",
        at_agreement(lambda made: set_of(made, OTHER), quorum=7),
    ),
    "the victim is said to be lost": ("sets", at_agreement(lambda made: set_of(made, VICTIM))),
    "a second agreement, to other survivors": ("order", two_agreements),
    "other survivors to others": ("sets", different_survivors),
    "other sharers to others": ("sets", different_sharers),
    "fewer agreements than a quorum": ("too few", at_unmask(lambda all_: all_[:3])),
    "a colluder's agreement many times": (
        "members",
        at_unmask(lambda all_: [*all_[:2], *[all_[2]] * 4]),
    ),
    "an agreement of a silo that is lost": ("members", lost_signer),
    "an agreement that the coordinator signed": (
        "signature",
        at_unmask(lambda all_: [*all_[:-1], rewritten(all_[-1], STRANGER)]),
    ),
    "an agreement of the attempt before": ("context", old_agreement),
    "both kinds of share of one silo": ("order", both_kinds),
}


def lost_before_sharing() -> None:
    made = fresh()
    adverts = made.advertise()
    made.lose([OTHER])
    shared, held = made.share(adverts)
    made.mask(vectors_of(made.terms), shared, held)
    made.silos[VICTIM].agree(set_of(made))


@pytest.mark.parametrize("attack", ATTACKS)
def test_coordinator_attack(attack: str):
    reason, attempt = ATTACKS[attack]
    with pytest.raises(AbortError) as caught:
        attempt()
    assert caught.value.reason == reason, caught.value


@pytest.mark.parametrize("swapped", [False, True])
def test_tampered_shares_are_told_by_name_and_never_revealed(swapped: bool):
    made = fresh()
    shared, held = made.share(made.advertise())
    given = dict(held[VICTIM])
    given[OTHER] = (
        held[COLLUDER][OTHER] if swapped else bytes([given[OTHER][0] ^ 1]) + given[OTHER][1:]
    )
    vectors = vectors_of(made.terms)
    made.mask(vectors, shared, {**held, VICTIM: given})
    agreements = made.agree(set_of(made))
    revealed = made.silos[VICTIM].unmask(agreements)
    assert revealed.unreadable == (OTHER,)
    assert OTHER not in revealed.seeds


def test_after_an_attack_the_silo_takes_part_no_more():
    made = fresh()
    adverts = made.advertise()[VICTIM]
    with pytest.raises(AbortError):
        made.silos[VICTIM].share(adverts[:1])
    with pytest.raises(AbortError) as caught:
        made.silos[VICTIM].share(adverts)
    assert caught.value.reason == "order"
    assert not hasattr(made.silos[VICTIM], "_mask")
