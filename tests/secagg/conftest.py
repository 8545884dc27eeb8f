"""A whole round in memory, with silos lost on the way."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtune.secagg.coordinator import Coordinator
from fedtune.secagg.masks import WORD
from fedtune.secagg.silo import Silo
from fedtune.secagg.terms import Terms, choose


@functools.cache
def identity_of(silo: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(silo.encode().ljust(32, b"."))


def names(count: int) -> tuple[str, ...]:
    return tuple(f"silo-{number:03d}" for number in range(count))


def identities(silos: Collection[str]) -> dict[str, bytes]:
    return {silo: identity_of(silo).public_key().public_bytes_raw() for silo in silos}


def terms_of(count: int, words: int = 5, *, colluders: int = 0, dropouts: int = 0) -> Terms:
    load = {"colluders": colluders, "dropouts": dropouts, "min_silos": 2}
    return choose("run", 1, 0, names(count), words, **load)


@dataclass
class Round:
    """The silos and the coordinator of one round; each stage goes over those still there."""

    terms: Terms
    colluders: int = 0
    silos: dict[str, Silo] = field(init=False)
    coordinator: Coordinator = field(init=False)

    def __post_init__(self) -> None:
        known = identities(self.terms.silos)
        self.coordinator = Coordinator(self.terms, known)
        self.silos = {
            name: Silo(name, identity_of(name), self.terms, known, 2, self.colluders)
            for name in self.terms.silos
        }

    def lose(self, lost: Collection[str]) -> None:
        for name in lost:
            self.silos.pop(name, None)

    def advertise(self) -> dict[str, list[str]]:
        for name, silo in self.silos.items():
            self.coordinator.add_advert(name, silo.advertise())
        return self.coordinator.close_adverts()

    def share(self, adverts: Mapping[str, list[str]]) -> tuple[str, dict[str, dict[str, bytes]]]:
        for name, silo in self.silos.items():
            self.coordinator.add_shares(name, silo.share(adverts[name]))
        return self.coordinator.close_shares()

    def mask(
        self,
        vectors: Mapping[str, np.ndarray],
        shared: str,
        held: Mapping[str, Mapping[str, bytes]],
    ) -> str:
        for name, silo in self.silos.items():
            self.coordinator.add_masked(name, silo.mask(vectors[name], held[name], shared))
        return self.coordinator.close_masked()

    def agree(self, survivors: str) -> list[str]:
        for name, silo in self.silos.items():
            self.coordinator.add_agreement(name, silo.agree(survivors))
        return self.coordinator.close_agreements()

    def unmask(self, agreements: list[str]) -> tuple[np.ndarray, frozenset[str]]:
        for name, silo in self.silos.items():
            self.coordinator.add_unmasking(name, silo.unmask(agreements))
        return self.coordinator.finish()


def run(
    terms: Terms,
    vectors: Mapping[str, np.ndarray],
    lost: Mapping[str, Collection[str]] | None = None,
    colluders: int = 0,
) -> tuple[np.ndarray, frozenset[str]]:
    """A round in which the silos of `lost[stage]` end before that stage."""
    lost, made = lost or {}, Round(terms, colluders)
    made.lose(lost.get("advertise", ()))
    adverts = made.advertise()
    made.lose(lost.get("share", ()))
    shared, held = made.share(adverts)
    made.lose(lost.get("mask", ()))
    survivors = made.mask(vectors, shared, held)
    made.lose(lost.get("agree", ()))
    agreements = made.agree(survivors)
    made.lose(lost.get("unmask", ()))
    return made.unmask(agreements)


def vectors_of(terms: Terms, seed: int = 0) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(seed)
    return {
        silo: numbers.integers(0, 2**64, terms.words, dtype=np.uint64).astype(WORD)
        for silo in terms.silos
    }


def plain_sum(vectors: Mapping[str, np.ndarray], silos: Collection[str]) -> np.ndarray:
    total = [sum(int(vectors[silo][i]) for silo in silos) % 2**64 for i in range(_length(vectors))]
    return np.array(total, dtype=WORD)


def _length(vectors: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(vectors.values())))
