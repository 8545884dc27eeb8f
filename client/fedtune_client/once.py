"""What a silo does once a round, however often it is asked: sign for survivors, and draw noise."""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
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
"""In a run's folder: the survivors that this silo signed for, and their bounds, by round."""
DRAWN = "drawn"
"""In a run's folder: the latest round's vector with its noise."""


@dataclass
class Agreed:
    """Of each round of a run the survivors that this silo signed for, and how often bounds were
    halved; in `file`, if there is one.

    A round that is tried again is trained on once, so its deltas are the same: the difference of
    two sums over sets that differ in one silo would be that silo's, and sums of the same numbers
    cut at many bounds would tell the numbers. A second attempt is therefore for the same set at the
    same bounds, or none.
    """

    file: Path | None = None
    _known: dict[int, dict[str, Any]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            lines = map(json.loads, self.file.read_text().splitlines())
            self._known = {line["round"]: line for line in lines}

    def check(self, terms: Terms, survivors: Collection[str]) -> None:
        """Raise AbortError where another set of the round was signed before, or other bounds."""
        told = _told(terms, survivors)
        known = self._known.get(terms.round, told)
        for what in ("survivors", "halvings"):
            if known[what] != told[what]:
                other = "survivors" if what == "survivors" else "bounds"
                raise AbortError(
                    "sets", f"we signed for other {other} of round {terms.round} before"
                )

    def add(self, terms: Terms, survivors: Collection[str]) -> None:
        """Remember them; on disk when it returns."""
        if terms.round in self._known:
            return
        told = self._known[terms.round] = _told(terms, survivors)
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.file, json.dumps(told))
            flush(self.file)
            flush(self.file.parent)


def _told(terms: Terms, survivors: Collection[str]) -> dict[str, Any]:
    halvings = list(terms.halvings)
    return {"round": terms.round, "survivors": sorted(survivors), "halvings": halvings}


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
