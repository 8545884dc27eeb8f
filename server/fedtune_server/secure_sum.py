"""A round's sum of deltas without a look at any: secure aggregation over Flower's messages.

The coordinator's machine is `fedtune.secagg.coordinator`; here its stages are sent and collected.
What travels is listed in `fedtune_client/secure.py`. A silo that is missing from a stage is out of
the round from there on.
"""

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedtune.config.schema import RunConfig
from fedtune.errors import RunFailedError
from fedtune.privacy.distributed import NoisySum, noisy_sum
from fedtune.secagg.abort import AbortError
from fedtune.secagg.coordinator import Coordinator
from fedtune.secagg.fields import by_silo, text_in, texts_in
from fedtune.secagg.masks import WORD
from fedtune.secagg.messages import write_terms
from fedtune.secagg.silo import Unmasking
from fedtune.secagg.terms import Terms, choose
from fedtune.secagg.weighted import Weighted, encoding_of
from fedtune.tensors import WIRE_STYPE, Spec, TensorSet
from fedtune_server.collect import Failure, Request, collect_replies
from fedtune_server.reports import RoundingReport, RoundReport, rounding_of

_LONGEST_STEP_SECONDS = 120.0  # of steps without training
_RECORD = "secure"


@dataclass(frozen=True)
class SecureRun:
    """What secure rounds need beyond others: settings, silos' identities by the roster, and how
    often each tensor's bound is halved in the next one; None: not at all yet.
    """

    config: RunConfig
    identities: Mapping[str, bytes]
    halvings: tuple[int, ...] | None = None

    def after(self, report: RoundReport) -> "SecureRun":
        """For the round after a reported one."""
        if report.rounding is None:
            return self
        return dataclasses.replace(self, halvings=tuple(report.rounding.next_halvings))


@dataclass(frozen=True)
class Asking:
    """How a round's silos are asked. `said` goes with every message of the run."""

    grid: Grid
    run_hash: str
    round: int
    poll_seconds: float
    said: Mapping[str, ConfigRecord]


@dataclass(frozen=True)
class SecureTotal:
    """The weighted mean of the deltas of `silos`, and their weights' sum."""

    mean: TensorSet
    weight: int
    silos: list[str]
    payload_bytes: int
    failures: list[Failure]
    rounding: RoundingReport | None


def secure_sum(
    asking: Asking,
    requests: Mapping[str, Request],
    secure: SecureRun,
) -> SecureTotal:
    """One round. Raises RunFailedError, with nothing revealed, when too few silos are left."""
    silos, spec = sorted(requests), next(iter(requests.values())).expected
    code, terms = plan_round(
        secure.config, spec, silos, asking.run_hash, asking.round, secure.halvings
    )
    stages = _Stages(asking, requests, secure.config, Coordinator(terms, secure.identities))
    try:
        return stages.run(code)
    except AbortError as error:
        lines = [f"round {asking.round}: the secure sum was not opened: {error}"]
        lines += [f"  {f.silo}: {f.reason}: {f.detail}" for f in stages.failures]
        raise RunFailedError("\n".join(lines)) from None


def plan_round(
    config: RunConfig,
    spec: Spec,
    silos: Sequence[str],
    run: str,
    number: int,
    halvings: tuple[int, ...] | None = None,
) -> tuple[Weighted | NoisySum, Terms]:
    """How a round's vectors are made, and its terms. Raises InputError where none bear what the
    settings ask for, or a sum has no room.
    """
    code: Weighted | NoisySum
    if config.privacy.mode == "distributed":
        code = noisy_sum(config, spec, len(silos), run, number)
        _ = code.steps  # refuses what has no room, before anybody trains
        halvings = ()
    else:
        halvings = halvings or (0,) * len(spec)
        code = encoding_of(config, spec, len(silos), halvings)
    settings = config.secure_aggregation
    return code, choose(
        run,
        number,
        secrets.randbits(31),  # a round that is tried again is another one
        tuple(sorted(silos)),
        code.words,
        colluders=settings.max_colluders,
        dropouts=settings.dropouts(len(silos)),
        min_silos=config.federation.min_silos,
        halvings=halvings,
    )


