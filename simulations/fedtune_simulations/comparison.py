"""What a federation is judged against: the untouched base, each silo alone, central training."""

import logging
import statistics
from collections.abc import Sequence

from fedtune_client.silo import silo_seed

from fedtune.aggregation.rule import GlobalState
from fedtune.models.adapters import without_adapter, write_state
from fedtune.tasks.evaluation import evaluate
from fedtune.tasks.task import Encoded
from fedtune.tensors import TensorSet
from fedtune.training.events import Listener as TrainingListener
from fedtune.training.sampling import steps_for
from fedtune.training.trainer import Trainer
from fedtune_simulations.events import Listener, steps_of
from fedtune_simulations.setting import EVALUATION_BATCH, Setting

_log = logging.getLogger(__name__)


def compare(
    setting: Setting, initial: TensorSet, federated: GlobalState, listener: Listener | None = None
) -> dict[str, dict[str, float]]:
    """Scores on the same test set. A silo alone takes its own steps of all rounds together; central
    takes the steps of all silos, from the same start and in batches of the same size. Under a
    privacy mode only base and federation: to train again would spend again.
    """
    if setting.config.privacy.mode != "none":
        return _without_more_training(setting, initial, federated)
    alone: dict[str, dict[str, float]] = {}
    steps: dict[str, int] = {}
    for name, data in setting.silos.items():
        steps[name] = (
            steps_for(setting.config.training, len(data)) * setting.config.federation.rounds
        )
        told = steps_of(listener, None, f"{name} alone")
        alone[name] = _trained_apart(setting, initial, data, name, steps[name], told)
        _log.info("alone: %s, loss %.4f", name, alone[name]["loss"])
    told = steps_of(listener, None, "central")
    with without_adapter(setting.model):
        base = setting.score(GlobalState(initial))
    best = min(alone.values(), key=lambda metrics: metrics["loss"])
    return {
        "base": base,
        "best silo alone": best,
        "mean silo alone": {
            key: statistics.fmean(metrics[key] for metrics in alone.values()) for key in best
        },
        "federated": setting.score(federated),
        "central": _trained_apart(
            setting, initial, setting.pooled, "central", sum(steps.values()), told
        ),
    }


def _without_more_training(
    setting: Setting, initial: TensorSet, federated: GlobalState
) -> dict[str, dict[str, float]]:
    with without_adapter(setting.model):
        base = setting.score(GlobalState(initial))
    return {"base": base, "federated": setting.score(federated)} if base else {}


def _trained_apart(
    setting: Setting,
    initial: TensorSet,
    data: Sequence[Encoded],
    name: str,
    steps: int,
    listeners: Sequence[TrainingListener],
) -> dict[str, float]:
    write_state(setting.model, initial)
    training = setting.config.training.model_copy(update={"max_steps": steps})
    seed = silo_seed(setting.config.seed, name, 0)
    Trainer(setting.task, training, seed=seed, listeners=listeners).fit(setting.model, data)
    return evaluate(setting.task, setting.model, setting.test, EVALUATION_BATCH)
