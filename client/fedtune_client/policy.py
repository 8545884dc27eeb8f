"""What a silo allows: its own rules, checked before any of its data is touched.

A run's settings come from the coordinator, which is not trusted. Each rule that they break is told
in words, for both logs.
"""

import datetime
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedtune.config.privacy_unit import unit_of
from fedtune.config.schema import RunConfig
from fedtune.config.section import OpenFraction, Section
from fedtune.errors import InputError
from fedtune.privacy.told import rounded_up

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Clock = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
_Task = Literal["causal_lm", "sequence_classification"]
_Method = Literal["lora", "fed_sb", "ia3", "prefix_tuning", "prompt_tuning", "full"]
_Mode = Literal["none", "central", "distributed", "local"]


class BaseModelConfig(Section):
    """A base model that runs may use: where it lies here, and its digest."""

    path: str = Field(description="`embedded` or a folder of this machine.")
    sha256: Digest = Field(description="What `fedtune client digest PATH` says of it.")


class PrivacyPolicy(Section):
    """The least privacy that a run must promise this silo's people."""

    modes: list[_Mode] = Field(
        ["local"],
        min_length=1,
        description="Who may add the noise. `local`: this node itself, at every step. `none`: "
        "nobody; then whoever gets the model may learn of single rows. `distributed`: all silos "
        "together, of which each adds a share; it needs that no more than `max_colluders` of them "
        "help the coordinator. `central`: the coordinator, "
        "which sees this silo's deltas without noise.",
    )
    max_epsilon: PositiveFloat = Field(
        8.0,
        description="local: largest `target_epsilon`. distributed: largest epsilon for one of this "
        "silo's people (of `unit: silo`, what one of them has of it).",
    )
    max_delta: OpenFraction = Field(1e-5, description="local, distributed: largest delta.")
    unit: Literal["record", "patient"] = Field(
        "patient", description="local, distributed: the least that must be protected together."
    )


class HoursConfig(Section):
    """When this node trains, by its own clock and zone; `until` before `begin`: over midnight."""

    begin: Clock
    until: Clock

    @model_validator(mode="after")
    def _is_a_time(self) -> "HoursConfig":
        if self.begin == self.until:
            raise ValueError("`begin` and `until` are the same; leave `hours` out for always")
        return self


class PolicyConfig(Section):
    """A silo's own rules. What is not allowed here is refused, whatever a run says."""

    tasks: list[_Task] = Field(["causal_lm", "sequence_classification"], min_length=1)
    methods: list[_Method] = Field(["lora"], min_length=1, description="`adapter.method` of a run.")
    max_lora_r: PositiveInt = Field(64, description="Largest rank of an adapter.")
    max_steps: PositiveInt = Field(1000, description="Most steps in a round.")
    max_batch_size: PositiveInt = Field(4096, description="Most examples a step.")
    max_tokens: PositiveInt = Field(4096, description="Largest `task.max_length`.")
    max_rounds: PositiveInt = Field(100, description="Most rounds of a run.")
    privacy: PrivacyPolicy = Field(default_factory=PrivacyPolicy)
    secure_aggregation: Literal["optional", "required"] = Field(
        "optional", description="`required` refuses runs in which the coordinator sees a delta."
    )
    min_silos: PositiveInt = Field(
        3, description="With secure aggregation: fewest silos in a sum that is opened."
    )
    max_colluders: Annotated[int, Field(ge=0)] = Field(
        0, description="With secure aggregation: other silos that may help the coordinator."
    )
    hours: HoursConfig | None = Field(None, description="When to train; null: always.")
    send_metrics: bool = Field(
        False,
        description="Whether a round's mean training loss may leave, in runs without privacy.",
    )
    send_counts: bool = Field(
        False,
        description="Whether the number of examples may leave, to weigh this silo by; else it "
        "counts as one example.",
    )


