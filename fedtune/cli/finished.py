"""How a finished run is told, by `train` and `simulate` alike."""

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedtune_simulations.simulate import SimulationResult

    from fedtune.training.central import CentralResult


def told_as_json(result: "CentralResult | SimulationResult", statement: Mapping[str, Any]) -> str:
    """The result with its privacy `statement`, as JSON."""
    facts = dataclasses.asdict(dataclasses.replace(result, done={}))
    del facts["done"]
    if statement["promise"] is not None:  # exact counts and digests of somebody's rows
        facts = {name: value for name, value in facts.items() if name not in ("data", "silos")}
    return json.dumps({**facts, "privacy": statement}, default=str, indent=2)


def tell_promise(statement: Mapping[str, Any]) -> None:
    """Print a finished run's promise with its conditions; nothing if it made none."""
    promise = statement["promise"]
    if promise is None:
        return
    from fedtune.privacy.told import rounded_up
    from fedtune.reports.privacy_prose import whose

    second = promise["second_accountant"]
    print(
        f"privacy: epsilon {rounded_up(promise['epsilon'])} by {promise['accountant']['name']} "
        f"({rounded_up(second['epsilon'])} by {second['name']}) at delta {promise['delta']:g} for "
        f"the presence of {whose(statement)}; against whom, and what it leaves out: privacy.md"
    )
