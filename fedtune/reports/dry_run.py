"""What a run would do, found without training and without opening a weights file."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedtune.config.schema import RunConfig
from fedtune.data.load import Splits, load_splits
from fedtune.models.adapters import attach_adapter
from fedtune.models.context import check_context
from fedtune.models.outline import load_outline
from fedtune.privacy.accounting import figures
from fedtune.privacy.ledger import Charge
from fedtune.privacy.outlook import adversary, person_epsilon
from fedtune.privacy.plan import ExecutionPlan
from fedtune.reports.memory import MemoryEstimate, estimate_memory
from fedtune.tasks import build_task
from fedtune.tasks.encoding import EncodedSet, encode_examples
from fedtune.tasks.packing import check_window
from fedtune.tasks.task import IGNORED, Encoded, Task
from fedtune.tensors import Spec
from fedtune.training import processes
from fedtune.training.central import check_progress, party_of
from fedtune.training.charging import ask_ledger
from fedtune.training.checkpoints import CheckpointFolder, run_hash
from fedtune.training.loggers import check_loggers
from fedtune.training.private import check_one_place, check_private, private_steps
from fedtune.training.run_folder import check_folder, check_local_start
from fedtune.training.run_lock import check_alone
from fedtune.training.sampling import steps_for

_COPIES_TRAINING = 2  # where training began, and the delta at its end
_COPIES_FEDERATION = 4  # and the global adapter and the mean of deltas


@dataclass(frozen=True)
class Segment:
    """A piece of an example's text, and whether the loss is on it."""

    text: str
    learned: bool


@dataclass(frozen=True)
class ShownExample:
    """One decoded example. `label` is a classifier's."""

    where: str
    segments: tuple[Segment, ...]
    label: str | None = None


@dataclass(frozen=True)
class PlanFacts:
    """What private training would promise: an epsilon with its conditions, by two accountants."""

    unit: str
    units: int
    expected_batch: float
    sample_rate: float
    sampling: str
    steps: int
    noise_multiplier: float
    delta: float
    epsilon: Mapping[str, float]
    adversary: str = ""
    person_epsilon: float | None = None


@dataclass(frozen=True)
class LedgerFacts:
    """What the most exposed of a party's people have spent, before the run and after, by ledger.

    `budget` is the most that they may; None where none is set.
    """

    before: float
    after: float
    delta: float
    budget: float | None


@dataclass(frozen=True)
class DryRun:
    """The facts on a run. `steps` are optimizer steps on all training data at one place.

    `ledger` has what would be charged for each purpose; empty where there is no ledger yet.
    """

    settings_hash: str
    model: str
    train_examples: int
    validation_examples: int
    test_examples: int
    bad_rows: int
    longest_tokens: int
    parameters: int
    trainable_parameters: int
    steps: int
    memory: MemoryEstimate
    example: ShownExample
    privacy: PlanFacts | None = None
    ledger: Mapping[str, LedgerFacts] = field(default_factory=dict)


@dataclass(frozen=True)
class Outline:
    """A run with everything in place but the model's weights: `model` is on the meta device."""

    config: RunConfig
    splits: Splits
    labels: Sequence[str]
    tokenizer: Any
    task: Task
    model: Any
    train: EncodedSet
    validation: EncodedSet | None
    test: EncodedSet

    @property
    def spec(self) -> Spec:
        """Names and shapes of what is trained, as `read_state` would give them."""
        trained = {n: tuple(p.shape) for n, p in self.model.named_parameters() if p.requires_grad}
        return tuple(sorted(trained.items()))


def dry_run(config: RunConfig, out: Path, *, resume: bool = False) -> DryRun:
    """What `train` would do. Raises InputError on what it would refuse; writes nothing."""
    check_loggers(config)
    check_one_place(config)
    check_private(config)
    found = outline(config)
    check_alone(out)
    check_folder(out, config, "train", resume=resume)
    if resume:
        check_local_start(out, config)
        check_progress(out, config, found.splits.facts)
    private = private_steps(config, found.splits.train)
    if private is None:
        return facts(found)
    checkpoints = CheckpointFolder(out / "checkpoints", run_hash(config, found.splits.facts))
    to_come = private.plan.steps - checkpoints.latest_step
    party = party_of(found.splits.train, private)
    asked = ask_ledger(config, [party], folder=out, run=checkpoints.run_hash, to_come=to_come)
    return replace(facts(found), privacy=plan_facts(private.plan), ledger=ledger_facts(asked))


