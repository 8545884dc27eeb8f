"""What silos and coordinator send each other: bounded, typed, each bound to its round's terms.

Signed are adverts and agreements, by the rostered identities. Everything is untrusted input: each
`read_` raises AbortError on whatever isn't exactly what is due.
"""

from collections.abc import Collection
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from fedtune.config.section import Section
from fedtune.identity.roster import Hex32
from fedtune.identity.signed import contents, seal, unseal
from fedtune.secagg.abort import AbortError
from fedtune.secagg.terms import MAX_SILOS, Terms

_ADVERT, _AGREEMENT = "secagg advert", "secagg agreement"
_MOST_CHARACTERS = 1_000_000
_TERMS = TypeAdapter(Terms)
_Name = Annotated[str, Field(min_length=1, max_length=1000)]  # which names there are, terms say


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


SiloSet = Annotated[str, Field(pattern=r"^[0-9a-f]{2,2500}$")]


class Advert(Section):
    """A silo's fresh public keys (X25519, hex), what its own mask's seed is recognised by, and who
    is to hold shares of its secrets.
    """

    context: Hex32
    silo: _Name
    channel_key: Hex32
    mask_key: Hex32
    seed_commitment: Hex32
    shareholders: Annotated[tuple[_Name, ...], BeforeValidator(_tuple), Field(max_length=MAX_SILOS)]


class Agreement(Section):
    """The sets that a silo goes by: who shared its secrets, whose vector is in the sum, and which
    neighbours it has a mask with.
    """

    context: Hex32
    silo: _Name
    shared: SiloSet
    survivors: SiloSet
    neighbours: SiloSet


def write_advert(advert: Advert, identity: Ed25519PrivateKey) -> str:
    """The signed advert."""
    return seal(_ADVERT, advert.model_dump_json(), identity)


def read_advert(text: str, terms: Terms, identities: dict[str, bytes]) -> Advert:
    """A silo's advert, whose signature, context and shareholders are as they should be."""
    advert = Advert.model_validate_json(_unsealed(_ADVERT, text, identities))
    _check_context(advert.context, terms, f"{advert.silo}'s advert")
    chosen = set(advert.shareholders)
    if (
        len(chosen) != len(advert.shareholders)
        or len(chosen) != terms.shareholders
        or not chosen <= set(terms.silos) - {advert.silo}
    ):
        raise AbortError("members", f"{advert.silo}'s shareholders are not {terms.shareholders}")
    if not (_is_point(advert.channel_key) and _is_point(advert.mask_key)):
        raise AbortError("malformed", f"a key of {advert.silo} is no key")
    return advert


def write_agreement(agreement: Agreement, identity: Ed25519PrivateKey) -> str:
    """The signed agreement."""
    return seal(_AGREEMENT, agreement.model_dump_json(), identity)


def read_agreement(text: str, terms: Terms, identities: dict[str, bytes]) -> Agreement:
    """A silo's agreement to two sets of this round."""
    agreement = Agreement.model_validate_json(_unsealed(_AGREEMENT, text, identities))
    _check_context(agreement.context, terms, f"{agreement.silo}'s agreement")
    return agreement


def write_terms(terms: Terms) -> str:
    """The terms as JSON."""
    return _TERMS.dump_json(terms).decode()


def read_terms(text: object) -> Terms:
    """Terms as they were proposed; whether they protect anybody is for `Terms.check` to say."""
    if not isinstance(text, str) or len(text) > _MOST_CHARACTERS:
        raise AbortError("malformed", "the terms are no text of bounded length")
    try:
        return _TERMS.validate_json(text, strict=True)
    except ValidationError:
        raise AbortError("malformed", "the terms can't be read") from None


def write_set(members: Collection[str], terms: Terms) -> str:
    """A set of the terms' silos as hex, a bit each; any two equal sets are equal texts."""
    bits = sum(1 << (terms.number(silo) - 1) for silo in set(members))
    return bits.to_bytes(-(-len(terms.silos) // 8), "big").hex()


def read_set(text: str, terms: Terms) -> frozenset[str]:
    """The set. Raises AbortError on a text that is none of these silos."""
    size = -(-len(terms.silos) // 8)
    try:
        raw = bytes.fromhex(text)
    except (ValueError, TypeError):
        raise AbortError("malformed", "a set of silos is not hex") from None
    bits = int.from_bytes(raw, "big")
    if len(raw) != size or bits >> len(terms.silos) or raw.hex() != text:
        raise AbortError("malformed", f"a set of silos isn't of {len(terms.silos)}")
    return frozenset(silo for place, silo in enumerate(terms.silos) if bits >> place & 1)


def _unsealed(kind: str, text: str, identities: dict[str, bytes]) -> str:
    """The content, which must be signed by the silo that it names."""
    if not isinstance(text, str) or len(text) > _MOST_CHARACTERS:
        raise AbortError("malformed", f"a {kind} is no text of bounded length")
    try:
        content = contents(kind, text)
        model = Advert if kind == _ADVERT else Agreement
        silo = model.model_validate_json(content).silo
    except (ValueError, ValidationError):
        raise AbortError("malformed", f"a {kind} can't be read") from None
    if silo not in identities:
        raise AbortError("members", f"a {kind} is of a silo that isn't in the roster")
    try:
        return unseal(kind, text, identities[silo])
    except ValueError:
        raise AbortError("signature", f"a {kind} isn't signed by {silo}") from None


def _is_point(key: str) -> bool:
    """Whether exchanges with the key give anything: with a point of small order all give zero."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(key)))
    except ValueError:
        return False
    return True


def _check_context(context: str, terms: Terms, what: str) -> None:
    if context != terms.digest.hex():
        raise AbortError("context", f"{what} is of another round or of other terms")
