"""What of a run's settings leaves the coordinator, and what identifies a run between machines."""

import hashlib
import json

from fedtune.config.data import DataConfig
from fedtune.config.output import OutputConfig
from fedtune.config.schema import RunConfig


def published(config: RunConfig) -> RunConfig:
    """The settings as silos get them: without the coordinator's own files, folder and budget.

    Where data lie is each silo's to say; of `data` only the prompt that texts are learned after
    goes with the run.
    """
    prompt = config.data.label_prompt
    data = DataConfig(format="text_label", label_prompt=prompt) if prompt else DataConfig()
    privacy = config.privacy.model_copy(update={"ledger": None})
    adapter = config.adapter.model_copy(update={"init_from": None})
    changed = {"data": data, "output": OutputConfig(), "privacy": privacy, "adapter": adapter}
    return config.model_copy(update=changed)


def deployed_hash(config: RunConfig, run: str) -> str:
    """SHA-256 of a run's published settings and its name: its data are nobody's to know."""
    return hashlib.sha256(json.dumps([config.hash, run]).encode()).hexdigest()
