"""What `simulate` would do, found without training and without opening a weights file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fedtune_server.checkpoints import latest_round, load_latest
from fedtune_server.rounds import RunPlan, check_fits, check_quorum, sample_silos
from fedtune_server.rules import rule_of

from fedtune.aggregation.fedex import most_residual_bytes
from fedtune.aggregation.rules import deltas_kept
from fedtune.config.schema import RunConfig
from fedtune.data.partition import check_partition
from fedtune.delta_encoding import encoded_size
from fedtune.privacy.central import SiloLevel
from fedtune.reports.dry_run import (
    DryRun,
    LedgerFacts,
    PlanFacts,
    facts,
    ledger_facts,
    outline,
    plan_facts,
)
from fedtune.secagg.masks import WORD
from fedtune.tensors import Spec, TensorSet, payload_size
from fedtune.training.charging import ask_ledger
from fedtune.training.checkpoints import run_hash
from fedtune.training.run_folder import PARTITION, check_folder, check_local_start
from fedtune.training.run_lock import check_alone
from fedtune.training.sampling import steps_for
from fedtune_simulations.setting import check_ranks, silos_of, silos_protection
from fedtune_simulations.simulate import check_available, check_secure, parties_of


@dataclass(frozen=True)
class FederatedDryRun:
    """The facts on a federated run. `silos` maps each to its examples; `steps` are optimizer
    steps of all silos in all rounds; bytes are tensor payloads of the first round and of all
    (at most, where a FedEx-LoRA residual grows; about, where a round's silos are drawn in secret).
    `privacy` is each silo's plan, of all rounds, or the `coordinator`'s; `ledger` as of a DryRun.
    """

    run: DryRun
    silos: Mapping[str, int]
    rounds: int
    silos_a_round: int
    steps: int
    bytes_down_a_round: int
    bytes_up_a_round: int
    bytes_all_rounds: int
    privacy: Mapping[str, PlanFacts] = field(default_factory=dict)
    ledger: Mapping[str, LedgerFacts] = field(default_factory=dict)


def dry_run(config: RunConfig, out: Path, *, resume: bool = False) -> FederatedDryRun:
    """What `simulate` would do. Raises InputError on what it would refuse; writes nothing."""
    check_available(config, resume=resume)
    found = outline(config)
    chosen = silos_of(config, found.splits.train)
    rule = rule_of(config, len(chosen), out / "checkpoints")
    check_ranks(config, chosen)
    private = silos_protection(config, found.splits.train, chosen)
    nodes = {name: number for number, name in enumerate(sorted(chosen))}
    run = run_hash(config, found.splits.facts)
    plan = RunPlan(nodes, config.federation, config.seed, run)
    check_quorum(plan)
    secure = check_secure(config, found.spec, plan)
    check_alone(out)
    check_folder(out, config, "simulate", resume=resume)
    if resume:
        check_local_start(out, config)
    rounds = range(1, config.federation.rounds + 1)
    blank = _blank(found.spec)
    divided = out / PARTITION
    if resume and divided.exists():
        check_partition(divided, chosen, found.splits.train)
    if resume and (saved := load_latest(out / "checkpoints", run)):
        check_fits(saved, blank, out / "checkpoints")
    state = rule.start(blank)
    specs = {name: rule.received_by(rule.group_of(name), state).spec for name in nodes}
    down = {name: payload_size(spec) for name, spec in specs.items()}
    asked = [sample_silos(plan, number) for number in rounds]
    encoding = config.federation.delta_encoding
    up = {name: encoded_size(spec, encoding) for name, spec in specs.items()}
    if secure is not None:
        up = dict.fromkeys(up, secure.words * WORD.itemsize)
    everything = sum(down[name] + up[name] for names in asked for name in names)
    if config.federation.aggregation == "fedex":
        # k silos leave a residual of k - 1 times their rank, and residuals add up
        a_round = (len(asked[0]) - 1) * config.adapter.lora_r
        everything += sum(
            len(names) * most_residual_bytes(blank.spec, a_round * before)
            for before, names in enumerate(asked)
        )
    parties = parties_of(config, found.splits.train, chosen, private)
    to_come = len(rounds) - latest_round(out / "checkpoints")
    charges = ask_ledger(config, parties, folder=out, run=run, to_come=to_come) if parties else {}
    plans = {name: promised.plan for name, promised in private.items()}
    if isinstance(rule, SiloLevel):
        plans["coordinator"] = rule.plan
    return FederatedDryRun(
        run=facts(found, deltas_kept=deltas_kept(config.federation, len(asked[0]))),
        silos={name: len(rows) for name, rows in chosen.items()},
        rounds=len(rounds),
        silos_a_round=len(asked[0]),
        steps=sum(
            steps_for(config.training, len(chosen[name])) for names in asked for name in names
        ),
        bytes_down_a_round=sum(down[name] for name in asked[0]),
        bytes_up_a_round=sum(up[name] for name in asked[0]),
        bytes_all_rounds=everything,
        privacy={name: plan_facts(plan) for name, plan in plans.items()},
        ledger=ledger_facts(charges),
    )


def _blank(spec: Spec) -> TensorSet:
    """A set of this spec that takes no memory."""
    return TensorSet({name: torch.zeros(()).expand(shape) for name, shape in spec})
