"""A coordinator that tells two groups of silos different things, drawn at random: whatever silos
then reveal, what it can open is a sum of no fewer than the quorum, colluders included.

The silos are real. What their coordinator could compute is worked out as on paper: a vector hides
behind its silo's own mask and a mask for each neighbour; which masks are known follows from the
shares that were revealed; a sum is open when each mask in it is known or cancels.

In a complete graph threshold and quorum each hold where the other is broken: this goes red when the
threshold is too low and so is the quorum, or sets that differ are let pass.
"""

import random
from collections.abc import Callable, Collection
from typing import Any

import pytest

from fedtune.secagg.abort import AbortError
from fedtune.secagg.messages import Agreement, write_agreement, write_set
from fedtune.secagg.terms import Terms
from tests.secagg.conftest import Round, identity_of, terms_of, vectors_of
from tests.secagg.test_attacks import advert_of


class Mosaic:
    """One round under such a coordinator; the first `colluders` silos help it."""

    def __init__(self, terms: Terms, colluders: int, seed: int) -> None:
        self.terms, self.draw = terms, random.Random(seed)
        self.silos = Round(terms, colluders).silos
        self.bad = set(terms.silos[:colluders])
        self.group = {silo: self.draw.randrange(2) for silo in terms.silos}
        self.apart, self.mixed = self.draw.random() < 0.3, self.draw.random() < 0.5
        self.masked_with: dict[str, set[str]] = {}
        self.seeds: dict[str, set[str]] = {}  # who revealed a share of whose seed
        self.keys: dict[str, set[str]] = {}

    def play(self) -> None:
        told = {silo: self._known_to(silo, adverts) for silo, adverts in self._adverts().items()}
        known = {silo: {advert_of(text).silo for text in texts} for silo, texts in told.items()}
        dealt = self._each(lambda silo: self.silos[silo].share(told[silo]), self.terms.silos)
        self.seeds = {dealer: self.bad & shares.keys() for dealer, shares in dealt.items()}
        self.keys = {dealer: set(there) for dealer, there in self.seeds.items()}

        some = self._two(dealt, dealt)
        shared = {silo: some[self.group[silo]] | {silo} for silo in dealt}
        vectors = vectors_of(self.terms)

        def mask(silo: str) -> set[str]:
            there = shared[silo] & known[silo]
            held = {one: dealt[one][silo] for one in there if silo in dealt[one]}
            self.silos[silo].mask(vectors[silo], held, self._set(shared[silo]))
            return there

        self.masked_with = self._each(mask, dealt.keys() - self.bad)
        some = self._two(*some)
        ends = {silo: some[self.group[silo]] | self.bad | {silo} for silo in dealt}
        agreed = self._each(
            lambda silo: self.silos[silo].agree(self._set(ends[silo])), self.masked_with
        )

        def unmask(silo: str) -> None:
            sets = shared[silo], ends[silo]
            texts = [
                agreed[one]
                for one in agreed
                if (shared[one], ends[one]) == sets or (self.mixed and one in ends[silo])
            ]
            forged = [self._forged(one, *sets) for one in sorted(self.bad)]
            revealed = self.silos[silo].unmask([*texts, *forged])
            for dealer in revealed.seeds:
                self.seeds[dealer].add(silo)
            for dealer in revealed.keys:
                self.keys[dealer].add(silo)

        self._each(unmask, agreed)

    def opened(self) -> list[set[str]]:
        """The smallest sets of honest silos whose sum is open."""
        enough = self.terms.threshold
        bare = {silo for silo in self.masked_with if len(self.seeds[silo]) >= enough}
        known = {silo for silo, there in self.keys.items() if len(there) >= enough} | self.bad
        hidden = {
            silo: set() if silo in known else there - known
            for silo, there in self.masked_with.items()
        }
        found, left = [], set(bare)
        while left:
            group, reached = set(), {left.pop()}
            while reached:
                silo = reached.pop()
                group.add(silo)
                reached |= {one for one in hidden[silo] & bare if silo in hidden[one]} - group
            left -= group
            if all(one in group and silo in hidden[one] for silo in group for one in hidden[silo]):
                found.append(group)
        return found

    def _adverts(self) -> dict[str, list[str]]:
        every = [silo.advertise() for silo in self.silos.values()]
        near = {advert_of(text).silo: set(advert_of(text).shareholders) for text in every}
        return {
            silo: [
                text
                for text in every
                if (other := advert_of(text).silo) in near[silo] or silo in near[other]
            ]
            for silo in self.silos
        }

    def _known_to(self, silo: str, adverts: list[str]) -> list[str]:
        """All, or those of the silo's own group, of colluders, and a few more."""
        return [
            text
            for text in adverts
            if not self.apart
            or (other := advert_of(text).silo) in self.bad
            or self.group[other] == self.group[silo]
            or self.draw.random() < 0.7
        ]

    def _two(self, first: Collection[str], second: Collection[str]) -> list[set[str]]:
        """For each group some of the silos, or for both the same."""
        one, other = self._most_of(first), self._most_of(second)
        return [one, one if self.draw.random() < 0.5 else other]

    def _most_of(self, silos: Collection[str]) -> set[str]:
        spare = max(0, len(silos) - self.terms.quorum)
        return set(self.draw.sample(sorted(silos), len(silos) - self.draw.randint(0, spare)))

    def _each(self, step: Callable[[str], Any], silos: Collection[str]) -> dict[str, Any]:
        """What each silo answers that doesn't end its part."""
        answers = {}
        for silo in sorted(silos):
            try:
                answers[silo] = step(silo)
            except AbortError:
                continue
        return answers

    def _forged(self, silo: str, shared: set[str], survivors: set[str]) -> str:
        """A colluder signs any sets, and masks with whoever was told of it."""
        told = {one for one, there in self.masked_with.items() if silo in there}
        agreement = Agreement(
            context=self.terms.digest.hex(),
            silo=silo,
            shared=self._set(shared),
            survivors=self._set(survivors),
            neighbours=self._set(told),
        )
        return write_agreement(agreement, identity_of(silo))

    def _set(self, silos: Collection[str]) -> str:
        return write_set(silos, self.terms)


@pytest.mark.parametrize(("count", "colluders"), [(5, 0), (6, 1), (7, 2)])
def test_no_mosaic_opens_a_sum_of_few(count: int, colluders: int):
    terms, opened = terms_of(count, colluders=colluders), 0
    for seed in range(150):
        made = Mosaic(terms, colluders, seed)
        made.play()
        for group in made.opened():
            assert 2 * (len(group) + colluders) > count + colluders, (seed, group)
            opened += 1
    assert opened >= 10  # else nothing was tried
