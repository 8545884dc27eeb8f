"""What a run between machines asked of its silos in privacy: the coordinator's own statement.

It gives no epsilon of what was done: that depends on each silo's rows, of which the coordinator is
told nothing. Each node keeps the full statement of its part, with its ledger's figures.
"""

import json
from pathlib import Path
from typing import Any

from fedtune.atomic import write_text
from fedtune.config.schema import RunConfig
from fedtune.models.promise import STATEMENT
from fedtune.reports.privacy_prose import PROSE, VERSION, nothing_promised, prose

_ALWAYS = ("target_epsilon", "noise_multiplier", "delta", "unit", "clipping_norm", "accountant")
_IN_STEPS = ("max_records_per_unit", "clipping")
_ASKED = {
    "local": (*_ALWAYS, *_IN_STEPS, "sampling"),
    "distributed": (*_ALWAYS, "sample_rate"),
}
_TO = {
    "local": "train by DP-SGD",
    "distributed": "add its share of the noise to what it sends into secure sums (privacy mode "
    "distributed, discrete Gaussian)",
}


def write_asked(folder: Path, config: RunConfig, silos: int) -> dict[str, Any]:
    """Write privacy.json and privacy.md into the run's folder and give the former's content."""
    none = config.privacy.mode == "none"
    facts = nothing_promised() if none else _asked(config, silos)
    write_text(folder / STATEMENT, json.dumps(facts, indent=2) + "\n")
    write_text(folder / PROSE, prose(facts))
    return facts


def _asked(config: RunConfig, silos: int) -> dict[str, Any]:
    settings = config.privacy
    asked = {name: getattr(settings, name) for name in _ASKED[settings.mode]}
    if settings.mode == "distributed":
        asked |= {
            "min_silos": config.federation.min_silos,
            "max_colluders": config.secure_aggregation.max_colluders,
        }
    told = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
    return {
        "version": VERSION,
        "mode": settings.mode,
        "held_out": settings.held_out,
        "promise": None,
        "asked": asked,
        "statement": (
            f"Each of {silos} silos was asked to {_TO[settings.mode]} with {told}. By its own "
            "policy it does so or refuses; before its first step it charges its own budget "
            "ledger, and it writes a statement of what was done on its data, with epsilon by two "
            "accountants, into `runs` of its node's folder. The coordinator is told nothing of a "
            "silo's data, can't check this from outside, and gives no epsilon of its own."
        ),
    }
