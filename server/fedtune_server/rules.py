"""Which rule aggregates a run's deltas."""

from pathlib import Path

from fedtune.aggregation.rule import Rule
from fedtune.aggregation.rules import build_rule
from fedtune.config.schema import RunConfig
from fedtune.privacy.central import build_central


def rule_of(config: RunConfig, silos: int, checkpoints: Path) -> Rule:
    """The rule of a federation of so many silos. Raises InputError on a promise it can't keep."""
    if config.privacy.mode == "central":
        return build_central(config, silos, checkpoints=checkpoints)
    return build_rule(config)
