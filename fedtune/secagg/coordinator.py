"""The coordinator's part in a round: it carries messages, adds masked vectors, and takes the masks
off the sum with the shares that silos reveal (Bonawitz et al. 2017, figure 4).

Silos need not trust it. It does not trust them either: a message that isn't what is due raises
AbortError and leaves the round as it was, without that silo in what follows.
"""

import itertools
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import comb

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedtune.secagg.abort import AbortError
from fedtune.secagg.masks import WORD, add_mask, commitment, pair_key, self_key
from fedtune.secagg.messages import (
    Advert,
    read_advert,
    read_agreement,
    write_set,
)
from fedtune.secagg.shamir import SHARE_BYTES, combine
from fedtune.secagg.silo import SEALED_BYTES, Unmasking, pair_of
from fedtune.secagg.terms import Terms

_MOST_TRIES = 2000


@dataclass
class Coordinator:
    """The coordinator in one round. `identities` are all silos' public keys by the roster.

    Each stage is a message taken from each silo that sends one, then closed, which gives what the
    silos are sent next; closing raises AbortError when too few are left. Of vectors only the sum is
    kept.
    """

    terms: Terms
    identities: Mapping[str, bytes]
    _adverts: dict[str, tuple[Advert, str]] = field(default_factory=dict, init=False)
    _shares: dict[str, Mapping[str, bytes]] = field(default_factory=dict, init=False)
    _shared: frozenset[str] = field(default=frozenset(), init=False)
    _sum: np.ndarray = field(init=False)
    _survivors: set[str] = field(default_factory=set, init=False)
    _agreements: dict[str, str] = field(default_factory=dict, init=False)
    _unmaskings: dict[str, Unmasking] = field(default_factory=dict, init=False, repr=False)
    suspects: dict[str, str] = field(default_factory=dict, init=False)
    """Silos whose shares were wrong, and how: theirs, or those that they were given."""

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.terms.words, WORD)

    def add_advert(self, silo: str, text: str) -> None:
        """Take a silo's advert."""
        advert = read_advert(text, self.terms, dict(self.identities))
        if advert.silo != silo or silo in self._adverts:
            raise AbortError("members", f"{silo} sent {advert.silo}'s advert, or two")
        self._adverts[silo] = advert, text

    def close_adverts(self) -> dict[str, list[str]]:
        """For each silo the adverts of its neighbours."""
        self._check_enough(self._adverts, "advertised their keys")
        return {
            silo: [self._adverts[other][1] for other in self._neighbours(silo, self._adverts)]
            for silo in sorted(self._adverts)
        }

    def add_shares(self, silo: str, shares: Mapping[str, bytes]) -> None:
        """Take a silo's encrypted shares, one for each of its shareholders that advertised."""
        if silo not in self._adverts or silo in self._shares:
            raise AbortError("order", f"{silo}'s shares are not due")
        if shares.keys() != set(self._adverts[silo][0].shareholders) & self._adverts.keys():
            raise AbortError("members", f"{silo}'s shares are not for its shareholders")
        if any(type(one) is not bytes or len(one) != SEALED_BYTES for one in shares.values()):
            raise AbortError("malformed", f"{silo}'s shares are not of {SEALED_BYTES} bytes")
        self._shares[silo] = shares

    def close_shares(self) -> tuple[str, dict[str, dict[str, bytes]]]:
        """The set of silos that shared, and for each of them the shares that it is to hold."""
        self._check_enough(self._shares, "shared their secrets")
        self._shared = frozenset(self._shares)
        held = {
            silo: {dealer: dealt[silo] for dealer, dealt in self._shares.items() if silo in dealt}
            for silo in sorted(self._shared)
        }
        return write_set(self._shared, self.terms), held

    def add_masked(self, silo: str, masked: np.ndarray) -> None:
        """Add a silo's masked vector, uint64 [words], to the sum."""
        if silo not in self._shared or silo in self._survivors:
            raise AbortError("order", f"{silo}'s vector is not due")
        if masked.dtype != WORD or masked.shape != self._sum.shape:
            raise AbortError("malformed", f"{silo}'s vector is not of {self.terms.words} words")
        self._sum += masked
        self._survivors.add(silo)

    def close_masked(self) -> str:
        """The set of survivors, for each of them to sign."""
        self._check_enough(self._survivors, "sent their vectors")
        return write_set(self._survivors, self.terms)

    @property
    def survivors(self) -> list[str]:
        """The silos whose vectors are in the sum."""
        return sorted(self._survivors)

    @property
    def signers(self) -> list[str]:
        """The silos that agreed to the survivors."""
        return sorted(self._agreements)

    def add_agreement(self, silo: str, text: str) -> None:
        """Take a survivor's signature to the sets."""
        agreement = read_agreement(text, self.terms, dict(self.identities))
        if agreement.silo != silo or silo not in self._survivors or silo in self._agreements:
            raise AbortError("members", f"{silo} sent {agreement.silo}'s agreement, or two")
        sets = self._shared, self._survivors, self._neighbours(silo, self._shared)
        told = (agreement.shared, agreement.survivors, agreement.neighbours)
        if told != tuple(write_set(one, self.terms) for one in sets):
            raise AbortError("sets", f"{silo} agrees to other sets")
        self._agreements[silo] = text

    def close_agreements(self) -> list[str]:
        """The signatures, for each silo that signed."""
        self._check_enough(self._agreements, "agreed to the survivors")
        return list(self._agreements.values())

    def add_unmasking(self, silo: str, revealed: Unmasking) -> None:
        """Take the shares that a silo reveals."""
        if silo not in self._agreements or silo in self._unmaskings:
            raise AbortError("order", f"{silo}'s shares are not due")
        dealers = {d for d in self._shared if d == silo or silo in self._shares[d]}
        named = [*revealed.seeds, *revealed.keys, *revealed.unreadable]
        if (
            len(set(named)) < len(named)
            or set(named) != dealers
            or not revealed.seeds.keys() <= self._survivors
            or revealed.keys.keys() & self._survivors
        ):
            raise AbortError("sets", f"{silo} revealed other shares than are due")
        every = [*revealed.seeds.values(), *revealed.keys.values()]
        if any(type(one) is not bytes or len(one) != SHARE_BYTES for one in every):
            raise AbortError("malformed", f"{silo}'s shares are not of {SHARE_BYTES} bytes")
        self._unmaskings[silo] = revealed

    def finish(self) -> tuple[np.ndarray, frozenset[str]]:
        """The sum of the survivors' vectors, uint64 [words] modulo 2^64, and who they are.

        Raises AbortError, naming the silo, where a secret can't be put together.
        """
        context = self.terms.digest
        for silo in sorted(self._survivors):
            seed = self._opened(silo, "seed")
            add_mask(self._sum, self_key(seed, context, silo), subtract=True)
        for silo in sorted(self._shared - self._survivors):
            key = X25519PrivateKey.from_private_bytes(self._opened(silo, "key"))
            for other in self._neighbours(silo, self._survivors):
                pair = pair_of(silo, other)
                theirs = bytes.fromhex(self._adverts[other][0].mask_key)
                # what the survivor added is taken away, and the other way about
                add_mask(
                    self._sum,
                    pair_key(key, theirs, context, "mask", pair),
                    subtract=other == pair[0],
                )
        return self._sum, frozenset(self._survivors)

    def _opened(self, silo: str, kind: str) -> bytes:
        """A silo's secret from its shares: the one that its advert makes recognisable."""
        shares = {
            self.terms.number(holder): share
            for holder, revealed in sorted(self._unmaskings.items())
            if (share := (revealed.seeds if kind == "seed" else revealed.keys).get(silo))
        }
        self._check_enough(shares, f"revealed shares of {silo}", self.terms.threshold)
        for chosen in itertools.islice(_subsets(shares, self.terms.threshold), _MOST_TRIES):
            secret = self._recognised(silo, kind, {point: shares[point] for point in chosen})
            if secret is not None:
                self._suspect(silo, kind, secret, shares, chosen)
                return secret
        raise AbortError("share", f"{silo}'s shares give no secret of its own")

    def _recognised(self, silo: str, kind: str, shares: Mapping[int, bytes]) -> bytes | None:
        advert = self._adverts[silo][0]
        try:
            secret = combine(shares)
        except ValueError:
            return None
        if kind == "seed":
            told = commitment(secret, self.terms.digest, silo).hex()
            return secret if told == advert.seed_commitment else None
        public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        return secret if public.hex() == advert.mask_key else None

    def _suspect(
        self,
        silo: str,
        kind: str,
        secret: bytes,
        shares: Mapping[int, bytes],
        good: tuple[int, ...],
    ) -> None:
        """Note the holders whose share isn't of the polynomial that gave the secret."""
        for point in shares.keys() - set(good):
            tried = {one: shares[one] for one in (*good[1:], point)}
            if self._recognised(silo, kind, tried) != secret:
                holder = self.terms.silos[point - 1]
                self.suspects[holder] = f"its share of {silo}'s {kind} is wrong, or was dealt so"

    def _neighbours(self, silo: str, among: Iterable[str]) -> list[str]:
        """Those of `among` that hold its shares or whose shares it holds."""
        own = self._adverts[silo][0].shareholders
        return [
            other
            for other in sorted(among)
            if other != silo and (other in own or silo in self._adverts[other][0].shareholders)
        ]

    def _check_enough(self, there: Iterable[object], what: str, wanted: int | None = None) -> None:
        count, needed = len(list(there)), self.terms.quorum if wanted is None else wanted
        if count < needed:
            raise AbortError("too few", f"{count} silos {what}, {needed} are needed")


def _subsets(points: Iterable[int], size: int) -> Iterable[tuple[int, ...]]:
    """All subsets of `size`, or where these are many those of neighbours in a ring and then any
    drawn ones: a few wrong shares are in few of these, wherever they are.
    """
    ordered = sorted(points)
    if comb(len(ordered), size) <= _MOST_TRIES:
        return itertools.combinations(ordered, size)
    ring = ordered + ordered
    turned = (tuple(sorted(ring[start : start + size])) for start in range(len(ordered)))
    draw = random.SystemRandom()
    return itertools.chain(turned, iter(lambda: tuple(sorted(draw.sample(ordered, size))), ()))
