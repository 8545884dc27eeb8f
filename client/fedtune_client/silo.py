"""A silo with its model and rows loaded: what one round of local training is.

A simulation makes one a message, over models that silos share; a node keeps one for a run.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedtune.config.schema import RunConfig
from fedtune.errors import FedtuneError, RunFailedError
from fedtune.models.adapters import state_spec, write_state
from fedtune.models.residual import residual_added
from fedtune.privacy.dp_sgd import PrivateSteps
from fedtune.tasks.task import Encoded, Task
from fedtune.tensors import Spec
from fedtune.training.events import Listener
from fedtune.training.trainer import Trainer
from fedtune_client.app import Instruction
from fedtune_client.encoders import Encoder, encoder_of
from fedtune_client.update import LocalUpdate

_log = logging.getLogger(__name__)
_ROUNDING = 1  # tells the draws of rounding from those of training


@dataclass(frozen=True)
class LocalSilo:
    """One participant. `model` has its adapter attached; `private` is planned for all rounds.

    Where noise comes in shares, what it trains has none yet: it leaves by a secure sum only.
    """

    name: str
    run_hash: str
    config: RunConfig
    model: Any
    task: Task
    examples: Sequence[Encoded]
    private: PrivateSteps | None = None
    listeners: Sequence[Listener] = ()

    @property
    def spec(self) -> Spec:
        """Names and shapes of the adapter that it trains."""
        return state_spec(self.model)

    def train(self, told: Instruction) -> LocalUpdate:
        """Train as told; depends on seed, name, round and data only."""
        write_state(self.model, told.adapter)
        seed = silo_seed(self.config.seed, self.name, told.round)
        trainer = Trainer(self.task, self.config.training, seed=seed, listeners=self.listeners)
        mu, private = self.config.federation.proximal_mu, self.private
        with residual_added(self.model, told.residual), own_words_only(self.config.private):
            if private is not None and private.plan.shares is not None:
                whole = trainer.sum_for_shares(self.model, self.examples, private)
                return LocalUpdate(whole, 1, {})
            try:
                result = trainer.fit(self.model, self.examples, proximal_mu=mu, private=private)
            except RunFailedError:
                if self.config.privacy.unit != "silo":
                    raise
                # that its data make a silo fail would be seen: what it then sends is noise alone
                _log.exception("round %d: training failed, so zeros are sent", told.round)
                return LocalUpdate(told.adapter.map(torch.zeros_like), 1, {})
        return LocalUpdate(
            result.delta, result.examples, {} if result.loss is None else {"loss": result.loss}
        )


@contextmanager
def own_words_only(private: bool) -> Iterator[None]:
    """Inside, an error that isn't fedtune's own loses its text: it may quote somebody's row."""
    try:
        yield
    except FedtuneError:
        raise
    except Exception as error:
        if not private:
            raise
        raise RunFailedError(f"{type(error).__name__} (its text stays here)") from None


def silo_seed(seed: int, silo: str, round_number: int) -> int:
    """A seed for one silo's training in one round."""
    digest = hashlib.sha256(json.dumps([seed, silo, round_number]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def silo_encoder(config: RunConfig, silo: str, folder: Path) -> Encoder:
    """How the silo's deltas leave it in a run; what it keeps between rounds is in `folder`."""

    def draw(round_number: int) -> np.random.Generator:
        return np.random.default_rng([silo_seed(config.seed, silo, round_number), _ROUNDING])

    return encoder_of(config.federation.delta_encoding, folder, draw)
