"""The settings of the task: what is learned of an example."""

from typing import Literal

from pydantic import Field, model_validator

from fedtune.config.section import Section


class TaskConfig(Section):
    """What is learned."""

    name: Literal["causal_lm", "sequence_classification"] = Field(
        "causal_lm", description="The task."
    )
    max_length: int = Field(256, ge=2, le=1_048_576, description="Tokens kept of an example.")
    loss_on: Literal["completion", "all"] = Field(
        "completion",
        description="causal_lm: learn the completion (or assistant turns) only, or every token.",
    )
    packing: bool = Field(
        False,
        description="causal_lm: put a batch's examples into as few rows of `max_length` as fit. "
        "Attention never crosses from one to the next: the result is the same, for less padding.",
    )
    labels: list[str] = Field(
        default_factory=list,
        description="sequence_classification: label names in order, of which a row must have one; "
        "empty: sorted from the data, which no private run does. causal_lm with "
        "`data.label_prompt`: the labels that `fedtune synthesize` writes.",
    )

    @property
    def head(self) -> Literal["causal_lm", "sequence_classification"]:
        """The kind of model that the task trains: one that says the next token, or one class."""
        return "sequence_classification" if self.name == "sequence_classification" else "causal_lm"

    @model_validator(mode="after")
    def _settings_belong_to_the_task(self) -> "TaskConfig":
        self.refuse_idle("name", dict.fromkeys(("loss_on", "packing"), ("causal_lm",)))
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("`labels` names a label twice")
        return self
