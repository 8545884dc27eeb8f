"""A hospital's node: it takes a run's settings from the coordinator, and answers by its own rules.

The coordinator is not trusted. Its settings are read as a bounded, typed tree; where data, models
and budget lie is this node's own file's to say; the policy is asked before any row is read. What a
round's training gave is kept on disk before it is sent: asked again for the same, the node sends
the same, and nobody is charged twice.
"""

import datetime
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from pydantic import ValidationError

from fedtune.config.federation import PartitionConfig
from fedtune.config.model import ModelConfig
from fedtune.config.published import deployed_hash
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.data.load import load_all
from fedtune.errors import FedtuneError, InputError
from fedtune.identity.proof import prove
from fedtune.models.base_files import base_digest
from fedtune.models.fed_sb import factors_digest
from fedtune.privacy.done import Done
from fedtune.privacy.ledger import Charge
from fedtune.reports.privacy_statement import write_statement
from fedtune.training.charging import Course, Party, charge_run, charged_to_these
from fedtune.training.prepare import prepare_on
from fedtune.training.private import Protection, check_private, protection
from fedtune_client.app import Instruction, read_instruction, reply
from fedtune_client.joining import identities_of, take_roster
from fedtune_client.node_config import NodeConfig
from fedtune_client.once import AGREED, DRAWN, Agreed, Drawn
from fedtune_client.policy import BaseModelConfig, refusals
from fedtune_client.replies import LEFT, Replies, forget_old_runs
from fedtune_client.secure import SecurePart, step_of
from fedtune_client.silo import LocalSilo, silo_encoder
from fedtune_client.update import LocalUpdate

MAX_SETTINGS_CHARACTERS = 200_000
_Read = TypeVar("_Read")
_log = logging.getLogger(__name__)


class RefusedError(FedtuneError):
    """This silo doesn't do what it was asked to; the message says why, and may be sent."""


@dataclass(frozen=True)
class Asked:
    """A run as the coordinator says it: checked to be a run, not yet whether it is allowed."""

    run: str
    config: RunConfig
    base_sha256: str
    factors_sha256: str = ""

    @cached_property
    def run_hash(self) -> str:
        """What this run's messages carry."""
        return deployed_hash(self.config, self.run)


@dataclass
class Opened:
    """A run that this silo takes part in, with its model and rows in memory.

    `told` is the charge of which its statement tells.
    """

    silo: LocalSilo
    rows: ExampleSet
    replies: Replies
    promised: Protection | None
    told: Charge | None = None


