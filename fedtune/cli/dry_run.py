"""How a dry run is told: the same lines for `train` and `simulate`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.filesize import decimal

if TYPE_CHECKING:
    from fedtune_simulations.dry_run import FederatedDryRun

    from fedtune.reports.dry_run import DryRun, LedgerFacts, PlanFacts, ShownExample
    from fedtune.reports.memory import MemoryEstimate

_BAR = {True: "learned     | ", False: "not learned | "}


def tell(run: "DryRun", federated: "FederatedDryRun | None" = None, *, as_json: bool) -> None:
    """Print what the run would do, as lines or as JSON."""
    if as_json:
        facts = asdict(federated) if federated else asdict(run)
        memory = facts["run"]["memory"] if federated else facts["memory"]
        memory["total"] = run.memory.total
        print(json.dumps(facts, indent=2))
        return
    print("dry run: nothing is trained, no weights are loaded, no run folder is written")
    bad = f", {run.bad_rows} bad rows left out" if run.bad_rows else ""
    validation = f", {run.validation_examples:,} validation" if run.validation_examples else ""
    print(
        f"data: {run.train_examples:,} training{validation} and {run.test_examples:,} test "
        f"examples, the longest of {run.longest_tokens} tokens{bad}"
    )
    share = 100 * run.trainable_parameters / run.parameters
    print(
        f"model: {run.model}, {run.parameters:,} parameters with the adapter, "
        f"{run.trainable_parameters:,} trainable ({share:.2g} %)"
    )
    if federated:
        _tell_federation(federated)
    else:
        print(f"steps: {run.steps:,}")
    if run.privacy:
        _tell_plan("privacy", run.privacy)
    for purpose, charge in (federated or run).ledger.items():
        _tell_ledger(purpose, charge)
    _tell_memory(run.memory)
    tell_example(run.example)


def _tell_federation(plan: "FederatedDryRun") -> None:
    sizes = sorted(plan.silos.values())
    print(f"silos: {len(sizes)}, of {sizes[0]:,} to {sizes[-1]:,} examples")
    for silo, private in plan.privacy.items():
        _tell_plan(f"privacy of {silo}" if private.unit != "silo" else "privacy", private)
    print(f"rounds: {plan.rounds:,} of {plan.silos_a_round} silos, {plan.steps:,} steps in all")
    print(
        f"bytes a round: {decimal(plan.bytes_down_a_round)} down, "
        f"{decimal(plan.bytes_up_a_round)} up; "
        f"{decimal(plan.bytes_all_rounds)} at most in all rounds"
    )


def _tell_plan(who: str, plan: "PlanFacts") -> None:
    from fedtune.privacy.told import rounded_down, rounded_up

    told = ", ".join(f"{rounded_up(value)} by {name}" for name, value in plan.epsilon.items())
    print(
        f"{who}: {plan.units:,} {plan.unit}s, about {plan.expected_batch:.3g} a step "
        f"({plan.sampling} sampling, rate {plan.sample_rate:.3g}), {plan.steps:,} steps, noise "
        f"multiplier {rounded_down(plan.noise_multiplier)}: epsilon {told} at delta "
        f"{plan.delta:g} for the presence of one {plan.unit}, against {plan.adversary}"
    )
    if plan.person_epsilon is not None:
        print(f"  for one person in a silo's rows: epsilon {rounded_up(plan.person_epsilon)}")


def _tell_ledger(purpose: str, asked: "LedgerFacts") -> None:
    from fedtune.privacy.told import rounded_down, rounded_up

    budget = f"of {rounded_down(asked.budget)}" if asked.budget is not None else "no budget is set"
    print(
        f"ledger ({purpose}): it would allow this, and nothing was charged: epsilon "
        f"{rounded_up(asked.before)} was spent on these people before, {rounded_up(asked.after)} "
        f"would be then (delta {asked.delta:g}; {budget})"
    )


def _tell_memory(memory: "MemoryEstimate") -> None:
    sizes = {name: size for name, size in asdict(memory).items() if isinstance(size, int)}
    parts = ", ".join(f"{name} {decimal(size)}" for name, size in sizes.items())
    print(f"memory at the peak of a step: {decimal(memory.total)} ({parts})")
    if memory.unknown:
        print(f"  and activations, unknown for this model ({memory.unknown})")


def tell_example(example: "ShownExample") -> None:
    """Print one example, line by line, with what is learned of it."""
    print(f"one example ({example.where}):")
    for segment in example.segments:
        for line in segment.text.split("\n"):
            print(f"  {_BAR[segment.learned]}{line}")
    if example.label is not None:
        print(f"  label       | {example.label}")
