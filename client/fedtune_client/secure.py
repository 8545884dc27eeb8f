"""A silo's part in secure aggregation, over Flower's messages.

    query.secure   step `advertise`: terms                    -> its advert
                   step `share`:     adverts of neighbours    -> encrypted shares
    train          beside the instruction: who shared, shares -> its masked vector
    query.secure   step `agree`:     survivors                -> its signature
                   step `unmask`:    signatures               -> one share of each silo

Everything that comes is untrusted: it is read here into plain values, and judged by
`fedtune.secagg`, which raises AbortError.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedtune.atomic import append_line, flush
from fedtune.config.schema import RunConfig
from fedtune.secagg.abort import AbortError
from fedtune.secagg.fields import by_silo, text_in, texts_in
from fedtune.secagg.messages import read_set, read_terms
from fedtune.secagg.silo import Silo
from fedtune.secagg.weighted import encoding_of
from fedtune.tensors import WIRE_STYPE, Spec
from fedtune_client.update import LocalUpdate

RECORD = "secure"
AGREED = "agreed.jsonl"
"""In a run's folder: the survivors that this silo signed for, by round."""


@dataclass
class Agreed:
    """Of each round of a run the survivors that this silo signed for; in `file`, if there is one.

    A round that is tried again is trained on once, so its deltas are the same: the difference of
    two sums over sets that differ in one silo would be that silo's. A second attempt is therefore
    for the same set or none.
    """

    file: Path | None = None
    _known: dict[int, list[str]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            lines = map(json.loads, self.file.read_text().splitlines())
            self._known = {line["round"]: line["survivors"] for line in lines}

    def check(self, number: int, survivors: Collection[str]) -> None:
        """Raise AbortError where another set of the round was signed before."""
        if self._known.get(number, sorted(survivors)) != sorted(survivors):
            raise AbortError("sets", f"we signed for other survivors of round {number} before")

    def add(self, number: int, survivors: Collection[str]) -> None:
        """Remember the set; on disk when it returns."""
        if number in self._known:
            return
        self._known[number] = sorted(survivors)
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            told = {"round": number, "survivors": self._known[number]}
            append_line(self.file, json.dumps(told))
            flush(self.file)
            flush(self.file.parent)


@dataclass
class SecurePart:
    """One silo in a run's secure rounds, one at a time.

    `config` are the run's settings, `identities` all silos' public keys by the roster, `min_silos`
    and `colluders` this silo's policy.
    """

    name: str
    config: RunConfig
    run_hash: str
    identity: Ed25519PrivateKey
    identities: Mapping[str, bytes]
    min_silos: int
    colluders: int
    agreed: Agreed = field(default_factory=Agreed)
    _silo: Silo | None = field(default=None, init=False)

    def answer(self, message: Message) -> Message:
        """The reply to a `query.secure`. Raises AbortError on what can't be answered."""
        record, step = _record(message), step_of(message)
        content: dict[str, Any]
        if step == "advertise":
            content = {"advert": self._begin(record).advertise()}
        elif step == "share":
            shares = self._at(record).share(texts_in(record, "adverts"))
            content = {"silos": list(shares), "sealed": list(shares.values())}
        elif step == "agree":
            content = {"agreement": self._agree(self._at(record), text_in(record, "survivors"))}
        else:
            revealed = self._at(record).unmask(texts_in(record, "agreements"))
            content = {
                "seeds_of": list(revealed.seeds),
                "seeds": list(revealed.seeds.values()),
                "keys_of": list(revealed.keys),
                "keys": list(revealed.keys.values()),
                "unreadable": list(revealed.unreadable),
            }
        return Message(RecordDict({RECORD: ConfigRecord(content)}), reply_to=message)

    def check_due(self, message: Message, round_number: int) -> None:
        """Raise AbortError unless a vector of this round is due: before anything is trained."""
        silo = self._at(_record(message))
        if silo.terms.round != round_number:
            raise AbortError("context", f"the terms are of round {silo.terms.round}")

    def masked(self, message: Message, update: LocalUpdate, spec: Spec) -> Message:
        """The reply to a `train` message: the update's vector behind its masks."""
        record = _record(message)
        shares = by_silo(record, "silos", "sealed")
        silo = self._at(record)
        code = encoding_of(self.config, spec, len(silo.terms.silos))
        vector = code.encode(update.delta, update.examples)
        words = silo.mask(vector, shares, text_in(record, "shared"))
        array = Array("uint64", words.shape, WIRE_STYPE, words.tobytes())
        return Message(RecordDict({"masked": ArrayRecord({"words": array})}), reply_to=message)

    def _agree(self, silo: Silo, survivors: str) -> str:
        number, members = silo.terms.round, read_set(survivors, silo.terms)
        self.agreed.check(number, members)
        signed = silo.agree(survivors)
        self.agreed.add(number, members)  # before it is sent: once it is, the sum may be opened
        return signed

    def _begin(self, record: ConfigRecord) -> Silo:
        terms, settings = read_terms(record.get("terms")), self.config.secure_aggregation
        if not settings.enabled:
            raise AbortError("terms", "the run is not one with secure aggregation")
        if terms.run != self.run_hash or terms.round > self.config.federation.rounds:
            raise AbortError("context", "the terms are of another run")
        self._silo = None
        colluders = max(self.colluders, settings.max_colluders)
        self._silo = Silo(
            self.name, self.identity, terms, self.identities, self.min_silos, colluders
        )
        return self._silo

    def _at(self, record: ConfigRecord) -> Silo:
        """The round at work, if the message is of it."""
        if self._silo is None:
            raise AbortError("order", "no secure round is at work here")
        if record.get("context") != self._silo.terms.digest.hex():
            raise AbortError("context", "the message is of another round")
        return self._silo


def step_of(message: Message) -> str:
    """The step that a `query.secure` asks for, one of those above."""
    step = text_in(_record(message), "step")
    if step not in ("advertise", "share", "agree", "unmask"):
        raise AbortError("order", "there is no such step")
    return step


def _record(message: Message) -> ConfigRecord:
    record: Any = message.content.get(RECORD)
    if not isinstance(record, ConfigRecord):
        raise AbortError("malformed", "the message has nothing of a secure round")
    return record