@dataclass
class Node:
    """The node in `folder`. It keeps the last run open, so that its next message finds it warm."""

    config: NodeConfig
    identity: Ed25519PrivateKey
    folder: Path
    consortium: bytes
    now: Callable[[], datetime.datetime] = field(default=datetime.datetime.now)
    _opened: Opened | None = field(default=None, init=False)
    _part: SecurePart | None = field(default=None, init=False)

    def train(self, message: Message) -> LocalUpdate:
        """The answer to a `train` message. Raises RefusedError, whose words may be sent."""
        asked = _usable(lambda: read_asked(message))
        here = self._allowed(asked)
        opened = self._open(asked, here)
        told = _usable(lambda: read_instruction(message, opened.silo.spec, asked.run_hash))
        if told.round > here.federation.rounds:
            raise RefusedError(f"round {told.round} of a run of {here.federation.rounds}")
        if here.secure_aggregation.enabled:
            part = self._part
            _usable(lambda: _there(part).check_due(message, told.round, opened.silo.spec))
        kept = opened.replies.find(told)
        if kept is not None:
            _log.info("run %s, round %d: sent again as it was", asked.run, told.round)
            return kept
        course = self._charge(opened, told)
        opened.replies.begin(told.round)
        if course is not None:
            course.reach(course.at + 1)
        began = time.monotonic()
        update = self._shown(opened.silo.train(told))
        seconds = time.monotonic() - began
        opened.replies.keep(told, update)
        _log.info("run %s, round %d: trained in %.2f s", asked.run, told.round, seconds)
        return update

    def answer(self, message: Message) -> Message:
        """The reply to a `train` message, encoded as the run says. Raises as `train` does."""
        update = self.train(message)
        opened, number = self._opened, message.content["round"]["number"]
        assert opened is not None  # noqa: S101 - `train` has opened it
        if opened.silo.config.secure_aggregation.enabled:
            part = self._part
            masked = _usable(lambda: _there(part).masked(message, update, opened.silo.spec))
            _log.info("round %d: secure round: masked", number)
            return masked
        encode = silo_encoder(opened.silo.config, opened.silo.name, opened.replies.folder / LEFT)
        try:
            return reply(message, update, encode(update.delta, number))
        except ValueError as error:
            raise RefusedError(f"what was trained can't be sent: {error}") from None

    def secure(self, message: Message) -> Message:
        """The answer to a `query.secure`: this silo's part in a secure round."""
        asked = _usable(lambda: read_asked(message))
        here = self._allowed(asked)
        if self._part is None or self._part.run_hash != asked.run_hash:
            self._part = SecurePart(
                self.config.silo,
                here,
                asked.run_hash,
                self.identity,
                self.identities,
                self.config.policy.min_silos,
                self.config.policy.max_colluders,
                Agreed(self.folder / "runs" / asked.run_hash / AGREED),
                Drawn(self.folder / "runs" / asked.run_hash / DRAWN),
            )
        part = self._part
        try:
            answer = part.answer(message)
            _log.info("run %s: secure round: %s", asked.run, step_of(message))
            return answer
        except ValueError as error:
            _log.warning("run %s: its secure round ends here: %s", asked.run, error)
            raise RefusedError(f"secure aggregation: {error}") from None

    @property
    def identities(self) -> Mapping[str, bytes]:
        """The public key of each silo that takes part, by the newest roster."""
        return identities_of(self.folder)

    def prove(self, message: Message) -> RecordDict:
        """Who this node is, in answer to a `query` with a run, a fresh number and the roster."""
        challenge = message.content.get("challenge")
        if not isinstance(challenge, ConfigRecord):
            raise RefusedError("a query without a challenge")
        texts = [challenge.get(name) for name in ("run", "nonce", "roster")]
        if not all(isinstance(text, str) for text in texts):
            raise RefusedError("a challenge without run, nonce and roster")
        run, nonce, listed = (str(text) for text in texts)
        silo = self.config.silo
        self._part = None  # it would go by the roster before
        try:
            take_roster(self.folder, listed, self.consortium)
        except ValueError as error:
            _log.error("refused: the coordinator's roster %s", error)
            raise RefusedError(f"the roster {error}") from None
        proof = _usable(lambda: prove(self.identity, silo, run, nonce))
        return RecordDict({"silo": ConfigRecord({"name": silo, "proof": proof})})

    def _allowed(self, asked: Asked) -> RunConfig:
        """The run as it would be here. Raises RefusedError with every rule that it breaks."""
        base = self._base(asked.base_sha256)
        here = self._placed(asked, base)
        reasons = refusals(self.config.policy, here, base is not None, self.now())
        if reasons:
            told = "; ".join(reasons)
            _log.warning("run %s refused by this silo's policy: %s", asked.run, told)
            raise RefusedError(f"refused by the silo's policy: {told}")
        try:  # a node may be started again at any time, and go on
            check_private(here, resume=True)
        except InputError as error:
            _log.warning("run %s refused: %s", asked.run, error)
            raise RefusedError(f"can't be trained privately here: {error.problem}") from None
        return here

    def _base(self, sha256: str) -> BaseModelConfig | None:
        return next((base for base in self.config.base_models if base.sha256 == sha256), None)

    def _placed(self, asked: Asked, base: BaseModelConfig | None) -> RunConfig:
        """The run with this silo's own data, model and budget in place of the coordinator's."""
        own = self.config.data.model_dump(exclude_unset=True)
        if asked.config.data.label_prompt is not None:
            own |= {"label_prompt": asked.config.data.label_prompt, "format": "text_label"}
        tree = asked.config.model_dump(exclude={"output"})
        tree["data"] = own
        tree["federation"]["partition"] = PartitionConfig().model_dump()
        if base is not None:
            tree["model"] |= {"path": base.path, "revision": None}
        # the budget is one for all that is done with these rows, by whatever command
        mode = asked.config.privacy.mode
        ledger = self.config.ledger if mode in ("local", "distributed") else None
        tree["privacy"] |= {"ledger": ledger, "outside_budget": False}
        try:
            return RunConfig.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            raise RefusedError(
                f"the run doesn't go with this silo's data: {first['msg']}"
            ) from None

    def _open(self, asked: Asked, here: RunConfig) -> Opened:
        """Rows and model of the run, read once for all its messages."""
        if self._opened is not None and self._opened.silo.run_hash == asked.run_hash:
            return self._opened
        self._opened = None  # its model's memory is wanted
        model = ModelConfig(path=here.model.path)
        if base_digest(model) != asked.base_sha256:
            raise RefusedError("the base model's files here are not those of its digest")
        ready = prepare_on(here, load_all(here))
        if factors_digest(ready.model) != asked.factors_sha256:
            raise RefusedError(
                "the adapter's fixed factors here are not the coordinator's, so what is trained "
                "between them can't be averaged: both sides want the same release of fedtune"
            )
        rows = ready.splits.train
        others = self.identities if here.privacy.mode == "distributed" else {}
        promised = protection(here, rows, silos=len(others))
        silo = LocalSilo(
            self.config.silo,
            asked.run_hash,
            here,
            ready.model,
            ready.task,
            ready.train,
            promised.steps if promised else None,
        )
        runs = self.folder / "runs"
        forget_old_runs(runs, self.config.kept_runs, asked.run_hash)
        self._opened = Opened(silo, rows, Replies(runs / asked.run_hash), promised)
        return self._opened

    def _charge(self, opened: Opened, told: Instruction) -> Course | None:
        """The run's whole plan before its first step; a round that was begun before, again."""
        silo, promised = opened.silo, opened.promised
        if promised is None:
            return None
        rounds, begun = silo.config.federation.rounds, opened.replies.begun()
        plan = promised.charged
        party = Party(f"silo {silo.name}", opened.rows, plan, plan.steps // rounds)
        if opened.told is None and not charged_to_these(silo.config, party, silo.run_hash):
            _log.warning("refused: the rows are not those that run %s began with", silo.run_hash)
            raise RefusedError("the silo's rows are not those that it was charged to for this run")
        try:
            paid = charge_run(
                silo.config,
                [party],
                folder=opened.replies.folder,
                run=silo.run_hash,
                done=len(begun),
                to_come=1 + rounds - len({*begun, told.round}),
            )
        except InputError as error:
            _log.warning("refused: %s", error)
            raise RefusedError("the silo's privacy budget does not allow it") from None
        self._tell(opened, paid.parties[0].done(promised.plan))
        return paid.course

    def _tell(self, opened: Opened, done: Done) -> None:
        """This silo's own statement: what was charged is told as released."""
        folder, silo = opened.replies.folder, opened.silo
        rounds = silo.config.federation.rounds
        if done.charge != opened.told:
            write_statement(folder, silo.config.privacy, {silo.name: done}, rounds=rounds)
            opened.told = done.charge

    def _shown(self, update: LocalUpdate) -> LocalUpdate:
        """What may leave of a round's training."""
        policy, opened = self.config.policy, self._opened
        metrics = update.metrics if policy.send_metrics else {}  # private steps give none
        hidden = opened is not None and opened.silo.config.secure_aggregation.enabled
        counted = policy.send_counts or hidden  # a weight in a secure sum leaves it unseen
        return LocalUpdate(update.delta, update.examples if counted else 1, metrics)


def node_app(node: Node) -> ClientApp:
    """The node's ClientApp: it answers `query` with a proof of who it is, `train` by training."""
    app = ClientApp()

    @app.query()
    def query(message: Message, _: Context) -> Message:
        return Message(node.prove(message), reply_to=message)

    @app.query("secure")
    def secure(message: Message, _: Context) -> Message:
        return node.secure(message)

    @app.train()
    def train(message: Message, _: Context) -> Message:
        return node.answer(message)

    return app


def _there(part: SecurePart | None) -> SecurePart:
    if part is None:
        raise ValueError("no secure round is at work here")
    return part


def _usable(read: Callable[[], _Read]) -> _Read:
    """What was read of a message; a RefusedError of what was wrong with it."""
    try:
        return read()
    except ValueError as error:
        raise RefusedError(f"the message can't be used: {error}") from None


def read_asked(message: Message) -> Asked:
    """Parse an untrusted run. Raises ValueError unless it is settings, a name and a digest."""
    record: Any = message.content.get("run")
    if not isinstance(record, ConfigRecord):
        raise ValueError("the message says of no run")
    texts = [record.get(name) for name in ("name", "settings", "base_sha256")]
    texts.append(record.get("factors_sha256", ""))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("the run has no name, settings and digests")
    name, settings, base, factors = (str(text) for text in texts)
    if not 1 <= len(name) <= 200 or len(settings) > MAX_SETTINGS_CHARACTERS:
        raise ValueError("the run's name or settings are too long")
    try:
        return Asked(name, RunConfig.model_validate_json(settings), base, factors)
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": ""}
        field_name = ".".join(map(str, first["loc"]))
        raise ValueError(f"the run's settings can't be used: {field_name} {first['msg']}") from None
