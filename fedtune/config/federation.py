"""The settings of a federation: silos, rounds, aggregation."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedtune.config.section import BelowOne, Section

Encoding = Literal["float32", "bfloat16", "int8"]
"""How a delta travels."""


class PartitionConfig(Section):
    """How one data set is divided into silos for a simulation."""

    by: Literal["column", "iid", "dirichlet", "quantity"] = Field(
        "column",
        description="A natural column, at random, label skew, or quantity skew. In a private run "
        "each unit falls into the silos' shares by a hash of its own: no other unit moves it.",
    )
    column: str | None = Field(
        None, description="Column that names the silo (`by: column`); embedded data: `specialty`."
    )
    silos: PositiveInt = Field(8, le=100_000, description="Number of silos, unless `by: column`.")
    alpha: PositiveFloat = Field(0.5, description="Dirichlet concentration; smaller: more skew.")

    @model_validator(mode="after")
    def _settings_belong_to_the_rule(self) -> "PartitionConfig":
        self.refuse_idle("by", _PARTITION_FIELDS)
        return self


_PARTITION_FIELDS = {
    "column": ("column",),
    "silos": ("iid", "dirichlet", "quantity"),
    "alpha": ("dirichlet", "quantity"),
}


class ServerOptimizerConfig(Section):
    """How the averaged delta moves the global adapter."""

    name: Literal["none", "fedavgm", "fedadam"] = Field("none", description="Server optimizer.")
    learning_rate: PositiveFloat | None = Field(
        None,
        description="fedavgm, fedadam: server learning rate; null: 1 for fedavgm, 0.01 for "
        "fedadam, whose step moves every weight by about this much.",
    )
    momentum: BelowOne = Field(0.9, description="fedavgm: momentum.")
    beta1: BelowOne = Field(0.9, description="fedadam: first moment decay.")
    beta2: BelowOne = Field(0.99, description="fedadam: second moment decay.")
    tau: PositiveFloat = Field(1e-3, description="fedadam: adaptivity floor.")

    @property
    def rate(self) -> float:
        """The server learning rate, its default resolved."""
        return self.learning_rate or (0.01 if self.name == "fedadam" else 1.0)

    @model_validator(mode="after")
    def _settings_belong_to_the_optimizer(self) -> "ServerOptimizerConfig":
        self.refuse_idle("name", _SERVER_OPTIMIZER_FIELDS)
        return self


_SERVER_OPTIMIZER_FIELDS = {
    "learning_rate": ("fedavgm", "fedadam"),
    "momentum": ("fedavgm",),
    **dict.fromkeys(("beta1", "beta2", "tau"), ("fedadam",)),
}


NEED_ALL_AT_ONCE = ("fedex", "svd", "median", "multi_krum")
"""Rules that keep all deltas of a round until its end."""
NEED_SINGLE_DELTAS = (*NEED_ALL_AT_ONCE, "trimmed_mean", "norm_bounding")
"""Rules that a sum of deltas isn't enough for."""


class FederationConfig(Section):
    """Rounds, silos and aggregation."""

    rounds: PositiveInt = Field(10, le=100_000, description="Rounds.")
    partition: PartitionConfig = Field(default_factory=PartitionConfig)
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Share of silos sampled each round."
    )
    min_silos: PositiveInt = Field(
        2, description="A round with fewer good replies fails and the run stops."
    )
    proximal_mu: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="FedProx: weight of the pull towards the received adapter."
    )
    aggregation: Literal[
        "fedavg", "fedex", "svd", "median", "trimmed_mean", "multi_krum", "norm_bounding"
    ] = Field(
        "fedavg",
        description="`fedavg`: average what is sent. `fedex`: FedEx-LoRA, average plus the exact "
        "residual, which silos receive too. `svd`: average the products B A and truncate to "
        "`lora_r`. Against hostile silos: `median` and `trimmed_mean` of each weight, "
        "`multi_krum` (the mean of the deltas closest to others), all three unweighted; "
        "`norm_bounding` (the average of deltas scaled down to `norm_bound`).",
    )
    hostile_silos: PositiveInt = Field(
        1,
        le=100_000,
        description="trimmed_mean, multi_krum: as many silos may be hostile. `min_silos` must be "
        "at least 2f + 1 (trimmed_mean, which cuts f values at each end) or 2f + 3 (multi_krum).",
    )
    norm_bound: PositiveFloat | None = Field(
        None, description="norm_bounding: largest L2 norm of a delta; larger ones are scaled down."
    )
    delta_encoding: Encoding = Field(
        "float32",
        description="How a silo's delta travels. `bfloat16`: rounded, half the bytes. `int8`: a "
        "quarter, rounded at random so that it is right on average; what rounding took is added to "
        "the silo's next delta.",
    )
    server_optimizer: ServerOptimizerConfig = Field(default_factory=ServerOptimizerConfig)
    silo_ranks: dict[str, PositiveInt] = Field(
        default_factory=dict, description="`svd` only: silo name to a rank of at most `lora_r`."
    )
    round_timeout_seconds: PositiveFloat = Field(
        3600.0, description="Deadline of a round: later replies are not waited for."
    )
    engine: Literal["inprocess", "ray"] = Field(
        "inprocess", description="simulate: in this process, or Flower's Simulation Runtime."
    )

    @model_validator(mode="after")
    def _settings_belong_to_the_aggregation(self) -> "FederationConfig":
        self.refuse_idle("aggregation", _AGGREGATION_FIELDS)
        if self.aggregation == "norm_bounding" and self.norm_bound is None:
            raise ValueError("`aggregation: norm_bounding` needs `norm_bound`")
        needed = {
            "median": 3,
            "trimmed_mean": 2 * self.hostile_silos + 1,
            "multi_krum": 2 * self.hostile_silos + 3,
        }.get(self.aggregation, 0)
        if self.min_silos < needed:
            raise ValueError(
                f"`aggregation: {self.aggregation}` needs `min_silos` of at least {needed} to "
                f"outvote {self.hostile_silos} hostile, not {self.min_silos}"
            )
        return self


_AGGREGATION_FIELDS = {
    "hostile_silos": ("trimmed_mean", "multi_krum"),
    "norm_bound": ("norm_bounding",),
}
