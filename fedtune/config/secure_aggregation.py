"""The settings of secure aggregation."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedtune.config.section import Section
from fedtune.config.training import TrainingConfig

_ADAM_STRIDE = 3.2  # (1 - beta1) / sqrt(1 - beta2), rounded up


class SecureAggregationConfig(Section):
    """Hide single deltas from the coordinator. `secure_aggregation: true` is `enabled: true`.

    On its own this is no differential privacy: the sum is told, and what it tells is not bounded.
    """

    enabled: bool = Field(False, description="The coordinator learns the sum and nothing else.")
    max_colluders: Annotated[int, Field(ge=0, le=10_000)] = Field(
        0, description="Silos that may help a cheating coordinator. A silo's policy can ask more."
    )
    max_dropouts: Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        None,
        description="Silos that a round may lose; a round needs more than twice as many silos, "
        "and `max_colluders` more. null: a third, or as many as that allows.",
    )
    max_weight: PositiveInt = Field(
        1,
        le=1 << 40,
        description="A silo counts by its examples, but for no more than this; 1: all alike. "
        "Set it near the largest silo's: rounding is coarser by this over the silos' mean.",
    )
    bound: PositiveFloat | None = Field(
        None,
        le=1e30,
        description="Largest absolute value of a number in a delta; larger ones are cut. Later "
        "rounds have narrower bounds, a tensor each, that follow the sums before. null: what AdamW "
        "can reach at `training.learning_rate` in `training.max_steps`.",
    )

    @model_validator(mode="after")
    def _nothing_is_idle(self) -> "SecureAggregationConfig":
        idle = [field for field in type(self).model_fields if self.changed(field)]
        if not self.enabled and idle:
            raise ValueError(f"`{idle[0]}` needs `enabled: true`")
        return self

    def dropouts(self, silos: int) -> int:
        """Silos that a round of so many may lose."""
        if self.max_dropouts is not None:
            return self.max_dropouts
        return max(0, min(silos // 3, (silos - self.max_colluders - 1) // 2))

    def bound_in(self, training: TrainingConfig) -> float:
        """The largest absolute value of a delta's numbers. Raises ValueError if none is known.

        A step of Adam moves a weight by at most the learning rate times (1 - beta1) /
        sqrt(1 - beta2) (Kingma and Ba 2015, section 2.1).
        """
        if self.bound is not None:
            return self.bound
        if training.optimizer != "adamw" or training.weight_decay or training.max_steps is None:
            raise ValueError(
                "`secure_aggregation.bound` is to be set, unless `training` has `optimizer: adamw` "
                "with `max_steps` and without `weight_decay`"
            )
        return _ADAM_STRIDE * training.learning_rate * training.max_steps
