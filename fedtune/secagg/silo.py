"""A silo's part in a round (Bonawitz et al. 2017, figure 4, with the lines against a malicious
server; each silo draws its own shareholders as in Bell et al. 2020, section 4).

    advertise -> share -> mask -> agree -> unmask

Each step is taken once and in this order. Whatever the coordinator gives is checked before it is
used; on anything else than what is due the silo's part ends with AbortError, its secrets are let
go, and its vector stays hidden behind a mask that nobody can take away.
"""

import random
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedtune.secagg.abort import AbortError
from fedtune.secagg.masks import KEY_BYTES, WORD, add_mask, commitment, pair_key, self_key
from fedtune.secagg.messages import (
    Advert,
    Agreement,
    read_advert,
    read_agreement,
    read_set,
    write_advert,
    write_agreement,
    write_set,
)
from fedtune.secagg.shamir import SHARE_BYTES, split
from fedtune.secagg.terms import Terms

SEALED_BYTES = 2 * SHARE_BYTES + 16
"""Of an encrypted pair of shares: of the mask key and of the seed."""
_NONCE = bytes(12)  # a key encrypts one message: it is fresh for each round, sender and receiver
_STEPS = ("advertise", "share", "mask", "agree", "unmask", "over")


@dataclass(frozen=True)
class Unmasking:
    """What a silo reveals: of itself and each silo that gave it shares, one of two, never both.

    `seeds` are shares of survivors' own masks, `keys` of the mask keys of silos that were lost
    after they had shared them. `unreadable` names those whose shares could not be decrypted.
    """

    seeds: dict[str, bytes] = field(repr=False)
    keys: dict[str, bytes] = field(repr=False)
    unreadable: tuple[str, ...]


