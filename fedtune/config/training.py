"""The settings of the optimizer loop."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedtune.config.section import BelowOne, Section


class TrainingConfig(Section):
    """The optimizer loop. In a federation: of one silo in one round."""

    learning_rate: PositiveFloat = Field(2e-3, description="Peak learning rate.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Optimizer.")
    momentum: BelowOne = Field(0.0, description="sgd: momentum.")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(0.0, description="Weight decay.")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Decay after warm-up."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Linear warm-up steps.")
    max_steps: PositiveInt | None = Field(None, description="Optimizer steps; null: by epochs.")
    num_epochs: PositiveFloat = Field(1.0, description="Passes over the data without `max_steps`.")
    batch_size: PositiveInt = Field(16, description="Examples a step: what privacy counts.")
    micro_batch_size: PositiveInt | None = Field(
        None, description="Examples that fit in memory at once; null: `batch_size`."
    )
    max_grad_norm: PositiveFloat | None = Field(1.0, description="Gradient clipping; null: none.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="`auto`: bf16 on a GPU that has it, else fp32."
    )
    gradient_checkpointing: bool = Field(False, description="Less memory for more time.")
    eval_steps: PositiveInt | None = Field(
        None,
        description="Evaluate every n steps (train only), on the rows of "
        "`data.validation_fraction` or `data.validation_files`; never on the test set.",
    )
    early_stopping_patience: PositiveInt | None = Field(
        None,
        description="Stop after n evaluations without a lower validation loss; keep the best.",
    )
    save_steps: PositiveInt | None = Field(
        None, description="Checkpoint every n steps (train only); null: every tenth of the run."
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TrainingConfig":
        if self.micro_batch_size and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"`micro_batch_size` ({self.micro_batch_size}) is larger than "
                f"`batch_size` ({self.batch_size})"
            )
        if self.early_stopping_patience and not self.eval_steps:
            raise ValueError("`early_stopping_patience` needs `training.eval_steps`")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("`momentum` needs `optimizer: sgd`")
        if self.max_steps and self.changed("num_epochs"):
            raise ValueError("`num_epochs` needs `max_steps: null`")
        return self