def ledger_facts(charges: Mapping[str, Charge]) -> dict[str, LedgerFacts]:
    """Of what would be charged, what the person who answers for the data wants to know."""
    return {
        purpose: LedgerFacts(
            before=charge.before.pld,
            after=charge.after.pld,
            delta=charge.delta,
            budget=charge.budget.epsilon if charge.budget else None,
        )
        for purpose, charge in charges.items()
    }


def plan_facts(plan: ExecutionPlan) -> PlanFacts:
    """The plan's figures, the chosen accountant's epsilon first."""
    settings = plan.settings
    told = figures([plan.event()], settings.delta, settings.accountant)
    return PlanFacts(
        unit=plan.unit,
        units=plan.units,
        expected_batch=plan.expected_batch,
        sample_rate=plan.sample_rate,
        sampling="no" if plan.correlation else plan.sampling,
        steps=plan.steps,
        noise_multiplier=plan.noise_multiplier,
        delta=settings.delta,
        epsilon={figure.accountant: figure.epsilon for figure in told},
        adversary=adversary(plan),
        person_epsilon=person_epsilon(plan),
    )


def outline(config: RunConfig) -> Outline:
    """Read the data, and the model's config and tokenizer; attach the adapter to shapes."""
    splits = load_splits(config)
    labels = config.task.labels or splits.labels
    dtype = processes.base_dtype(config)
    base = load_outline(config.model, config.task.head, labels, dtype=dtype)
    check_context(base.model, base.tokenizer, config.adapter, config.task.max_length)
    task = build_task(config.task, base.tokenizer, labels)
    train, test = encode_examples(task, splits.train), encode_examples(task, splits.test)
    validation = encode_examples(task, splits.validation) if splits.validation else None
    with torch.device("meta"):
        model = attach_adapter(base.model, config.adapter, seed=config.seed, task=config.task.head)
    if config.task.packing:
        check_window(model.config, config.task.max_length)
    return Outline(config, splits, labels, base.tokenizer, task, model, train, validation, test)


def facts(outline: Outline, *, deltas_kept: int | None = None) -> DryRun:
    """What is known of the run before its first step.

    `deltas_kept` are those that a federation's rule keeps beside their mean; None: no federation.
    """
    config, parameters = outline.config, list(outline.model.parameters())
    lengths = outline.train.lengths().tolist()
    return DryRun(
        settings_hash=config.hash,
        model=config.model.path,
        train_examples=len(outline.train),
        validation_examples=len(outline.validation or ()),
        test_examples=len(outline.test),
        bad_rows=outline.splits.bad_rows.count,
        longest_tokens=max(lengths),
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        steps=steps_for(config.training, len(outline.train)),
        memory=estimate_memory(
            outline.model,
            config,
            *_largest_batch(outline, lengths),
            copies=_COPIES_TRAINING if deltas_kept is None else _COPIES_FEDERATION + deltas_kept,
        ),
        example=shown(outline.tokenizer, outline.train[0], outline.splits.train[0], outline.labels),
    )


def shown(
    tokenizer: Any, example: Encoded, row: Mapping[str, Any], labels: Sequence[str]
) -> ShownExample:
    """`example` in words, split where the loss begins or ends."""
    if "label" in row:
        text = tokenizer.decode(example.input_ids)
        return ShownExample(row["where"], (Segment(text, False),), labels[example.labels[0]])
    pairs = zip(example.input_ids, example.labels, strict=True)
    runs = itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    segments = (
        Segment(tokenizer.decode([token for token, _ in run]), learned) for learned, run in runs
    )
    return ShownExample(row["where"], tuple(segments))


def _largest_batch(outline: Outline, lengths: list[int]) -> tuple[Task, dict[str, Tensor]]:
    """The longest examples, as many as are in memory at once, and the task that takes them.

    A packed batch stands as plain rows of its shape: packing reads numbers, which shapes haven't.
    """
    training, privacy = outline.config.training, outline.config.privacy
    size = training.micro_batch_size or training.batch_size
    if outline.config.in_private_steps:
        size = privacy.max_physical_batch
    longest = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)[:size]
    batch = outline.task.collate([outline.train[index] for index in longest])
    if not outline.config.task.packing:
        return outline.task, batch
    rows, length = batch["input_ids"].shape
    settings = outline.config.task.model_copy(update={"packing": False})
    plain = build_task(settings, outline.tokenizer, outline.labels)
    return plain, plain.collate([Encoded([0] * length, [0] * length)] * rows)