@dataclass
class Silo:
    """A silo in one round. `identities` are all silos' public keys (32 bytes) by the roster.

    That no two sets of survivors get a quorum, and that no two sums differ by a silo, rests on each
    silo signing one set of survivors a round, over all attempts: who makes a second Silo for a
    round must see to it.

    Raises AbortError on terms that don't bear `colluders` or may open a sum of fewer than
    `min_silos`, which are the silo's own policy.
    """

    name: str
    identity: Ed25519PrivateKey
    terms: Terms
    identities: Mapping[str, bytes]
    min_silos: int
    colluders: int
    _next: str = field(default="advertise", init=False)
    _channel: X25519PrivateKey = field(
        default_factory=X25519PrivateKey.generate, init=False, repr=False
    )
    _mask: X25519PrivateKey = field(
        default_factory=X25519PrivateKey.generate, init=False, repr=False
    )
    _seed: bytes = field(
        default_factory=lambda: secrets.token_bytes(KEY_BYTES), init=False, repr=False
    )
    _shareholders: frozenset[str] = field(default=frozenset(), init=False)
    _neighbours: dict[str, Advert] = field(default_factory=dict, init=False)
    _own_share: bytes = field(default=b"", init=False, repr=False)
    _held: dict[str, bytes] = field(default_factory=dict, init=False, repr=False)
    _shared: frozenset[str] = field(default=frozenset(), init=False)
    _survivors: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        self.terms.check(own=self.name, min_silos=self.min_silos, colluders=self.colluders)
        strangers = set(self.terms.silos) - set(self.identities)
        if strangers:
            raise AbortError("members", f"{sorted(strangers)[0]} is not in the roster")

    def advertise(self) -> str:
        """Its fresh public keys and the shareholders that it drew, signed."""
        with _Step(self, "advertise"):
            others = [silo for silo in self.terms.silos if silo != self.name]
            drawn = random.SystemRandom().sample(others, self.terms.shareholders)
            self._shareholders = frozenset(drawn)
            advert = Advert(
                context=self._context.hex(),
                silo=self.name,
                channel_key=self._channel.public_key().public_bytes_raw().hex(),
                mask_key=self._mask.public_key().public_bytes_raw().hex(),
                seed_commitment=commitment(self._seed, self._context, self.name).hex(),
                shareholders=tuple(sorted(drawn)),
            )
            return write_advert(advert, self.identity)

    def share(self, adverts: Sequence[str]) -> dict[str, bytes]:
        """Encrypted shares for each of its shareholders that advertised.

        `adverts` are those of its shareholders, and of the silos whose shareholder it is.
        """
        with _Step(self, "share"):
            for text in adverts:
                advert = read_advert(text, self.terms, dict(self.identities))
                if advert.silo == self.name or advert.silo in self._neighbours:
                    raise AbortError("members", f"{advert.silo} is there twice")
                if advert.silo not in self._shareholders and not self._holds_for(advert):
                    raise AbortError("members", f"{advert.silo} is no neighbour")
                self._neighbours[advert.silo] = advert
            holders = sorted(self._shareholders & self._neighbours.keys())
            self._check_enough(holders, "advertised")
            points = {silo: self.terms.number(silo) for silo in (self.name, *holders)}
            numbers, threshold = list(points.values()), self.terms.threshold
            keys = split(self._mask.private_bytes_raw(), numbers, threshold)
            seeds = split(self._seed, numbers, threshold)
            self._own_share = seeds[points[self.name]]
            return {
                silo: self._cipher(silo, (self.name, silo)).encrypt(
                    _NONCE, keys[points[silo]] + seeds[points[silo]], None
                )
                for silo in holders
            }

    def mask(self, vector: np.ndarray, shares: Mapping[str, bytes], shared: str) -> np.ndarray:
        """The vector, uint64 [words], behind its masks.

        `shared` is the set of silos that shared their secrets, `shares` the encrypted shares of
        those of them whose shareholder this silo is.
        """
        with _Step(self, "mask"):
            if vector.dtype != WORD or vector.shape != (self.terms.words,):
                raise ValueError(f"want {self.terms.words} words")
            self._shared = read_set(shared, self.terms)
            if self.name not in self._shared:
                raise AbortError("sets", "we are said not to have shared our secrets, and did")
            if len(self._shared) < self.terms.quorum:
                raise AbortError("too few", f"{len(self._shared)} silos shared their secrets")
            withheld = (self._shareholders & self._shared) - self._neighbours.keys()
            if withheld:  # a mask less: the sums of two groups could be opened one by one
                raise AbortError("members", f"{min(withheld)}'s advert was kept from us")
            self._check_enough(self._shareholders & self._shared, "have their shares")
            due = {silo for silo in self._there if self._holds_for(self._neighbours[silo])}
            if shares.keys() != due:
                odd = sorted(shares.keys() ^ due)[0]
                raise AbortError("members", f"{odd}'s shares are missing, or not for us")
            if any(type(one) is not bytes or len(one) != SEALED_BYTES for one in shares.values()):
                raise AbortError("malformed", f"shares are not of {SEALED_BYTES} bytes")
            self._held = dict(shares)
            masked = vector.copy()
            add_mask(masked, self_key(self._seed, self._context, self.name))
            for silo in self._there:
                advert, pair = self._neighbours[silo], pair_of(self.name, silo)
                key = _exchanged(self._mask, advert.mask_key, self._context, "mask", pair)
                add_mask(masked, key, subtract=self.name != pair[0])
            return masked

    def agree(self, survivors: str) -> str:
        """Its signature to the set of silos whose masked vectors are in the sum."""
        with _Step(self, "agree"):
            self._survivors = read_set(survivors, self.terms)
            if not self._survivors <= self._shared:
                raise AbortError("sets", "a survivor had not shared its secrets")
            if self.name not in self._survivors:
                raise AbortError("sets", "we are said to be lost, and sent our vector")
            if len(self._survivors) < self.terms.quorum:
                raise AbortError("too few", f"{len(self._survivors)} silos are in the sum")
            self._check_enough(self._shareholders & self._survivors, "are in the sum")
            return write_agreement(self._agreement(), self.identity)

    def unmask(self, agreements: Sequence[str]) -> Unmasking:
        """One share of each silo that it holds two of, once a quorum has signed the same sets."""
        with _Step(self, "unmask"):
            ours = self._agreement()
            masked_with: dict[str, frozenset[str]] = {}
            for text in agreements:
                agreement = read_agreement(text, self.terms, dict(self.identities))
                if (agreement.shared, agreement.survivors) != (ours.shared, ours.survivors):
                    raise AbortError("sets", f"{agreement.silo} was told of other sets")
                if agreement.silo in masked_with or agreement.silo not in self._survivors:
                    raise AbortError("members", f"{agreement.silo} signs twice or is lost")
                masked_with[agreement.silo] = read_set(agreement.neighbours, self.terms)
            if len(masked_with) < self.terms.quorum:
                raise AbortError("too few", f"{len(masked_with)} silos agree to the survivors")
            _check_mutual(masked_with)
            return self._revealed()

    def _revealed(self) -> Unmasking:
        seeds, keys, unreadable = {self.name: self._own_share}, {}, []
        for silo, sealed in sorted(self._held.items()):
            try:
                opened = self._cipher(silo, (silo, self.name)).decrypt(_NONCE, sealed, None)
            except InvalidTag:
                unreadable.append(silo)
                continue
            if silo in self._survivors:
                seeds[silo] = opened[SHARE_BYTES:]
            else:
                keys[silo] = opened[:SHARE_BYTES]
        return Unmasking(seeds, keys, tuple(unreadable))

    def _agreement(self) -> Agreement:
        return Agreement(
            context=self._context.hex(),
            silo=self.name,
            shared=write_set(self._shared, self.terms),
            survivors=write_set(self._survivors, self.terms),
            neighbours=write_set(self._there, self.terms),
        )

    @property
    def _context(self) -> bytes:
        return self.terms.digest

    @property
    def _there(self) -> list[str]:
        """The neighbours that shared their secrets."""
        return sorted(self._shared & self._neighbours.keys())

    def _holds_for(self, advert: Advert) -> bool:
        return self.name in advert.shareholders

    def _check_enough(self, holders: Collection[str], what: str) -> None:
        if len(holders) + 1 < self.terms.threshold:  # and our own share
            raise AbortError("too few", f"{len(holders)} of our shareholders {what}")

    def _cipher(self, other: str, pair: tuple[str, str]) -> ChaCha20Poly1305:
        theirs = self._neighbours[other].channel_key
        return ChaCha20Poly1305(_exchanged(self._channel, theirs, self._context, "shares", pair))

    def _forget(self) -> None:
        # what Python holds is not wiped, but nothing leads to it any more
        self._seed = self._own_share = b""
        self._held.clear()
        del self._channel, self._mask


