"""The settings of differential privacy."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedtune.config.section import OpenFraction, Section


class PrivacyConfig(Section):
    """Differential privacy: who adds noise, for whom, and how it is counted."""

    mode: Literal["none", "local", "distributed", "central"] = Field(
        "none",
        description="`local`: each silo clips and adds noise at every step (DP-SGD), which holds "
        "against everybody outside it. `distributed`: each silo adds a share of the noise and only "
        "the sum, under `secure_aggregation`, has all of it; it holds against the coordinator and "
        "`secure_aggregation.max_colluders` silos that help it. `central`: the coordinator, which "
        "is trusted, clips silos' deltas and adds noise to their sum; it holds against who gets "
        "the model.",
    )
    unit: Literal["record", "patient", "silo"] | None = Field(
        None,
        description="local, distributed: who is protected. `patient`: all rows of one "
        "`columns.privacy_unit`; null: patient where the data has such a column, else record. "
        "`silo` (distributed): all that a silo sends in a round, whatever it trained; its patients "
        "are charged for twice of that.",
    )
    target_epsilon: PositiveFloat | None = Field(
        None, description="Epsilon of the whole run: noise is solved for. Or `noise_multiplier`."
    )
    noise_multiplier: PositiveFloat | None = Field(
        None, le=1e6, description="Noise's standard deviation over the clipping norm."
    )
    delta: OpenFraction = Field(
        1e-5, description="Delta of the guarantee; less than one over the number of units."
    )
    accountant: Literal["pld", "prv", "rdp"] = Field(
        "pld", description="Which accountant's epsilon is stated; a second one is always told too."
    )
    clipping: Literal["flat", "per_layer", "adaptive"] = Field(
        "flat",
        description="One norm for all; one a layer; or one that follows `target_quantile` of the "
        "norms, at a cost in noise that is counted (Andrew et al. 2021).",
    )
    clipping_norm: float = Field(
        1.0,
        ge=1e-6,
        le=1e6,
        description="Most that one unit adds to a step's sum (adaptive: at the start). Far outside "
        "these bounds float32 can't tell a gradient's norm.",
    )
    target_quantile: OpenFraction = Field(
        0.5, description="adaptive: share of units whose norm is below the clipping norm."
    )
    clipping_rate: PositiveFloat = Field(
        0.2, description="adaptive: how fast the clipping norm moves (geometric update)."
    )
    count_noise: PositiveFloat | None = Field(
        None,
        description="adaptive: standard deviation of the noise on the number of units below the "
        "norm; null: a twentieth of the units a step is expected to take, and at least 1.",
    )
    sampling: Literal["poisson", "shuffle", "full"] = Field(
        "poisson",
        description="local: `poisson` takes each unit with the same chance at every step. "
        "`shuffle` gives each unit one step of every pass, drawn at random, and is counted without "
        "amplification; its passes are kept in memory, so that such a run can't be resumed. "
        "`full` takes every unit at every step.",
    )
    sample_rate: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="distributed, with a unit in the silos: chance of each unit to be in a "
        "round's step, the same in every silo, whatever its size.",
    )
    max_records_per_unit: PositiveInt = Field(
        16, le=4096, description="patient: at most so many rows of a patient are used in a step."
    )
    unit_reduction: Literal["mean", "sum"] = Field(
        "mean", description="patient: how the gradients of a patient's rows become one."
    )
    max_physical_batch: PositiveInt = Field(
        16,
        le=65_536,
        description="local, distributed: rows in memory at once; larger samples are cut.",
    )
    held_out: Literal["refuse", "public"] = Field(
        "refuse",
        description="Whether losses and metrics on held-out rows may be computed and shown: they "
        "are exact, so they tell of the people in those rows. `public` says that these rows are "
        "nobody's secret; `refuse` computes none.",
    )
    ledger: str | None = Field(
        None,
        description="Budget ledger of this machine; null: `$FEDTUNE_LEDGER`, else a file in the "
        "user's data folder. Refused where it leads past the variable or a budget in that file.",
    )
    outside_budget: bool = Field(
        False,
        description="central: the machine's budget isn't meant for this run. Such a run is charged "
        "to nobody, and refused where a budget is set unless this says so.",
    )
    server_noise: Literal["gaussian", "tree", "banded"] = Field(
        "gaussian",
        description="central: independent noise each round; or noise that is correlated over "
        "rounds (DP-FTRL), whose sum over rounds is smaller and which needs no sampling: by a "
        "binary tree or a banded matrix. Silos then take turns: each is asked in one of every "
        "`1 / federation.fraction` rounds.",
    )
    bands: PositiveInt | None = Field(
        None,
        le=4096,
        description="banded: rounds over which noise is correlated; null: the number whose sums "
        "have the least noise.",
    )

    @model_validator(mode="after")
    def _settings_belong_to_the_mode(self) -> "PrivacyConfig":
        self.refuse_idle("mode", _PRIVACY_FIELDS)
        self.refuse_idle("clipping", _CLIPPING_FIELDS)
        self.refuse_idle("server_noise", {"bands": ("banded",)})
        if self.clipping == "adaptive" and self.server_noise != "gaussian":
            raise ValueError(
                f"`clipping: adaptive` can't be used with `server_noise: {self.server_noise}`: "
                "noise of one round takes back that of another only if both were clipped alike"
            )
        if self.mode != "none" and (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                f"`mode: {self.mode}` needs one of `target_epsilon` and `noise_multiplier`"
            )
        if self.unit == "silo" and self.mode != "distributed":
            raise ValueError(
                f"`unit: silo` needs `mode: distributed`, not `mode: {self.mode}`"
                + (", whose unit is always the silo" if self.mode == "central" else "")
            )
        if self.mode == "distributed":
            self._check_distributed()
        return self

    def _check_distributed(self) -> None:
        if self.clipping != "flat":
            raise ValueError(
                f"`clipping: {self.clipping}` can't be used with `mode: distributed`: "
                "its noise is drawn for one norm, before anything is known of a sum"
            )
        if self.unit == "silo":
            self.refuse_idle("unit", _UNIT_FIELDS)
        elif self.sample_rate is None:
            raise ValueError(
                "`mode: distributed` needs `sample_rate`, the chance of each record or patient to "
                "be in a round; or `unit: silo`"
            )


_LOCAL, _PRIVATE = ("local",), ("local", "distributed", "central")
_SILOS = ("local", "distributed")
_PRIVACY_FIELDS = {
    **dict.fromkeys(
        (
            *("target_epsilon", "noise_multiplier", "delta", "accountant", "clipping"),
            *("clipping_norm", "target_quantile", "clipping_rate", "count_noise", "held_out"),
        ),
        _PRIVATE,
    ),
    **dict.fromkeys(
        ("unit", "max_records_per_unit", "unit_reduction", "max_physical_batch", "ledger"), _SILOS
    ),
    "sampling": _LOCAL,
    "sample_rate": ("distributed",),
    "outside_budget": ("central",),
    "server_noise": ("central",),
    "bands": ("central",),
}
_UNIT_FIELDS = dict.fromkeys(
    ("sample_rate", "max_records_per_unit", "unit_reduction", "max_physical_batch"),
    ("record", "patient"),
)
_CLIPPING_FIELDS = dict.fromkeys(("target_quantile", "clipping_rate", "count_noise"), ("adaptive",))