def refusals(
    policy: PolicyConfig, run: RunConfig, base_known: bool, now: datetime.datetime
) -> list[str]:
    """Each rule that the run breaks, in words; empty when it may go on. `now` is local time.

    `run` is the run as it would be here, with this silo's own `data`; `base_known`: whether its
    base model is one of this silo's, by digest.
    """
    if not base_known:
        return [*_broken(policy, run, now), "its base model is not one that this silo allows"]
    return list(_broken(policy, run, now))


def _broken(policy: PolicyConfig, run: RunConfig, now: datetime.datetime) -> Iterator[str]:
    training, adapter = run.training, run.adapter
    ranked = adapter.method in ("lora", "fed_sb")
    yield from _not_among("task.name", run.task.name, policy.tasks)
    yield from _not_among("adapter.method", adapter.method, policy.methods)
    if training.max_steps is None:
        yield "training.max_steps is not set: this silo wants a run to say how many steps"
    for field, value, most in (
        ("adapter.lora_r", adapter.lora_r if ranked else 0, policy.max_lora_r),
        ("training.max_steps", training.max_steps or 0, policy.max_steps),
        ("training.batch_size", training.batch_size, policy.max_batch_size),
        ("task.max_length", run.task.max_length, policy.max_tokens),
        ("federation.rounds", run.federation.rounds, policy.max_rounds),
    ):
        if value > most:
            yield f"{field} is {value}, this silo allows {most}"
    yield from _privacy(policy.privacy, run)
    if policy.secure_aggregation == "required" and not run.secure_aggregation.enabled:
        yield "secure_aggregation is false, this silo requires it"
    if run.model.trust_remote_code:
        yield "model.trust_remote_code is true: this silo runs no code but its own release's"
    if run.adapter.init_from is not None:
        yield "adapter.init_from names a file: what a run starts from comes in its messages"
    if policy.hours is not None and not _within(policy.hours, now):
        yield (
            f"it is {now:%H:%M} here, this silo trains from {policy.hours.begin} to "
            f"{policy.hours.until}"
        )


def _privacy(policy: PrivacyPolicy, run: RunConfig) -> Iterator[str]:
    asked = run.privacy
    if asked.mode not in policy.modes:
        yield (f"privacy.mode is {asked.mode}, this silo allows {' or '.join(policy.modes)}")
    if asked.mode not in ("local", "distributed"):
        return
    if asked.mode == "distributed":
        yield from _distributed(policy, run)
    elif asked.target_epsilon is None:
        yield "privacy.target_epsilon is not set: this silo wants a run to say its epsilon"
    elif asked.target_epsilon > policy.max_epsilon:
        yield (
            f"privacy.target_epsilon is {asked.target_epsilon:g}, this silo allows "
            f"{policy.max_epsilon:g}"
        )
    if asked.delta > policy.max_delta:
        yield f"privacy.delta is {asked.delta:g}, this silo allows {policy.max_delta:g}"
    if policy.unit == "patient" and run.in_private_steps and unit_of(run) == "record":
        yield "privacy.unit is record, or no column names patients: this silo protects patients"


def _distributed(policy: PrivacyPolicy, run: RunConfig) -> Iterator[str]:
    """By its noise alone, which is the same for all silos."""
    from fedtune.privacy.plan import epsilon_of_people  # loads torch, which commands do without

    try:
        spent = epsilon_of_people(run)
    except InputError as error:
        yield f"its noise can't be: {error.problem}"
        return
    if spent > policy.max_epsilon:
        yield (
            f"its noise gives one of this silo's people an epsilon of {rounded_up(spent)}, this "
            f"silo allows {policy.max_epsilon:g}"
        )


def _not_among(field: str, value: str, allowed: Sequence[str]) -> Iterator[str]:
    if value not in allowed:
        yield f"{field} is {value}, this silo allows {' or '.join(allowed)}"


def _within(hours: HoursConfig, now: datetime.datetime) -> bool:
    time = f"{now:%H:%M}"
    if hours.begin < hours.until:
        return hours.begin <= time < hours.until
    return time >= hours.begin or time < hours.until