def pair_of(one: str, other: str) -> tuple[str, str]:
    """Two silos in the order of their masks: the first adds, the second subtracts."""
    return (one, other) if one < other else (other, one)


def _exchanged(
    own: X25519PrivateKey,
    other: str,
    context: bytes,
    purpose: Literal["mask", "shares"],
    pair: tuple[str, str],
) -> bytes:
    return pair_key(own, bytes.fromhex(other), context, purpose, pair)


def _check_mutual(masked_with: Mapping[str, Collection[str]]) -> None:
    """A silo that was kept from knowing a neighbour has no mask with it, and could be summed apart
    from it: each mask must have both its ends.
    """
    for silo, neighbours in masked_with.items():
        for other in neighbours:
            if other in masked_with and silo not in masked_with[other]:
                raise AbortError("sets", f"{silo} has a mask with {other}, which has none with it")


@dataclass
class _Step:
    """One step of a silo: due now, and never again; after the last or a failed one all is over."""

    silo: Silo
    name: str

    def __enter__(self) -> None:
        if self.silo._next != self.name:
            raise AbortError("order", f"`{self.name}` is not due: `{self.silo._next}` is")
        self.silo._next = "over"

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        following = _STEPS[_STEPS.index(self.name) + 1]
        if kind is None:
            self.silo._next = following
        if kind is not None or following == "over":
            self.silo._forget()