@dataclass
class _Stages:
    asking: Asking
    requests: Mapping[str, Request]
    config: RunConfig
    machine: Coordinator
    failures: list[Failure] = field(default_factory=list)

    def run(self, code: Weighted | NoisySum) -> SecureTotal:
        """The stages one after another, each with those who came through the one before."""
        machine, terms = self.machine, self.machine.terms
        proposed: dict[str, Any] = {"step": "advertise", "terms": write_terms(terms)}
        self._step(dict.fromkeys(terms.silos, proposed), self._take_advert)
        adverts = machine.close_adverts()
        self._step(
            {silo: {"step": "share", "adverts": texts} for silo, texts in adverts.items()},
            self._take_shares,
        )
        shared, held = machine.close_shares()
        self._train(shared, held)
        survivors = machine.close_masked()
        agree = {"step": "agree", "survivors": survivors}
        self._step(dict.fromkeys(machine.survivors, agree), self._take_agreement)
        signatures = machine.close_agreements()
        unmask = {"step": "unmask", "agreements": signatures}
        self._step(dict.fromkeys(machine.signers, unmask), self._take_unmasking)
        total, there = machine.finish()
        try:
            mean, weight, rounding = _opened(code, total, terms.halvings, len(there), self.config)
        except ValueError as error:
            raise AbortError("range", str(error)) from None
        # a silo that is in the sum isn't missing from the round, whatever it failed at later
        missing = [f for f in self.failures if f.silo not in there]
        sent = total.nbytes * len(there)
        return SecureTotal(mean, weight, sorted(there), sent, missing, rounding)

    def _step(
        self, contents: Mapping[str, dict[str, Any]], take: Callable[[str, ConfigRecord], None]
    ) -> None:
        def read(silo: str, reply: Message) -> None:
            record = reply.content.get(_RECORD)
            if not isinstance(record, ConfigRecord):
                raise AbortError("malformed", "the reply has nothing of a secure round")
            take(silo, record)

        seconds = min(_LONGEST_STEP_SECONDS, self.config.federation.round_timeout_seconds)
        asked = {}
        for silo, content in contents.items():
            record = ConfigRecord({**content, "context": self.machine.terms.digest.hex()})
            everything = RecordDict({**self.asking.said, _RECORD: record})
            asked[silo] = self.requests[silo].node, everything
        self._collect(asked, "query.secure", seconds, read)

    def _train(self, shared: str, held: Mapping[str, Mapping[str, bytes]]) -> None:
        def read(silo: str, reply: Message) -> None:
            self.machine.add_masked(silo, _words_in(reply))

        asked = {}
        for silo, shares in held.items():
            told = {
                "context": self.machine.terms.digest.hex(),
                "shared": shared,
                "silos": list(shares),
                "sealed": list(shares.values()),
            }
            request = self.requests[silo]
            content = RecordDict({**request.content, _RECORD: ConfigRecord(told)})
            asked[silo] = request.node, content
        self._collect(asked, "train", self.config.federation.round_timeout_seconds, read)

    def _collect(
        self,
        asked: Mapping[str, tuple[int, RecordDict]],
        kind: str,
        seconds: float,
        read: Callable[[str, Message], None],
    ) -> None:
        self.failures += collect_replies(
            self.asking.grid,
            asked,
            kind=kind,
            group=str(self.asking.round),
            timeout_seconds=seconds,
            poll_seconds=self.asking.poll_seconds,
            read=read,
            accept=lambda silo, _: None,
        )

    def _take_advert(self, silo: str, record: ConfigRecord) -> None:
        self.machine.add_advert(silo, text_in(record, "advert"))

    def _take_shares(self, silo: str, record: ConfigRecord) -> None:
        self.machine.add_shares(silo, by_silo(record, "silos", "sealed"))

    def _take_agreement(self, silo: str, record: ConfigRecord) -> None:
        self.machine.add_agreement(silo, text_in(record, "agreement"))

    def _take_unmasking(self, silo: str, record: ConfigRecord) -> None:
        seeds, keys = by_silo(record, "seeds_of", "seeds"), by_silo(record, "keys_of", "keys")
        unreadable = tuple(texts_in(record, "unreadable"))
        self.machine.add_unmasking(silo, Unmasking(seeds, keys, unreadable))


def _opened(
    code: Weighted | NoisySum,
    total: np.ndarray,
    halvings: tuple[int, ...],
    silos: int,
    config: RunConfig,
) -> tuple[TensorSet, int, RoundingReport | None]:
    """The round's delta from the sum of so many silos' words, its weight, how it was rounded."""
    if isinstance(code, Weighted):
        opened = code.decode(total, silos)
        return opened.mean, opened.weight, rounding_of(code, opened, halvings)
    if not config.in_private_steps:
        return code.decode(total) * (1 / silos), silos, None
    # one step of gradient descent on all silos' units
    per_unit = 1 / (silos * config.training.batch_size)
    return code.decode(total) * (-config.training.learning_rate * per_unit), silos, None


def _words_in(reply: Message) -> np.ndarray:
    record = reply.content.get("masked")
    if not isinstance(record, ArrayRecord) or list(record) != ["words"]:
        raise AbortError("malformed", "the reply has no masked vector")
    array = record["words"]
    if array.dtype != "uint64" or array.stype != WIRE_STYPE or len(array.data) % WORD.itemsize:
        raise AbortError("malformed", "the masked vector is not of 64-bit words")
    return np.frombuffer(array.data, WORD)
