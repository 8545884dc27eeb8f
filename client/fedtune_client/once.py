"""What a silo does once a round, however often it is asked: agree to a sum, and draw noise."""

import json
import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedtune.atomic import append_line, flush, new_folder
from fedtune.errors import InputError
from fedtune.models.read_json import read_json
from fedtune.privacy.distributed import NoisySum
from fedtune.secagg.abort import AbortError
from fedtune.secagg.terms import Terms

AGREED = "agreed.jsonl"
"""In a run's folder, by round: what this silo sent vectors for, the survivors it signed for."""
DRAWN = "drawn"
"""In a run's folder: the latest round's vector with its noise."""


@dataclass(frozen=True)
class _Attempt:
    """Who was asked in an attempt, how many open its sum, and how often bounds were halved."""

    silos: list[str]
    quorum: int
    halvings: list[int]


@dataclass
class Agreed:
    """What this silo has bound itself to in each round of a run; in `file`, if there is one.

    A round that is tried again is trained on once, so its deltas are the same: the difference of
    two sums over sets that differ in few silos would be those silos', and sums of the same numbers
    cut at many bounds would tell the numbers. So it signs for one set of survivors a round, at one
    choice of bounds, and sends its vector again only where the quorums of both attempts share an
    honest silo, which won't sign for two sets either.
    """

    file: Path | None = None
    _attempts: dict[int, list[_Attempt]] = field(default_factory=dict, init=False)
    _survivors: dict[int, list[str]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.file is None or not self.file.exists():
            return
        whole, _, cut_off = self.file.read_bytes().rpartition(b"\n")
        if cut_off:  # by a loss of power: what it was for was never sent
            os.truncate(self.file, len(whole) + 1 if whole else 0)
        try:
            for line in whole.splitlines():
                self._recall(json.loads(line))
        except (ValueError, LookupError, TypeError):
            raise InputError(
                "what this silo agreed to in secure rounds can't be read",
                where=self.file,
                mend="put it back from a copy; without it, start another run",
            ) from None

    def _recall(self, line: dict[str, Any]) -> None:
        if "survivors" in line:
            self._survivors[line["round"]] = line["survivors"]
        else:
            attempt = _Attempt(line["silos"], line["quorum"], line["halvings"])
            self._attempts.setdefault(line["round"], []).append(attempt)

    def check_attempt(self, terms: Terms, colluders: int) -> None:
        """Raise AbortError where a vector of the round is not to be sent again for these terms."""
        for before in self._attempts.get(terms.round, ()):
            if before.halvings != list(terms.halvings):
                raise AbortError("sets", f"we agreed to other bounds in round {terms.round} before")
            both = len({*before.silos, *terms.silos})
            if before.quorum + terms.quorum <= both + colluders:
                raise AbortError(
                    "sets",
                    f"a sum of round {terms.round} may have been opened before, by "
                    f"{before.quorum} of {both} silos; {terms.quorum} that open this one need have "
                    "no honest one in common with them: let the same silos take part again",
                )

    def add_attempt(self, terms: Terms) -> None:
        """Remember that a vector is sent for these terms; on disk when it returns."""
        attempt = _Attempt(list(terms.silos), terms.quorum, list(terms.halvings))
        known = self._attempts.setdefault(terms.round, [])
        if attempt not in known:
            self._write({"round": terms.round, **asdict(attempt)})
            known.append(attempt)  # only what is written counts as remembered, or it never would be

    def check(self, number: int, survivors: Collection[str]) -> None:
        """Raise AbortError where another set of the round was signed before."""
        if self._survivors.get(number, sorted(survivors)) != sorted(survivors):
            raise AbortError("sets", f"we signed for other survivors of round {number} before")

    def add(self, number: int, survivors: Collection[str]) -> None:
        """Remember the set; on disk when it returns."""
        if number not in self._survivors:
            self._write({"round": number, "survivors": sorted(survivors)})
            self._survivors[number] = sorted(survivors)

    def _write(self, told: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.file, json.dumps(told))
            flush(self.file)
            flush(self.file.parent)


@dataclass
class Drawn:
    """The latest round's vector with its noise, in `folder`, if there is one.

    Noise is drawn once a round: were a round tried again with other noise, two sums would have less
    of it than was counted for one. So a second attempt has the same vector or none.
    """

    folder: Path | None = None
    _kept: tuple[dict[str, int], np.ndarray] | None = field(default=None, init=False)

    @property
    def _rounds(self) -> Path | None:
        """The rounds that noise was drawn for, a line each: also of vectors that are gone."""
        return self.folder and self.folder.with_name(self.folder.name + ".jsonl")

    def vector(
        self, number: int, code: NoisySum, scale: int, draw: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """The vector of round `number`, drawn if it is new. Raises AbortError where it was drawn
        for other sums.
        """
        self._kept = self._kept or self._read()
        facts = {"round": number, "steps": code.steps, "scale": scale, "words": code.words}
        if number > self._latest():
            self._keep(facts, draw())
        kept, words = self._there()
        if kept != facts:
            raise AbortError(
                "noise", f"we drew our noise for round {kept['round']}, and for other sums"
            )
        return words

    def _there(self) -> tuple[dict[str, int], np.ndarray]:
        if self._kept is None:
            raise AbortError("noise", "we drew our noise for this round, and it is gone")
        return self._kept

    def _latest(self) -> int:
        """The latest round that noise was drawn for; 0 before any."""
        if self._rounds is not None and self._rounds.exists():
            return max(json.loads(line)["round"] for line in self._rounds.read_text().splitlines())
        return self._kept[0]["round"] if self._kept else 0

    def _keep(self, facts: dict[str, int], words: np.ndarray) -> None:
        """On disk, whole or not at all, before it is sent."""
        if self.folder is not None and self._rounds is not None:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with new_folder(self.folder, needed=words.nbytes) as draft:
                np.save(draft / "words.npy", words)
                (draft / "drawn.json").write_text(json.dumps(facts))
            append_line(self._rounds, json.dumps({"round": facts["round"]}))
            flush(self._rounds)
            flush(self.folder.parent)
        self._kept = facts, words

    def _read(self) -> tuple[dict[str, int], np.ndarray] | None:
        if self.folder is None or not self.folder.exists():
            return None
        try:
            return read_json(self.folder / "drawn.json"), np.load(self.folder / "words.npy")
        except (InputError, OSError, ValueError) as error:
            raise AbortError("noise", f"the noise that we drew can't be read: {error}") from None
