"""A silo's part in secure aggregation, over Flower's messages.

    query.secure   step `advertise`: terms                    -> its advert
                   step `share`:     adverts of neighbours    -> encrypted shares
    train          beside the instruction: who shared, shares -> its masked vector
    query.secure   step `agree`:     survivors                -> its signature
                   step `unmask`:    signatures               -> one share of each silo

Everything that comes is untrusted: it is read here into plain values, and judged by
`fedtune.secagg`, which raises AbortError.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedtune.config.schema import RunConfig
from fedtune.privacy.distributed import NoisySum, clipped, noisy_sum
from fedtune.secagg.abort import AbortError
from fedtune.secagg.fields import by_silo, text_in, texts_in
from fedtune.secagg.messages import read_set, read_terms
from fedtune.secagg.silo import Silo
from fedtune.secagg.terms import Terms
from fedtune.secagg.weighted import Weighted, encoding_of
from fedtune.tensors import WIRE_STYPE, Spec
from fedtune_client.once import Agreed, Drawn
from fedtune_client.update import LocalUpdate

RECORD = "secure"


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
    drawn: Drawn = field(default_factory=Drawn)
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

    def check_due(self, message: Message, round_number: int, spec: Spec) -> None:
        """Raise AbortError unless a vector of this round, of deltas of `spec`, is due: before
        anything is trained.
        """
        terms = self._at(_record(message)).terms
        if terms.round != round_number:
            raise AbortError("context", f"the terms are of round {terms.round}")
        if terms.words != self._code(terms, spec).words:
            raise AbortError("terms", f"{terms.words} words are not a vector of this run")

    def masked(self, message: Message, update: LocalUpdate, spec: Spec) -> Message:
        """The reply to a `train` message: the update's vector behind its masks."""
        record = _record(message)
        shares = by_silo(record, "silos", "sealed")
        silo = self._at(record)
        vector = self._vector(update, spec, silo.terms)
        words = silo.mask(vector, shares, text_in(record, "shared"))
        self.agreed.check_attempt(silo.terms, self._colluders)
        self.agreed.add_attempt(silo.terms)  # before it is sent
        array = Array("uint64", words.shape, WIRE_STYPE, words.tobytes())
        return Message(RecordDict({"masked": ArrayRecord({"words": array})}), reply_to=message)

    def _vector(self, update: LocalUpdate, spec: Spec, terms: Terms) -> np.ndarray:
        """What is masked: the weighted delta or, in distributed mode, the noised clipped one."""
        privacy, code = self.config.privacy, self._code(terms, spec)
        if isinstance(code, Weighted):
            return code.encode(update.delta, update.examples)
        whole = update.delta  # of single units, each was clipped when they were added
        if privacy.unit == "silo":
            whole = clipped(whole, privacy.clipping_norm)
        return self.drawn.vector(
            terms.round,
            code,
            code.scale(self.colluders),
            lambda: code.encode(whole, colluders=self.colluders),
        )

    def _code(self, terms: Terms, spec: Spec) -> Weighted | NoisySum:
        """How vectors of deltas of `spec` are made. Raises AbortError on terms of other tensors."""
        silos, noised = len(terms.silos), self.config.privacy.mode == "distributed"
        if len(terms.halvings) != (0 if noised else len(spec)):
            raise AbortError(
                "terms", f"bounds of {len(terms.halvings)} tensors are told, which this run has not"
            )
        if noised:
            return noisy_sum(self.config, spec, silos, terms.run, terms.round)
        return encoding_of(self.config, spec, silos, terms.halvings)

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
        self.agreed.check_attempt(terms, self._colluders)
        fewest = self.min_silos
        if self.config.privacy.mode == "distributed":  # noise is drawn for no smaller sum
            fewest = max(fewest, self.config.federation.min_silos)
        self._silo = Silo(self.name, self.identity, terms, self.identities, fewest, self._colluders)
        return self._silo

    @property
    def _colluders(self) -> int:
        """Whom to reckon with: the policy's or the run's number, whichever is larger."""
        return max(self.colluders, self.config.secure_aggregation.max_colluders)

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
