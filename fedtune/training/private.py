"""From a run's settings and rows to its private steps: who is a unit, and what plan holds."""

import numpy as np

from fedtune.config.privacy_unit import unit_of
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.errors import InputError
from fedtune.privacy.dp_sgd import PrivateSteps
from fedtune.privacy.ledger import budget_of_machine, check_ledger, ledger_path
from fedtune.privacy.noise import NoiseSource, SecureNoise
from fedtune.privacy.plan import plan_steps
from fedtune.privacy.sampling import UnitRows
from fedtune.training import processes
from fedtune.training.sampling import steps_for

_ADAPTERS = ("lora", "fed_sb", "full")


def scores_shown(config: RunConfig) -> bool:
    """Whether exact losses and metrics on held-out rows may be computed at all."""
    return not config.private or config.privacy.held_out == "public"


def check_one_place(config: RunConfig) -> None:
    """Raise InputError on a promise that training in one place can't keep: there are no silos."""
    if config.privacy.mode == "central":
        raise InputError(
            "`central` adds noise to the sum of silos' deltas, and `train` has no silos",
            where="privacy.mode",
            mend="set it to `local`, or run a federation",
        )


def check_private(config: RunConfig, *, resume: bool = False) -> None:
    """Raise InputError on what can't be trained privately, before anything is loaded."""
    if config.privacy.mode == "central" and not config.privacy.outside_budget:
        _check_no_budget()
    if config.privacy.mode != "local":
        return
    unit_of(config)
    check_ledger(config.privacy.ledger)
    if processes.count() > 1:
        raise InputError(
            "private steps run in one process", where="privacy.mode", mend="start one process"
        )
    if resume and config.privacy.sampling == "shuffle":
        raise InputError(
            "who had a step of an interrupted pass isn't kept, so a run can't go on with `shuffle`",
            where="privacy.sampling",
            mend="start anew, or use `poisson`",
        )
    adapter = config.adapter
    if adapter.method not in _ADAPTERS or adapter.use_dora:
        name = "use_dora" if adapter.use_dora else "method"
        value = "true" if adapter.use_dora else adapter.method
        raise InputError(
            f"`{value}` has weights whose gradients can't be told apart by example",
            where=f"adapter.{name}",
            expected="`method: lora` or `fed_sb` (also on a 4-bit base) or `full`, without "
            "`use_dora`",
        )


def _check_no_budget() -> None:
    """Refuse silo-level privacy where a budget is about people: it has no figure for one."""
    if budget_of_machine() is not None:
        raise InputError(
            "`central` promises something to silos, not to the people in their data, so nobody's "
            "budget can be charged; and a budget is set on this machine",
            where=ledger_path(),
            mend="set `privacy.mode: local`, or, if that budget isn't meant for this run, "
            "`privacy.outside_budget: true`",
        )


def private_steps(
    config: RunConfig, rows: ExampleSet, *, rounds: int = 1, source: NoiseSource | None = None
) -> PrivateSteps | None:
    """The private steps on `rows`, planned for all `rounds` of the run; None without `local`.

    `source` is a seeded one in tests only. Raises InputError on settings that don't fit the rows.
    """
    if config.privacy.mode != "local":
        return None
    unit = unit_of(config)
    codes = rows.codes("unit_id")[0] if unit == "patient" else np.arange(len(rows))
    units = UnitRows.of(codes)
    steps = steps_for(config.training, len(units)) * rounds
    plan = plan_steps(config.privacy, unit, len(units), config.training.batch_size, steps)
    return PrivateSteps(plan, units, source or SecureNoise())
