"""What a simulation loads once, and the silos that borrow it in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedtune_client.app import Instruction
from fedtune_client.secure import SecurePart
from fedtune_client.silo import LocalSilo
from fedtune_client.update import LocalUpdate
from fedtune_server.secure_sum import SecureRun

from fedtune.aggregation.rule import GlobalState
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.data.load import Splits
from fedtune.data.partition import Partition, partition
from fedtune.errors import InputError
from fedtune.identity.keys import new_identity, public_bytes
from fedtune.models.adapters import attach_adapter, state_spec, write_state
from fedtune.models.residual import residual_added
from fedtune.models.twin import bare_twin
from fedtune.tasks.evaluation import evaluate
from fedtune.tasks.task import Encoded, Task
from fedtune.tensors import Spec
from fedtune.training.checkpoints import run_hash
from fedtune.training.prepare import prepare as prepare_training
from fedtune.training.private import Protection, protection, scores_shown
from fedtune_simulations.events import Listener, steps_of

EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Setting:
    """All that a run needs, loaded once: the adapted model is shared by every silo.

    `smaller` are models with adapters of lower rank over the same base weights, by rank.
    `pooled` is the silos' examples one silo after another, `test` what is held out; `partition`
    divides the train rows of `splits`. `private` is what each silo's rows are promised, for
    all rounds; empty where silos promise nothing.
    """

    config: RunConfig
    model: Any
    smaller: Mapping[int, Any]
    tokenizer: Any
    task: Task
    silos: Mapping[str, Sequence[Encoded]]
    pooled: Sequence[Encoded]
    test: Sequence[Encoded]
    splits: Splits
    partition: Partition
    private: Mapping[str, Protection]

    @property
    def run_hash(self) -> str:
        """SHA-256 of what decides the run's result: its settings and its data."""
        return run_hash(self.config, self.splits.facts)

    @cached_property
    def identities(self) -> Mapping[str, Ed25519PrivateKey]:
        """Silos' identities, made for this process: in a simulation nobody has one of its own."""
        secure = self.config.secure_aggregation.enabled
        return {silo: new_identity() for silo in self.silos} if secure else {}

    def secure_run(self) -> SecureRun | None:
        """What the coordinator needs of secure rounds, if they are."""
        return SecureRun(self.config, self._public) if self.identities else None

    def secure_parts(self) -> dict[str, SecurePart]:
        """Each silo's part in secure rounds; none without."""
        settings = self.config.secure_aggregation
        return {
            silo: SecurePart(
                silo,
                self.config,
                self.run_hash,
                identity,
                self._public,
                min(self.config.federation.min_silos, len(self.silos)),
                settings.max_colluders,
            )
            for silo, identity in self.identities.items()
        }

    @property
    def _public(self) -> dict[str, bytes]:
        return {silo: public_bytes(key) for silo, key in self.identities.items()}

    def model_of(self, silo: str) -> Any:
        """The model that `silo` trains."""
        return self.smaller.get(self.config.federation.silo_ranks.get(silo, 0), self.model)

    def score(self, state: GlobalState) -> dict[str, float]:
        """Metrics of `state` on the held-out test set; none where they must not be known."""
        if not scores_shown(self.config):
            return {}
        write_state(self.model, state.adapter)
        with residual_added(self.model, state.residual):
            return evaluate(self.task, self.model, self.test, EVALUATION_BATCH)


@dataclass(frozen=True)
class SimulatedSilo:
    """A silo that borrows a shared model for the time of its training."""

    name: str
    setting: Setting
    listener: Listener | None = None

    @property
    def run_hash(self) -> str:
        """The run it takes part in: its settings and its data."""
        return self.setting.run_hash

    @property
    def spec(self) -> Spec:
        """Names and shapes of the adapter that it trains."""
        return state_spec(self.setting.model_of(self.name))

    def train(self, told: Instruction) -> LocalUpdate:
        """Train as told; depends on seed, name, round and data only."""
        setting = self.setting
        promised = setting.private.get(self.name)
        silo = LocalSilo(
            self.name,
            setting.run_hash,
            setting.config,
            setting.model_of(self.name),
            setting.task,
            setting.silos[self.name],
            promised.steps if promised else None,
            steps_of(self.listener, told.round, self.name),
        )
        return silo.train(told)


def prepare(config: RunConfig) -> Setting:
    """Load data and model, once. Raises InputError on what can't be used."""
    ready = prepare_training(config)
    chosen = silos_of(config, ready.splits.train)
    check_ranks(config, chosen)
    return Setting(
        config=config,
        model=ready.model,
        smaller={rank: _smaller(ready.model, config, rank) for rank in _ranks(config)},
        tokenizer=ready.tokenizer,
        task=ready.task,
        silos={name: ready.train.select(rows) for name, rows in chosen.items()},
        pooled=ready.train.select([row for rows in chosen.values() for row in rows]),
        test=ready.test,
        splits=ready.splits,
        partition=chosen,
        private=silos_protection(config, ready.splits.train, chosen),
    )


def silos_of(config: RunConfig, rows: ExampleSet) -> Partition:
    """The rows of each silo of a run on `rows`. Raises InputError if they can't be divided."""
    settings = config.federation.partition
    return partition(rows, settings, config.seed, independent=config.private)


def silos_protection(
    config: RunConfig, rows: ExampleSet, silos: Partition
) -> Mapping[str, Protection]:
    """What each silo's part of `rows` is promised, for all rounds; empty where nothing is."""
    promised = {
        name: protection(config, rows.select(chosen), silos=len(silos))
        for name, chosen in silos.items()
    }
    return {name: one for name, one in promised.items() if one is not None}


def check_ranks(config: RunConfig, silos: Mapping[str, object]) -> None:
    """Raise InputError when `federation.silo_ranks` names a silo that isn't there."""
    unknown = sorted({*config.federation.silo_ranks} - {*silos})
    if unknown:
        raise InputError(
            f"there is no silo `{unknown[0]}`",
            where=f"federation.silo_ranks.{unknown[0]}",
            expected=", ".join(sorted(silos)[:10]),
        )


def _ranks(config: RunConfig) -> list[int]:
    return sorted({*config.federation.silo_ranks.values()} - {config.adapter.lora_r})


def _smaller(model: Any, config: RunConfig, rank: int) -> Any:
    settings = config.adapter.model_copy(update={"lora_r": rank})
    return attach_adapter(bare_twin(model), settings, seed=config.seed, task=config.task.head)
