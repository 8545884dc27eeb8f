"""What a round of secure aggregation is about: who, how much, and how many may fail or collude.

The coordinator proposes the terms; each silo checks them against its own policy. Their digest is in
every key, signature and message, so that nothing of one round can be used in another.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

from scipy.stats import hypergeom

from fedtune.errors import InputError
from fedtune.secagg.abort import AbortError

VERSION = 2
MAX_SILOS = 10_000
MAX_WORDS = 1 << 32
MAX_HALVINGS = 60
_UNLIKELY = 2.0**-40
"""Chance, over a whole round, that some silo's neighbourhood is worse than was provided for."""


@dataclass(frozen=True)
class Terms:
    """A round's terms. `silos` are those asked, sorted; `words` is the length of a masked vector.

    Each silo hands shares of its secrets to `shareholders` others that it draws itself and keeps
    one: any `threshold` of them give the secrets back. A sum is opened only for a set of survivors
    that `quorum` of all silos have signed. `halvings` tells, tensor by tensor, how often the
    settings' bound of a delta's numbers is halved; none where numbers have no such bound.
    """

    run: str
    round: int
    attempt: int
    silos: tuple[str, ...]
    words: int
    shareholders: int
    threshold: int
    quorum: int
    halvings: tuple[int, ...] = ()

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that differ where any term does: the context of all keys and signatures."""
        numbers = (self.round, self.attempt, self.words, self.shareholders)
        told = [f"fedtune secagg {VERSION}", self.run, *map(str, numbers)]
        told += [str(self.threshold), str(self.quorum), ",".join(map(str, self.halvings))]
        told += self.silos
        whole = hashlib.sha256()
        for part in told:
            whole.update(len(part.encode()).to_bytes(4, "big") + part.encode())
        return whole.digest()

    def number(self, silo: str) -> int:
        """A silo's number, from 1 on: the point of its shares, and its bit in a set (less one)."""
        return self._numbers[silo]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {silo: number for number, silo in enumerate(self.silos, 1)}

    def check(self, *, own: str, min_silos: int, colluders: int) -> None:
        """Raise AbortError unless they protect `own` from `colluders` other silos that help the
        coordinator, in a sum of `min_silos` at least.

        Two sets of survivors can't both have a quorum: an honest silo signs one, so 2 * quorum must
        be over all silos and colluders together (Bonawitz et al. 2017, section 6.2). The same holds
        of a silo's shareholders, who must not give both of its secrets.
        """
        count, known = len(self.silos), set(self.silos)
        if own not in known or list(self.silos) != sorted(known) or count > MAX_SILOS:
            raise AbortError("terms", "the silos are not a sorted list of distinct names with ours")
        if self.round < 1 or self.attempt < 0 or not 1 <= self.words <= MAX_WORDS:
            raise AbortError("terms", f"round {self.round}, {self.words} words are not possible")
        if any(not 0 <= number <= MAX_HALVINGS for number in self.halvings):
            raise AbortError("terms", f"a bound is to be halved up to {MAX_HALVINGS} times")
        if not max(2, min_silos) <= self.quorum <= count:
            raise AbortError(
                "terms",
                f"a sum of {self.quorum} of {count} silos may be opened, want {min_silos} at least",
            )
        if not 0 <= colluders < count - 1 or 2 * self.quorum <= count + colluders:
            raise AbortError(
                "terms", f"a quorum of {self.quorum} of {count} does not bear {colluders} colluders"
            )
        holders = self.shareholders + 1
        if not 1 <= self.shareholders < count or not 1 <= self.threshold <= holders:
            raise AbortError("terms", f"{self.threshold} of {holders} holders of shares")
        among = worst_among(count - 1, colluders, self.shareholders, count)
        if 2 * self.threshold <= holders + among:
            raise AbortError(
                "terms",
                f"a threshold of {self.threshold} of {holders} holders of shares does not bear the "
                f"{among} colluders that may be among them",
            )


def worst_among(others: int, marked: int, drawn: int, rounds: int) -> int:
    """How many of `marked` may be among `drawn` of `others`, in any of `rounds` such draws, but for
    a chance of 2^-40 (hypergeometric tail and the union bound; Bell et al. 2020, section 3.4).
    """
    most = min(marked, drawn)
    if drawn == others:
        return most
    tail = hypergeom(others, marked, drawn)
    return next((n for n in range(most) if rounds * float(tail.sf(n)) < _UNLIKELY), most)


def choose(
    run: str,
    round_number: int,
    attempt: int,
    silos: tuple[str, ...],
    words: int,
    *,
    colluders: int,
    dropouts: int,
    min_silos: int = 3,
    halvings: tuple[int, ...] = (),
) -> Terms:
    """The terms with the fewest shareholders that bear so many colluders and dropouts, and open no
    sum of fewer than `min_silos`.

    The quorum is all that are left after so many dropouts: a second attempt of a round with other
    silos then still needs one of the first one's. Raises InputError where no terms do: n silos bear
    them if n > 2 * dropouts + colluders.
    """
    count = len(silos)
    quorum = count - dropouts
    if quorum < max((count + colluders) // 2 + 1, min_silos) or count < 3:
        raise InputError(
            f"{count} silos can't bear {colluders} colluders and {dropouts} dropouts",
            expected=f"more than {2 * dropouts + colluders} silos, and {min_silos + dropouts}",
            mend="lower one of the two, or let more silos take part in a round",
        )
    for shareholders in range(min(count - 1, _fewest(count)), count):
        bad = worst_among(count - 1, colluders, shareholders, count)
        gone = max(  # the silo, which keeps a share, is there; or it is one of those that are lost
            worst_among(count - 1, dropouts, shareholders, count),
            min(1, dropouts) + worst_among(count - 1, max(0, dropouts - 1), shareholders, count),
        )
        holders = shareholders + 1
        threshold = (holders + bad) // 2 + 1
        if threshold <= holders - gone:
            sharing = shareholders, threshold, quorum
            return Terms(run, round_number, attempt, silos, words, *sharing, halvings)
    raise InputError(
        f"no number of shareholders of {count} silos bears {colluders} colluders and {dropouts} "
        "dropouts",
        mend="lower one of the two",
    )


def _fewest(count: int) -> int:
    """A graph of so many random neighbours each is connected but for a negligible chance, also when
    a third of them is gone (Bell et al. 2020, section 3.4: a multiple of log n).
    """
    return math.ceil(6 * math.log2(max(2, count)))
