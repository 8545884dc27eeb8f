"""From a run's settings and rows to its private steps: who is a unit, and what plan holds."""

from dataclasses import dataclass

import numpy as np

from fedtune.config.privacy_unit import unit_of
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.errors import InputError
from fedtune.privacy.dp_sgd import PrivateSteps
from fedtune.privacy.ledger import budget_of_machine, check_ledger, ledger_path
from fedtune.privacy.noise import NoiseSource, SecureNoise
from fedtune.privacy.plan import ExecutionPlan, people_of, plan_shared, plan_steps
from fedtune.privacy.sampling import UnitRows
from fedtune.training import processes
from fedtune.training.sampling import steps_for

_ADAPTERS = ("lora", "fed_sb", "full")


def scores_shown(config: RunConfig) -> bool:
    """Whether exact losses and metrics on held-out rows may be computed at all."""
    return not config.private or config.privacy.held_out == "public"


def check_one_place(config: RunConfig) -> None:
    """Raise InputError on a promise that training in one place can't keep: there are no silos."""
    mode = config.privacy.mode
    if mode in ("central", "distributed"):
        raise InputError(
            f"`{mode}` adds noise to the sum of what silos send, and `train` has no silos",
            where="privacy.mode",
            mend="set it to `local`, or run a federation",
        )


def check_private(config: RunConfig, *, resume: bool = False) -> None:
    """Raise InputError on what can't be trained privately, before anything is loaded."""
    if config.privacy.mode == "central" and not config.privacy.outside_budget:
        _check_no_budget()
    if config.privacy.mode not in ("local", "distributed"):
        return
    unit_of(config)
    check_ledger(config.privacy.ledger)
    if not config.in_private_steps:
        return
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
    unit, units = unit_of(config), _units(config, rows)
    steps = steps_for(config.training, len(units)) * rounds
    plan = plan_steps(config.privacy, unit, len(units), config.training.batch_size, steps)
    return PrivateSteps(plan, units, source or SecureNoise())


@dataclass(frozen=True)
class Protection:
    """What is promised of one party's rows: `plan` is what its statement tells, `charged` what it
    costs the people in them. `steps` are private steps on them, where the promise has such.
    """

    plan: ExecutionPlan
    charged: ExecutionPlan
    steps: PrivateSteps | None = None


def protection(
    config: RunConfig, rows: ExampleSet, *, silos: int, source: NoiseSource | None = None
) -> Protection | None:
    """The promise of one silo of `silos` for all rounds; None where nothing is charged to anybody.

    `source` is a seeded one in tests only. Raises InputError on settings that don't fit the rows.
    """
    if config.privacy.mode == "local":
        steps = private_steps(config, rows, rounds=config.federation.rounds, source=source)
        assert steps is not None  # noqa: S101 - the mode is `local`
        return Protection(steps.plan, steps.plan, steps)
    if config.privacy.mode != "distributed":
        return None
    unit, units = unit_of(config), _units(config, rows)
    if config.in_private_steps:
        plan = plan_shared(config, unit, len(units))
        return Protection(plan, plan, PrivateSteps(plan, units, source or SecureNoise()))
    plan = plan_shared(config, "silo", silos)
    return Protection(plan, people_of(plan, unit, len(units)))


def _units(config: RunConfig, rows: ExampleSet) -> UnitRows:
    patients = unit_of(config) == "patient"
    return UnitRows.of(rows.codes("unit_id")[0] if patients else np.arange(len(rows)))
